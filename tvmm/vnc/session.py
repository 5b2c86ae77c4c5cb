"""One viewer's connection without the connection: bytes in, events and bytes out (RFC 6143, RFB 3.3, 3.7, 3.8).

A shell drives it like this::

    session.receive(data, now_ns)                 # from the socket, while session.reading
    while (event := session.next_event()) is not None:
        ...                                       # WantsIn: admit() or refuse(); StartTls: flush, wrap, tls_ready()
    plan = session.plan(now_ns, unsent_bytes)     # after events, damage, resize, and at session.wake_ns()
    if plan is not None:
        count, chunks = encoder.encode(canvas, plan.rects, plan.settings)
        session.finish(count, chunks, now_ns)
    for chunk in session.take_output(): ...       # to the socket

Events come one at a time and what follows them is not looked at before: an error comes after all that was right. After
`RfbError`, `Rejected` or `refuse` the state is closed; what there is to send may still be sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.vnc import client_messages, clipboard, encodings, server_messages
from tvmm.vnc.client_messages import (
    ClientCutText,
    ClientFence,
    EnableContinuousUpdates,
    ExtendedCutText,
    ExtendedKeyEvent,
    FramebufferUpdateRequest,
    KeyEvent,
    PointerEvent,
    SetDesktopSize,
    SetEncodings,
    SetPixelFormat,
)
from tvmm.vnc.clipboard_share import SharedClipboard
from tvmm.vnc.encodings import ENCODINGS, Wishes
from tvmm.vnc.errors import RfbError, RfbMisuse
from tvmm.vnc.events import CutText, Event, Key, Motion, Pointer, WantsSize
from tvmm.vnc.handshake import NOBODY, Handshake
from tvmm.vnc.link import Link
from tvmm.vnc.pixel_format import DEFAULT
from tvmm.vnc.server_messages import FENCE_FLAGS, FENCE_REQUEST, SYNC_NEXT
from tvmm.vnc.states import State, Step
from tvmm.vnc.updates import SizeReason, SizeStatus, UpdatePlan, Updates

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tvmm.vnc.pixel_format import Rect
    from tvmm.vnc.quality import QualityPolicy
    from tvmm.vnc.security_types import SecurityType

__all__ = ["OUTPUT_BYTES", "Session", "SessionOptions"]

OUTPUT_BYTES = 1 << 20
"""That wait to be sent: with more of them nothing is read. A viewer could send fences and read no answers."""
SIZE_MAX = 8192
"""Pixels, of a screen that a viewer wishes for. What the guest's display can do is for the shell to say."""
XT_CODE_MAX = 0xFFFF
MOTION_ZERO = 0x7FFF
"""Where a relative pointer is that has not moved."""
EVERY_ENCODING = frozenset(encoding.first for encoding in ENCODINGS)


class SessionOptions(NamedTuple):
    """What is the same for all viewers of a server."""

    view_only: bool = False
    clipboard: bool = False
    """Whether the guest has an agent for it: only then the extended clipboard is spoken."""
    resizable: bool = False
    """Whether viewers may ask for another size."""
    encodings: frozenset[int] = EVERY_ENCODING
    """Those that the encoder makes."""
    quality: QualityPolicy | None = None


