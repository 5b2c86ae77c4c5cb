"""Encodings, decoded by plain decoders: what a viewer sees is what is on the canvas."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pictures import PICTURES, mixed, noise, photo, solid, text
from tests.support.rfb_decoders import Viewer
from tvmm.screen import Canvas
from tvmm.vnc.encoder import (
    HEXTILE,
    PIECES_MAX,
    RAW,
    SUPPORTED,
    TIGHT,
    TIGHT_PNG,
    ZRLE,
    DeflateStream,
    Encoder,
    EncoderSettings,
    compact_length,
)
from tvmm.vnc.pixel_format import DEFAULT, PixelFormat, Rect

FORMATS = [
    DEFAULT,
    DEFAULT._replace(big_endian=True),
    DEFAULT._replace(red_shift=0, blue_shift=16),
    DEFAULT._replace(red_shift=24, green_shift=16, blue_shift=8),
    DEFAULT._replace(red_shift=24, green_shift=16, blue_shift=8, big_endian=True),
    DEFAULT._replace(red_shift=24, green_shift=12, blue_shift=0),
    DEFAULT._replace(depth=32),
    PixelFormat(32, 16, False, True, 31, 63, 31, 11, 5, 0),
    PixelFormat(32, 30, False, True, 1023, 1023, 1023, 20, 10, 0),
    PixelFormat(16, 16, False, True, 31, 63, 31, 11, 5, 0),
    PixelFormat(16, 15, True, True, 31, 31, 31, 10, 5, 0),
    PixelFormat(8, 8, False, True, 7, 7, 3, 0, 3, 6),
    PixelFormat(8, 6, True, True, 3, 3, 3, 4, 2, 0),
]
SIZES = [(1, 1), (2, 5), (64, 64), (65, 17), (130, 70), (200, 40)]


def expected(canvas: Canvas, viewer: Viewer) -> list[list[int]]:
    """The canvas in the viewer's pixels."""
    values = [
        viewer.from_colours(canvas.pixels[at + 2], canvas.pixels[at + 1], canvas.pixels[at])
        for at in range(0, len(canvas.pixels), 4)
    ]
    return [values[y * canvas.width : (y + 1) * canvas.width] for y in range(canvas.height)]


def check_rect(viewer: Viewer, wanted: list[list[int]], rect: Rect, tolerance: float) -> None:
    """Equal, and near on the average of a lossy rectangle."""
    lossy = {
        (x, y)
        for part in viewer.lossy
        for y in range(part.y, part.y + part.height)
        for x in range(part.x, part.x + part.width)
    }
    errors, count = 0.0, 0
    for y in range(rect.y, rect.y + rect.height):
        for x in range(rect.x, rect.x + rect.width):
            if (x, y) not in lossy:
                assert viewer.lines[y][x] == wanted[y][x]
                continue
            most = (viewer.wanted.red_max, viewer.wanted.green_max, viewer.wanted.blue_max)
            pairs = zip(viewer.to_colours(viewer.lines[y][x]), viewer.to_colours(wanted[y][x]), most, strict=True)
            errors += sum(abs(got - want) / most for got, want, most in pairs)
            count += 3
    assert not count or errors / count < tolerance


def send(encoder: Encoder, viewer: Viewer, canvas: Canvas, rects: list[Rect], wanted: EncoderSettings) -> int:
    """Encode and decode: how many bytes it took."""
    count, chunks = encoder.encode(canvas, rects, wanted)
    data = b"".join(chunks)
    covered = viewer.update(count, data)
    assert sum(rect.width * rect.height for rect in covered) == sum(rect.width * rect.height for rect in rects)
    return len(data)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(PICTURES),
    st.sampled_from(SIZES),
    st.sampled_from(FORMATS),
    st.lists(st.sampled_from(SUPPORTED), min_size=1, max_size=3),
    st.sampled_from([None, 0, 5, 9]),
)
def test_viewer_sees_the_canvas(
    seed: int,
    paint: object,
    size: tuple[int, int],
    wanted: PixelFormat,
    encodings: list[int],
    quality: int | None,
) -> None:
    """Parts of a picture and then all of it, over changes of the encoding and the level."""
    assert callable(paint)
    chosen = random.Random(seed)
    canvas, encoder, viewer = Canvas(*size), Encoder(), Viewer(*size, wanted)
    for encoding in encodings:
        paint(canvas, chosen)
        x, y = chosen.randrange(size[0]), chosen.randrange(size[1])
        part = Rect(x, y, chosen.randint(1, size[0] - x), chosen.randint(1, size[1] - y))
        whole = Rect(0, 0, *size)
        pixels = expected(canvas, viewer)
        for rect in (part, whole):
            viewer.lossy.clear()
            wish = EncoderSettings(encoding, wanted, chosen.randrange(10), quality)
            send(encoder, viewer, canvas, [rect], wish)
            check_rect(viewer, pixels, rect, 0.02 if quality == 9 else 0.25)


