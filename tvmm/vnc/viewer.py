"""One viewer's connection: its way in, its reader, and its writer."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, cast

import trio

from tvmm.vnc.encoder import SUPPORTED, Encoder, EncoderSettings, encode_scrolls
from tvmm.vnc.encodings import COPY_RECT
from tvmm.vnc.errors import RfbError
from tvmm.vnc.events import Authenticated, Key, Motion, Pointer, Rejected, StartTls, WantsIn, WantsSize
from tvmm.vnc.keys import MODIFIERS, Keyboard
from tvmm.vnc.lockout import HANDSHAKE_SECONDS, LOGIN_SECONDS
from tvmm.vnc.pointer import PointerTracker
from tvmm.vnc.security_types import NoSecurity
from tvmm.vnc.session import Session
from tvmm.vnc.updates import SizeStatus

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from tvmm.kvm.scroll import Scroll
    from tvmm.screen import Canvas
    from tvmm.vnc.events import Event
    from tvmm.vnc.pointer import Steps
    from tvmm.vnc.server import End, ScreenLike, VncServer
    from tvmm.vnc.updates import UpdatePlan

__all__ = ["MADE", "Viewer"]

MADE = frozenset(SUPPORTED) | {COPY_RECT}
"""Encodings that the encoder makes."""
READ_BYTES = 16 << 10
GOODBYE_SECONDS = 1.0
"""For the last words to a viewer that is sent away."""
STALL_SECONDS = 60.0
"""For a viewer to take an update, or a part of one that the network holds: behind that it is gone."""
AT_ONCE_PIXELS = 64 << 10
"""Encoded on the event loop's thread, in less than a change of threads takes; more goes to another one."""

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, RfbError)


class _Leaves(Exception):
    """The connection is over, by somebody's will."""


