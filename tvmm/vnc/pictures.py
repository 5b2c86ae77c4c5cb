"""Pictures within an update: JPEG through Pillow, PNG of rows that are filtered already."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.screen import Canvas

__all__ = ["jpeg", "png"]

JPEG_QUALITIES = (15, 25, 35, 45, 55, 65, 75, 84, 92, 97)
"""Of libjpeg, for a viewer's 0 to 9."""
JPEG_SUBSAMPLING = (1, 1, 1, 1, 1, 1, 2, 2, 0, 0)
"""Of the colours, for the same, as viewers number it: a pixel for each, for 4, for 2, grey, for 8, for 16."""
PILLOW_SUBSAMPLING = (0, 2, 1, 0, 2, 2)
"""What Pillow calls these, as far as it has them; its coarsest is one for 4."""
GREY = 3

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PALETTE, PNG_RGB = 3, 2


def jpeg(
    canvas: Canvas,
    rect: Sequence[int],
    quality: int,
    fine_quality: int | None = None,
    subsampling: int | None = None,
) -> bytes:
    """A rectangle (x, y, width, height) of the canvas, which has it, as a JFIF file.

    `quality` is 0 to 9, and says what the other two are where they are None; see `EncoderSettings`.
    """
    # Pillow takes 40 ms to import, and a viewer that wants no JPEG needs none of it.
    from PIL import Image

    x, y, width, height = rect
    stride = 4 * canvas.width
    start = y * stride + 4 * x
    with memoryview(canvas.pixels) as pixels, pixels[start : start + (height - 1) * stride + 4 * width] as lines:
        # "BGRX": the fourth byte is ignored. The lines are copied here, and none is kept.
        image = Image.frombytes("RGB", (width, height), lines, "raw", "BGRX", stride, 1)
    fine = JPEG_QUALITIES[quality] if fine_quality is None else max(1, fine_quality)
    colours = JPEG_SUBSAMPLING[quality] if subsampling is None else subsampling
    if colours == GREY:
        image = image.convert("L")
    target = io.BytesIO()
    image.save(target, "JPEG", quality=fine, subsampling=PILLOW_SUBSAMPLING[colours])
    return target.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(data, zlib.crc32(name)).to_bytes(4, "big")


def png(width: int, height: int, bits: int, palette: bytes, rows: bytes | memoryview, level: int) -> bytes:
    """A PNG file of rows that have their filter bytes: indices of `bits` bits, or with 32 pixels of 3 bytes R, G, B."""
    kind, depth = (PNG_RGB, 8) if bits == 32 else (PNG_PALETTE, bits)
    parts = [PNG_SIGNATURE, _chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, kind, 0, 0, 0))]
    if palette:
        parts.append(_chunk(b"PLTE", palette))
    parts += (_chunk(b"IDAT", zlib.compress(rows, level)), _chunk(b"IEND", b""))
    return b"".join(parts)
