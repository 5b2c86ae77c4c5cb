"""Viewers of one screen: a task group for each connection, around a `Session` that knows the protocol.

A viewer's reader takes in what it says; its writer is the only one that sends. The canvas is read only while it stands
still (`ScreenLike.still`): what an encoder looks at twice is the same both times. Memory for a viewer is bounded by its
session and by one update.
"""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from tvmm.vnc.lockout import Lockout, address_key
from tvmm.vnc.session import SessionOptions
from tvmm.vnc.share import Sharing
from tvmm.vnc.viewer import Viewer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from contextlib import AbstractAsyncContextManager

    from tvmm.kvm.scroll import Scroll
    from tvmm.screen import Canvas
    from tvmm.vnc.keys import Stroke
    from tvmm.vnc.lockout import Limits
    from tvmm.vnc.security_types import SecurityType
    from tvmm.vnc.share import SharePolicy

__all__ = ["End", "InputLike", "ScreenLike", "Settings", "VncServer"]

SHUTDOWN_SECONDS = 0.5
"""For those to all of them when the server ends."""


class Watcher(Protocol):
    """Somebody who looks at the canvas."""

    @property
    def copies(self) -> bool:
        """Whether it makes use of what only moved."""

    def damaged(self, tiles: bytes, scrolls: Sequence[Scroll]) -> None:
        """These tiles have changed, and this much of them only moved."""

    def resized(self) -> None:
        """The canvas has another size, or is new as a whole."""


class ScreenLike(Protocol):
    """`tvmm.wiring.screen.Screen`, as viewers need it."""

    @property
    def canvas(self) -> Canvas:
        """What it shows."""

    def watched(self, watcher: Watcher) -> AbstractAsyncContextManager[None]:
        """Within the block the canvas follows the guest."""

    def still(self) -> AbstractAsyncContextManager[None]:
        """Within the block the canvas does not change."""

    def hurry(self) -> None:
        """Somebody waits for what comes of a key."""


class InputLike(Protocol):
    """`tvmm.devices.input_hub.InputHub`, as viewers need it."""

    on_leds: list[Callable[[int], None]]

    @property
    def leds(self) -> int:
        """Bits: 0 scroll, 1 num, 2 caps lock."""

    @property
    def absolute(self) -> bool:
        """Whether the guest's pointer takes positions."""

    def key(self, code: int, down: bool, source: Hashable) -> None:
        """A key goes down or up."""

    def button(self, code: int, down: bool, source: Hashable) -> None:
        """A button of the mouse goes down or up."""

    def move_to(self, x: int, y: int) -> None:
        """The pointer is there, 0 to 0x7fff each."""

    def move_by(self, right: int, down: int) -> None:
        """The pointer has moved."""

    def wheel(self, up: int, right: int = 0) -> None:
        """The wheel was turned."""

    def release_all(self, source: Hashable) -> None:
        """The source is gone."""

    def sync(self) -> None:
        """What came since the last one happened at once."""


class Settings(NamedTuple):
    """What holds for all viewers. `types` are asked for at each connection: passwords change what is offered."""

    name: str
    types: Callable[[], Sequence[SecurityType]]
    limits: Limits
    keystroke: Callable[[int], Stroke | None]
    evdev_of_xt: Callable[[int], int | None]
    share: SharePolicy = "allow-exclusive"
    lossy: bool = True
    """Whether those who ask for JPEG get it."""
    options: SessionOptions = SessionOptions()


