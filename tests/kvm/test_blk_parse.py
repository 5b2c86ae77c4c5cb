"""Block requests in C against their twin in Python: the same chain, the same verdict, whatever the driver wrote."""

from __future__ import annotations

from itertools import pairwise
from struct import pack
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.kvm.calls import ffi, lib
from tvmm.virtio.blk_request import (
    Broken,
    Discard,
    Failed,
    Flush,
    GetId,
    Limits,
    Read,
    Request,
    Write,
    WriteZeroes,
    parse,
    used_length,
)
from tvmm.virtio.segments import Segment, Segments

OPERATIONS = {Read: 0, Write: 1, Flush: 2, Discard: 3, WriteZeroes: 4, GetId: 5}
MEMORY = ffi.new("uint8_t[]", 1 << 16)
BASE = int(ffi.cast("uintptr_t", MEMORY))
WRITABLE = 1 << 15


def read(address: int, length: int) -> bytes:
    """The memory of the chains."""
    return bytes(ffi.buffer(MEMORY + (address - BASE), length))


def segments(start: int, length: int, cuts: list[int]) -> Segments:
    """One part of a chain, cut."""
    edges = sorted({0, length, *(cut for cut in cuts if cut < length)})
    return tuple(Segment(BASE + start + at, following - at) for at, following in pairwise(edges))


class Parsed:
    """What C makes of a chain."""

    def __init__(self, readable: Segments, writable: Segments, limits: Limits) -> None:
        pieces = [*readable, *writable]
        self.iovecs = ffi.new("struct iovec[]", [(ffi.cast("void *", at), length) for at, length in pieces] or 1)
        chain = ffi.new(
            "struct tvmm_chain *",
            (7, 0, len(readable), len(writable), sum(s.length for s in readable), sum(s.length for s in writable)),
        )
        fields = {name: int(value) for name, value in limits._asdict().items() if name != "serial"}
        self.limits = ffi.new("struct tvmm_blk_limits *", {**fields, "serial": limits.serial.ljust(20, b"\0")})
        self.raw = ffi.gc(ffi.new("struct tvmm_blk_request *"), lib.tvmm_blk_forget)
        self.verdict = lib.tvmm_blk_parse(self.limits, chain, self.iovecs, self.raw)

    @property
    def status(self) -> int:
        """Its address."""
        return int(ffi.cast("uintptr_t", self.raw.status))

    @property
    def data(self) -> Segments:
        """The pieces of data."""
        return tuple(
            Segment(int(ffi.cast("uintptr_t", self.raw.iovecs[index].iov_base)), int(self.raw.iovecs[index].iov_len))
            for index in range(self.raw.iovec_count)
        )

    @property
    def ranges(self) -> list[tuple[int, int, bool]]:
        """Offset and length in bytes, unmap."""
        ranges: list[Any] = [self.raw.ranges[index] for index in range(self.raw.range_count)]
        return [(int(one.offset), int(one.length), bool(one.unmap)) for one in ranges]


KINDS = st.sampled_from((0, 0, 1, 1, 4, 8, 8, 11, 13, 13, 2, 3, 10, 14, 0xFFFF_FFFF))
SECTORS = st.one_of(st.integers(0, 70), st.integers(0, (1 << 64) - 1))
RANGES = st.lists(
    st.builds(
        lambda sector, sectors, flags: pack("<QII", sector, sectors, flags),
        SECTORS,
        st.one_of(st.integers(0, 66), st.integers(0, (1 << 32) - 1)),
        st.sampled_from((0, 0, 0, 1, 1, 2, 0x8000_0000)),
    ),
    max_size=6,
).map(b"".join)
DATA = st.one_of(
    st.just(b""),
    st.integers(0, 66).map(lambda sectors: bytes(sectors * 512)),
    RANGES,
    st.binary(max_size=40),
)
READABLE = st.one_of(
    st.builds(lambda kind, sector, data: pack("<IIQ", kind, 9, sector) + data, KINDS, SECTORS, DATA),
    st.binary(max_size=20),
)
ROOM = st.one_of(st.integers(0, 30), st.integers(0, 60).map(lambda sectors: sectors * 512 + 1), st.integers(0, 30000))
LIMITS = st.builds(
    Limits,
    st.one_of(st.just(64), st.integers(0, 70), st.just(1 << 54)),
    st.booleans(),
    st.booleans(),
    st.sampled_from((0, 8, 64)),
    st.sampled_from((1, 4, 256)),
    st.sampled_from((0, 8, 64)),
    st.sampled_from((1, 4, 256)),
    st.binary(max_size=20),
)


@settings(max_examples=1500, deadline=None)
@given(READABLE, ROOM, st.lists(st.integers(1, 1200), max_size=12), LIMITS)
def test_c_agrees_with_python(readable: bytes, room: int, cuts: list[int], limits: Limits) -> None:
    """Verdict, status, place, data, ranges and used length are the same."""
    ffi.memmove(MEMORY, readable, len(readable))
    chain = segments(0, len(readable), cuts), segments(WRITABLE, room, cuts)
    wanted = parse(*chain, read, limits)
    parsed = Parsed(*chain, limits)
    if isinstance(wanted, Broken):
        assert parsed.verdict == (lib.TVMM_BLK_NO_STATUS if "status" in wanted.reason else lib.TVMM_BLK_NO_HEADER)
        return
    assert parsed.status == wanted.status.address
    if isinstance(wanted, Failed):
        assert (parsed.verdict, parsed.raw.code) == (lib.TVMM_BLK_REFUSE, wanted.code)
        return
    assert parsed.verdict == lib.TVMM_BLK_RUN
    check_request(parsed, wanted)


def check_request(parsed: Parsed, wanted: Request) -> None:
    """What is to be carried out."""
    raw = parsed.raw
    assert raw.operation == OPERATIONS[type(wanted)]
    for ok in (True, False):
        assert lib.tvmm_blk_used_length(raw, ok) == used_length(wanted, ok)
    match wanted:
        case Read() | Write():
            assert (raw.offset, raw.length) == (wanted.sector * 512, wanted.length)
            assert parsed.data == wanted.data
        case GetId():
            assert parsed.data == wanted.data
            assert raw.length == len(wanted.text)
        case Discard() | WriteZeroes():
            assert parsed.ranges == [(one.sector * 512, one.sectors * 512, one.unmap) for one in wanted.ranges]
        case Flush():
            assert not parsed.data


def test_many_pieces() -> None:
    """A request in a thousand pieces of a byte is what it is in one."""
    ffi.memmove(MEMORY, pack("<IIQ", 1, 0, 2) + bytes(1024), 1040)
    readable = segments(0, 1040, list(range(1, 1040)))
    assert len(readable) == 1040
    parsed = Parsed(readable, segments(WRITABLE, 1, []), Limits(64))
    assert parsed.verdict == lib.TVMM_BLK_RUN
    assert parsed.data == readable[16:]
    assert (parsed.raw.offset, parsed.raw.length) == (1024, 1024)
