"""The keyboard controller of a PC (Intel 8042, IBM PS/2 Technical Reference) with a keyboard and a mouse.

Offset 0 is the data register (port 0x60), offset 4 status and command (port 0x64); what lies between belongs
to others. The input buffer is never full: each byte is dealt with when it is written.

The output register holds one byte. Behind it one answer of the controller waits, then the queues of the keyboard
and of the mouse, so nothing here grows with what the guest does. Each byte that enters the register raises
the interrupt line of the one that it comes from, each read lowers it. The keyboard goes first: it has few bytes,
and its answers are waited for.

Power-on is as firmware leaves it, because kernels boot here without firmware: self-test done, keyboard on,
interrupt and translation to set 1 enabled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices.common import (
    check_bits,
    check_flag,
    check_int,
    check_record,
    check_uint,
    read_bytewise,
    write_bytewise,
)
from tvmm.devices.ps2_keyboard import Ps2Keyboard, Ps2KeyboardState, Translator
from tvmm.devices.ps2_mouse import Ps2Mouse, Ps2MouseState

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COMMAND", "DATA", "I8042", "I8042State"]

DATA, COMMAND = 0, 4
"""Offsets of the two registers: their ports less 0x60."""

OUTPUT_FULL = 0x01
SYSTEM_FLAG = 0x04
LAST_WAS_COMMAND = 0x08
NOT_LOCKED = 0x10
AUX_DATA = 0x20
TIMEOUT = 0x40

KEYBOARD_INTERRUPT = 0x01
AUX_INTERRUPT = 0x02
KEYBOARD_OFF = 0x10
AUX_OFF = 0x20
TRANSLATE = 0x40
CONFIG_MASK = 0x77
CONFIG_AFTER_FIRMWARE = KEYBOARD_INTERRUPT | SYSTEM_FLAG | AUX_OFF | TRANSLATE

# Output port: bit 0 is the CPU's reset line (active low), bit 1 gates A20; 4 and 5 are the interrupt lines.
PORT_RESET = 0x01
PORT_A20 = 0x02
PORT_IDLE_LINES = 0xCC

# Commands that take a byte at the data register.
WRITE_CONFIG, WRITE_OUTPUT_PORT, WRITE_OUTPUT, AUX_LOOP, WRITE_AUX = 0x60, 0xD1, 0xD2, 0xD3, 0xD4
WITH_DATA = (WRITE_CONFIG, WRITE_OUTPUT_PORT, WRITE_OUTPUT, AUX_LOOP, WRITE_AUX)

# Commands that are answered by a fixed byte.
FIXED_ANSWERS = {
    0xA4: 0xF1,  # is there a password: no
    0xA9: 0x00,  # mouse interface test: passed
    0xAB: 0x00,  # keyboard interface test: passed
    0xC0: 0x80,  # input port: keyboard lock open
}
SELF_TEST, SELF_TEST_PASSED = 0xAA, 0x55
READ_CONFIG, READ_OUTPUT_PORT = 0x20, 0xD0
PULSE = 0xF0

# Commands that change a bit of the configuration: bit, and is it set.
CONFIG_COMMANDS = {
    0xA7: (AUX_OFF, True),
    0xA8: (AUX_OFF, False),
    0xAD: (KEYBOARD_OFF, True),
    0xAE: (KEYBOARD_OFF, False),
}
A20_COMMANDS = {0xDD: False, 0xDF: True}

EMPTY = -1

PAUSE = 119
ALT_KEYS, CONTROL_KEYS = (56, 100), (29, 97)
"""evdev codes."""


class I8042State(NamedTuple):
    """The controller. `output` and `answer` are -1, or a byte and its status bits (0x60), left by 8."""

    config: int = CONFIG_AFTER_FIRMWARE
    output: int = EMPTY
    answer: int = EMPTY
    last_read: int = 0
    awaits: int = 0
    last_was_command: bool = False
    a20: bool = True
    translator_broken: bool = False
    keyboard: Ps2KeyboardState = Ps2KeyboardState()
    mouse: Ps2MouseState = Ps2MouseState()


class I8042:
    """Controller, keyboard and mouse.

    `keyboard_irq` and `aux_irq` are called at the rising edges of IRQ 1 and IRQ 12, `on_reset` when the guest
    pulls the CPU's reset line. The A20 gate reads back and does nothing else.
    """

    def __init__(
        self,
        keyboard_irq: Callable[[], None],
        aux_irq: Callable[[], None],
        on_reset: Callable[[], None],
    ) -> None:
        self._keyboard_irq = keyboard_irq
        self._aux_irq = aux_irq
        self._on_reset = on_reset
        self.keyboard = Ps2Keyboard()
        self.mouse = Ps2Mouse()
        self.on_room: Callable[[], None] = _ignore
        """Called when the guest has taken a byte, so that there may be room for a key."""
        self.on_leds: Callable[[], None] = _ignore
        """Called when the guest has set the keyboard's lights to something else."""
        self._translator = Translator()
        self._load(I8042State())

    def _load(self, state: I8042State) -> None:
        self._config = state.config
        self._output = state.output
        self._answer = state.answer
        self._last_read = state.last_read
        self._awaits = state.awaits
        self._last_was_command = bool(state.last_was_command)
        self._a20 = bool(state.a20)
        self._translator.broken = bool(state.translator_broken)
        self.keyboard.restore(state.keyboard)
        self.mouse.restore(state.mouse)
        self._keyboard_line, self._aux_line = self._lines()

    # -- the guest's side ----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`, as byte reads one after the other; all ones between the registers."""
        return read_bytewise(self._read_byte, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """`size` bytes at `offset`, as byte writes one after the other."""
        write_bytewise(self._write_byte, offset, size, value)

    def _read_byte(self, offset: int) -> int:
        if offset == COMMAND:
            return self._status()
        if offset != DATA:
            return 0xFF
        if self._output != EMPTY:
            self._last_read = self._output & 0xFF
            self._output = EMPTY
            self._settle()
        byte = self._last_read
        self._fill()
        self.on_room()
        return byte

    def _write_byte(self, offset: int, value: int) -> None:
        if offset == COMMAND:
            self._last_was_command = True
            self._awaits = value if value in WITH_DATA else 0
            self._command(value)
        elif offset == DATA:
            self._last_was_command = False
            awaits, self._awaits = self._awaits, 0
            if awaits:
                self._data(awaits, value)
            else:
                # Talking to the keyboard turns its interface on.
                self._config &= ~KEYBOARD_OFF
                leds = self.keyboard.leds
                self.keyboard.command(value)
                if self.keyboard.leds != leds:
                    self.on_leds()
        else:
            return
        self._fill()

    def _status(self) -> int:
        status = NOT_LOCKED | self._config & SYSTEM_FLAG
        if self._last_was_command:
            status |= LAST_WAS_COMMAND
        if self._output != EMPTY:
            status |= OUTPUT_FULL | self._output >> 8
        return status

    def _command(self, command: int) -> None:
        if command in FIXED_ANSWERS:
            self._answer = FIXED_ANSWERS[command]
        elif command == READ_CONFIG:
            self._answer = self._config
        elif command == SELF_TEST:
            self._config |= SYSTEM_FLAG
            self._answer = SELF_TEST_PASSED
        elif command in CONFIG_COMMANDS:
            bit, on = CONFIG_COMMANDS[command]
            self._config = self._config | bit if on else self._config & ~bit
        elif command in A20_COMMANDS:
            self._a20 = A20_COMMANDS[command]
        elif command == READ_OUTPUT_PORT:
            self._answer = self._output_port()
        elif command >= PULSE and not command & PORT_RESET:
            self._on_reset()

    def _data(self, command: int, value: int) -> None:
        if command == WRITE_CONFIG:
            self._config = value & CONFIG_MASK
        elif command == WRITE_OUTPUT_PORT:
            self._a20 = bool(value & PORT_A20)
            if not value & PORT_RESET:
                self._on_reset()
        elif command == WRITE_OUTPUT:
            self._answer = value
        elif command == AUX_LOOP:
            self._answer = value | AUX_DATA << 8
        else:
            self._config &= ~AUX_OFF
            self.mouse.command(value)

    def _output_port(self) -> int:
        port = PORT_IDLE_LINES | PORT_RESET | (PORT_A20 if self._a20 else 0)
        keyboard, aux = self._lines()
        return port | keyboard << 4 | aux << 5

    # -- the other side ------------------------------------------------------------------------------------

    def key(self, codes: bytes) -> bool:
        """Type a key: its whole make or break code in set 2. False, and nothing done, if it does not fit."""
        taken = self.keyboard.key(codes)
        self._fill()
        return taken

    def press(self, code: int, down: bool) -> bool:
        """The key with this evdev code goes down or up; down once more is a repeat. False if it does not fit now.

        Keys that PS/2 keyboards do not have count as taken.
        """
        from tvmm.devices.keys import set2_codes  # not at the top: few machines are typed on

        held = self.keyboard.down
        codes = set2_codes(
            code, down, alt=not held.isdisjoint(ALT_KEYS), control=not held.isdisjoint(CONTROL_KEYS)
        )
        if codes and not self.key(codes):
            return False
        if codes and down and code != PAUSE:
            held.add(code)
        else:
            held.discard(code)
        return True

    def move(self, right: int, up: int, wheel: int, buttons: int) -> None:
        """The mouse moves, its wheel turns towards the user, its buttons are now these; see `Ps2Mouse.move`."""
        self.mouse.move(right, up, wheel, buttons)
        self._fill()

    # -- inside --------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Put the next byte into the output register if that is empty, and bring the lines up to date."""
        if self._output == EMPTY:
            if self._answer != EMPTY:
                self._output, self._answer = self._answer, EMPTY
            while self._output == EMPTY and self.keyboard.has_output() and not self._config & KEYBOARD_OFF:
                byte = self.keyboard.take()
                translated = self._translator.feed(byte) if self._config & TRANSLATE else byte
                self._output = EMPTY if translated is None else translated
            if self._output == EMPTY and self.mouse.has_output() and not self._config & AUX_OFF:
                self._output = self.mouse.take() | AUX_DATA << 8
        self._settle()

    def _lines(self) -> tuple[bool, bool]:
        """Levels of the keyboard's and the mouse's interrupt line."""
        if self._output == EMPTY:
            return False, False
        if self._output >> 8 & AUX_DATA:
            return False, bool(self._config & AUX_INTERRUPT)
        return self._config & (KEYBOARD_INTERRUPT | KEYBOARD_OFF) == KEYBOARD_INTERRUPT, False

    def _settle(self) -> None:
        keyboard_before, aux_before = self._keyboard_line, self._aux_line
        self._keyboard_line, self._aux_line = self._lines()
        if self._keyboard_line and not keyboard_before:
            self._keyboard_irq()
        if self._aux_line and not aux_before:
            self._aux_irq()

    @property
    def lines_up(self) -> tuple[bool, bool]:
        """Whether IRQ 1 and IRQ 12 are up: a shell may raise the edges once more after `restore`."""
        return self._keyboard_line, self._aux_line

    # -- state ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """To the state after power-on and firmware."""
        self._load(I8042State())
        self.on_leds()

    def state(self) -> I8042State:
        """Controller, keyboard and mouse as a record."""
        return I8042State(
            self._config, self._output, self._answer, self._last_read, self._awaits, self._last_was_command,
            self._a20, self._translator.broken, self.keyboard.state(), self.mouse.state(),
        )  # fmt: skip

    def restore(self, state: I8042State) -> None:
        """Take over `state`. No edge is raised: one that came before is in the interrupt controller's state.

        Raises `ValueError` with the name of the field for a record that cannot be, and then changes nothing.
        """
        check_record(state, I8042State)
        check_bits("config", state.config, CONFIG_MASK)
        for field, value in (("output", state.output), ("answer", state.answer)):
            if check_int(field, value, EMPTY, 0x60FF) != EMPTY:
                check_bits(field, value, (AUX_DATA | TIMEOUT) << 8 | 0xFF)
        check_uint("last_read", state.last_read, 0xFF)
        if check_uint("awaits", state.awaits, 0xFF) not in (0, *WITH_DATA):
            raise ValueError("awaits is not a command that takes data")
        check_flag("last_was_command", state.last_was_command)
        check_flag("a20", state.a20)
        check_flag("translator_broken", state.translator_broken)
        Ps2Keyboard.check(state.keyboard)
        Ps2Mouse.check(state.mouse)
        self._load(state)
        self.on_leds()


def _ignore() -> None:
    """Before anybody listens."""
