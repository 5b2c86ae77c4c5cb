"""Requests of a block device (virtio 1.3, 5.2.6): a chain in, a typed request or an error status out.

A request is a readable header of 16 bytes, data, and a writable status byte at the very end. Parsing looks at
everything and touches nothing but header and ranges: what comes out can be executed as it is, its sectors are on
the disk, its lengths are whole sectors. `Failed` is for a request that only gets a status; `Broken` for a chain
without room for one, which cannot be answered at all and stops the device.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from tvmm.virtio.segments import Segment, Segments, gather, split, total

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ID_LENGTH",
    "MAX_RANGES",
    "SECTOR",
    "STATUS_IO_ERROR",
    "STATUS_OK",
    "STATUS_UNSUPPORTED",
    "Broken",
    "Discard",
    "Failed",
    "Flush",
    "GetId",
    "Limits",
    "Range",
    "Read",
    "Request",
    "Type",
    "Write",
    "WriteZeroes",
    "parse",
    "used_length",
]

SECTOR = 512
ID_LENGTH = 20

class Type:
    """Request types; those left out are for zones, secure erase and the wear of flash."""

    IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13


STATUS_OK, STATUS_IO_ERROR, STATUS_UNSUPPORTED = 0, 1, 2

HEADER = Struct("<IIQ")
RANGE = Struct("<QII")
UNMAP = 0x01

MAX_RANGES = 256
"""Ranges in one discard or write-zeroes request, whatever a device says of itself: a chain of 4 GiB of them would
have to be read and kept before the first is looked at."""


class Limits(NamedTuple):
    """What the disk can do. `max_discard` and `max_zeroes` are the most sectors of one range, 0 where the request
    is not supported; `serial` is what GET_ID answers, up to 20 bytes.
    """

    capacity: int
    read_only: bool = False
    flush: bool = True
    max_discard: int = 0
    discard_ranges: int = 1
    max_zeroes: int = 0
    zeroes_ranges: int = 1
    serial: bytes = b""


class Range(NamedTuple):
    """`sectors` sectors from `sector`; `unmap` allows write-zeroes to deallocate them."""

    sector: int
    sectors: int
    unmap: bool = False


class Read(NamedTuple):
    """Fill `data` from `sector` on."""

    status: Segment
    sector: int
    data: Segments
    length: int


class Write(NamedTuple):
    """Write `data` from `sector` on."""

    status: Segment
    sector: int
    data: Segments
    length: int


class Flush(NamedTuple):
    """Make every write that has completed stable."""

    status: Segment


class Discard(NamedTuple):
    """The contents of the ranges are not needed any more."""

    status: Segment
    ranges: tuple[Range, ...]


class WriteZeroes(NamedTuple):
    """The ranges are to read as zero."""

    status: Segment
    ranges: tuple[Range, ...]


class GetId(NamedTuple):
    """Write `text` into `data`, which is exactly as long; `adjacent`: the status byte follows at once."""

    status: Segment
    data: Segments
    text: bytes
    adjacent: bool


class Failed(NamedTuple):
    """Nothing to do but to write `code` as the status."""

    status: Segment
    code: int
    reason: str


class Broken(NamedTuple):
    """Not a request: the device needs a reset."""

    reason: str


Request = Read | Write | Flush | Discard | WriteZeroes | GetId


def parse(
    readable: Segments, writable: Segments, read: Callable[[int, int], bytes], limits: Limits
) -> Request | Failed | Broken:
    """What a chain asks for; `read(address, length)` gives bytes of its segments.

    The header is read once: the guest may change it while it is looked at.
    """
    head, payload = split(readable, HEADER.size)
    room, tail = split(writable, total(writable) - 1) if writable else ((), ())
    if total(tail) != 1:
        return Broken("no room for the status of a block request")
    status = tail[0]
    if total(head) < HEADER.size:
        return Broken("a block request shorter than its header")
    kind, _, sector = HEADER.unpack(gather(head, read))
    match kind:
        case Type.IN:
            return _read(status, sector, payload, room, limits)
        case Type.OUT:
            return _write(status, sector, payload, room, limits)
        case Type.FLUSH:
            return _flush(status, payload, room, limits)
        case Type.GET_ID:
            return _get_id(status, payload, room, limits)
        case Type.DISCARD | Type.WRITE_ZEROES:
            return _ranges(kind, status, payload, room, read, limits)
    return Failed(status, STATUS_UNSUPPORTED, f"type {kind}")


def _misplaced(sector: int, length: int, limits: Limits) -> str:
    """Why `length` bytes from `sector` on are not on the disk, in words."""
    if length % SECTOR:
        return "not whole sectors"
    if sector + length // SECTOR > limits.capacity:
        return "behind the end of the disk"
    return ""


def _read(status: Segment, sector: int, payload: Segments, room: Segments, limits: Limits) -> Read | Failed:
    length = total(room)
    wrong = "a read with data to write" if payload else _misplaced(sector, length, limits)
    return Failed(status, STATUS_IO_ERROR, wrong) if wrong else Read(status, sector, room, length)


def _write(status: Segment, sector: int, payload: Segments, room: Segments, limits: Limits) -> Write | Failed:
    length = total(payload)
    if limits.read_only:
        return Failed(status, STATUS_IO_ERROR, "a write to a read-only disk")
    wrong = "a write with room to read into" if room else _misplaced(sector, length, limits)
    return Failed(status, STATUS_IO_ERROR, wrong) if wrong else Write(status, sector, payload, length)


def _flush(status: Segment, payload: Segments, room: Segments, limits: Limits) -> Flush | Failed:
    if not limits.flush:
        return Failed(status, STATUS_UNSUPPORTED, "a flush that was not offered")
    if payload or room:
        return Failed(status, STATUS_IO_ERROR, "a flush with data")
    return Flush(status)


def _get_id(status: Segment, payload: Segments, room: Segments, limits: Limits) -> GetId | Failed:
    if payload or not room:
        return Failed(status, STATUS_IO_ERROR, "an identifier without room for it, or with data")
    data, unused = split(room, ID_LENGTH)
    text = limits.serial[:ID_LENGTH].ljust(ID_LENGTH, b"\0")[: total(data)]
    return GetId(status, data, text, not unused)


def _ranges(
    kind: int,
    status: Segment,
    payload: Segments,
    room: Segments,
    read: Callable[[int, int], bytes],
    limits: Limits,
) -> Discard | WriteZeroes | Failed:
    discard = kind == Type.DISCARD
    most, count = (
        (limits.max_discard, limits.discard_ranges) if discard else (limits.max_zeroes, limits.zeroes_ranges)
    )
    if not most:
        return Failed(status, STATUS_UNSUPPORTED, "ranges that were not offered")
    if limits.read_only:
        return Failed(status, STATUS_IO_ERROR, "ranges of a read-only disk")
    length = total(payload)
    if room or not length or length % RANGE.size or length > RANGE.size * min(count, MAX_RANGES):
        return Failed(status, STATUS_IO_ERROR, "ranges of a wrong length")
    ranges = []
    for sector, sectors, flags in RANGE.iter_unpack(gather(payload, read)):
        if flags & (~0 if discard else ~UNMAP):
            return Failed(status, STATUS_UNSUPPORTED, "a range with unknown flags")
        if not 0 < sectors <= most or sector + sectors > limits.capacity:
            return Failed(status, STATUS_IO_ERROR, "a range that is not on the disk or too long")
        ranges.append(Range(sector, sectors, bool(flags & UNMAP)))
    return (Discard if discard else WriteZeroes)(status, tuple(ranges))


def used_length(request: Request | Failed, ok: bool) -> int:
    """What to report as written (2.7.8.2): bytes from the start of the writable part without a gap.

    With the data of a failed read missing, the status byte behind it does not count.
    """
    match request:
        case Read(length=length):
            return length + 1 if ok else int(not length)
        case GetId(text=text, adjacent=adjacent):
            return len(text) + adjacent if ok else 0
        case Failed():
            return 0
    return 1
