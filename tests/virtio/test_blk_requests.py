"""Block requests out of chains: what each type means, however it is divided, and what hostile ones come to."""

from __future__ import annotations

from itertools import pairwise
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.virtio.blk_request import (
    STATUS_IO_ERROR,
    STATUS_UNSUPPORTED,
    Broken,
    Discard,
    Failed,
    Flush,
    GetId,
    Limits,
    Range,
    Read,
    Request,
    Write,
    WriteZeroes,
    parse,
    used_length,
)
from tvmm.virtio.segments import Segment, Segments, gather, split, total

LIMITS = Limits(2048, False, True, 1024, 4, 512, 4, b"disk-1")
READABLE, WRITABLE = 0x1000, 0x10_0000
IN, OUT, FLUSH, GET_ID, LIFETIME, DISCARD, WRITE_ZEROES, SECURE_ERASE = 0, 1, 4, 8, 10, 11, 13, 14


class Chain:
    """A request in memory: readable bytes, and room for writable ones, cut at the given places."""

    def __init__(self, readable: bytes, writable: int, cuts: tuple[int, ...] = ()) -> None:
        self.bytes = readable
        self.readable = self._cut(READABLE, len(readable), cuts)
        self.writable = self._cut(WRITABLE, writable, cuts)

    @staticmethod
    def _cut(start: int, length: int, cuts: tuple[int, ...]) -> Segments:
        edges = [0, *sorted({cut % length for cut in cuts if length} - {0}), length]
        return tuple(
            Segment(start + edge, following - edge)
            for edge, following in pairwise(edges)
            if following > edge
        )

    def read(self, address: int, length: int) -> bytes:
        """Memory, of which only the readable part may be looked at."""
        assert address >= READABLE
        assert address + length <= READABLE + len(self.bytes)
        return self.bytes[address - READABLE : address - READABLE + length]

    def parse(self, limits: Limits = LIMITS) -> Request | Failed | Broken:
        """What it asks for."""
        return parse(self.readable, self.writable, self.read, limits)


def header(kind: int, sector: int = 0) -> bytes:
    """Type, reserved, sector."""
    return pack("<IIQ", kind, 0, sector)


def ask(kind: int, sector: int, data: bytes, room: int, limits: Limits = LIMITS) -> Request | Failed | Broken:
    """A request with `data` to read and `room` to write besides the status, in whole pieces."""
    return Chain(header(kind, sector) + data, room + 1).parse(limits)


def code(request: Request | Failed | Broken) -> int:
    """The status of a request that has failed."""
    assert isinstance(request, Failed)
    return request.code


def ranges(*parts: tuple[int, int, int]) -> bytes:
    """Sector, sectors, flags of each."""
    return b"".join(pack("<QII", *part) for part in parts)


def test_read() -> None:
    """The room before the status byte is filled, and all of it counts as written."""
    request = ask(IN, 7, b"", 1024)
    assert request == Read(Segment(WRITABLE + 1024, 1), 7, (Segment(WRITABLE, 1024),), 1024)
    assert isinstance(request, Read)
    assert (used_length(request, True), used_length(request, False)) == (1025, 0)


def test_write() -> None:
    """What follows the header is written, and one byte comes back."""
    request = ask(OUT, 2047, bytes(512), 0)
    assert request == Write(Segment(WRITABLE, 1), 2047, (Segment(READABLE + 16, 512),), 512)
    assert isinstance(request, Write)
    assert used_length(request, True) == used_length(request, False) == 1


def test_flush_and_identifier() -> None:
    """A flush has no data; the identifier fills what room there is, up to twenty bytes, padded with zeroes."""
    assert ask(FLUSH, 0, b"", 0) == Flush(Segment(WRITABLE, 1))
    for room, text, adjacent, used in (
        (20, b"disk-1".ljust(20, b"\0"), True, 21),
        (4, b"disk", True, 5),
        (512, b"disk-1".ljust(20, b"\0"), False, 20),
    ):
        request = ask(GET_ID, 0, b"", room)
        assert request == GetId(Segment(WRITABLE + room, 1), (Segment(WRITABLE, len(text)),), text, adjacent)
        assert isinstance(request, GetId)
        assert used_length(request, True) == used


def test_ranges() -> None:
    """Discard and write-zeroes come with their ranges."""
    status = Segment(WRITABLE, 1)
    assert ask(DISCARD, 0, ranges((0, 8, 0), (2040, 8, 0)), 0) == Discard(status, (Range(0, 8), Range(2040, 8)))
    request = ask(WRITE_ZEROES, 0, ranges((16, 512, 1), (0, 1, 0)), 0)
    assert request == WriteZeroes(status, (Range(16, 512, True), Range(0, 1)))


@pytest.mark.parametrize(
    ("kind", "sector", "data", "room"),
    [
        (IN, 2048, 0, 512),
        (IN, 2047, 0, 1024),
        (IN, (1 << 64) - 1, 0, 512),
        (IN, 0, 0, 511),
        (IN, 0, 16, 512),
        (OUT, 0, 100, 0),
        (OUT, 2047, 1024, 0),
        (OUT, 0, 512, 1),
        (FLUSH, 0, 1, 0),
        (FLUSH, 0, 0, 1),
        (GET_ID, 0, 0, 0),
        (GET_ID, 0, 20, 20),
        (DISCARD, 0, 0, 0),
        (DISCARD, 0, 15, 0),
        (DISCARD, 0, 17, 0),
        (DISCARD, 0, 80, 0),
        (DISCARD, 0, 16, 1),
        (WRITE_ZEROES, 0, 80, 0),
    ],
)
def test_wrong_lengths_and_places(kind: int, sector: int, data: int, room: int) -> None:
    """Behind the end, not whole sectors, data where there should be none: an I/O error and nothing else."""
    assert code(ask(kind, sector, bytes(data), room)) == STATUS_IO_ERROR


