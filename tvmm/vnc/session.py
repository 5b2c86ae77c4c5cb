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

import re
from collections import deque
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
from tvmm.vnc.encodings import Wishes
from tvmm.vnc.errors import RfbError, RfbMisuse
from tvmm.vnc.events import (
    Authenticated,
    CutText,
    Event,
    Key,
    Motion,
    Pointer,
    Rejected,
    WantsIn,
    WantsSize,
)
from tvmm.vnc.pixel_format import DEFAULT, Rect
from tvmm.vnc.security_types import Failed, Passed, Send, StartTls, Wrap
from tvmm.vnc.server_messages import FENCE_FLAGS, FENCE_REQUEST, SYNC_NEXT
from tvmm.vnc.states import READS, State, Step, after
from tvmm.vnc.updates import SizeReason, SizeStatus, UpdatePlan, Updates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tvmm.vnc.quality import QualityPolicy
    from tvmm.vnc.security_types import Codec, Exchange, SecurityType

__all__ = ["HANDSHAKE_BYTES", "OUTPUT_BYTES", "Session", "SessionOptions"]

HANDSHAKE_BYTES = 64 << 10
"""That have arrived and not been looked at, before a viewer is in. The longest thing to wait for is a key of RSA-AES."""
OUTPUT_BYTES = 1 << 20
"""That wait to be sent: with more of them nothing is read. A viewer could send fences and read no answers."""
SIZE_MAX = 8192
"""Pixels, of a screen that a viewer wishes for. What the guest's display can do is for the shell to say."""
XT_CODE_MAX = 0xFF
MOTION_ZERO = 0x7FFF
"""Where a relative pointer is that has not moved."""
VERSION = re.compile(rb"RFB (\d{3})\.(\d{3})\n")
VERSION_BYTES = 12
OURS = b"RFB 003.008\n"
FIRST_SECURITY_TYPES = (1, 2)
"""Those that 3.3 has: the server names one, and both go on without a word."""


class SessionOptions(NamedTuple):
    """What is the same for all viewers of a server."""

    view_only: bool = False
    clipboard: bool = False
    """Whether the guest has an agent for it: only then the extended clipboard is spoken."""
    resizable: bool = False
    """Whether viewers may ask for another size."""
    encodings: frozenset[int] = frozenset(encoding.first for encoding in encodings.ENCODINGS)
    """Those that the encoder makes."""
    quality: QualityPolicy | None = None


