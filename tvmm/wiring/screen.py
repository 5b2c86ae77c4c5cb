"""The guest's screen as the host looks at it: one canvas that follows the video memory while somebody watches.

Nobody watching costs nothing: KVM does not log the video memory then, and no task wakes up. While somebody does, the
log says 60 times a second which pages were written, and only what lies on them is compared; a screen on which nothing
happens is a call of KVM's each time, and fewer of them.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Protocol

import trio

from tvmm.errors import HostError
from tvmm.kvm.pixels import refresh
from tvmm.kvm.scroll import ScrollFinder
from tvmm.screen import Canvas, Surface
from tvmm.vnc.turns import Turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tvmm.kvm.scroll import Scroll

__all__ = ["Screen", "Watcher"]

PERIOD_S = 1 / 60
"""Between two looks, while something changes."""
HURRY_PERIOD_S, HURRY_FOR_S = 0.004, 0.06
"""After a key or a movement of the pointer, whose effect somebody waits to see."""
IDLE_S = ((10.0, 1 / 8), (1.0, 1 / 30))
"""And when nothing has for so long. Keys and pointers end it at once."""
AT_ONCE_BYTES = 2 << 20
"""What is compared on the event loop's thread, in half a millisecond; more goes to another one."""
PAGE = 4096
DARK = (640, 480)
"""The size of a screen that shows nothing, in pixels."""


class Log(Protocol):
    """`tvmm.kvm.vram.VramWatch`."""

    def turn_on(self) -> None:
        """Written pages are noted from now on. Raises `HostError`."""

    def turn_off(self) -> None:
        """No longer."""

    def take(self) -> bytes | None:
        """A byte for each page of 4 KiB, 1 if it was written since the last call; None: any may have been."""


class Memory(Protocol):
    """`tvmm.kvm.vram.VramMemory`."""

    @property
    def watch(self) -> Log:
        """Which pages were written."""

    @property
    def view(self) -> memoryview:
        """All of it."""


class ScreenSource(Protocol):
    """`tvmm.wiring.display.Display`: what the guest shows, and where it changed."""

    @property
    def vram(self) -> Memory:
        """The video memory."""

    @property
    def surface(self) -> Surface | None:
        """What is shown of it; None for nothing."""


class Watcher(Protocol):
    """Somebody who looks at the canvas. Called on the event loop."""

    @property
    def copies(self) -> bool:
        """Whether it makes use of what only moved, which takes time to find."""

    def damaged(self, tiles: bytes, scrolls: Sequence[Scroll]) -> None:
        """Tiles of the canvas, one byte each, that have changed, and what of them only moved, if `copies`."""

    def resized(self) -> None:
        """`Screen.canvas` has another size, or the same, and all of it is new."""


class Screen:
    """The canvas of one display, shared by all who look at it."""

    def __init__(self, source: ScreenSource, size: tuple[int, int] = DARK) -> None:
        """`size` is that of a guest that shows nothing."""
        self._dark = size
        self.canvas = Canvas(*size)
        self._source = source
        self._surface: Surface | None = None
        self._all = True
        self._watchers: list[Watcher] = []
        self._wake = trio.Event()
        self._turns = Turns()
        self._finder: ScrollFinder | None = None
        self._hurry_until = self._changed_at = 0.0

    # --- who looks ---

    @asynccontextmanager
    async def watched(self, watcher: Watcher) -> AsyncIterator[None]:
        """Within the block the canvas is kept up to date, and `watcher` is told; it begins with all of it."""
        if not self._watchers:
            # Without a log all of it is compared each time.
            with suppress(HostError):
                self._source.vram.watch.turn_on()
            self._all = True
        self._watchers.append(watcher)
        self._stir()
        try:
            await self.refresh()
            yield
        finally:
            self._watchers.remove(watcher)
            if not self._watchers:
                with suppress(HostError):
                    self._source.vram.watch.turn_off()

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Within the block the canvas does not change. Others may read it at the same time."""
        async with self._turns.looking():
            yield

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
        idle = now - self._changed_at
        return next((period for least, period in IDLE_S if idle > least), PERIOD_S)

    async def refresh(self) -> None:
        """Bring the canvas up to date with what the guest shows now, and tell who watches."""
        async with self._turns.changing():
            try:
                await self._look()
            except BaseException:
                # What was taken from the log was not looked at, and others watch, too.
                self._all = True
                raise

    async def _look(self) -> None:
        surface, vram = self._source.surface, self._source.vram
        # Before the memory is read: what is written from here on is seen the next time.
        touched = vram.watch.take()
        if surface != self._surface or self._all:
            self._all, touched = False, None
        if surface is None:
            self._darken()
            return
        self._surface = surface
        if (surface.width, surface.height) != (self.canvas.width, self.canvas.height):
            self._resize(surface.width, surface.height)
        if touched is not None and 1 not in touched:
            return
        damage = bytearray(self.canvas.columns * self.canvas.rows)
        size = surface.stride * surface.height if touched is None else PAGE * touched.count(1)
        if size <= AT_ONCE_BYTES:
            count = refresh(surface, vram.view, self.canvas, touched, damage)
        else:
            count = await trio.to_thread.run_sync(refresh, surface, vram.view, self.canvas, touched, damage)
        if count:
            self._changed_at = trio.current_time()
            tiles, scrolls = bytes(damage), self._scrolls(damage)
            for watcher in list(self._watchers):
                watcher.damaged(tiles, scrolls)

    def _scrolls(self, damage: bytearray) -> Sequence[Scroll]:
        if not any(watcher.copies for watcher in self._watchers):
            # One that has missed a change would be wrong the next time.
            self._finder = None
            return ()
        if self._finder is None:
            self._finder = ScrollFinder()
        return self._finder.update(self.canvas, damage)

    def _darken(self) -> None:
        if self._surface is not None:
            self._surface = None
            self._resize(*self._dark)

    def _resize(self, width: int, height: int) -> None:
        self.canvas.resize(width, height)
        self._changed_at = trio.current_time()
        for watcher in list(self._watchers):
            watcher.resized()
