"""A PS/2 mouse (IBM PS/2 Technical Reference, mouse; Microsoft's IntelliMouse and IntelliMouse Explorer).

It is a plain mouse with three buttons until the driver knocks: sample rates 200, 100, 80 set one after the
other make it one with a wheel (identity 3), 200, 200, 80 one with a wheel and five buttons (identity 4).

There is no clock here. A packet is made when the guest has room for one, so motion adds up while it does not
read; a change of buttons begins another packet, so that no click is lost. Packets wait in a queue with a bound;
when that is full, motion and buttons go into the last one, which so ends with the buttons as they are. What is
more than the counters hold is lost, and the packet's overflow bits say so.
"""

from __future__ import annotations

from typing import NamedTuple

from tvmm.devices.common import check_bits, check_bytes, check_flag, check_int, check_record, check_uint

__all__ = ["BUTTON_MASK", "COUNTER_LIMIT", "SAMPLES", "Ps2Mouse", "Ps2MouseState"]

SAMPLES = 8
"""What waits for a guest that does not read, in packets. Each ends with other buttons than the one before."""
COUNTER_LIMIT = 4095
"""Of motion that adds up, either way: a guest that comes back after a minute is not to see all of it."""
WHEEL_LIMIT = 127
ANSWER_BYTES = 5
"""The longest answer: acknowledge and a packet. A further command drops the answer to the one before."""
PACKET_BYTES = 4
STEP = 255
"""Motion in one packet: nine bits with their sign."""

BUTTON_MASK = 0x1F
"""Left, right, middle, and two at the side, from bit 0 on."""

ACK, RESEND, ERROR, SELF_TEST_PASSED = 0xFA, 0xFE, 0xFC, 0xAA
PLAIN, WHEEL, FIVE_BUTTONS = 0, 3, 4
IDENTITIES = (PLAIN, WHEEL, FIVE_BUTTONS)
KNOCKS = {bytes((200, 100, 80)): WHEEL, bytes((200, 200, 80)): FIVE_BUTTONS}
RATES = (10, 20, 40, 60, 80, 100, 200)
DEFAULT_RATE = 100
DEFAULT_RESOLUTION = 2  # 4 counts a millimetre

SCALE_1, SCALE_2, SET_RESOLUTION, STATUS, STREAM, READ_DATA = range(0xE6, 0xEC)
UNWRAP, WRAP, REMOTE, IDENTIFY, SET_RATE, ENABLE = 0xEC, 0xEE, 0xF0, 0xF2, 0xF3, 0xF4
DISABLE, DEFAULTS, RESEND_LAST, RESET = 0xF5, 0xF6, 0xFE, 0xFF
FIRST_COMMAND = SCALE_1
WITH_PARAMETER = (SET_RESOLUTION, SET_RATE)

SCALED = (0, 1, 1, 3, 6, 9)
"""What 2:1 scaling makes of small steps; larger ones are doubled."""

Sample = tuple[int, int, int, int, int]
"""Right, up, wheel towards the user, buttons, overflow (1: right or left, 2: up or down)."""


class Ps2MouseState(NamedTuple):
    """What the mouse remembers.

    `samples` wait to become packets, `packet` is the rest of one that is on the wire, `last` what the resend
    command sends again. `knock` are the last rates. `awaits` is the command whose parameter is to come, or 0.
    `failed`: the last byte was none that can be.
    """

    samples: tuple[Sample, ...] = ()
    packet: bytes = b""
    answers: bytes = b""
    last: bytes = b""
    buttons: int = 0
    identity: int = PLAIN
    knock: bytes = b""
    rate: int = DEFAULT_RATE
    resolution: int = DEFAULT_RESOLUTION
    doubled: bool = False
    reporting: bool = False
    remote: bool = False
    wrapped: bool = False
    awaits: int = 0
    failed: bool = False


