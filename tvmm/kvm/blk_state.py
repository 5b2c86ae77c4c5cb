"""What a disk's queue has besides its ring, as records: requests that it keeps over an error of the host.

Their chains are in flight, and the ring cannot give them again: a split ring's driver may have written over the entry
that named a chain, and in a packed ring another chain's completion may have taken its place. So requests are carried as
what C had made of them, with guest-physical addresses, and checked anew where they arrive.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib
from tvmm.records import check_flag, check_record, check_uint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.kvm.blk import BlkQueue
    from tvmm.kvm.memory_map import MemoryMap
    from tvmm.kvm.vring_records import InFlight

__all__ = ["KeptRequest", "check_kept", "keep_again", "kept_requests"]

READ, WRITE, FLUSH, DISCARD, ZEROES = range(5)
SECTOR = 512
LENGTH_LIMIT = (1 << 32) - 1
"""Of data: a chain has no more (2.7.5)."""
OFFSET_LIMIT = (1 << 62) - 1
"""Of a byte on a disk. With a length added it is far from the end of 64 bits, which a peer would like to pass."""
PIECES_MAX = int(lib.TVMM_BLK_IOVECS_MAX)
RANGES_MAX = int(lib.TVMM_BLK_RANGES_MAX)
"""As for requests that a driver makes: a peer is not to have this side keep more."""


class KeptRequest(NamedTuple):
    """One request. `operation` is 0 to 4: read, write, flush, discard, write zeroes.

    `status` is the guest-physical address of the status byte. Of `length` bytes at byte `offset` of the disk the first
    `done` have moved; for the others `pieces` are (guest-physical address, bytes). `ranges` are those left, as (offset,
    length, whether to unmap). `stable`: it has to be stable when it completes, or is (2).
    """

    id: int
    operation: int
    status: int
    offset: int = 0
    length: int = 0
    done: int = 0
    stable: int = 0
    pieces: tuple[tuple[int, int], ...] = ()
    ranges: tuple[tuple[int, int, bool], ...] = ()


def kept_requests(queue: BlkQueue, memory: MemoryMap) -> tuple[KeptRequest, ...]:
    """What the queue keeps, in the ring's order. Its thread is held."""
    found, raw = [], queue.raw.kept
    while raw:
        found.append(_record(raw, memory))
        raw = raw.next
    return tuple(found)


def _record(raw: Any, memory: MemoryMap) -> KeptRequest:
    pieces = (raw.iovecs[index] for index in range(raw.iovec_first, raw.iovec_count))
    ranges = (raw.ranges[index] for index in range(raw.range_first, raw.range_count))
    moves = raw.operation in (READ, WRITE)
    return KeptRequest(
        int(raw.id),
        int(raw.operation),
        _guest_address(memory, raw.status),
        int(raw.offset),
        int(raw.length),
        int(raw.done) if moves else 0,
        int(raw.stable),
        tuple((_guest_address(memory, piece.iov_base), int(piece.iov_len)) for piece in pieces) if moves else (),
        tuple((int(part.offset), int(part.length), bool(part.unmap)) for part in ranges),
    )


def _guest_address(memory: MemoryMap, pointer: Any) -> int:
    """Where in the guest a byte of its RAM is."""
    hva = int(ffi.cast("uintptr_t", pointer))
    for region in memory.raw.regions[0 : memory.raw.count]:
        start = int(ffi.cast("uintptr_t", region.hva))
        if start <= hva < start + region.size:
            return int(region.gpa) + hva - start
    raise AssertionError("a request's buffer is not in guest memory")


def _host_pointer(memory: MemoryMap, gpa: int, length: int, *, writable: bool) -> Any:
    """The bytes from `gpa` on. Raises `ValueError` if they are not in one region, or not writable."""
    for region in memory.raw.regions[0 : memory.raw.count]:
        if region.gpa <= gpa and gpa + length <= region.gpa + region.size:
            if writable and region.flags & lib.TVMM_REGION_READ_ONLY:
                raise ValueError("kept: a buffer to be written is in read-only memory")
            return region.hva + (gpa - region.gpa)
    raise ValueError("kept: a buffer is not in one piece of guest memory")


