"""The display's registers: modes as drivers set them, modes that cannot be, the palette, and the monitor's words."""

from __future__ import annotations

from struct import unpack_from

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.display_parts import MIB, make_display
from tvmm.devices.bochs_display import BochsDisplay
from tvmm.devices.edid import EDID_LENGTH, make_edid
from tvmm.screen import Surface

DISPI = 0x500
ID, XRES, YRES, BPP, ENABLE, BANK, VIRT_WIDTH, VIRT_HEIGHT, X_OFFSET, Y_OFFSET, MEMORY = range(11)
ON = 0x41


def put(display: BochsDisplay, register: int, value: int) -> None:
    """A dispi register, by memory."""
    display.write(DISPI + 2 * register, 2, value)


def get(display: BochsDisplay, register: int) -> int:
    """The same."""
    return display.read(DISPI + 2 * register, 2)


def set_mode(display: BochsDisplay, width: int, height: int, bits: int, *, virtual: int = 0, enable: int = ON) -> None:
    """As Linux's bochs-drm does."""
    values = (ENABLE, 0), (BPP, bits), (XRES, width), (YRES, height), (BANK, 0), (VIRT_WIDTH, virtual or width)
    for register, value in (*values, (VIRT_HEIGHT, height), (X_OFFSET, 0), (Y_OFFSET, 0), (ENABLE, enable)):
        put(display, register, value)


def test_what_a_driver_looks_for() -> None:
    """ID, memory in units of 64 KiB, and the extended part with its size."""
    display = make_display()
    assert get(display, ID) == 0xB0C5
    assert get(display, MEMORY) == 16 * MIB >> 16
    assert display.read(0x600, 4) == 8
    assert display.read(0x604, 4) == 0x1E1E_1E1E
    assert display.read(DISPI, 4) == 0xB0C5
    assert get(display, 11) == 0xFFFF
    assert display.surface is None


@pytest.mark.parametrize(("bits", "size"), [(8, 1), (15, 2), (16, 2), (24, 3), (32, 4)])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (1280, 800), (1366, 768), (2560, 1600), (64, 64)])
def test_modes(width: int, height: int, bits: int, size: int) -> None:
    """Each depth at each size up to the largest."""
    log: list[object] = []
    display = make_display(log)
    set_mode(display, width, height, bits)
    palette = bytes(1024) if bits == 8 else b""
    assert display.surface == Surface(width, height, width * size, bits, 0, palette)
    assert log == ["mode"]
    put(display, ENABLE, 0)
    assert display.surface is None
    assert log == ["mode", "mode"]


def test_panning() -> None:
    """The offset is in pixels of the virtual screen; each step is told."""
    log: list[object] = []
    display = make_display(log)
    set_mode(display, 800, 600, 32, virtual=1024)
    put(display, Y_OFFSET, 600)
    put(display, X_OFFSET, 7)
    assert display.surface == Surface(800, 600, 4096, 32, 600 * 4096 + 28)
    assert log == ["mode"] * 3
    put(display, X_OFFSET, 7)
    assert log == ["mode"] * 3


@pytest.mark.parametrize(
    "writes",
    [
        [(XRES, 2561)], [(YRES, 1601)], [(XRES, 63)], [(YRES, 0)], [(BPP, 4)], [(BPP, 0xFFFF)], [(VIRT_WIDTH, 0xFFFF)],
        [(Y_OFFSET, 0xFFFF)], [(VIRT_WIDTH, 0x1000), (YRES, 1025)],
        [(XRES, 2560), (YRES, 1600), (Y_OFFSET, 39)],
    ],
)  # fmt: skip
def test_modes_that_cannot_be(writes: list[tuple[int, int]]) -> None:
    """There is nothing to be seen; the registers keep what was written, and a good mode works afterwards."""
    display = make_display()
    set_mode(display, 1280, 800, 32)
    for register, value in writes:
        put(display, register, value)
        assert get(display, register) == value
    assert display.surface is None
    set_mode(display, 1280, 800, 32)
    assert display.surface is not None