class Session:
    """One viewer's. `security_types` in the order of preference; none: it is told `refusal`. `peer` is its address."""

    def __init__(
        self,
        security_types: Sequence[SecurityType],
        options: SessionOptions | None = None,
        peer: str = "",
        refusal: str = NOBODY,
    ) -> None:
        self.options = options or SessionOptions()
        self.peer = peer
        self._link = Link()
        self._handshake = Handshake(self._link, security_types, peer, refusal)
        self._events = self._handshake.events
        self._updates: Updates | None = None
        self._held_bytes = 0
        self._held: list[bytes] = []
        """Answers that go out after the update that is being made."""
        self._skip = 0
        self._now_ns = 0
        self._sync_fence: ClientFence | None = None
        self._clipboard = SharedClipboard()
        self._told_extensions: set[int] = set()

    # Who it is.

    @property
    def state(self) -> State:
        """Where the connection is."""
        return self._handshake.state

    @property
    def running(self) -> bool:
        """Whether the viewer is in."""
        return self.state is State.RUNNING

    @property
    def minor_version(self) -> int:
        """3, 7 or 8, once the viewer has said so."""
        return self._handshake.minor_version

    @property
    def security(self) -> str:
        """Name of the security type, once there is one."""
        return self._handshake.security

    @property
    def user(self) -> str:
        """Whom the security type knows the viewer as; often nobody."""
        return self._handshake.user

    @property
    def view_only(self) -> bool:
        """Whether its input is ignored."""
        return self.options.view_only or self._handshake.view_only

    # Bytes.

    @property
    def reading(self) -> bool:
        """Whether the shell should read from the viewer: not while too much waits to be sent to it."""
        waiting = self._link.output_bytes + self._held_bytes
        return self.state is not State.CLOSED and waiting < OUTPUT_BYTES

    @property
    def output_bytes(self) -> int:
        """That `take_output` would give."""
        return self._link.output_bytes

    def receive(self, data: bytes, now_ns: int) -> None:
        """Bytes of the viewer, at a time in nanoseconds. They are looked at by `next_event`. Raises `RfbError`."""
        self._now_ns = now_ns
        if self.state is State.CLOSED:
            return
        with self._closing():
            self._link.receive(data)
            if not self.running:
                self._handshake.check()

    def take_output(self) -> list[bytes]:
        """What is to be sent, and counts as sent."""
        if self._clipboard.owes and self._updates is not None and self.running and not self._updates.busy:
            for message in self._clipboard.take_due(extended=self._extended_clipboard):
                self._link.send(message)
        return self._link.take_output()

    def next_event(self) -> Event | None:
        """What the viewer wants next; None: nothing before there are more bytes or an answer. Raises `RfbError`."""
        with self._closing():
            while not self._events:
                if not (self._read_message() if self.running else self._handshake.read()):
                    return None
            return self._events.popleft()

    def close(self) -> None:
        """Look at nothing any more."""
        self._handshake.enter(Step.END)

    # The handshake: the shell's answers.

    def tls_ready(self) -> None:
        """What is received and sent from here on goes through TLS."""
        with self._closing():
            self._handshake.tls_ready()

    def admit(self, width: int, height: int, name: str) -> None:
        """Let the viewer in, to a screen of that size."""
        self._handshake.enter(Step.ADMITTED)
        self._updates = Updates(width, height, name, self.options.quality)
        self._link.send(server_messages.server_init(width, height, DEFAULT, name))

    def refuse(self) -> None:
        """Do not. The protocol has no words for that after the security result."""
        self._handshake.refuse()

    # What happens to the screen; nothing of it matters to a viewer that is not in.

    @property
    def updates(self) -> Updates:
        """The scheduler. Raises `RfbMisuse` before the viewer is in."""
        if self._updates is None:
            raise RfbMisuse("the viewer is not in yet")
        return self._updates

    def damage(self, tiles: bytes | bytearray) -> None:
        """These tiles have changed (`tvmm.screen.Canvas.new_damage`)."""
        if self._updates is not None:
            self._updates.add_damage(tiles)

    def resize(self, width: int, height: int, reason: int = SizeReason.SERVER) -> None:
        """The screen has this size now."""
        if self._updates is not None:
            self._updates.resize(width, height, reason)

    def answer_size(self, status: int) -> None:
        """What came of `WantsSize`; for `SizeStatus.DONE` call `resize` with `SizeReason.THIS_VIEWER` alone."""
        self.updates.answer_size(status)

    def set_name(self, name: str) -> None:
        """The machine is called this now."""
        if self._updates is not None:
            self._updates.facts.name = name

    def set_leds(self, leds: int) -> None:
        """Lock keys: bit 0 scroll, 1 num, 2 caps."""
        if self._updates is not None:
            self._updates.facts.leds = leds & 7

    def set_cursor(self, cursor: server_messages.Cursor) -> None:
        """The guest's pointer looks like this. Raises `ValueError` for what cannot be sent."""
        if self._updates is not None:
            self._updates.facts.cursor = cursor.check()

    def set_pointer(self, *, absolute: bool) -> None:
        """Whether the guest takes positions of the pointer, or ways."""
        if self._updates is not None:
            self._updates.facts.absolute = absolute

    def bell(self) -> None:
        """Ring."""
        if self.running:
            self._answer(server_messages.bell())

    def set_clipboard(self, text: str | None) -> None:
        """The guest has this in its clipboard, or nothing. One longer than `clipboard.TEXT_BYTES` counts as nothing."""
        self._clipboard.set_text(text)

    # Updates.

    def plan(self, now_ns: int, unsent_bytes: int = 0) -> UpdatePlan | None:
        """What to encode now, if anything; `unsent_bytes` have been taken and not been sent yet."""
        if self._updates is None or not self.running or self._updates.busy:
            return None
        output, plan = self._updates.plan(now_ns, unsent_bytes + self._link.output_bytes)
        self._link.send(output)
        return plan

    def part(self, count: int, chunks: Sequence[bytes], now_ns: int) -> None:
        """Some of the plan's rectangles are encoded; `finish` gets the rest."""
        for chunk in self.updates.part(count, chunks, now_ns):
            self._link.send(chunk)

    def finish(
        self, count: int, chunks: Sequence[bytes], now_ns: int, lossy: Iterable[Rect] | None = None
    ) -> None:
        """The plan's rectangles, as the encoder made them; see `Updates.finish`."""
        for chunk in self.updates.finish(count, chunks, now_ns, lossy):
            self._link.send(chunk)
        held, self._held, self._held_bytes = self._held, [], 0
        for chunk in held:
            self._link.send(chunk)

    def wake_ns(self, now_ns: int) -> int | None:
        """When to call `plan` though nothing has happened."""
        if self._updates is None or not self.running or self._updates.busy:
            return None
        return self._updates.wake_ns(now_ns)

    # Inside.

    def _closing(self) -> _Closing:
        return _Closing(self)

    def _answer(self, data: bytes) -> None:
        """Not in the middle of an update, and not before the one that was begun before the question came."""
        if self._updates is not None and self._updates.busy:
            self._held.append(data)
            self._held_bytes += len(data)
        else:
            self._link.send(data)

    def _read_message(self) -> bool:
        """One message, or a piece of one that is skipped; whether there was any."""
        if self._skip:
            skipped = self._link.skip(self._skip)
            self._skip -= skipped
            return bool(skipped)
        facts = self.updates.facts
        found = client_messages.frame(
            self._link.inbox, extended_buttons=facts.acknowledged(encodings.EXTENDED_MOUSE_BUTTONS)
        )
        if found is None:
            return False
        if found.skip:
            self._skip = found.length
            return True
        data = self._link.take(found.length)
        if data is None:
            return False
        fence, self._sync_fence = self._sync_fence, None
        self._handle(client_messages.parse(data))
        if fence is not None:
            self._answer_fence(fence)
        return True

    def _handle(self, message: client_messages.ClientMessage) -> None:
        match message:
            case FramebufferUpdateRequest():
                self.updates.request(message.rect, incremental=message.incremental, now_ns=self._now_ns)
            case PointerEvent():
                self._pointer(message)
            case KeyEvent():
                self._input(Key(message.keysym, 0, message.down))
            case ExtendedKeyEvent():
                xt_code = message.xt_code if message.xt_code <= XT_CODE_MAX else 0
                self._input(Key(message.keysym, xt_code, message.down))
            case ClientFence():
                self._fence(message)
            case SetPixelFormat():
                self.updates.set_pixel_format(message.pixel_format.check())
            case SetEncodings():
                self._set_encodings(message)
            case EnableContinuousUpdates():
                self.updates.set_continuous(message.rect if message.enable else None)
                if not message.enable:
                    self._answer(server_messages.end_of_continuous_updates())
            case SetDesktopSize():
                self._desktop_size(message)
            case ClientCutText():
                self._input(CutText(message.text.decode("latin-1")))
            case ExtendedCutText():
                self._clipboard_said(message)

    def _input(self, event: Event) -> None:
        if not self.view_only:
            self._events.append(event)

    def _pointer(self, message: PointerEvent) -> None:
        if self.updates.facts.told_absolute:
            x, y = min(message.x, self.updates.width - 1), min(message.y, self.updates.height - 1)
            self._input(Pointer(x, y, message.buttons))
        else:
            self._input(Motion(message.x - MOTION_ZERO, message.y - MOTION_ZERO, message.buttons))

    def _fence(self, message: ClientFence) -> None:
        if not message.flags & FENCE_REQUEST:
            self.updates.answered(self._now_ns)
        elif message.flags & SYNC_NEXT:
            self._sync_fence = message
        else:
            self._answer_fence(message)

    def _answer_fence(self, message: ClientFence) -> None:
        """Messages are dealt with one after the other, which is all that its flags ask for."""
        self._answer(server_messages.pack_fence(message.flags & FENCE_FLAGS, message.payload))

    def _set_encodings(self, message: SetEncodings) -> None:
        wishes = Wishes.of(message.encodings, self.options.encodings)
        self.updates.set_wishes(wishes)
        new = wishes.extensions - self._told_extensions
        self._told_extensions |= wishes.extensions
        if encodings.FENCE in new:
            # Tells the viewer that fences are spoken, and how far away it is.
            self.updates.congestion.mark(self._now_ns)
            self._answer(server_messages.pack_fence(FENCE_REQUEST, b""))
        if encodings.CONTINUOUS_UPDATES in new:
            self._answer(server_messages.end_of_continuous_updates())
        if self._extended_clipboard:
            self._clipboard.introduce()

    @property
    def _extended_clipboard(self) -> bool:
        return self.options.clipboard and encodings.EXTENDED_CLIPBOARD in self.updates.wishes.extensions

    def _desktop_size(self, message: SetDesktopSize) -> None:
        self.updates.check_size_answers()
        if self.view_only or not self.options.resizable:
            self.updates.answer_size(SizeStatus.PROHIBITED)
        elif not (message.screens and message.width and message.height):
            self.updates.answer_size(SizeStatus.INVALID)
        elif max(message.width, message.height) > SIZE_MAX:
            self.updates.answer_size(SizeStatus.NO_RESOURCES)
        else:
            self._events.append(WantsSize(message.width, message.height))

    def _clipboard_said(self, message: ExtendedCutText) -> None:
        if not self._extended_clipboard:
            return
        said = self._clipboard.hear(message.payload)
        if said.action == clipboard.NOTIFY and said.formats & clipboard.TEXT and not self.view_only:
            self._answer(clipboard.request())
        elif said.action == clipboard.PROVIDE and said.text is not None:
            self._input(CutText(said.text))


class _Closing:
    """Whatever the viewer did wrong ends its session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RfbError):
            self._session.close()
