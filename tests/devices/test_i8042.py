"""Keyboard controller and keyboard."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.devices.i8042 import COMMAND, DATA, I8042
from tvmm.devices.ps2_keyboard import KEY_QUEUE_BYTES, SET2_TO_SET1, Ps2Keyboard

OUTPUT_FULL, INPUT_FULL, SYSTEM, AUX, TIMEOUT = 0x01, 0x02, 0x04, 0x20, 0x40
XLATE, KBD_OFF, AUX_OFF, KBD_INT, AUX_INT = 0x40, 0x10, 0x20, 0x01, 0x02
LINUX_BUFFER_SIZE = 16


class Keyboard:
    """The controller, and counters on what it calls."""

    def __init__(self) -> None:
        self.edges = self.aux_edges = self.resets = 0
        self.chip = I8042(self._irq, self._aux_irq, self._reset)

    def _irq(self) -> None:
        self.edges += 1

    def _aux_irq(self) -> None:
        self.aux_edges += 1

    def _reset(self) -> None:
        self.resets += 1

    @property
    def status(self) -> int:
        """Port 0x64."""
        return self.chip.read(COMMAND, 1)

    def command(self, *values: int) -> list[int]:
        """A controller command with its data bytes; what it answers."""
        self.chip.write(COMMAND, 1, values[0])
        for value in values[1:]:
            self.chip.write(DATA, 1, value)
        return self.drain()

    def send(self, *values: int) -> list[int]:
        """Bytes to the keyboard; all that comes back."""
        got = []
        for value in values:
            self.chip.write(DATA, 1, value)
            got += self.drain()
        return got

    def drain(self) -> list[int]:
        """Read the data register until it is empty."""
        got = []
        while self.status & OUTPUT_FULL:
            got.append(self.chip.read(DATA, 1))
            assert len(got) < 100
        return got


@pytest.fixture
def keyboard() -> Keyboard:
    """A controller after power-on."""
    return Keyboard()


# -- controller ----------------------------------------------------------------------------------------------


def test_idle_status(keyboard: Keyboard) -> None:
    """At rest both buffers are empty, the self-test is done, the lock open, and nothing interrupts."""
    assert keyboard.status == 0x14
    assert (keyboard.edges, keyboard.aux_edges, keyboard.resets) == (0, 0, 0)


def test_self_tests(keyboard: Keyboard) -> None:
    """Controller and keyboard interface pass, there is no password, the lock is open."""
    assert keyboard.command(0xAA) == [0x55]
    assert keyboard.command(0xAB) == [0x00]
    assert keyboard.command(0xA4) == [0xF1]
    assert keyboard.command(0xC0) == [0x80]


def test_command_byte(keyboard: Keyboard) -> None:
    """The command byte reads back, reserved bits as zero, and bit 2 shows in the status."""
    assert keyboard.command(0x20) == [0x65]
    keyboard.command(0x60, 0xFB)
    assert keyboard.command(0x20) == [0x73]
    assert not keyboard.status & SYSTEM


@pytest.mark.parametrize(("off", "on", "bit"), [(0xAD, 0xAE, KBD_OFF), (0xA7, 0xA8, AUX_OFF)])
def test_interface_switches(keyboard: Keyboard, off: int, on: int, bit: int) -> None:
    """The disable and enable commands are bits of the command byte."""
    keyboard.command(off)
    assert keyboard.command(0x20)[0] & bit
    keyboard.command(on)
    assert not keyboard.command(0x20)[0] & bit


def test_status_tells_command_from_data(keyboard: Keyboard) -> None:
    """Bit 3 of the status is the port of the last write."""
    keyboard.command(0xAE)
    assert keyboard.status & 0x08
    keyboard.send(0xEE)
    assert not keyboard.status & 0x08


def test_a_further_command_calls_off_the_one_before(keyboard: Keyboard) -> None:
    """A command that waits for its data byte is forgotten when another comes; the byte is the keyboard's."""
    keyboard.chip.write(COMMAND, 1, 0x60)
    keyboard.chip.write(COMMAND, 1, 0xAE)
    assert keyboard.send(0xEE) == [0xEE]
    assert keyboard.command(0x20) == [0x65]


def test_no_interrupt_while_the_interface_is_off(keyboard: Keyboard) -> None:
    """Drivers that turn the keyboard off to talk to the controller are not interrupted by its answers."""
    keyboard.command(0xAD)
    assert keyboard.command(0xAA) == [0x55]
    assert keyboard.edges == 0