def test_the_last_line_that_fits() -> None:
    """A screen may end where the memory does, and not a line further."""
    display = make_display(size=4 * MIB)
    set_mode(display, 1024, 512, 32)
    put(display, Y_OFFSET, 512)
    assert display.surface == Surface(1024, 512, 4096, 32, 2 * MIB)
    put(display, Y_OFFSET, 513)
    assert display.surface is None


def test_limits_are_told() -> None:
    """While the guest asks for capabilities the mode registers read as what is possible."""
    display = make_display()
    set_mode(display, 640, 480, 16, enable=2)
    assert [get(display, register) for register in (XRES, YRES, BPP, VIRT_WIDTH)] == [2560, 1600, 32, 640]
    put(display, ENABLE, ON)
    assert [get(display, register) for register in (XRES, YRES, BPP)] == [640, 480, 16]


def test_ports() -> None:
    """VBE code finds the same registers at 0x1ce and 0x1cf, in words."""
    display = make_display()
    ports = display.ports
    for register, value in ((BPP, 32), (XRES, 800), (YRES, 600), (ENABLE, ON)):
        ports.write(0, 2, register)
        ports.write(1, 2, value)
    assert display.surface == Surface(800, 600, 3200, 32, 0)
    ports.write(0, 2, XRES)
    assert (ports.read(0, 2), ports.read(1, 2), ports.read(2, 2)) == (XRES, 800, 800)
    ports.write(0, 1, ID)
    ports.write(0, 4, ID)
    assert ports.read(0, 2) == XRES
    assert ports.read(0, 1) == 0xFF
    ports.write(0, 2, 0xFFFF)
    ports.write(1, 2, 1)
    assert ports.read(1, 2) == 0xFFFF


def test_bytes_and_dwords() -> None:
    """A register can be written in halves, and two at once."""
    display = make_display()
    display.write(DISPI + 2, 4, 480 << 16 | 640)
    display.write(DISPI + 7, 1, 0)
    display.write(DISPI + 6, 1, 32)
    display.write(DISPI + 8, 2, ON)
    assert display.surface == Surface(640, 480, 2560, 32, 0)
    assert display.read(DISPI + 3, 1) == 640 >> 8
    assert display.read(DISPI + 2, 8) == ON << 48 | 32 << 32 | 480 << 16 | 640


def write_colour(display: BochsDisplay, index: int, colour: bytes) -> None:
    """By the DAC's ports."""
    display.write(0x408, 1, index)
    for value in colour:
        display.write(0x409, 1, value)


def test_palette() -> None:
    """Six bits a colour, or eight if the driver says so; each change is told."""
    log: list[object] = []
    display = make_display(log)
    set_mode(display, 640, 480, 8)
    write_colour(display, 1, bytes((63, 32, 0)) + bytes((1, 2, 3)))
    assert display.surface is not None
    assert display.surface.palette[:12] == bytes((0, 0, 0, 0, 0, 130, 255, 0, 12, 8, 4, 0))
    assert log == ["mode"] * 3
    put(display, ENABLE, ON | 0x20)
    assert display.surface.palette[4:12] == bytes((0, 32, 63, 0, 3, 2, 1, 0))
    assert log == ["mode"] * 4
    display.write(0x407, 1, 1)
    assert [display.read(0x409, 1) for _ in range(6)] == [63, 32, 0, 1, 2, 3]
    put(display, BPP, 32)
    write_colour(display, 9, b"abc")
    assert log == ["mode"] * 5


def test_blanking() -> None:
    """Bit 5 of the attribute index, after a read of the status register; data in between does not count."""
    log: list[object] = []
    display = make_display(log)
    set_mode(display, 640, 480, 32)
    display.read(0x41A, 1)
    display.write(0x400, 1, 0)
    assert display.surface is None
    display.write(0x400, 1, 0x20)
    assert display.surface is None
    display.read(0x41A, 1)
    display.write(0x400, 1, 0x20)
    assert display.surface is not None
    assert log == ["mode"] * 3