@pytest.mark.parametrize("encoding", SUPPORTED)
def test_wide_screen(encoding: int) -> None:
    """Wider than a rectangle of Tight may be, and more pixels than are worked on at once."""
    canvas, chosen = Canvas(2560, 40), random.Random(7)
    mixed(canvas, chosen)
    viewer = Viewer(2560, 40, DEFAULT)
    send(Encoder(), viewer, canvas, [Rect(0, 0, 2560, 40)], EncoderSettings(encoding))
    assert viewer.lines == expected(canvas, viewer)


@pytest.mark.parametrize("encoding", [HEXTILE, ZRLE, TIGHT, TIGHT_PNG])
def test_smaller_than_deflated_pixels(encoding: int) -> None:
    """Text takes less than raw pixels would that are compressed; Hextile, which has no compression, a tenth of them."""
    canvas = Canvas(640, 160)
    text(canvas, random.Random(3))
    viewer = Viewer(640, 160, DEFAULT)
    size = send(Encoder(), viewer, canvas, [Rect(0, 0, 640, 160)], EncoderSettings(encoding))
    deflated = len(zlib.compress(bytes(canvas.pixels), 6))
    assert size < (len(canvas.pixels) / 5 if encoding == HEXTILE else deflated)


@pytest.mark.parametrize("encoding", SUPPORTED)
def test_noise_hardly_grows(encoding: int) -> None:
    """What cannot be compressed takes about as much as it is."""
    canvas = Canvas(300, 130)
    noise(canvas, random.Random(5))
    viewer = Viewer(300, 130, DEFAULT)
    assert send(Encoder(), viewer, canvas, [Rect(0, 0, 300, 130)], EncoderSettings(encoding)) < 300 * 130 * 4.1


def test_kinds_of_tight() -> None:
    """Text stays as it is beside a photograph, and a plain area is one rectangle."""
    canvas, chosen = Canvas(512, 192), random.Random(2)
    text(canvas, chosen)
    for left, paint in ((0, photo), (256, solid)):
        part = Canvas(256, 96)
        paint(part, chosen)
        for y in range(96):
            at = 4 * (y * 512 + left)
            canvas.pixels[at : at + 1024] = part.pixels[1024 * y : 1024 * (y + 1)]
    viewer = Viewer(512, 192, DEFAULT)
    send(Encoder(), viewer, canvas, [Rect(0, 0, 512, 192)], EncoderSettings(TIGHT, quality=8))
    assert viewer.lossy == [Rect(0, 0, 256, 96)]
    assert sorted(set(viewer.kinds)) in (["fill", "indexed", "jpeg"], ["fill", "jpeg", "mono"])
    check_rect(viewer, expected(canvas, viewer), Rect(0, 0, 512, 192), 0.02)


def test_gradient_until_a_quality_was_named() -> None:
    """A photograph without loss is filtered, but not for a viewer that has ever known of JPEG."""
    canvas, encoder = Canvas(256, 128), Encoder()
    photo(canvas, random.Random(1))
    viewer = Viewer(256, 128, DEFAULT)
    plain = send(encoder, viewer, canvas, [Rect(0, 0, 256, 128)], EncoderSettings(TIGHT))
    assert viewer.kinds == ["gradient"]
    assert viewer.lines == expected(canvas, viewer)
    assert send(encoder, viewer, canvas, [Rect(0, 0, 256, 128)], EncoderSettings(TIGHT, quality=5)) < plain / 3
    assert encoder.lossy == viewer.lossy == [Rect(0, 0, 256, 128)]
    viewer.lossy.clear()
    send(encoder, viewer, canvas, [Rect(0, 0, 256, 128)], EncoderSettings(TIGHT))
    assert encoder.lossy == []
    assert viewer.kinds == ["gradient", "jpeg", "pixels"]
    assert viewer.lines == expected(canvas, viewer)


