"""The pixel work below the encoder: bounds, every kind of tile, and what a plan covers."""

from __future__ import annotations

import random

import pytest

from tests.support.pictures import PICTURES, mixed, photo
from tests.support.rfb_decoders import Reader, Viewer
from tvmm.kvm.rfb import AREA_MAX, Kind, Packing, PixelWork, Rows
from tvmm.screen import Canvas
from tvmm.vnc.encoder import RGB_PACKING, zrle_packing
from tvmm.vnc.pixel_format import DEFAULT, Rect

PIXEL = Packing(4, False, (255, 255, 255), (16, 8, 0), 0, 4)


def coloured(width: int, height: int, colours: int, longest: int, seed: int = 1) -> Canvas:
    """Exactly `colours` colours in runs of up to `longest` pixels."""
    chosen, canvas = random.Random(seed), Canvas(width, height)
    shades = [bytes((number & 255, number >> 8, 7, 0)) for number in range(colours)]
    pixels = b"".join(shades)
    while len(pixels) < 4 * width * height:
        pixels += chosen.choice(shades) * chosen.randint(1, longest)
    canvas.pixels[:] = pixels[: 4 * width * height]
    return canvas


@pytest.mark.parametrize(
    ("colours", "longest", "kind"),
    [
        (1, 1, 1),
        (2, 1, 2),
        (3, 1, 3),
        (4, 2, 4),
        (5, 2, 5),
        (16, 2, 16),
        (17, 1, 128 + 17),
        (16, 60, 128 + 16),
        (127, 1, 128 + 127),
        (127, 600, 128 + 127),
        (128, 300, 128),
        (128, 1, 0),
        (300, 40, 128),
        (2000, 1, 0),
    ],
)
def test_every_kind_of_zrle_tile(colours: int, longest: int, kind: int) -> None:
    """The smallest is chosen, and what it says is what is there."""
    canvas = coloured(64, 64, colours, longest)
    data = bytes(PixelWork().zrle(canvas, zrle_packing(DEFAULT), (0, 0, 64, 64)))
    viewer, reader = Viewer(64, 64, DEFAULT), Reader(data)
    values = viewer.zrle_tile(Rect(0, 0, 64, 64), reader)
    assert reader.done
    assert values == memoryview(canvas.pixels).cast("I").tolist()
    assert data[0] == kind


@pytest.mark.parametrize(
    ("colours", "longest", "kind"),
    [(1, 1, "solid"), (2, 9, "subrects"), (3, 30, "coloured"), (2, 1, "subrects"), (16, 1, "raw"), (200, 1, "raw")],
)
def test_every_kind_of_hextile(colours: int, longest: int, kind: str) -> None:
    """As for ZRLE."""
    canvas = coloured(32, 32, colours, longest)
    viewer = Viewer(32, 32, DEFAULT)
    viewer.hextile(Rect(0, 0, 32, 32), Reader(bytes(PixelWork().hextile(canvas, PIXEL, (0, 0, 32, 32)))))
    assert [value for line in viewer.lines for value in line] == memoryview(canvas.pixels).cast("I").tolist()
    assert kind in viewer.kinds


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 256, 257])
@pytest.mark.parametrize("rows", list(Rows))
def test_bits_of_indices(count: int, rows: Rows) -> None:
    """The fewest that the encoding has."""
    work = PixelWork()
    bits, data = work.rows(coloured(100, 30, count, 3), RGB_PACKING, (0, 0, 100, 30), rows, 256)
    png = rows is Rows.PNG
    few = {1: 0, 2: 1, 3: 2 if png else 8, 4: 2 if png else 8, 5: 4 if png else 8, 16: 4 if png else 8}
    assert bits == few.get(count, 8 if count <= 256 else 32)
    line = {0: 0, 1: 13, 2: 25, 4: 50, 8: 100, 32: 300}[bits]
    assert len(data) == (line + (png and bits > 0)) * 30
    if count <= 256:
        assert work.palette() == b"".join(bytes((7, number >> 8, number & 255)) for number in range(count))


@pytest.mark.parametrize("name", ["raw", "hextile", "zrle"])
@pytest.mark.parametrize(
    "rect", [(0, 0, 301, 1), (300, 0, 1, 1), (0, 0, 0, 1), (0, 400, 1, 1), (5, 0, 2**32 - 1, 1), (0, 0, 300, 400)]
)
def test_bounds(name: str, rect: tuple[int, int, int, int]) -> None:
    """What is not on the canvas, or larger than the buffer, is refused."""
    canvas, work = Canvas(300, 400), PixelWork()
    assert AREA_MAX < 300 * 400
    with pytest.raises(ValueError, match="rectangle"):
        getattr(work, name)(canvas, PIXEL, rect)
    with pytest.raises(ValueError, match="rectangle"):
        work.rows(canvas, RGB_PACKING, rect, Rows.PNG, 256)


def test_png_takes_three_bytes() -> None:
    """Other pixels are a mistake of the caller's."""
    with pytest.raises(ValueError, match="rectangle"):
        PixelWork().rows(Canvas(4, 4), PIXEL, (0, 0, 4, 4), Rows.PNG, 256)


def test_canvas_that_is_not_its_size() -> None:
    """A buffer that is shorter than it says is never read."""
    canvas = Canvas(64, 64)
    canvas.pixels = bytearray(64 * 63 * 4)
    for run in (PixelWork().raw, PixelWork().zrle, PixelWork().hextile):
        with pytest.raises(ValueError, match="rectangle"):
            run(canvas, PIXEL, (0, 0, 1, 1))
    with pytest.raises(ValueError, match="rectangle"):
        PixelWork().plan(canvas, (0, 0, 1, 1), 10)


@pytest.mark.parametrize("seed", range(8))
def test_plan_covers_each_pixel_once(seed: int) -> None:
    """Whatever the picture and the rectangle are."""
    chosen = random.Random(seed)
    canvas = Canvas(chosen.randint(200, 330), chosen.randint(60, 100))
    chosen.choice(PICTURES)(canvas, chosen)
    x, y = chosen.randrange(100), chosen.randrange(50)
    rect = Rect(x, y, chosen.randint(1, canvas.width - x), chosen.randint(1, canvas.height - y))
    pieces = PixelWork().plan(canvas, rect, 1000)
    assert pieces is not None
    covered = [bytearray(canvas.width) for _ in range(canvas.height)]
    for piece in pieces:
        for row in range(piece.y, piece.y + piece.height):
            assert not any(covered[row][piece.x : piece.x + piece.width])
            covered[row][piece.x : piece.x + piece.width] = b"\1" * piece.width
    for row, marks in enumerate(covered):
        inside = rect.width if rect.y <= row < rect.y + rect.height else 0
        assert marks == bytes(rect.x) + b"\1" * inside + bytes(canvas.width - rect.x - inside)


def test_plan_that_is_too_long() -> None:
    """The caller finds another way."""
    canvas, chosen = Canvas(512, 256), random.Random(1)
    mixed(canvas, chosen)
    assert PixelWork().plan(canvas, (0, 0, 512, 256), 1) is None


def test_few_colours_are_no_photograph() -> None:
    """However they are strewn."""
    canvas = coloured(256, 64, 40, 1)
    pieces = PixelWork().plan(canvas, (0, 0, 256, 64), 10)
    assert [one.kind for one in pieces or ()] == [Kind.FLAT]
    photo(canvas, random.Random(6))
    pieces = PixelWork().plan(canvas, (0, 0, 256, 64), 10)
    assert [one.kind for one in pieces or ()] == [Kind.PHOTO]
