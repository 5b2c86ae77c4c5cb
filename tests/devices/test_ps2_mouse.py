"""The PS/2 mouse behind its controller, through a driver as systems have it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.ps2_driver import MouseDriver
from tvmm.devices.ps2_mouse import COUNTER_LIMIT, SAMPLES, Ps2Mouse, Ps2MouseState

LEFT, RIGHT, MIDDLE, SIDE, EXTRA = (1 << bit for bit in range(5))


@pytest.fixture
def mouse() -> MouseDriver:
    """After power-on."""
    return MouseDriver()


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ("ff", "faaa00"),
        ("f2", "fa00"),
        ("e9", "fa000264"),
        ("f4 e9", "fa fa200264"),
        ("e7 e803 f314 e9", "fa fafa fafa fa100314"),
        ("e7 e6 e9", "fa fa fa000264"),
        ("f0 e9", "fa fa400264"),
        ("f4 f6 e9", "fa fa fa000264"),
        ("eb", "fa080000"),
        ("ee 12 f4 ee ec f2", "fa 12 f4 ee fa fa00"),
        ("ee ff", "fa faaa00"),
        ("f315", "fafe"),
        ("f315 16", "fafe fc"),
        ("f315 64 e9", "fafe fa fa000264"),
        ("e804", "fafe"),
        ("e8f2", "fafa00"),
        ("12", "fe"),
        ("12 13 14", "fe fc fe"),
        ("f2 fe", "fa00 00"),
        ("fe", "fa"),
        ("f3c8f364f350 f2", "fafafafafafa fa03"),
        ("f3c8f3c8f350 f2", "fafafafafafa fa04"),
        ("f3c8f364f350f3c8f3c8f350 f2", "fafafafafafafafafafafafa fa04"),
        ("f3c8f350f350 f2", "fafafafafafa fa00"),
        ("f3c8f364f350 f6 f2 ff", "fafafafafafa fa fa03 faaa00"),
    ],
)
def test_commands(mouse: MouseDriver, sent: str, answer: str) -> None:
    """Each command and its answer; what is wrong is asked for again, then refused; knocks change the identity."""
    assert mouse.talk(bytes.fromhex(sent)) == bytes.fromhex(answer)


def test_motion_and_buttons(mouse: MouseDriver) -> None:
    """A packet for each change of buttons, with motion in nine bits; motion that waits goes into the last packet."""
    mouse.talk(b"\xf4")
    for right, up, buttons in ((1, -1, 0), (0, 0, LEFT), (0, 0, LEFT | RIGHT | MIDDLE), (-255, 255, 7), (0, 0, 0)):
        mouse.chip.move(right, up, 0, buttons)
    assert mouse.drain().hex() == "2801ff" "090000" "1f01ff" "080000"


def test_wheel_and_side_buttons(mouse: MouseDriver) -> None:
    """The fourth byte: the wheel alone, or with two more buttons."""
    mouse.talk(bytes.fromhex("f3c8f364f350f4"))
    mouse.chip.move(0, 0, -1, SIDE)
    assert mouse.drain().hex() == "080000ff" "08000000"
    mouse.talk(bytes.fromhex("f3c8f3c8f350f4"))
    mouse.chip.move(0, 0, 0, SIDE | EXTRA)
    mouse.chip.move(0, 0, 2, SIDE)
    mouse.chip.move(0, 0, -20, SIDE)
    assert mouse.packets() == [(0, 0, 0, SIDE | EXTRA), (0, 0, 2, SIDE | EXTRA)] + [
        (0, 0, wheel, SIDE) for wheel in (-7, -7, -6)
    ]


def test_nothing_is_dragged(mouse: MouseDriver) -> None:
    """A long way with a click at its end is walked with the button up."""
    mouse.talk(b"\xf4")
    mouse.chip.move(600, 0, 0, LEFT)
    assert mouse.packets() == [(255, 0, 0, 0), (255, 0, 0, 0), (90, 0, 0, 0), (0, 0, 0, LEFT)]


def test_no_reports_before_they_are_wanted(mouse: MouseDriver) -> None:
    """Motion is lost then, and after disabling; which buttons are down is not."""
    mouse.chip.move(5, 5, 0, LEFT)
    assert mouse.drain() == b""
    assert mouse.talk(b"\xe9") == bytes.fromhex("fa040264")
    mouse.talk(b"\xf4")
    mouse.chip.move(1, 0, 0, LEFT)
    assert mouse.packets() == [(1, 0, 0, LEFT)]
    mouse.talk(b"\xf5")
    mouse.chip.move(1, 0, 0, 0)
    assert mouse.drain() == b""


def test_remote_mode(mouse: MouseDriver) -> None:
    """Packets come when they are asked for, with what has happened since."""
    mouse.talk(b"\xf0")
    mouse.chip.move(3, 4, 0, 0)
    mouse.chip.move(3, 4, 0, 0)
    assert mouse.drain() == b""
    assert mouse.talk(b"\xeb") == bytes.fromhex("fa080608")
    assert mouse.talk(b"\xeb") == bytes.fromhex("fa080000")


def test_scaling(mouse: MouseDriver) -> None:
    """2:1 is a table for small steps and a factor for others, in stream mode alone."""
    mouse.talk(b"\xe7\xf4")
    seen = []
    for step in (1, 2, 3, 4, 5, 6, 100, -3, -200):
        mouse.chip.move(step, 0, 0, 0)
        seen += [right for right, _, _, _ in mouse.packets()]
    assert seen == [1, 1, 3, 6, 9, 12, 200, -3, -255]
    mouse.talk(b"\xf0")
    mouse.chip.move(3, 0, 0, 0)
    assert mouse.talk(b"\xeb") == bytes.fromhex("fa080300")


def test_resend_repeats_the_packet(mouse: MouseDriver) -> None:
    """All of it, however often."""
    mouse.talk(b"\xf4")
    mouse.chip.move(7, 8, 0, 0)
    packet = mouse.drain()
    assert mouse.talk(b"\xfe") == mouse.talk(b"\xfe") == packet


def test_a_command_ends_a_packet(mouse: MouseDriver) -> None:
    """The answer comes next, and the buttons are told again."""
    mouse.talk(b"\xf4")
    mouse.chip.move(0, 0, 0, LEFT)
    assert mouse.read() == 0x09
    assert mouse.talk(b"\xf2", drain=False) == b""
    assert mouse.drain() == bytes.fromhex("00") + bytes.fromhex("fa00090000")


def test_a_guest_that_does_not_read(mouse: MouseDriver) -> None:
    """Bounded, no click swallowed while there is room, overflow told, and the buttons right at the end."""
    mouse.talk(b"\xf4")
    for turn in range(1000):
        mouse.chip.move(1000, -1000, 0, turn & 1)
    mouse.chip.move(0, 0, 0, RIGHT)
    assert len(mouse.chip.mouse.state().samples) == SAMPLES
    raw = mouse.drain()
    assert len(raw) < 3 * (SAMPLES + 1) * (COUNTER_LIMIT // 255 + 2)
    assert any(first & 0xC0 for first in raw[::3])
    assert raw[-3] & 7 == RIGHT


def test_old_and_own_records() -> None:
    """A record restores it; one of a mouse that was never there is a mouse after power-on."""
    first, second = MouseDriver(), Ps2Mouse()
    first.talk(bytes.fromhex("f3c8f3c8f350f4"))
    for step in range(5):
        first.chip.move(step, 2000, 1, step)
    first.read()
    second.restore(first.chip.mouse.state())
    assert second.state() == first.chip.mouse.state()
    second.reset()
    assert second.state() == Ps2MouseState()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(0, 255),
            st.tuples(
                st.integers(-9000, 9000), st.integers(-9000, 9000), st.integers(-300, 300), st.integers(0, 0x1F)
            ),
        ),
        max_size=60,
    ),
    st.randoms(use_true_random=False),
)
def test_any_bytes_and_any_motion(events: list[int | tuple[int, int, int, int]], chance: object) -> None:
    """Whatever the guest sends and however much it reads: records are valid, nothing grows, and it starts over."""
    mouse = MouseDriver()
    for event in events:
        if isinstance(event, tuple):
            mouse.chip.move(*event)
        else:
            mouse.talk(bytes([event]), drain=event % 3 == 0)
        Ps2Mouse.check(mouse.chip.mouse.state())
    mouse.drain()
    assert mouse.talk(b"\xff") == b"\xfa\xaa\x00"
    mouse.talk(b"\xf4")
    mouse.chip.move(1, 1, 0, mouse.chip.mouse.buttons)
    assert mouse.packets() == [(1, 1, 0, mouse.chip.mouse.buttons & 7)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-300, 300), st.integers(-300, 300), st.integers(-9, 9), st.integers(0, 0x1F))))
def test_all_motion_arrives(moves: list[tuple[int, int, int, int]]) -> None:
    """A guest that keeps reading gets the sum of what happened, and every change of buttons."""
    mouse = MouseDriver()
    mouse.talk(bytes.fromhex("f3c8f3c8f350f4"))
    total, wanted, got = [0, 0, 0], [0], [0]
    for right, up, wheel, buttons in moves:
        mouse.chip.move(right, up, wheel, buttons)
        total = [total[0] + right, total[1] + up, total[2] + wheel]
        if buttons != wanted[-1]:
            wanted.append(buttons)
        for packet in mouse.packets():
            total = [a - b for a, b in zip(total, packet, strict=False)]
            if packet[3] != got[-1]:
                got.append(packet[3])
    assert total == [0, 0, 0]
    assert got == wanted