def test_unsupported() -> None:
    """Types of other devices, requests that were not offered, unknown flags (5.2.6.2)."""
    for kind in (2, 3, 5, LIFETIME, 12, SECURE_ERASE, 15, 16, 18, 26, 0x8000_0001, 0xFFFF_FFFF):
        assert code(ask(kind, 0, b"", 0)) == STATUS_UNSUPPORTED
    plain = Limits(2048, flush=False)
    for kind in (FLUSH, DISCARD, WRITE_ZEROES):
        assert code(ask(kind, 0, ranges((0, 1, 0)), 0, plain)) == STATUS_UNSUPPORTED
    assert code(ask(DISCARD, 0, ranges((0, 1, 1)), 0)) == STATUS_UNSUPPORTED
    for flags in (2, 3, 0x8000_0000):
        assert code(ask(WRITE_ZEROES, 0, ranges((0, 1, 0), (0, 1, flags)), 0)) == STATUS_UNSUPPORTED


def test_bad_ranges() -> None:
    """Empty, too long, or off the disk, also by wrapping."""
    for sector, sectors in ((0, 0), (0, 1025), (2048, 1), (2040, 9), ((1 << 64) - 1, 2), (0, 0xFFFF_FFFF)):
        assert code(ask(DISCARD, 0, ranges((0, 1, 0), (sector, sectors, 0)), 0)) == STATUS_IO_ERROR
    assert code(ask(WRITE_ZEROES, 0, ranges((0, 513, 0)), 0)) == STATUS_IO_ERROR
    assert code(ask(DISCARD, 0, ranges(*[(0, 1, 0)] * 5), 0)) == STATUS_IO_ERROR


def test_read_only() -> None:
    """Whatever would change the disk fails, and nothing is to be written (5.2.6.2)."""
    limits = LIMITS._replace(read_only=True)
    for kind, data in ((OUT, bytes(512)), (DISCARD, ranges((0, 1, 0))), (WRITE_ZEROES, ranges((0, 1, 0)))):
        assert code(ask(kind, 0, data, 0, limits)) == STATUS_IO_ERROR
    assert isinstance(ask(IN, 0, b"", 512, limits), Read)


def test_no_room_for_a_status() -> None:
    """A chain that cannot be answered breaks the device; so does one without a whole header."""
    assert isinstance(Chain(header(IN), 0).parse(), Broken)
    assert isinstance(Chain(header(IN)[:15], 513).parse(), Broken)
    assert isinstance(Chain(b"", 1).parse(), Broken)


REQUESTS = st.sampled_from(
    [
        (header(IN, 3), 1025),
        (header(OUT, 3) + bytes(1024), 1),
        (header(GET_ID), 21),
        (header(FLUSH), 1),
        (header(DISCARD) + ranges((1, 2, 0), (3, 4, 0), (5, 6, 0)), 1),
        (header(IN, 2047), 1025),
        (header(99), 5),
    ]
)


@settings(max_examples=150, deadline=None)
@given(REQUESTS, st.lists(st.integers(1, 2000), max_size=8))
def test_framing_means_nothing(request_bytes: tuple[bytes, int], cuts: list[int]) -> None:
    """However a request is cut into descriptors: the same request, over the same bytes (2.7.4.1)."""
    whole, cut = Chain(*request_bytes).parse(), Chain(*request_bytes, tuple(cuts)).parse()
    assert type(whole) is type(cut)
    for one, other in zip(whole, cut, strict=True):
        if isinstance(one, tuple) and one and isinstance(one[0], Segment):
            assert isinstance(other, tuple)
            assert _places(one) == _places(other)
        else:
            assert one == other


def _places(segments: Segments) -> list[int]:
    return [address + at for address, length in segments for at in range(length)]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 4000), st.lists(st.integers(1, 200), max_size=6))
def test_any_bytes(readable: bytes, writable: int, cuts: list[int]) -> None:
    """Random chains: an answer, never an exception, and what may be executed is on the disk."""
    request = Chain(readable, writable, tuple(cuts)).parse()
    if isinstance(request, Broken):
        assert writable == 0 or len(readable) < 16
        return
    assert request.status == Segment(WRITABLE + writable - 1, 1)
    if isinstance(request, (Read, Write)):
        assert total(request.data) == request.length
        assert request.sector * 512 + request.length <= 2048 * 512


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=8), st.integers(0, 120))
def test_split(lengths: list[int], at: int) -> None:
    """Cutting segments is cutting the string that they are."""
    memory = bytes(range(200))
    segments = tuple(Segment(sum(lengths[:index]), length) for index, length in enumerate(lengths))
    head, tail = split(segments, at)

    def read(address: int, length: int) -> bytes:
        return memory[address : address + length]

    whole = gather(segments, read)
    assert (gather(head, read), gather(tail, read)) == (whole[:at], whole[at:])
    assert total(head) == min(at, sum(lengths))
    assert all(segment.length for segment in (*head, *tail[:1]))