def check_kept(
    kept: object, in_flight: Mapping[int, InFlight], memory: MemoryMap, *, read_only: bool
) -> tuple[KeptRequest, ...]:
    """`kept` if a queue with these chains in flight can keep it. Raises `ValueError` that names ``kept``."""
    if type(kept) is not tuple or len(kept) > len(in_flight):
        raise ValueError("kept is not a tuple that fits what is in flight")
    ids = set()
    for request in kept:
        check_record(request, KeptRequest)
        chain = in_flight.get(check_uint("kept: id", request.id, 0xFFFF))
        if chain is None or chain.done or request.id in ids:
            raise ValueError("kept: id is not that of a chain in flight, or there twice")
        ids.add(request.id)
        _check_request(request, chain, memory, read_only=read_only)
    return kept


def _check_request(request: KeptRequest, chain: InFlight, memory: MemoryMap, *, read_only: bool) -> None:
    operation = check_uint("kept: operation", request.operation, ZEROES)
    moves, ranged = operation in (READ, WRITE), operation in (DISCARD, ZEROES)
    if read_only and operation not in (READ, FLUSH):
        raise ValueError("kept: operation is none for a read-only disk")
    check_uint("kept: status", request.status, (1 << 64) - 1)
    _host_pointer(memory, request.status, 1, writable=True)
    check_uint("kept: offset", request.offset, OFFSET_LIMIT)
    length = check_uint("kept: length", request.length, LENGTH_LIMIT if moves else 0)
    done = check_uint("kept: done", request.done, length)
    check_uint("kept: stable", request.stable, 2)
    if request.offset % SECTOR or length % SECTOR:
        raise ValueError("kept: offset or length is no whole number of sectors")
    if chain.writable < (length + 1 if operation == READ else 1):
        raise ValueError("kept: length is more than there is room for in the chain")
    _check_pieces(request.pieces, length - done, memory, written=operation == READ)
    _check_ranges(request.ranges, RANGES_MAX if ranged else 0)


def _check_pieces(pieces: object, left: int, memory: MemoryMap, *, written: bool) -> None:
    if type(pieces) is not tuple or len(pieces) > PIECES_MAX:
        raise ValueError(f"kept: pieces is not a tuple of at most {PIECES_MAX}")
    for piece in pieces:
        if type(piece) is not tuple or len(piece) != 2:
            raise ValueError("kept: pieces has something that is no piece")
        gpa = check_uint("kept: pieces", piece[0], (1 << 64) - 1)
        if not check_uint("kept: pieces", piece[1], LENGTH_LIMIT):
            raise ValueError("kept: pieces has an empty one")
        _host_pointer(memory, gpa, piece[1], writable=written)
    if sum(length for _, length in pieces) != left:
        raise ValueError("kept: pieces are not what is left to do")


def _check_ranges(ranges: object, most: int) -> None:
    if type(ranges) is not tuple or len(ranges) > most:
        raise ValueError(f"kept: ranges is not a tuple of at most {most}")
    for part in ranges:
        if type(part) is not tuple or len(part) != 3:
            raise ValueError("kept: ranges has something that is no range")
        check_uint("kept: ranges", part[0], OFFSET_LIMIT)
        if not check_uint("kept: ranges", part[1], LENGTH_LIMIT):
            raise ValueError("kept: ranges has an empty one")
        check_flag("kept: ranges", part[2])


def keep_again(queue: BlkQueue, kept: tuple[KeptRequest, ...], memory: MemoryMap) -> None:
    """Have a queue that has been started keep what `check_kept` took. Raises `HostError` without memory."""
    for request in kept:
        iovecs = ffi.new("struct iovec[]", max(len(request.pieces), 1))
        for index, (gpa, length) in enumerate(request.pieces):
            iovecs[index].iov_base = _host_pointer(memory, gpa, length, writable=False)
            iovecs[index].iov_len = length
        ranges = ffi.new("struct tvmm_blk_range[]", max(len(request.ranges), 1))
        for index, (offset, length, unmap) in enumerate(request.ranges):
            ranges[index].offset, ranges[index].length, ranges[index].unmap = offset, length, int(unmap)
        raw = ffi.new("struct tvmm_blk_request *")
        raw.id, raw.operation, raw.stable = request.id, request.operation, request.stable
        raw.status = _host_pointer(memory, request.status, 1, writable=True)
        raw.offset, raw.length, raw.done = request.offset, request.length, request.done
        raw.iovecs, raw.iovec_count = iovecs, len(request.pieces)
        raw.ranges, raw.range_count = ranges, len(request.ranges)
        error = lib.tvmm_blk_keep_again(queue.raw, raw)
        if error:
            raise HostError(f"a disk's requests cannot be kept: {os.strerror(-error)}", "free some memory")
