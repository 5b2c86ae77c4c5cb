"""The guest's screen as the host looks at it: one canvas that follows the video memory while somebody watches.

Nobody watching costs nothing: KVM does not log the video memory then, and no task wakes up. While somebody does, the
log says 60 times a second which pages were written, and only what lies on them is compared; a screen on which nothing
happens is a call of KVM's each time, and half as many of them.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import trio

from tvmm.kvm.pixels import refresh
from tvmm.screen import Canvas, Surface

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Screen", "ScreenSource", "Watcher"]

PERIOD_S, IDLE_PERIOD_S = 1 / 60, 1 / 30
"""Between two looks: while something changes, and when nothing has for `IDLE_AFTER_S`."""
HURRY_PERIOD_S, HURRY_FOR_S = 0.004, 0.06
"""After a key or a movement of the pointer, whose effect somebody waits to see."""
IDLE_AFTER_S = 1.0
AT_ONCE_BYTES = 2 << 20
"""What is compared on the event loop's thread, in half a millisecond; more goes to another one."""
PAGE = 4096
DARK = Surface(640, 480, 640 * 4, 32, 0)
"""The size of a screen that shows nothing."""


class ScreenSource(Protocol):
    """A display device: what the guest shows, and where it changed."""

    @property
    def vram(self) -> memoryview:
        """All of the video memory."""

    def surface(self) -> Surface | None:
        """What is shown of it; None for nothing. Changes between two calls are the guest's affair."""

    def touched(self) -> bytes | None:
        """One byte a page of `vram` that says whether it was written since the last call; None: any may have been."""

    def watch(self, on: bool) -> None:
        """Whether `touched` will be asked for."""


class Watcher(Protocol):
    """Somebody who looks at the canvas. Called on the event loop."""

    def damaged(self, tiles: bytes) -> None:
        """Tiles of the canvas, one byte each, that have changed."""

    def resized(self) -> None:
        """`Screen.canvas` is another one, of another size; all of it is new."""


class Screen:
    """The canvas of one display, shared by all who look at it."""

    def __init__(self, source: ScreenSource) -> None:
        self.canvas = Canvas(DARK.width, DARK.height)
        self._source = source
        self._surface: Surface | None = None
        self._all = True
        self._watchers: list[Watcher] = []
        self._wake = trio.Event()
        self._looking = trio.Lock()
        self._hurry_until = self._changed_at = 0.0

    # --- who looks ---

    @asynccontextmanager
    async def watched(self, watcher: Watcher) -> AsyncIterator[None]:
        """Within the block the canvas is kept up to date, and `watcher` is told; it begins with all of it."""
        if not self._watchers:
            self._source.watch(True)
            self._all = True
        self._watchers.append(watcher)
        self._stir()
        try:
            await self.refresh()
            yield
        finally:
            self._watchers.remove(watcher)
            if not self._watchers:
                self._source.watch(False)

    def hurry(self) -> None:
        """Somebody has typed, and waits for what the guest makes of it."""
        self._hurry_until = trio.current_time() + HURRY_FOR_S
        self._stir()

    def mode_changed(self) -> None:
        """The guest shows something else of its memory. On the event loop."""
        self._all = True
        self._stir()

    def _stir(self) -> None:
        self._wake.set()
        self._wake = trio.Event()

    # --- looking ---

    async def run(self) -> None:
        """Follow the guest for as long as somebody watches. Ends by being cancelled."""
        while True:
            wake = self._wake
            if not self._watchers:
                await wake.wait()
                continue
            await self.refresh()
            with trio.move_on_after(self._period()):
                await wake.wait()

    def _period(self) -> float:
        now = trio.current_time()
        if now < self._hurry_until:
            return HURRY_PERIOD_S
        return IDLE_PERIOD_S if now > self._changed_at + IDLE_AFTER_S else PERIOD_S

    async def refresh(self) -> None:
        """Bring the canvas up to date with what the guest shows now, and tell who watches."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        surface = self._source.surface()
        # Before the memory is read: what is written from here on is seen the next time.
        touched = self._source.touched()
        if surface != self._surface or self._all:
            self._all, touched = False, None
        if surface is None:
            self._darken()
            return
        self._surface = surface
        if (surface.width, surface.height) != (self.canvas.width, self.canvas.height):
            self._resize(surface)
        if touched is not None and not any(touched):
            return
        damage = bytearray(self.canvas.columns * self.canvas.rows)
        size = surface.stride * surface.height if touched is None else PAGE * sum(map(bool, touched))
        if size <= AT_ONCE_BYTES:
            count = refresh(surface, self._source.vram, self.canvas, touched, damage)
        else:
            count = await trio.to_thread.run_sync(
                refresh, surface, self._source.vram, self.canvas, touched, damage
            )
        if count:
            self._changed_at = trio.current_time()
            tiles = bytes(damage)
            for watcher in list(self._watchers):
                watcher.damaged(tiles)

    def _darken(self) -> None:
        if self._surface is not None:
            self._surface = None
            self._resize(DARK)

    def _resize(self, surface: Surface) -> None:
        self.canvas = Canvas(surface.width, surface.height)
        self._changed_at = trio.current_time()
        for watcher in list(self._watchers):
            watcher.resized()