class Session:
    """One viewer's. `security_types` in the order of preference; none: nobody is let in. `peer` is its address."""

    def __init__(
        self, security_types: Sequence[SecurityType], options: SessionOptions | None = None, peer: str = ""
    ) -> None:
        self.options = options or SessionOptions()
        self.peer = peer
        self.state = State.VERSION
        self.minor_version = 8
        """3, 7 or 8."""
        self.security = ""
        self.user = ""
        self.view_only = self.options.view_only
        self._types = tuple(security_types)
        self._exchange: Exchange | None = None
        self._steps: deque[Send | StartTls | Wrap | Passed | Failed] = deque()
        self._codec: Codec | None = None
        self._sealed = bytearray()
        self._inbox = bytearray()
        self._skip = 0
        self._output: list[bytes] = []
        self._output_bytes = 0
        self._held: list[bytes] = []
        """Answers that go out after the update that is being made."""
        self._events: deque[Event] = deque()
        self._updates: Updates | None = None
        self._now_ns = 0
        self._sync_fence: ClientFence | None = None
        self._guest_text: str | None = None
        self._told_extensions: set[int] = set()
        self._capabilities_due = self._text_due = self._announcement_due = False
        self._readers: dict[State, Callable[[], bool]] = {
            State.VERSION: self._read_version,
            State.CHOICE: self._read_choice,
            State.EXCHANGE: self._read_exchange,
            State.INIT: self._read_init,
            State.RUNNING: self._read_message,
        }
        self._send(OURS)

    # Bytes.

    @property
    def reading(self) -> bool:
        """Whether the shell should read from the viewer: not while too much waits to be sent to it."""
        return self.state is not State.CLOSED and self._output_bytes < OUTPUT_BYTES

    @property
    def output_bytes(self) -> int:
        """That `take_output` would give."""
        return self._output_bytes

    def receive(self, data: bytes, now_ns: int) -> None:
        """Bytes of the viewer, at a time in nanoseconds. They are looked at by `next_event`. Raises `RfbError`."""
        self._now_ns = now_ns
        if self.state is State.CLOSED:
            return
        if self._codec is None:
            self._inbox += data
        else:
            self._sealed += data
            with self._closing():
                self._inbox += self._codec.decrypt(self._sealed)
        if self.state is not State.RUNNING and len(self._inbox) > HANDSHAKE_BYTES:
            with self._closing():
                raise RfbError(f"more than {HANDSHAKE_BYTES} bytes before it was let in")

    def take_output(self) -> list[bytes]:
        """What is to be sent, and counts as sent."""
        self._send_clipboard()
        output, self._output, self._output_bytes = self._output, [], 0
        return output

    def next_event(self) -> Event | None:
        """What the viewer wants next; None: nothing before there are more bytes or an answer. Raises `RfbError`."""
        with self._closing():
            while not self._events:
                if self.state not in READS or not self._readers[self.state]():
                    return None
            return self._events.popleft()

    def close(self) -> None:
        """Look at nothing any more."""
        self._enter(Step.END)

    # The handshake: the shell's answers.

    def tls_ready(self) -> None:
        """What is received and sent from here on goes through TLS."""
        self._enter(Step.TLS_READY)
        self._run_steps()

    def admit(self, width: int, height: int, name: str) -> None:
        """Let the viewer in, to a screen of that size."""
        self._enter(Step.ADMITTED)
        self._updates = Updates(width, height, name, self.options.quality)
        self._send(server_messages.server_init(width, height, DEFAULT, name))

    def refuse(self) -> None:
        """Do not. The protocol has no words for that after the security result."""
        if self.state is not State.ADMISSION:
            raise RfbMisuse(f"nobody asks to be let in, in the state {self.state.value!r}")
        self._enter(Step.END)

    # What happens to the screen; nothing of it matters to a viewer that is not in.

    @property
    def updates(self) -> Updates:
        """The scheduler. Raises `RfbMisuse` before the viewer is in."""
        if self._updates is None:
            raise RfbMisuse("the viewer is not in yet")
        return self._updates

    @property
    def running(self) -> bool:
        """Whether the viewer is in."""
        return self.state is State.RUNNING

    def damage(self, tiles: bytes | bytearray) -> None:
        """These tiles have changed (`tvmm.screen.Canvas.new_damage`)."""
        self.updates.add_damage(tiles)

    def resize(self, width: int, height: int, reason: int = SizeReason.SERVER) -> None:
        """The screen has this size now."""
        self.updates.resize(width, height, reason)

    def answer_size(self, status: int) -> None:
        """What came of `WantsSize`; for `SizeStatus.DONE` call `resize` with `SizeReason.THIS_VIEWER` alone."""
        self.updates.answer_size(status)

    def set_name(self, name: str) -> None:
        """The machine is called this now."""
        self.updates.facts.name = name

    def set_leds(self, leds: int) -> None:
        """Lock keys: bit 0 scroll, 1 num, 2 caps."""
        self.updates.facts.leds = leds & 7

    def set_cursor(self, cursor: server_messages.Cursor) -> None:
        """The guest's pointer looks like this. Raises `ValueError` for what cannot be sent."""
        self.updates.facts.cursor = cursor.check()

    def set_pointer(self, *, absolute: bool) -> None:
        """Whether the guest takes positions of the pointer, or ways."""
        self.updates.facts.absolute = absolute

    def bell(self) -> None:
        """Ring."""
        if self.running:
            self._answer(server_messages.bell())

    def set_clipboard(self, text: str | None) -> None:
        """The guest has this in its clipboard, or nothing. One longer than `clipboard.TEXT_BYTES` counts as nothing."""
        too_long = text is not None and len(text.encode("utf-8", "replace")) >= clipboard.TEXT_BYTES // 2
        self._guest_text = None if too_long else text
        self._announcement_due = True

    # Updates.

    def plan(self, now_ns: int, unsent_bytes: int = 0) -> UpdatePlan | None:
        """What to encode now, if anything; `unsent_bytes` have been taken and not been sent yet."""
        if self._updates is None or not self.running or self._updates.busy:
            return None
        output, plan = self._updates.plan(now_ns, unsent_bytes + self._output_bytes)
        self._send(output)
        return plan

    def part(self, count: int, chunks: Sequence[bytes], now_ns: int) -> None:
        """Some of the plan's rectangles are encoded; `finish` gets the rest."""
        for chunk in self.updates.part(count, chunks, now_ns):
            self._send(chunk)

    def finish(
        self, count: int, chunks: Sequence[bytes], now_ns: int, lossy: Iterable[Rect] | None = None
    ) -> None:
        """The plan's rectangles, as the encoder made them; see `Updates.finish`."""
        for chunk in self.updates.finish(count, chunks, now_ns, lossy):
            self._send(chunk)
        held, self._held = self._held, []
        for chunk in held:
            self._send(chunk)

    def wake_ns(self, now_ns: int) -> int | None:
        """When to call `plan` though nothing has happened."""
        if self._updates is None or not self.running or self._updates.busy:
            return None
        return self._updates.wake_ns(now_ns)

    # Inside.

    def _enter(self, step: Step) -> None:
        self.state = after(self.state, step)
        if self.state is State.CLOSED:
            self._inbox.clear()
            self._sealed.clear()

    def _closing(self) -> _Closing:
        return _Closing(self)

    def _send(self, data: bytes) -> None:
        if not data:
            return
        sealed = data if self._codec is None else self._codec.encrypt(data)
        self._output.append(sealed)
        self._output_bytes += len(sealed)

    def _answer(self, data: bytes) -> None:
        """Not in the middle of an update, and not before the one that was begun before the question came."""
        if self._updates is not None and self._updates.busy:
            self._held.append(data)
        else:
            self._send(data)

    def _take(self, count: int) -> bytes | None:
        if len(self._inbox) < count:
            return None
        data = bytes(self._inbox[:count])
        del self._inbox[:count]
        return data

    def _read_version(self) -> bool:
        data = self._take(VERSION_BYTES)
        if data is None:
            return False
        match = VERSION.fullmatch(data)
        if match is None or int(match[1]) != 3 or int(match[2]) < 3:
            self._send(bytes(4) + server_messages.pack_reason("no such version of RFB here"))
            raise RfbError(f"it answers with {data!r} and not with a version of RFB 3")
        self.minor_version = 8 if int(match[2]) >= 8 else 7 if int(match[2]) == 7 else 3
        if self.minor_version == 3:
            self._decide()
            return True
        self._send(bytes((len(self._types), *(kind.number for kind in self._types))))
        if self._types:
            self._enter(Step.OFFERED)
        else:
            self._send(server_messages.pack_reason("nobody is let in here"))
            self._reject("no security type is configured")
        return True

    def _decide(self) -> None:
        """3.3: the first type that it has."""
        chosen = next((kind for kind in self._types if kind.number in FIRST_SECURITY_TYPES), None)
        if chosen is None:
            reason = "a viewer with RFB 3.7 or 3.8 is needed here"
            self._send(bytes(4) + server_messages.pack_reason(reason))
            self._reject(reason)
            return
        self._send(chosen.number.to_bytes(4, "big"))
        self._enter(Step.DECIDED)
        self._begin(chosen)

    def _read_choice(self) -> bool:
        data = self._take(1)
        if data is None:
            return False
        chosen = next((kind for kind in self._types if kind.number == data[0]), None)
        if chosen is None:
            self._send_failure("no such security type was offered")
            raise RfbError(f"it chose security type {data[0]}, which was not offered")
        self._enter(Step.CHOSEN)
        self._begin(chosen)
        return True

    def _begin(self, chosen: SecurityType) -> None:
        self.security = chosen.name
        self._security_number = chosen.number
        self._exchange = chosen.begin(self.peer)
        self._steps.extend(self._exchange.start())
        self._run_steps()

    def _read_exchange(self) -> bool:
        assert self._exchange is not None
        before = len(self._inbox)
        steps = self._exchange.receive(self._inbox)
        self._steps.extend(steps)
        self._run_steps()
        return bool(steps) or len(self._inbox) < before

    def _run_steps(self) -> None:
        while self._steps and self.state is State.EXCHANGE:
            step = self._steps.popleft()
            if isinstance(step, Send):
                self._send(step.data)
            elif isinstance(step, Wrap):
                self._codec = step.codec
                self._sealed += self._inbox
                self._inbox[:] = step.codec.decrypt(self._sealed)
            elif isinstance(step, StartTls):
                if self._inbox:
                    raise RfbError("bytes before the TLS handshake that would count as if they had been inside")
                self._enter(Step.TLS)
                self._events.append(step)
            elif isinstance(step, Failed):
                self._send_failure(step.reason)
                self._reject(step.reason)
            else:
                self._passed(step)

    def _passed(self, step: Passed) -> None:
        self._enter(Step.PASSED)
        self._exchange = None
        self.user, self.view_only = step.user, self.view_only or step.view_only
        # Without security there was nothing that could have failed, and 3.8 is the first to say so nevertheless.
        if self._security_number != 1 or self.minor_version == 8:
            self._send(bytes(4))
        self._events.append(Authenticated(self.security, self.user, self.view_only))

    def _send_failure(self, reason: str) -> None:
        self._send((1).to_bytes(4, "big"))
        if self.minor_version == 8:
            self._send(server_messages.pack_reason(reason))

    def _reject(self, reason: str) -> None:
        self._enter(Step.END)
        self._events.append(Rejected(reason))

    def _read_init(self) -> bool:
        data = self._take(1)
        if data is None:
            return False
        self._enter(Step.CLIENT_INIT)
        self._events.append(WantsIn(bool(data[0])))
        return True

    def _read_message(self) -> bool:
        """One message, or a piece of one that is skipped; whether there was any."""
        if self._skip:
            skipped = min(self._skip, len(self._inbox))
            del self._inbox[:skipped]
            self._skip -= skipped
            return bool(skipped)
        facts = self.updates.facts
        found = client_messages.frame(
            self._inbox, extended_buttons=facts.acknowledged(encodings.EXTENDED_MOUSE_BUTTONS)
        )
        if found is None:
            return False
        if found.skip:
            self._skip = found.length
            return True
        data = self._take(found.length)
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
                self._clipboard(message)

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
            self._capabilities_due = True

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

    def _clipboard(self, message: ExtendedCutText) -> None:
        if not self._extended_clipboard:
            return
        said = clipboard.parse_clipboard(message.payload)
        if said.action == clipboard.REQUEST:
            self._text_due = bool(said.formats & clipboard.TEXT)
        elif said.action == clipboard.PEEK:
            self._announcement_due = True
        elif said.action == clipboard.NOTIFY and said.formats & clipboard.TEXT and not self.view_only:
            self._answer(clipboard.request())
        elif said.action == clipboard.PROVIDE and said.text is not None:
            self._input(CutText(said.text))

    def _send_clipboard(self) -> None:
        """Once for however often it was asked: a question has twelve bytes, and a text may have a million."""
        if self._updates is None or not self.running or self._updates.busy:
            return
        if self._capabilities_due:
            self._capabilities_due = False
            self._send(clipboard.capabilities())
        if self._announcement_due:
            self._announcement_due = False
            if self._extended_clipboard:
                self._send(clipboard.announce(text=self._guest_text is not None))
            elif self._guest_text is not None:
                self._send(server_messages.server_cut_text(self._guest_text.encode("latin-1", "replace")))
        if self._text_due:
            self._text_due = False
            if self._guest_text is not None:
                self._send(clipboard.provide(self._guest_text))


class _Closing:
    """Whatever the viewer did wrong ends its session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._session.close()