def test_switched_on_by_firmware() -> None:
    """The preferred mode, with 32 bits."""
    log: list[object] = []
    display = make_display(log)
    assert display.switch_on() == display.surface == Surface(1280, 800, 5120, 32, 0)
    display.reset()
    assert display.surface is None
    assert log == ["mode", "mode"]


VALUES = st.integers(0, 0xFFFF) | st.sampled_from((0, 1, 8, 32, 64, 800))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), VALUES), max_size=40))
def test_any_surface_lies_in_the_memory(writes: list[tuple[int, int]]) -> None:
    """Whatever is written: what is given out has a size that it may have, and all of it is there."""
    display = make_display(size=4 * MIB)
    display.switch_on()
    for register, value in writes:
        put(display, register, value)
        surface = display.surface
        if surface is None:
            continue
        size = (surface.bits_per_pixel + 7) // 8
        assert 64 <= surface.width <= 2560
        assert 64 <= surface.height <= 1600
        assert surface.stride >= surface.width * size
        assert surface.offset >= 0
        assert surface.offset + surface.stride * (surface.height - 1) + surface.width * size <= 4 * MIB


@pytest.mark.parametrize(
    ("size", "width", "height"),
    [(16 * MIB, 63, 64), (16 * MIB, 2561, 800), (4 * MIB, 1280, 1024), (5 * MIB, 640, 480), (2 * MIB, 640, 480)],
)
def test_displays_that_cannot_be(size: int, width: int, height: int) -> None:
    """Refused when it is made."""
    with pytest.raises(ValueError, match=r"mode|vram_size"):
        BochsDisplay(size, width, height, lambda: None)


# --- the monitor ---


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1920, 1080), (2560, 1600), (64, 64), (1366, 768)])
def test_edid(width: int, height: int) -> None:
    """Header, version and sum are right, and the first timing has the preferred size."""
    block = make_edid(width, height)
    assert len(block) == EDID_LENGTH
    assert block[:8] == bytes.fromhex("00ffffffffffff00")
    assert (block[18], block[19], block[126]) == (1, 4, 0)
    assert sum(block) % 256 == 0
    clock, *rest = unpack_from("<H9B", block, 54)
    active = rest[0] | (rest[2] >> 4) << 8, rest[3] | (rest[5] >> 4) << 8
    blank = rest[1] | (rest[2] & 15) << 8, rest[4] | (rest[5] & 15) << 8
    assert active == (width, height)
    assert 59 < clock * 10_000 / ((active[0] + blank[0]) * (active[1] + blank[1])) <= 60
    assert b"\0\0\0\xfc\0tvmm\n        " in block


def test_edid_lists_what_fits() -> None:
    """With little memory there are fewer standard timings; places that are not used say so."""
    few, all_of_them = (make_edid(640, 480, memory=size)[38:54] for size in (4 * MIB, 16 * MIB))
    assert few.endswith(b"\1\1")
    assert all_of_them[:2] == bytes((1920 // 8 - 31, 0))
    assert b"\1\1" not in all_of_them


@pytest.mark.parametrize("name", ["", "x" * 14, "tvmm\n", "\u00e4"])
def test_names_that_do_not_fit(name: str) -> None:
    """Refused."""
    with pytest.raises(ValueError, match="name"):
        make_edid(1280, 800, name)


def test_edid_in_the_bar() -> None:
    """At its start, followed by zeros; it cannot be written."""
    display = make_display()
    display.write(0, 4, 0x1234_5678)
    assert bytes(display.read(at, 1) for at in range(EDID_LENGTH)) == make_edid(1280, 800, memory=16 * MIB)
    assert display.read(0x80, 8) == display.read(0x3F8, 8) == 0
    assert display.read(0x700, 4) == 0xFFFF_FFFF