class End(NamedTuple):
    """Where a viewer comes from. `host` is an address, '' for a unix socket."""

    host: str = ""
    port: int = 0
    websocket: bool = False
    relay: bool = False
    """It is a machine whose guest has come here, for those who look at it there: who that is was proved before."""

    @property
    def key(self) -> str:
        """What it is counted under by `Lockout`."""
        return "relay" if self.relay else address_key(self.host)

    @property
    def text(self) -> str:
        """For messages."""
        if not self.host:
            return "a unix socket"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class VncServer:
    """All viewers of one screen. `tell` is called with a word of QEMU's for each event and the viewer, `say` with what
    the user should know.
    """

    def __init__(
        self,
        screen: ScreenLike,
        hub: InputLike,
        settings: Settings,
        tell: Callable[[str, Viewer], None] = lambda event, viewer: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.settings = settings
        self.screen = screen
        self.hub = hub
        self.viewers: list[Viewer] = []
        """Those that are connected, in order."""
        self.lockout = Lockout(settings.limits)
        self.sharing = Sharing(settings.share)
        self.tell = tell
        self.say = say
        self._accepting = trio.CancelScope()
        self._refusal = ""
        self._left = trio.Event()

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; closes the listeners. After `close` those are served that are there."""
        async with trio.open_nursery() as nursery:
            with self._accepting:
                await trio.serve_listeners(
                    self._accept, list(listeners), handler_nursery=nursery, task_status=task_status
                )

    def close(self, refusal: str) -> None:
        """Let nobody in any more: who comes by another way than `run` is told why. On the event loop."""
        self._refusal = refusal
        self._accepting.cancel()

    def redirect(self, hub: InputLike) -> None:
        """From now on all type somewhere else, where nothing is held yet. On the event loop."""
        self.hub = hub
        for viewer in self.viewers:
            viewer.hold_modifiers()

    async def move(self, screen: ScreenLike) -> None:
        """From now on all look at another screen, that of the guest that they type to."""
        self.screen = screen
        for viewer in list(self.viewers):
            await viewer.follow(screen)
        self.set_leds(self.hub.leds)
        self.set_absolute(self.hub.absolute)

    async def wait_empty(self) -> None:
        """Until nobody is connected."""
        while self.viewers:
            await self._left.wait()

    async def _accept(self, stream: trio.SocketStream) -> None:
        try:
            name = stream.socket.getpeername()
        except OSError:
            await trio.aclose_forcefully(stream)
            return
        end = End(name[0], name[1]) if isinstance(name, tuple) else End()
        if end.host:
            stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        await self.serve(stream, end)

    async def serve(self, stream: trio.abc.Stream, end: End) -> None:
        """Serve one viewer on `stream` until it is gone, and close it."""
        key = end.key
        refusal = self._refusal or self.lockout.arrive(key, time.monotonic())
        viewer = Viewer(self, stream, end, refusal)
        if not refusal:
            self.viewers.append(viewer)
            self.tell("VNC_CONNECTED", viewer)
        try:
            await viewer.run()
        except Exception:
            # A fault of tvmm's own, which somebody may know how to bring about: the guest does not pay for it.
            self.say(f"the session with {end.text} ended by a fault of tvmm's own:\n{traceback.format_exc()}")
        finally:
            if not refusal:
                self.viewers.remove(viewer)
                self.sharing.leave(viewer)
                self.hub.release_all(viewer)
                self.lockout.leave(key, was_viewer=viewer.proved)
                self.tell("VNC_DISCONNECTED", viewer)
                self._left.set()
                self._left = trio.Event()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + SHUTDOWN_SECONDS):
                await trio.aclose_forcefully(stream)

    def set_leds(self, leds: int) -> None:
        """The guest's lights are these now. On the event loop."""
        for viewer in self.viewers:
            viewer.session.set_leds(leds)
            viewer.stir()

    def set_absolute(self, absolute: bool) -> None:
        """Whether the guest's pointer takes positions now. On the event loop."""
        for viewer in self.viewers:
            viewer.session.set_pointer(absolute=absolute)
            viewer.stir()

    def drop(self, *, proved: bool) -> None:
        """Send viewers away: all, or those that have proved who they are."""
        for viewer in list(self.viewers):
            if viewer.proved or not proved:
                viewer.leave("the viewers' password has changed")