class Viewer:
    """A connection of `server`. `refusal`: it is not taken, and is told why."""

    def __init__(self, server: VncServer, stream: trio.abc.Stream, end: End, refusal: str = "") -> None:
        settings = server.settings
        self.end = end
        # A browser has shown the token of the console's address, and noVNC speaks few security types.
        types = (NoSecurity(),) if end.websocket or end.relay else settings.types()
        if refusal:
            self.session = Session((), settings.options, end.text, refusal)
        else:
            self.session = Session(types, settings.options, end.text)
        self.proved = False
        """It is who it says it is; the lock-out counts it as a viewer."""
        self.since = time.monotonic()
        self.bytes_sent = self.frames = 0
        self._server = server
        self._screen = server.screen
        self._watch = AsyncExitStack()
        self._watching = False
        self._turning = trio.Lock()
        """Held while it turns from one screen to another."""
        self._stream = stream
        self._encoder = Encoder()
        self._keyboard = Keyboard(settings.keystroke, settings.evdev_of_xt)
        self._pointer = PointerTracker()
        self._scrolls: list[Scroll] = []
        self._news = trio.Event()
        self._sent = trio.Event()
        self._scope = trio.CancelScope()
        self.reason = refusal
        """Why it went, or was sent away; '' if it went by itself."""

    # --- life ---

    async def run(self) -> None:
        """Until it is gone, or sent away."""
        with self._scope:
            try:
                with trio.fail_after(LOGIN_SECONDS):
                    wish = await self._come_in()
                async with self._watch:
                    try:
                        self._watching = True
                        async with self._turning:
                            await self._watch.enter_async_context(self._screen.watched(self))
                        # The canvas is up to date from here on: not all viewers understand that a size changes later.
                        self._admit(wish)
                        await self._stay()
                    finally:
                        self._watching = False
            except* (*_GONE, _Leaves) as group:
                self.reason = self.reason or _told(group)
        with trio.move_on_after(GOODBYE_SECONDS, shield=True):
            try:
                await self._flush()
            except _GONE:
                return

    def leave(self, reason: str) -> None:
        """Send it away. On the event loop."""
        self.reason = reason
        self._scope.cancel()

    async def follow(self, screen: ScreenLike) -> None:
        """Look at another screen from now on."""
        async with self._turning:
            await self._watch.aclose()
            self._screen = screen
            self.resized()
            if self._watching:
                await self._watch.enter_async_context(screen.watched(self))
            if not self._watching:
                # It has left while it was waited for the screen.
                await self._watch.aclose()

    def hold_modifiers(self) -> None:
        """Shift and its like, which the viewer's user still holds down, are held in the server's hub; others repeat."""
        for code in self._keyboard.held:
            if code in MODIFIERS:
                self._server.hub.key(code, True, self)

    # --- for the screen ---

    @property
    def copies(self) -> bool:
        """See `Watcher`."""
        return self.session.running and self.session.updates.wishes.copy_rect

    def damaged(self, tiles: bytes, scrolls: Sequence[Scroll]) -> None:
        """See `Watcher`."""
        # What moved can be copied by a viewer that has all of it as it was, and only until the next change.
        self._scrolls = []
        if scrolls and self.copies:
            columns = self._screen.canvas.columns
            lacking = self.session.updates.lacking()
            self._scrolls = [scroll for scroll in scrolls if not scroll.unseen(lacking, columns)]
        self.session.damage(tiles)
        self.stir()

    def resized(self) -> None:
        """See `Watcher`."""
        canvas = self._screen.canvas
        self._scrolls = []
        self.session.resize(canvas.width, canvas.height)
        self.stir()

    def stir(self) -> None:
        """There may be something to send."""
        self._news.set()

    # --- the way in ---

    async def _come_in(self) -> WantsIn:
        """Up to the viewer's last message before it is in."""
        session = self.session
        await self._flush()
        while True:
            while (event := session.next_event()) is not None:
                if isinstance(event, WantsIn):
                    return event
                await self._handle_early(event)
                await self._flush()
            await self._flush()
            # A person may have to type a password; until then only programs talk.
            with trio.fail_after(HANDSHAKE_SECONDS if not session.security else LOGIN_SECONDS):
                data = bytes(await self._stream.receive_some(READ_BYTES))
            if not data:
                raise _Leaves
            session.receive(data, time.monotonic_ns())

    async def _handle_early(self, event: Event) -> None:
        server = self._server
        key = self.end.key
        if isinstance(event, StartTls):
            await self._flush()
            stream = trio.SSLStream(self._stream, cast("ssl.SSLContext", event.context), server_side=True)
            with trio.fail_after(HANDSHAKE_SECONDS):
                await stream.do_handshake()
            self._stream = stream
            self.session.tls_ready()
        elif isinstance(event, Authenticated):
            self.proved = server.lockout.passed(key, view_only=event.view_only)
            if not self.proved:
                raise _Leaves("there are too many viewers")
        elif isinstance(event, Rejected):
            if self.session.security:
                # Who guesses waits for the answer, and longer each time. Who was not asked did not guess.
                await trio.sleep(server.lockout.failed(key, time.monotonic()))
            raise _Leaves(event.reason)

    def _admit(self, event: WantsIn) -> None:
        server = self._server
        admission = server.sharing.enter(self, shared=event.shared)
        if admission.refusal:
            self.session.refuse()
            raise _Leaves(admission.refusal)
        for other in admission.leaving:
            assert isinstance(other, Viewer)
            other.leave("another viewer wants the screen for itself")
        canvas = self._screen.canvas
        self.session.admit(canvas.width, canvas.height, server.settings.name)
        self.session.set_leds(server.hub.leds)
        self.session.set_pointer(absolute=server.hub.absolute)
        server.tell("VNC_INITIALIZED", self)

    # --- in ---

    async def _stay(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            await self._read()
            nursery.cancel_scope.cancel()

    async def _read(self) -> None:
        session = self.session
        while True:
            while (event := session.next_event()) is not None:
                self._handle(event)
            self.stir()
            while not session.reading:
                await self._sent.wait()
            data = bytes(await self._stream.receive_some(READ_BYTES))
            if not data:
                raise _Leaves
            session.receive(data, time.monotonic_ns())

    def _handle(self, event: Event) -> None:
        hub = self._server.hub
        if isinstance(event, Key):
            for press in self._keyboard.key(event, hub.leds):
                hub.key(press.code, press.down, self)
        elif isinstance(event, Pointer | Motion):
            canvas = self._screen.canvas
            self._point(self._pointer.pointer(event, canvas.width, canvas.height))
        elif isinstance(event, WantsSize):
            self.session.answer_size(SizeStatus.PROHIBITED)
            return
        else:
            return
        hub.sync()
        self._screen.hurry()

    def _point(self, steps: Steps) -> None:
        hub = self._server.hub
        if steps.position is not None:
            hub.move_to(*steps.position)
        if steps.motion is not None:
            hub.move_by(*steps.motion)
        for code, down in steps.buttons:
            hub.button(code, down, self)
        if steps.wheel != (0, 0):
            hub.wheel(*steps.wheel)

    async def _write(self) -> None:
        session = self.session
        while True:
            self._news = trio.Event()
            news = self._news
            if await self._update():
                self.frames += 1
                await self._flush()
                continue
            await self._flush()
            wake = session.wake_ns(time.monotonic_ns())
            seconds = float("inf") if wake is None else max(wake - time.monotonic_ns(), 0) / 1e9
            with trio.move_on_after(seconds):
                await news.wait()

    async def _update(self) -> bool:
        """Make one, if one may go; whether there is one."""
        session, screen = self.session, self._screen
        async with screen.still():
            if screen is not self._screen:
                # Another one since it was waited for: the session has its size.
                return True
            scrolls, self._scrolls = self._scrolls, []
            plan = self._plan(scrolls)
            if plan is None:
                return False
            if sum(rect.area for rect in plan.rects) <= AT_ONCE_PIXELS:
                count, chunks = self._encode(screen.canvas, plan)
            else:
                count, chunks = await trio.to_thread.run_sync(self._encode, screen.canvas, plan)
        copies, copied = encode_scrolls(scrolls)
        session.finish(copies + count, [*copied, *chunks], time.monotonic_ns(), self._encoder.lossy)
        return True

    def _plan(self, scrolls: Sequence[Scroll]) -> UpdatePlan | None:
        """What to encode beside `scrolls`, which are copied first."""
        damage = self.session.updates.damage
        before = bytes(damage.tiles) if scrolls else b""
        for scroll in scrolls:
            scroll.settle(damage.tiles, damage.columns)
        plan = self.session.plan(time.monotonic_ns())
        if plan is None and scrolls:
            # It is not its time yet, and the picture may have changed until then.
            damage.add(before)
        return plan

    def _encode(self, canvas: Canvas, plan: UpdatePlan) -> tuple[int, list[bytes]]:
        # All but whether parts of the screen may be copied.
        settings = EncoderSettings(*plan.settings[:6])
        if not self._server.settings.lossy:
            settings = settings._replace(quality=None)
        return self._encoder.encode(canvas, plan.rects, settings)

    async def _flush(self) -> None:
        output = self.session.take_output()
        if not output:
            return
        data = b"".join(output)
        with trio.fail_after(STALL_SECONDS):
            await self._stream.send_all(data)
        self.bytes_sent += len(data)
        self._sent.set()
        self._sent = trio.Event()


def _told(group: BaseExceptionGroup[BaseException]) -> str:
    """What ended it, in words; '' if it went by itself."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _told(error)
        if isinstance(error, RfbError | _Leaves):
            return str(error)
    return ""
