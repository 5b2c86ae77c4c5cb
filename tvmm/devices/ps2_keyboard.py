"""A PS/2 keyboard (IBM PS/2 Technical Reference), and the scancode translation of its controller.

The keyboard speaks scancode set 2, and set 1 when told to. Set 3 is refused, as by many keyboards; drivers
fall back. It sends answers before keys, so that a driver that sets the keyboard up gets through while
somebody types.
"""

from __future__ import annotations

from typing import NamedTuple

from tvmm.devices.common import check_bytes, check_flag, check_record, check_uint

__all__ = ["KEY_QUEUE_BYTES", "Ps2Keyboard", "Ps2KeyboardState", "Translator"]

KEY_QUEUE_BYTES = 15
"""What waits for a guest that does not read. With the controller's output register it makes 16 bytes: Linux
takes a controller that holds more for none (it empties it first, and gives up after 16)."""
ANSWER_BYTES = 3
"""The longest answer, acknowledge and identity. A further command drops the answer to the one before."""

ACK, RESEND, ECHO, SELF_TEST_PASSED = 0xFA, 0xFE, 0xEE, 0xAA
IDENTITY = b"\xab\x83"
BREAK_PREFIX = 0xF0

SET_LEDS, SCANCODE_SET, IDENTIFY, SET_RATE = 0xED, 0xF0, 0xF2, 0xF3
ENABLE, DISABLE, DEFAULTS = 0xF4, 0xF5, 0xF6
ALL_KEYS = range(0xF7, 0xFB)
KEY_TYPE = range(0xFB, 0xFE)
RESEND_LAST, RESET = 0xFE, 0xFF
FIRST_COMMAND = SET_LEDS
WITH_PARAMETER = (SET_LEDS, SCANCODE_SET, SET_RATE, *KEY_TYPE)

DEFAULT_RATE = 0x2B  # 10.9 characters a second after half a second
DEFAULT_SET = 2

# Set 2 to set 1, as the controller's own ROM has it: index is the code of set 2, up to 0x7f.
SET2_TO_SET1 = bytes.fromhex(
    "ff43413f3d3b3c58644442403e0f2959"
    "65382a701d10025a66712c1f1e11035b"
    "672e2d201205045c68392f211413065d"
    "693130232215075e6a7232241608095f"
    "6b332517180b0a606c34352627190c61"
    "6d7328741a0d626e3a361c1b752b6376"
    "55567778797a0e7b7c4f7d4b477e7f6f"
    "5253504c4d480145574e514a37494654"
)
# Two keys have codes above: F7 and the one that Alt makes of Print Screen.
SET2_TO_SET1_HIGH = {0x83: 0x41, 0x84: 0x54}


class Translator:
    """Turns a stream of set 2 into set 1: the break prefix becomes bit 7 of the code that follows it."""

    def __init__(self) -> None:
        self.broken = False

    def feed(self, byte: int) -> int | None:
        """The byte to pass on for `byte`, or None if it was a prefix that the next one takes in."""
        if byte == BREAK_PREFIX:
            self.broken = True
            return None
        code = SET2_TO_SET1[byte] if byte < 0x80 else SET2_TO_SET1_HIGH.get(byte, byte)
        # Answers and the prefixes 0xe0 and 0xe1 are above 0x80 and pass as they are; the prefix goes with a
        # code.
        if self.broken and byte not in (0xE0, 0xE1):
            self.broken = False
            code |= 0x80
        return code


class Ps2KeyboardState(NamedTuple):
    """What the keyboard remembers. `awaits` is the command whose parameter is to come, or 0.

    `down` are the evdev codes of the keys that the guest has been told are down, rising. `used`: it has sent a command.
    """

    keys: bytes = b""
    answers: bytes = b""
    scanning: bool = True
    scancode_set: int = DEFAULT_SET
    leds: int = 0
    rate: int = DEFAULT_RATE
    awaits: int = 0
    last_sent: int = 0
    down: bytes = b""
    used: bool = False