def test_reset_by_pulse_and_by_output_port(keyboard: Keyboard) -> None:
    """0xfe, and clearing bit 0 of the output port, pull the reset line; other pulses do not."""
    keyboard.command(0xFE)
    assert keyboard.resets == 1
    keyboard.command(0xD1, 0xCF)
    keyboard.command(0xFF)
    keyboard.command(0xFD)
    assert keyboard.resets == 1
    keyboard.command(0xD1, 0x02)
    assert keyboard.resets == 2


def test_output_port_has_a20(keyboard: Keyboard) -> None:
    """The A20 bit reads back, also after the short commands for it."""
    assert keyboard.command(0xD0) == [0xCF]
    keyboard.command(0xD1, 0xCD)
    assert keyboard.command(0xD0) == [0xCD]
    keyboard.command(0xDF)
    assert keyboard.command(0xD0) == [0xCF]
    keyboard.command(0xDD)
    assert keyboard.command(0xD0) == [0xCD]


def test_output_buffer_can_be_written(keyboard: Keyboard) -> None:
    """0xd2 makes a byte appear as if the keyboard had sent it, with its interrupt."""
    edges = keyboard.edges
    assert keyboard.command(0xD2, 0x1C) == [0x1C]
    assert keyboard.edges == edges + 1


def test_answers_do_not_pile_up(keyboard: Keyboard) -> None:
    """A guest that commands and never reads gets the first answer and the last."""
    for _ in range(1000):
        keyboard.chip.write(COMMAND, 1, 0x20)
    keyboard.chip.write(COMMAND, 1, 0xAA)
    assert keyboard.drain() == [0x65, 0x55]


def test_reading_an_empty_register_repeats(keyboard: Keyboard) -> None:
    """Without data the data register gives what it gave last."""
    keyboard.command(0xAA)
    assert keyboard.chip.read(DATA, 1) == 0x55


def test_ports_between_are_not_ours(keyboard: Keyboard) -> None:
    """Offsets 1 to 3 belong to others and read all ones."""
    assert keyboard.chip.read(DATA, 4) == 0xFFFF_FF00


# -- mouse port ----------------------------------------------------------------------------------------------


def test_linux_finds_the_mouse_port(keyboard: Keyboard) -> None:
    """What Linux tries: the loop-back byte comes back as mouse data, also with an interrupt; the switches work."""
    keyboard.chip.write(COMMAND, 1, 0xD3)
    keyboard.chip.write(DATA, 1, 0x5A)
    assert keyboard.status & AUX
    assert keyboard.drain() == [0x5A]
    assert not keyboard.status & AUX
    assert keyboard.command(0xA9) == [0x00]
    keyboard.command(0x60, KBD_INT | AUX_INT | XLATE)
    edges = keyboard.edges
    assert keyboard.command(0xD3, 0xA5) == [0xA5]
    assert (keyboard.aux_edges, keyboard.edges) == (1, edges)


def test_a_byte_to_the_mouse_is_answered_by_it(keyboard: Keyboard) -> None:
    """As mouse data, on IRQ 12, untranslated; talking to the mouse turns its interface on."""
    keyboard.command(0x60, KBD_INT | AUX_INT | AUX_OFF | XLATE)
    keyboard.chip.write(COMMAND, 1, 0xD4)
    keyboard.chip.write(DATA, 1, 0xFF)
    assert keyboard.status & (OUTPUT_FULL | AUX | TIMEOUT) == OUTPUT_FULL | AUX
    assert keyboard.drain() == [0xFA, 0xAA, 0x00]
    assert keyboard.aux_edges == 3
    assert not keyboard.command(0x20)[0] & AUX_OFF


def test_keyboard_goes_before_the_mouse(keyboard: Keyboard) -> None:
    """Bytes of both arrive whole and marked, those of the keyboard first."""
    keyboard.command(0x60, KBD_INT | AUX_INT | XLATE)
    for byte in (0xF4,):
        keyboard.command(0xD4, byte)
    keyboard.chip.move(1, 2, 0, 0)
    keyboard.chip.key(b"\xe0\x75")
    got = []
    while keyboard.status & OUTPUT_FULL:
        got.append((bool(keyboard.status & AUX), keyboard.chip.read(DATA, 1)))
    assert got == [(True, 0x08), (False, 0xE0), (False, 0x48), (True, 0x01), (True, 0x02)]


def test_keys_by_their_evdev_codes(keyboard: Keyboard) -> None:
    """Keys go down and up, Print Screen with Alt is another code, and what is down is known."""
    keyboard.chip.press(56, True)
    keyboard.chip.press(99, True)
    assert keyboard.chip.keyboard.down == {56, 99}
    keyboard.chip.press(99, False)
    keyboard.chip.press(56, False)
    assert bytes(keyboard.drain()).hex() == "3854d4b8"
    assert keyboard.chip.press(119, True)
    assert keyboard.chip.keyboard.down == set()
    assert keyboard.chip.press(0x110, True)
    assert bytes(keyboard.drain()).hex() == "e11d45e19dc5"


