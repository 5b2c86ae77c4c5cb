"""The canvas from video memory, against a twin in plain Python."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.kvm.pixels import PAGE_BYTES, refresh
from tvmm.screen import BITS_PER_PIXEL, PALETTE_BYTES, TILE_HEIGHT, TILE_WIDTH, Canvas, Surface

SIZES = [(1, 1), (64, 16), (65, 17), (63, 15), (130, 40), (320, 33)]


def widened(value: int, bits: int) -> int:
    """A component of `bits` bits as one of 8."""
    return (value << 8 - bits) | (value >> 2 * bits - 8)


def plain_pixel(surface: Surface, vram: bytes | bytearray, x: int, y: int) -> bytes:
    """One pixel of the guest as the canvas has it."""
    size = surface.bytes_per_pixel
    at = surface.offset + y * surface.stride + x * size
    value = int.from_bytes(vram[at : at + size], "little")
    match surface.bits_per_pixel:
        case 8:
            return surface.palette[4 * value : 4 * value + 3] + b"\0"
        case 15:
            return bytes([widened(value & 31, 5), widened(value >> 5 & 31, 5), widened(value >> 10 & 31, 5), 0])
        case 16:
            return bytes([widened(value & 31, 5), widened(value >> 5 & 63, 6), widened(value >> 11, 5), 0])
        case _:
            return (value & 0xFFFFFF).to_bytes(4, "little")


def plain_canvas(surface: Surface, vram: bytes | bytearray) -> bytes:
    """The whole picture."""
    return b"".join(plain_pixel(surface, vram, x, y) for y in range(surface.height) for x in range(surface.width))


def plain_damage(canvas: Canvas, old: bytes, new: bytes) -> bytes:
    """A 1 for each tile in which two pictures differ."""
    marks = bytearray(canvas.columns * canvas.rows)
    for at in range(canvas.width * canvas.height):
        if old[4 * at : 4 * at + 4] != new[4 * at : 4 * at + 4]:
            y, x = divmod(at, canvas.width)
            marks[y // TILE_HEIGHT * canvas.columns + x // TILE_WIDTH] = 1
    return bytes(marks)


def make_surface(chosen: random.Random, width: int, height: int, bits: int) -> Surface:
    """A surface with an odd stride and offset."""
    line = width * ((bits + 7) // 8)
    palette = bytes(chosen.randrange(256) for _ in range(PALETTE_BYTES)) if bits == 8 else b""
    return Surface(width, height, line + chosen.choice([0, 1, 60]), bits, chosen.choice([0, 3, 5000]), palette)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(SIZES), st.sampled_from(BITS_PER_PIXEL), st.integers(0, 5))
def test_twin(seed: int, size: tuple[int, int], bits: int, writes: int) -> None:
    """The first picture, and then one with some bytes changed on pages that are marked."""
    chosen = random.Random(seed)
    surface = make_surface(chosen, *size, bits)
    vram = bytearray(chosen.randbytes(surface.end + chosen.choice([0, 1, 5000])))
    canvas = Canvas(*size)
    damage = canvas.new_damage()
    black = bytes(canvas.pixels)
    changed = refresh(surface, vram, canvas, None, damage)
    first = plain_canvas(surface, vram)
    assert bytes(canvas.pixels) == first
    assert bytes(damage) == plain_damage(canvas, black, first)
    assert changed == sum(damage)

    touched = bytearray(-(-len(vram) // PAGE_BYTES))
    for _ in range(writes):
        at = chosen.randrange(len(vram))
        vram[at] ^= chosen.randrange(256)
        touched[at // PAGE_BYTES] = 1
    damage = canvas.new_damage()
    refresh(surface, memoryview(vram), canvas, bytes(touched), damage)
    second = plain_canvas(surface, vram)
    assert bytes(canvas.pixels) == second
    assert bytes(damage) == plain_damage(canvas, first, second)


def test_only_touched_pages_are_looked_at() -> None:
    """A change on a page that is not marked waits until it is."""
    surface = Surface(64, 64, 4096, 32, 0)
    vram = bytearray(64 * 4096)
    canvas = Canvas(64, 64)
    damage = canvas.new_damage()
    vram[20 * 4096] = 255
    touched = bytearray(64)
    assert refresh(surface, vram, canvas, touched, damage) == 0
    touched[19] = 1
    # Line 19 is in the same tile as line 20, and a tile is looked at as a whole.
    assert refresh(surface, vram, canvas, touched, damage) == 1
    assert bytes(damage) == b"\0\1\0\0"


def test_unused_byte_of_a_pixel_is_no_change() -> None:
    """The guest may keep anything above 24 bits."""
    surface = Surface(64, 16, 256, 32, 0)
    canvas = Canvas(64, 16)
    assert refresh(surface, b"\0\0\0\xff" * 1024, canvas, None, canvas.new_damage()) == 0


@pytest.mark.parametrize(
    ("surface", "vram", "touched", "damage"),
    [
        (Surface(64, 16, 256, 32, 0), 4095, None, 1),
        (Surface(64, 16, 256, 32, 1), 4096, None, 1),
        (Surface(64, 16, 257, 32, 0), 4096, None, 1),
        (Surface(64, 16, 255, 32, 0), 4096, None, 1),
        (Surface(64, 17, 256, 32, 0), 8192, None, 1),
        (Surface(64, 16, 256, 12, 0), 4096, None, 1),
        (Surface(64, 16, 256, 8, 0), 4096, None, 1),
        (Surface(64, 16, 256, 8, 0, bytes(1023)), 4096, None, 1),
        (Surface(64, 16, 256, 32, -1), 4096, None, 1),
        (Surface(64, 16, 256, 32, 1 << 62), 4096, None, 1),
        (Surface(0, 16, 256, 32, 0), 4096, None, 1),
        (Surface(64, 1601, 256, 32, 0), 1 << 20, None, 1),
        (Surface(64, 16, 256, 32, 0), 4096, 0, 1),
        (Surface(64, 16, 256, 32, 0), 4097, 1, 1),
        (Surface(64, 16, 256, 32, 0), 4096, None, 0),
        (Surface(64, 16, 256, 32, 0), 4096, None, 2),
    ],
)
def test_bounds(surface: Surface, vram: int, touched: int | None, damage: int) -> None:
    """What is outside of the memory that was given is refused and not read."""
    pages = None if touched is None else bytes(touched)
    with pytest.raises(ValueError, match=r"picture|pixels|lines|palette|surface"):
        refresh(surface, bytes(vram), Canvas(64, 16), pages, bytearray(damage))
