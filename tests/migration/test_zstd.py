"""Compressed pieces: there and back, and everything that a hostile source can make of one."""

from __future__ import annotations

import struct
import tracemalloc
from functools import cache
from random import Random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tvmm.errors import ProtocolError
from tvmm.migration.link import LinkLost
from tvmm.migration.senders import BUFFER_BYTES
from tvmm.migration.zstd import MAX_PACKED, Compressor, Decompressor

MEMORY_LIMIT = 8 << 20
"""What one piece can have the destination keep: itself, and what comes out of it."""
BIG = 1 << 25


class Bytes:
    """A `ThreadStream` that has these bytes, a few at a time, and then ends."""

    def __init__(self, data: bytes, step: int = 1 << 16) -> None:
        self._data = data
        self._step = step

    def recv_into(self, buffer: memoryview) -> int:
        """See `ThreadStream`."""
        part = self._data[: min(len(buffer), self._step)]
        buffer[: len(part)] = part
        self._data = self._data[len(part) :]
        return len(part)

    def send_all(self, data: memoryview) -> None:
        """Nobody sends here."""
        raise AssertionError

    def close(self) -> None:
        """Nothing to do."""


def piece(packed: bytes) -> bytes:
    """With its length in front."""
    return struct.pack("<I", len(packed)) + packed


@pytest.mark.parametrize("data", [b"x", bytes(BUFFER_BYTES), Random(1).randbytes(BUFFER_BYTES)])
def test_there_and_back(data: bytes) -> None:
    """Also what cannot be made smaller; in pieces of any size."""
    packed = bytes(Compressor().pack(memoryview(data)))
    assert len(packed) <= MAX_PACKED + 4
    for step in (1000, 1 << 20):
        stream = Bytes(packed * 2, step)
        decoder = Decompressor()
        assert decoder.read(stream) == data
        assert decoder.read(stream) == data
        assert not decoder.read(stream)


@pytest.mark.parametrize("length", [0, MAX_PACKED + 1, (1 << 32) - 1])
def test_a_length_out_of_range(length: int) -> None:
    """Nothing is kept for it."""
    with pytest.raises(ProtocolError, match="compressed piece of"):
        Decompressor().read(Bytes(struct.pack("<I", length) + b"x" * 100))


@cache
def bombs() -> dict[str, bytes]:
    """Small pieces that stand for much."""
    whole = zstandard.ZstdCompressor().compress(bytes(BIG))
    unknown = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(BIG))
    # The first frame with another size in its header.
    size = zstandard.get_frame_parameters(whole).content_size
    liar = whole.replace(struct.pack("<I", size), struct.pack("<I", 4096), 1)
    assert liar != whole
    # Magic; single segment 0 with a size of 4 bytes; a window of 3.75 TiB; the size; one empty raw block, the last.
    window = b"\x28\xb5\x2f\xfd" + b"\x80" + b"\xff" + struct.pack("<I", 4096) + b"\x01\x00\x00"
    skipped = struct.pack("<II", 0x184D2A50, 100) + bytes(100)
    return {"whole": whole, "unknown": unknown, "liar": liar, "window": window, "skipped": skipped, "none": b"x" * 9}


@pytest.mark.parametrize("name", bombs())
def test_a_bomb(name: str) -> None:
    """Refused for the size that it says, or when more comes out than it said."""
    data = piece(bombs()[name])
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="compressed piece"):
            Decompressor().read(Bytes(data))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_LIMIT


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 100])
def test_an_end_within_a_piece(cut: int) -> None:
    """Is a lost connection, and no end."""
    data = bytes(Compressor().pack(memoryview(Random(1).randbytes(1000))))
    with pytest.raises(LinkLost, match="within a piece"):
        Decompressor().read(Bytes(data[:cut]))


@given(st.data())
def test_a_damaged_piece(data: st.DataObject) -> None:
    """Comes out as something of no more than its size, or is refused."""
    packed = bytearray(Compressor().pack(memoryview(Random(2).randbytes(300) + bytes(5000))))
    for _ in range(data.draw(st.integers(1, 5))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert len(Decompressor().read(Bytes(bytes(packed)))) <= BUFFER_BYTES
    except (ProtocolError, LinkLost):
        return


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Nothing else is raised."""
    try:
        assert len(Decompressor().read(Bytes(piece(data)))) <= BUFFER_BYTES
    except ProtocolError:
        return
