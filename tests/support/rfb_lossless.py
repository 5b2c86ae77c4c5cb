"""Decoders for `RfbViewer` of what is compressed without loss: they find where a rectangle ends, and the oracle in
`tests.support.rfb_decoders` reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import TYPE_CHECKING

from tests.support.rfb_decoders import Reader, Viewer, tiles
from tests.support.rfb_viewer import RfbViewer, Steps
from tvmm.vnc import encodings

if TYPE_CHECKING:
    from tests.support.rfb_viewer import Decoder
    from tvmm.vnc.pixel_format import Rect

__all__ = ["lossless_decoders"]

MAX_TIGHT = 1 << 22

Body = Generator[int, bytes, bytes]
"""All bytes of a rectangle behind its header."""


def _hextile(viewer: RfbViewer, rect: Rect) -> Body:
    size, data = viewer.pixel_format.bytes_per_pixel, bytearray()
    for tile in tiles(rect, 16):
        data += yield 1
        mask = data[-1]
        if mask & 1:
            data += yield tile.area * size
            continue
        data += yield size * ((mask >> 1 & 1) + (mask >> 2 & 1))
        if mask & 8:
            data += yield 1
            data += yield data[-1] * (2 + size * (mask >> 4 & 1))
    return bytes(data)


def _zrle(viewer: RfbViewer, rect: Rect) -> Body:
    data = yield 4
    return data + (yield int.from_bytes(data, "big"))


def _compact(data: bytearray) -> Steps:
    """Tight's length and what it is of."""
    length = 0
    for shift in (0, 7, 14):
        data += yield 1
        length |= (data[-1] if shift == 14 else data[-1] & 127) << shift
        if shift < 14 and not data[-1] & 128:
            break
    assert length <= MAX_TIGHT
    data += yield length


def _tight(viewer: RfbViewer, rect: Rect) -> Body:
    data = bytearray((yield 1))
    kind, size = data[0] >> 4, len(Viewer(0, 0, viewer.pixel_format).tpixel_bytes())
    if kind == 8:
        data += yield size
        return bytes(data)
    if kind >= 9:
        yield from _compact(data)
        return bytes(data)
    length = rect.area * size
    if kind & 4:
        data += yield 1
        if data[-1] == 1:
            data += yield 1
            colours = data[-1] + 1
            data += yield colours * size
            length = rect.height * (-(-rect.width // 8) if colours == 2 else rect.width)
    if length < 12:
        data += yield length
    else:
        yield from _compact(data)
    return bytes(data)


_BODIES = {
    encodings.HEXTILE: _hextile,
    encodings.ZRLE: _zrle,
    encodings.TIGHT: _tight,
    encodings.TIGHT_PNG: _tight,
}


def lossless_decoders() -> dict[int, Decoder]:
    """For one connection: some have streams that go on from rectangle to rectangle."""
    oracles: list[Viewer] = []

    def decoder(number: int) -> Decoder:
        def decode(viewer: RfbViewer, rect: Rect) -> Steps:
            body = yield from _BODIES[number](viewer, rect)
            if not oracles:
                oracles.append(Viewer(0, 0, viewer.pixel_format))
            [oracle] = oracles
            oracle.wanted = viewer.pixel_format
            if (oracle.width, oracle.height) != (viewer.width, viewer.height):
                oracle.width, oracle.height = viewer.width, viewer.height
                oracle.lines = [[0] * viewer.width for _ in range(viewer.height)]
            reader = Reader(body)
            oracle.rectangle(rect, number, reader)
            assert reader.done
            size, wanted = viewer.pixel_format.bytes_per_pixel, viewer.pixel_format
            form = ">" if wanted.big_endian else "<"
            form += f"{rect.width}{ {1: 'B', 2: 'H', 4: 'I'}[size]}"
            lines = oracle.lines[rect.y : rect.bottom]
            viewer.put(rect, b"".join(struct.pack(form, *line[rect.x : rect.right]) for line in lines))

        return decode

    return {number: decoder(number) for number in _BODIES}