def test_who_listens_hears_of_lights_and_room(keyboard: Keyboard) -> None:
    """Lights are told when they change, also by a reset; room when a byte was read."""
    heard: list[str] = []
    keyboard.chip.on_leds = lambda: heard.append(f"leds {keyboard.chip.keyboard.leds}")
    keyboard.send(0xED, 0x02)
    keyboard.send(0xED, 0x02)
    keyboard.send(0xFF)
    assert heard == ["leds 2", "leds 0"]
    keyboard.chip.on_room = lambda: heard.append("room")
    keyboard.chip.key(b"\x1c")
    keyboard.drain()
    assert heard[2:] == ["room"]


# -- keyboard ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ([0xEE], [0xEE]),
        ([0xED, 0x07], [0xFA, 0xFA]),
        ([0xF3, 0x20], [0xFA, 0xFA]),
        ([0xF2], [0xFA, 0xAB, 0x83]),
        ([0xF4], [0xFA]),
        ([0xF5], [0xFA]),
        ([0xF6], [0xFA]),
        ([0xFA], [0xFA]),
        ([0xFF], [0xFA, 0xAA]),
        ([0xF0, 0x00], [0xFA, 0xFA, 0x02]),
        ([0xF0, 0x01, 0xF0, 0x00], [0xFA, 0xFA, 0xFA, 0xFA, 0x01]),
        ([0xF0, 0x03], [0xFA, 0xFE]),
        ([0xED, 0xF2], [0xFA, 0xFA, 0xAB, 0x83]),
        ([0xED, 0x07, 0x07], [0xFA, 0xFA, 0xFE]),
        ([0x12], [0xFE]),
        ([0xEF], [0xFE]),
        ([0xEE, 0xFE], [0xEE, 0xEE]),
    ],
)
def test_keyboard_commands(keyboard: Keyboard, sent: list[int], answer: list[int]) -> None:
    """Each command of the keyboard and its answer, untranslated; a command in place of a parameter counts."""
    keyboard.command(0x60, KBD_INT)
    assert keyboard.send(*sent) == answer


def test_identity_is_translated(keyboard: Keyboard) -> None:
    """With translation on the second byte of the identity arrives as drivers know it from real machines."""
    assert keyboard.send(0xF2) == [0xFA, 0xAB, 0x41]


def test_leds_are_kept(keyboard: Keyboard) -> None:
    """The lock lights are known to whoever draws them, and go out at a reset of the keyboard."""
    keyboard.send(0xED, 0x05)
    assert keyboard.chip.keyboard.leds == 5
    keyboard.send(0xFF)
    assert keyboard.chip.keyboard.leds == 0


def test_linux_brings_the_keyboard_up(keyboard: Keyboard) -> None:
    """The controller's and the keyboard's drivers in Linux find both and leave them ready for keys."""
    assert keyboard.drain() == []
    config = keyboard.command(0x20)[0]
    assert config & XLATE
    config = (config | KBD_OFF) & ~KBD_INT
    keyboard.command(0x60, config)
    assert keyboard.command(0x20) == [config]
    assert keyboard.command(0xAA) == [0x55]
    keyboard.command(0x60, config & ~KBD_OFF | KBD_INT)
    edges = keyboard.edges
    assert keyboard.send(0xF2) == [0xFA, 0xAB, 0x41]
    assert keyboard.edges == edges + 3
    assert keyboard.send(0xED, 0x00, 0xF3, 0x00, 0xF4) == [0xFA] * 5
    keyboard.chip.key(b"\x1c")
    assert keyboard.drain() == [0x1E]


# -- keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("set2", "set1"),
    [
        ("1c", "1e"),
        ("f01c", "9e"),
        ("5a", "1c"),
        ("e075", "e048"),
        ("e0f075", "e0c8"),
        ("83", "41"),
        ("f083", "c1"),
        ("e11477e1f014f077", "e11d45e19dc5"),
        ("e012e07c", "e02ae037"),
    ],
)
def test_keys_are_translated(keyboard: Keyboard, set2: str, set1: str) -> None:
    """Make and break codes, extended keys and Pause arrive in set 1, one interrupt for each byte."""
    assert keyboard.chip.key(bytes.fromhex(set2))
    assert bytes(keyboard.drain()).hex() == set1
    assert keyboard.edges == len(set1) // 2