@pytest.mark.parametrize("subsampling", range(6))
def test_wishes_about_jpeg(subsampling: int) -> None:
    """A quality of 100 steps and each subsampling give a picture; more quality, more bytes."""
    canvas, sizes = Canvas(256, 128), []
    photo(canvas, random.Random(1))
    for fine in (0, 60, 100):
        viewer = Viewer(256, 128, DEFAULT)
        wish = EncoderSettings(TIGHT, quality=5, fine_quality=fine, subsampling=subsampling)
        sizes.append(send(Encoder(), viewer, canvas, [Rect(0, 0, 256, 128)], wish))
        assert viewer.lossy
    assert sizes == sorted(sizes)


def test_no_jpeg_with_8_bits() -> None:
    """The specification allows it with 16 and 32 bits only."""
    canvas = Canvas(256, 128)
    photo(canvas, random.Random(1))
    viewer = Viewer(256, 128, FORMATS[-2])
    send(Encoder(), viewer, canvas, [Rect(0, 0, 256, 128)], EncoderSettings(TIGHT, FORMATS[-2], quality=5))
    assert "jpeg" not in viewer.kinds
    assert viewer.lines == expected(canvas, viewer)


def test_chessboard_of_kinds() -> None:
    """A picture made of nothing but changes is cut into a few stripes."""
    canvas, chosen = Canvas(2560, 400), random.Random(4)
    block = chosen.randbytes(4 * 64)
    for row in range(25):
        line = b"".join(bytes(256) if (row + column) % 2 else block for column in range(40))
        canvas.pixels[row * 16 * 10240 : (row + 1) * 16 * 10240] = line * 16
    canvas.pixels[3::4] = bytes(len(canvas.pixels) // 4)
    count, _ = Encoder().encode(canvas, [Rect(0, 0, 2560, 400)], EncoderSettings(TIGHT))
    assert count < PIECES_MAX


@pytest.mark.parametrize("encoding", SUPPORTED)
@pytest.mark.parametrize(
    "rect", [Rect(0, 0, 65, 1), Rect(-1, 0, 2, 2), Rect(0, 0, 0, 4), Rect(4, 8, 1, 57), Rect(64, 0, 1, 1)]
)
def test_outside_of_the_canvas(encoding: int, rect: Rect) -> None:
    """Refused before anything reached the streams, which go on."""
    canvas, encoder, viewer = Canvas(64, 64), Encoder(), Viewer(64, 64, DEFAULT)
    text(canvas, random.Random(1))
    with pytest.raises(ValueError, match="canvas"):
        encoder.encode(canvas, [Rect(0, 0, 8, 8), rect], EncoderSettings(encoding))
    send(encoder, viewer, canvas, [Rect(0, 0, 64, 64)], EncoderSettings(encoding))
    assert viewer.lines == expected(canvas, viewer)


@pytest.mark.parametrize(
    "bad",
    [
        EncoderSettings(99),
        EncoderSettings(RAW, compress_level=10),
        EncoderSettings(TIGHT, quality=10),
        EncoderSettings(TIGHT, quality=9, fine_quality=101),
        EncoderSettings(TIGHT, quality=9, subsampling=6),
        EncoderSettings(RAW, DEFAULT._replace(true_colour=False)),
    ],
)
def test_bad_settings(bad: EncoderSettings) -> None:
    """A wish that the session must not pass on."""
    with pytest.raises(ValueError, match=r"no |colour"):
        Encoder().encode(Canvas(4, 4), [Rect(0, 0, 4, 4)], bad)


def test_stream_goes_on_over_levels() -> None:
    """One decompressor reads all of it."""
    stream, reader, chosen = DeflateStream(), zlib.decompressobj(), random.Random(1)
    for level in (6, 6, 0, 9, 1, 1, 6):
        data = bytes(chosen.choice(b"abc") for _ in range(5000))
        assert reader.decompress(b"".join(stream.compress((data[:100], memoryview(data)[100:]), level))) == data


@pytest.mark.parametrize(
    ("length", "data"),
    [(0, "00"), (127, "7f"), (128, "8001"), (10000, "904e"), (16383, "ff7f"), (16384, "808001"), (4194303, "ffffff")],
)
def test_compact_length(length: int, data: str) -> None:
    """rfbproto's example, and the ends of each form."""
    assert compact_length(length) == bytes.fromhex(data)


def test_too_long() -> None:
    """No length that takes more than 22 bits."""
    with pytest.raises(ValueError, match="too many"):
        compact_length(1 << 22)