class Ps2Mouse:
    """The mouse at the end of the cable. `buttons` are those that are down, as in `BUTTON_MASK`."""

    def __init__(self) -> None:
        self._load(Ps2MouseState())

    def _load(self, state: Ps2MouseState) -> None:
        self._samples = list(state.samples)
        self._packet = bytearray(state.packet)
        self._answers = bytearray(state.answers)
        self._last = state.last
        self.buttons = state.buttons
        self._identity = state.identity
        self._knock = state.knock
        self._rate = state.rate
        self._resolution = state.resolution
        self._doubled = bool(state.doubled)
        self._reporting = bool(state.reporting)
        self._remote = bool(state.remote)
        self._wrapped = bool(state.wrapped)
        self._awaits = state.awaits
        self._failed = bool(state.failed)

    # -- the hand ------------------------------------------------------------------------------------------

    @property
    def listened_to(self) -> bool:
        """Whether the guest has set it up to report."""
        return self._reporting or self._remote

    def move(self, right: int, up: int, wheel: int = 0, buttons: int = 0) -> None:
        """Motion in counts, `wheel` in notches towards the user, and the buttons as they are afterwards.

        What happens while the guest does not want reports is lost, but for the buttons' state.
        """
        buttons &= BUTTON_MASK
        if buttons != self.buttons and (right or up or wheel):
            # The way there comes first, in as many packets as it takes: nothing is dragged along.
            self.move(right, up, wheel, self.buttons)
            right = up = wheel = 0
        changed, self.buttons = buttons != self.buttons, buttons
        if not self.listened_to or not (right or up or wheel or changed):
            return
        if not self._samples or (self._samples[-1][3] != buttons and len(self._samples) < SAMPLES):
            self._samples.append((0, 0, 0, buttons, 0))
        old_right, old_up, old_wheel, _, overflow = self._samples[-1]
        right, up = old_right + right, old_up + up
        overflow |= (abs(right) > COUNTER_LIMIT) | (abs(up) > COUNTER_LIMIT) << 1
        right, up = _clamped(right, COUNTER_LIMIT), _clamped(up, COUNTER_LIMIT)
        self._samples[-1] = right, up, _clamped(old_wheel + wheel, WHEEL_LIMIT), buttons, overflow

    # -- the cable -----------------------------------------------------------------------------------------

    def has_output(self) -> bool:
        """Is there a byte to send."""
        return bool(self._answers or self._packet or (self._samples and self._streams()))

    def take(self) -> int:
        """The next byte to send; there must be one."""
        if self._answers:
            return self._answers.pop(0)
        if not self._packet:
            self._last = self._make_packet(scaled=True)
            self._packet += self._last
        return self._packet.pop(0)

    def _streams(self) -> bool:
        return self._reporting and not self._remote and not self._wrapped

    def _make_packet(self, *, scaled: bool = False) -> bytes:
        """As much of the first sample as goes into one packet; the buttons alone if there is none."""
        right, up, wheel, buttons, overflow = self._samples[0] if self._samples else (0, 0, 0, self.buttons, 0)
        now_right, now_up = _clamped(right, STEP), _clamped(up, STEP)
        now_wheel = _clamped(wheel, 7) if self._identity != PLAIN else wheel
        rest = right - now_right, up - now_up, wheel - now_wheel
        if self._samples:
            if any(rest):
                self._samples[0] = (*rest, buttons, 0)
            else:
                self._samples.pop(0)
        if scaled and self._doubled:
            now_right, now_up = _scaled(now_right), _scaled(now_up)
        first = 0x08 | buttons & 0x07 | (now_right < 0) << 4 | (now_up < 0) << 5 | overflow << 6
        packet = [first, now_right & 0xFF, now_up & 0xFF]
        if self._identity == WHEEL:
            packet.append(now_wheel & 0xFF)
        elif self._identity == FIVE_BUTTONS:
            packet.append(now_wheel & 0x0F | (buttons & 0x18) << 1)
        return bytes(packet)

    def command(self, byte: int) -> None:
        """A byte from the host: a command, or the parameter of the one before.

        A packet that is on the wire ends there; its motion is lost, and its buttons are sent once more.
        """
        if self._packet:
            self._packet.clear()
            self._repeat_buttons()
        if self._wrapped and byte not in (RESET, UNWRAP):
            self._answers[:] = bytes([byte])
            return
        if self._awaits and byte < FIRST_COMMAND:
            self._answers[:] = self._parameter(byte)
            return
        self._awaits = 0
        self._answers[:] = self._command(byte)

    def _repeat_buttons(self) -> None:
        if not self._samples and self.listened_to:
            self._samples.append((0, 0, 0, self.buttons, 0))

    def _command(self, byte: int) -> bytes:
        answer = self._answer_to(byte)
        if answer is not None:
            self._failed = False
            return answer
        self._failed = not self._failed
        return bytes([RESEND if self._failed else ERROR])

    def _answer_to(self, byte: int) -> bytes | None:
        """None for what is no command."""
        ack = bytes([ACK])
        if byte == RESET:
            self._load(Ps2MouseState(buttons=self.buttons))
            return self._say(bytes([SELF_TEST_PASSED, self._identity]))
        if byte == RESEND_LAST:
            return self._last or ack
        if byte in WITH_PARAMETER:
            self._awaits = byte
        elif byte in (SCALE_1, SCALE_2):
            self._doubled = byte == SCALE_2
        elif byte in (WRAP, UNWRAP):
            self._wrapped = byte == WRAP
        elif byte in (STREAM, REMOTE):
            self._remote = byte == REMOTE
            self._samples.clear()
        elif byte in (ENABLE, DISABLE):
            self._reporting = byte == ENABLE
            self._samples.clear()
        elif byte == DEFAULTS:
            self._set_defaults()
        elif byte == IDENTIFY:
            return self._say(bytes([self._identity]))
        elif byte == STATUS:
            return self._say(self._status())
        elif byte == READ_DATA:
            return self._say(self._make_packet())
        else:
            return None
        return ack

    def _say(self, data: bytes) -> bytes:
        """An answer that resend repeats."""
        self._last = data
        return bytes([ACK]) + data

    def _status(self) -> bytes:
        left, right, middle = (self.buttons >> bit & 1 for bit in range(3))
        flags = right | middle << 1 | left << 2 | self._doubled << 4 | self._reporting << 5 | self._remote << 6
        return bytes([flags, self._resolution, self._rate])

    def _set_defaults(self) -> None:
        self._rate, self._resolution, self._knock = DEFAULT_RATE, DEFAULT_RESOLUTION, b""
        self._doubled = self._reporting = self._remote = False
        self._samples.clear()

    def _parameter(self, value: int) -> bytes:
        fits = value in RATES if self._awaits == SET_RATE else value <= 3
        if not fits:
            # The host may try once more; then the command is over.
            self._failed = not self._failed
            if not self._failed:
                self._awaits = 0
            return bytes([RESEND if self._failed else ERROR])
        if self._awaits == SET_RATE:
            self._rate = value
            self._knock = (self._knock + bytes([value]))[-3:]
            self._identity = KNOCKS.get(self._knock, self._identity)
        else:
            self._resolution = value
        self._awaits, self._failed = 0, False
        return bytes([ACK])

    # -- state ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """To the state after power-on."""
        self._load(Ps2MouseState())

    def state(self) -> Ps2MouseState:
        """What the mouse remembers as a record."""
        return Ps2MouseState(
            tuple(self._samples), bytes(self._packet), bytes(self._answers), self._last, self.buttons, self._identity,
            self._knock, self._rate, self._resolution, self._doubled, self._reporting, self._remote, self._wrapped,
            self._awaits, self._failed,
        )  # fmt: skip

    @staticmethod
    def check(state: Ps2MouseState) -> None:
        """Raise `ValueError` with the name of the field if no mouse can be in `state`."""
        check_record(state, Ps2MouseState)
        if type(state.samples) is not tuple or len(state.samples) > SAMPLES:
            raise ValueError(f"samples is not a tuple of at most {SAMPLES}")
        for sample in state.samples:
            _check_sample(sample)
        check_bytes("packet", state.packet, 0, PACKET_BYTES)
        check_bytes("answers", state.answers, 0, ANSWER_BYTES)
        check_bytes("last", state.last, 0, PACKET_BYTES)
        check_bits("buttons", state.buttons, BUTTON_MASK)
        if check_uint("identity", state.identity, FIVE_BUTTONS) not in IDENTITIES:
            raise ValueError("identity is none that a mouse has")
        if not set(check_bytes("knock", state.knock, 0, 3)) <= set(RATES):
            raise ValueError("knock has a rate that cannot be set")
        if check_uint("rate", state.rate, 0xFF) not in RATES:
            raise ValueError("rate cannot be set")
        check_uint("resolution", state.resolution, 3)
        for field in ("doubled", "reporting", "remote", "wrapped", "failed"):
            check_flag(field, getattr(state, field))
        if check_uint("awaits", state.awaits, 0xFF) not in (0, *WITH_PARAMETER):
            raise ValueError("awaits is not a command with a parameter")

    def restore(self, state: Ps2MouseState) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        self.check(state)
        self._load(state)


def _check_sample(sample: object) -> None:
    if type(sample) is not tuple or len(sample) != 5:
        raise ValueError("samples has one that is not five numbers")
    right, up, wheel, buttons, overflow = sample
    check_int("samples: right", right, -COUNTER_LIMIT, COUNTER_LIMIT)
    check_int("samples: up", up, -COUNTER_LIMIT, COUNTER_LIMIT)
    check_int("samples: wheel", wheel, -WHEEL_LIMIT, WHEEL_LIMIT)
    check_bits("samples: buttons", buttons, BUTTON_MASK)
    check_bits("samples: overflow", overflow, 0x03)


def _clamped(value: int, limit: int) -> int:
    return max(-limit, min(limit, value))


def _scaled(step: int) -> int:
    size = abs(step)
    size = SCALED[size] if size < len(SCALED) else min(2 * size, STEP)
    return size if step >= 0 else -size
