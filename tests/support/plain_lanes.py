"""Frames of pages in plain Python, the slow and obvious way: what the C of the lanes is compared with."""

from __future__ import annotations

import struct
from typing import NamedTuple

PAGE = 4096
MAGIC = b"TVPL"
COUNT_MAX = 1024
PAGES, ZEROS, ROUND_END = 1, 2, 3
HEADER = struct.Struct("<4sBBHIIQ")


class Frame(NamedTuple):
    """What a frame says."""

    kind: int
    block: int = 0
    pages: tuple[int, ...] = ()
    data: bytes = b""
    number: int = 0
    encoding: int = 0


class Refused(Exception):
    """These bytes are no frame; `frames` are those before."""

    def __init__(self, frames: list[Frame]) -> None:
        super().__init__()
        self.frames = frames


def encode(frame: Frame) -> bytes:
    """A frame's bytes, whether it is a good one or not."""
    numbers = struct.pack(f"<{len(frame.pages)}I", *frame.pages)
    header = HEADER.pack(
        MAGIC,
        frame.kind,
        frame.encoding,
        frame.block,
        len(frame.pages),
        len(numbers) + len(frame.data),
        frame.number,
    )
    return header + numbers + frame.data


def decode(stream: bytes, sizes: list[int]) -> tuple[list[Frame], bytes]:
    """The frames of `stream`, and what is left of an unfinished one; blocks have `sizes` pages. Raises `Refused`."""
    frames: list[Frame] = []
    at = 0
    while len(stream) - at >= HEADER.size:
        magic, kind, encoding, block, count, payload, number = HEADER.unpack_from(stream, at)
        if magic != MAGIC or kind not in (PAGES, ZEROS, ROUND_END) or encoding:
            raise Refused(frames)
        if kind == ROUND_END:
            if block or count or payload:
                raise Refused(frames)
        else:
            expected = count * (4 + PAGE if kind == PAGES else 4)
            if block >= len(sizes) or not 1 <= count <= COUNT_MAX or number or payload != expected:
                raise Refused(frames)
        body = stream[at + HEADER.size : at + HEADER.size + payload]
        if len(body) < 4 * count:
            break
        numbers = struct.unpack_from(f"<{count}I", body)
        if count and (list(numbers) != sorted(set(numbers)) or numbers[-1] >= sizes[block]):
            raise Refused(frames)
        if len(body) < payload:
            break
        frames.append(Frame(kind, block, numbers, body[4 * count :], number))
        at += HEADER.size + payload
    return frames, stream[at:]


def apply(frames: list[Frame], blocks: list[bytearray]) -> None:
    """Put pages into RAM."""
    for frame in frames:
        for index, page in enumerate(frame.pages):
            data = frame.data[index * PAGE : (index + 1) * PAGE] if frame.kind == PAGES else bytes(PAGE)
            blocks[frame.block][page * PAGE : (page + 1) * PAGE] = data