def test_keys_without_translation(keyboard: Keyboard) -> None:
    """With translation off set 2 arrives as typed, and set 1 if the guest has chosen that on the keyboard."""
    keyboard.command(0x60, KBD_INT)
    keyboard.chip.key(b"\xf0\x1c")
    assert keyboard.drain() == [0xF0, 0x1C]
    keyboard.send(0xF0, 0x01)
    keyboard.chip.key(b"\xe0\xf0\x75")
    assert keyboard.drain() == [0xE0, 0xC8]


def test_translation_table_is_a_permutation() -> None:
    """Each code below 0x80 has one of its own in set 1, so that every key can be told from the others."""
    assert sorted(SET2_TO_SET1[1:]) == list(range(1, 0x80))


def test_keys_wait_while_the_interface_is_off(keyboard: Keyboard) -> None:
    """A disabled interface holds keys back and does not interrupt; talking to the keyboard enables it."""
    keyboard.command(0xAD)
    keyboard.chip.key(b"\x1c")
    assert (keyboard.status & OUTPUT_FULL, keyboard.edges) == (0, 0)
    assert keyboard.send(0xEE) == [0xEE, 0x1E]


def test_keys_without_interrupt(keyboard: Keyboard) -> None:
    """With the interrupt off a key waits in the register; enabling it then interrupts."""
    keyboard.command(0x60, XLATE)
    keyboard.chip.key(b"\x1c")
    assert (keyboard.status & OUTPUT_FULL, keyboard.edges) == (OUTPUT_FULL, 0)
    keyboard.chip.write(COMMAND, 1, 0x60)
    keyboard.chip.write(DATA, 1, XLATE | KBD_INT)
    assert keyboard.edges == 1


def test_disabled_scanning_drops_keys(keyboard: Keyboard) -> None:
    """After 0xf5 keys are lost, after 0xf4 they come again."""
    keyboard.send(0xF5)
    assert keyboard.chip.key(b"\x1c")
    assert keyboard.drain() == []
    keyboard.send(0xF4)
    keyboard.chip.key(b"\x1c")
    assert keyboard.drain() == [0x1E]


def test_enabling_the_keyboard_forgets_old_keys(keyboard: Keyboard) -> None:
    """Keys typed before the driver was there are gone when it enables the keyboard."""
    keyboard.command(0xAD)
    keyboard.chip.key(b"\x1c")
    assert keyboard.send(0xF4) == [0xFA]


def test_answers_come_before_keys(keyboard: Keyboard) -> None:
    """A driver that sets the keyboard up gets its answers while somebody types."""
    for _ in range(3):
        keyboard.chip.key(b"\x1c")
    keyboard.chip.write(DATA, 1, 0xED)
    assert keyboard.drain() == [0x1E, 0xFA, 0x1E, 0x1E]


def test_queue_is_bounded_and_keys_stay_whole(keyboard: Keyboard) -> None:
    """With nobody reading, keys are refused whole, and Linux' emptying of the controller comes to an end."""
    taken = 0
    for _ in range(1000):
        taken += keyboard.chip.key(b"\xe0\xf0\x75")
    assert taken < 1000
    got = keyboard.drain()
    assert got == [0xE0, 0xC8] * (len(got) // 2)
    for _ in range(1000):
        keyboard.chip.key(b"\x1c")
    assert len(keyboard.drain()) == KEY_QUEUE_BYTES + 1 <= LINUX_BUFFER_SIZE


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([b"\x1c", b"\xf0\x1c", b"\xe0\x75", b"\xe0\xf0\x75"]), max_size=40), st.data())
def test_every_accepted_key_arrives_in_order(keys: list[bytes], data: st.DataObject) -> None:
    """However reading and typing interleave, what was accepted arrives whole, in order, with an edge per byte."""
    keyboard, got, expected = Keyboard(), [], bytearray()
    codes = {b"\x1c": "1e", b"\xf0\x1c": "9e", b"\xe0\x75": "e048", b"\xe0\xf0\x75": "e0c8"}
    for key in keys:
        if keyboard.chip.key(key):
            expected += bytes.fromhex(codes[key])
        for _ in range(data.draw(st.integers(0, 3))):
            if keyboard.status & OUTPUT_FULL:
                got.append(keyboard.chip.read(DATA, 1))
    got += keyboard.drain()
    assert bytes(got) == expected
    assert keyboard.edges == len(expected)


def test_keyboard_by_itself_round_trips() -> None:
    """The keyboard's own record restores it."""
    first, second = Ps2Keyboard(), Ps2Keyboard()
    first.key(b"\x1c")
    first.command(0xED)
    second.restore(first.state())
    assert second.state() == first.state()
    assert [second.take(), second.take(), second.has_output()] == [0xFA, 0x1C, False]
    second.reset()
    assert second.state() == Ps2Keyboard().state()