class Ps2Keyboard:
    """The keyboard at the end of the cable. `leds` has scroll, num and caps lock in bits 0, 1 and 2.

    `down` are evdev codes of keys that were typed down and not up, kept by whoever turns keys into scancodes; `used` is
    whether the guest has talked to it since power-on.
    """

    def __init__(self) -> None:
        self._load(Ps2KeyboardState())

    def _load(self, state: Ps2KeyboardState) -> None:
        self._keys = bytearray(state.keys)
        self._answers = bytearray(state.answers)
        self._scanning = bool(state.scanning)
        self._set = state.scancode_set
        self.leds = state.leds
        self._rate = state.rate
        self._awaits = state.awaits
        self._last_sent = state.last_sent
        self.down = set(state.down)
        self.used = bool(state.used)

    def key(self, codes: bytes) -> bool:
        """Type a key: its make or break code in set 2. False, and none of it kept, if it does not fit.

        What is typed while the guest has the keyboard turned off is lost, as on any keyboard; that counts as
        taken.
        """
        if not self._scanning:
            return True
        if self._set == 1:
            translator = Translator()
            codes = bytes(code for code in map(translator.feed, codes) if code is not None)
        if len(self._keys) + len(codes) > KEY_QUEUE_BYTES:
            return False
        self._keys += codes
        return True

    def has_output(self) -> bool:
        """Is there a byte to send."""
        return bool(self._answers or self._keys)

    def take(self) -> int:
        """The next byte to send; there must be one."""
        self._last_sent = (self._answers or self._keys).pop(0)
        return self._last_sent

    def command(self, byte: int) -> None:
        """A byte from the host: a command, or the parameter of the one before."""
        self.used = True
        awaits, self._awaits = self._awaits, 0
        if awaits and byte < FIRST_COMMAND:
            self._answers[:] = self._parameter(awaits, byte)
            return
        self._answers[:] = self._command(byte)

    def _command(self, byte: int) -> bytes:
        if byte == ECHO:
            return bytes([ECHO])
        if byte == RESEND_LAST:
            return bytes([self._last_sent])
        if byte == IDENTIFY:
            return bytes([ACK]) + IDENTITY
        if byte == RESET:
            self._load(Ps2KeyboardState(down=self._held(), used=True))
            return bytes([ACK, SELF_TEST_PASSED])
        if byte in WITH_PARAMETER:
            self._awaits = byte
        elif byte in (ENABLE, DISABLE, DEFAULTS):
            if byte != ENABLE:
                self._set, self._rate = DEFAULT_SET, DEFAULT_RATE
            if byte != DEFAULTS:
                self._scanning = byte == ENABLE
            self._keys.clear()
        elif byte not in ALL_KEYS:
            return bytes([RESEND])
        return bytes([ACK])

    def _parameter(self, command: int, value: int) -> bytes:
        if command == SET_LEDS:
            self.leds = value & 0x07
        elif command == SET_RATE:
            self._rate = value & 0x7F
        elif command == SCANCODE_SET:
            if value == 0:
                return bytes([ACK, self._set])
            if value not in (1, 2):
                return bytes([RESEND])
            self._set = value
            self._keys.clear()
        return bytes([ACK])

    def reset(self) -> None:
        """To the state after power-on."""
        self._load(Ps2KeyboardState())

    def state(self) -> Ps2KeyboardState:
        """What the keyboard remembers as a record."""
        return Ps2KeyboardState(
            bytes(self._keys), bytes(self._answers), self._scanning, self._set, self.leds, self._rate,
            self._awaits, self._last_sent, self._held(), self.used,
        )  # fmt: skip

    def _held(self) -> bytes:
        return bytes(sorted(self.down))

    @staticmethod
    def check(state: Ps2KeyboardState) -> None:
        """Raise `ValueError` with the name of the field if no keyboard can be in `state`."""
        check_record(state, Ps2KeyboardState)
        check_bytes("keys", state.keys, 0, KEY_QUEUE_BYTES)
        check_bytes("answers", state.answers, 0, ANSWER_BYTES)
        check_flag("scanning", state.scanning)
        if check_uint("scancode_set", state.scancode_set, 2) == 0:
            raise ValueError("scancode_set is 0")
        check_uint("leds", state.leds, 0x07)
        check_uint("rate", state.rate, 0x7F)
        if check_uint("awaits", state.awaits, 0xFF) not in (0, *WITH_PARAMETER):
            raise ValueError("awaits is not a command with a parameter")
        check_uint("last_sent", state.last_sent, 0xFF)
        down = check_bytes("down", state.down, 0, 0x100)
        if down != bytes(sorted(set(down))):
            raise ValueError("down does not rise")
        check_flag("used", state.used)

    def restore(self, state: Ps2KeyboardState) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        self.check(state)
        self._load(state)
