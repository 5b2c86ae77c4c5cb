"""One queue of a block device as Python has it: settings in, counters and reasons out. The loop is C (blk.h)."""

from __future__ import annotations

import os
import threading
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.histogram import read_times

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.kvm.limit import Limiter
    from tvmm.kvm.nbd import NbdLink
    from tvmm.kvm.serve import Waker
    from tvmm.kvm.vring import Vring
    from tvmm.metrics.histogram import Times

__all__ = [
    "OPERATIONS",
    "BlkCounters",
    "BlkFile",
    "BlkQueue",
    "BlkQueueLimits",
    "BlkQueueSetup",
    "Engine",
    "IoError",
    "Policy",
    "can_punch",
    "direct_alignment",
    "in_memory",
    "zero_range",
]

OPERATIONS = ("read", "write", "flush", "discard", "write-zeroes", "get-id")


class Engine(IntEnum):
    """What makes the system calls: the server's thread, a pool of threads, io_uring, or an NBD server."""

    SYNC, THREADS, IO_URING = int(lib.TVMM_BLK_SYNC), int(lib.TVMM_BLK_THREADS), int(lib.TVMM_BLK_URING)
    NBD = int(lib.TVMM_BLK_NBD)


class Policy(IntEnum):
    """What an error of the host does; ENOSPC: stop if the host is full, else report."""

    REPORT, IGNORE, STOP = int(lib.TVMM_BLK_REPORT), int(lib.TVMM_BLK_IGNORE), int(lib.TVMM_BLK_STOP)
    ENOSPC = int(lib.TVMM_BLK_ENOSPC)


class BlkFile:
    """What the queues of one image share: a sync that failed on one of them is everybody's. It must outlive them."""

    def __init__(self) -> None:
        self.raw = ffi.new("struct tvmm_blk_file *")


class BlkQueueSetup(NamedTuple):
    """What a queue is made with.

    `plain_fd`: the same file without O_DIRECT, or `fd`. Alignments in bytes, 1 without O_DIRECT. `is_device`: it has
    a call of its own for what is discarded. `depth`: entries that the queue can have. `ignore_flush`: flushes, and
    stable writes, are a matter for the host's kernel. `fault_ppm`: so many of a million system calls are not made, and
    fail with EIO.
    """

    fd: int
    plain_fd: int
    memory_align: int = 1
    offset_align: int = 1
    is_device: bool = False
    engine: Engine = Engine.SYNC
    depth: int = 256
    read_policy: Policy = Policy.REPORT
    write_policy: Policy = Policy.ENOSPC
    ignore_flush: bool = False
    fault_ppm: int = 0


class BlkQueueLimits(NamedTuple):
    """What requests are checked against, as in `tvmm.virtio.blk_request.Limits`."""

    capacity: int
    read_only: bool
    flush: bool
    max_discard: int
    discard_ranges: int
    max_zeroes: int
    zeroes_ranges: int
    serial: bytes


class BlkCounters(NamedTuple):
    """Since the queue was made.

    The first six count requests that succeeded, the next those that the host failed, by operation. `refused`:
    answered with an error without being tried. `ignored`: failed, and the driver was told otherwise. `stops`: how
    often the queue stopped over an error, and `retried`, requests that were repeated after that. `cached`: reads that
    needed no other thread. `plain`: calls that O_DIRECT was not possible for. `stable`: writes
    that had to be stable when they completed. `steps`: system calls.
    """

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    discards: int = 0
    write_zeroes: int = 0
    get_ids: int = 0
    read_errors: int = 0
    write_errors: int = 0
    flush_errors: int = 0
    discard_errors: int = 0
    write_zeroes_errors: int = 0
    get_id_errors: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    unmapped_bytes: int = 0
    refused: int = 0
    ignored: int = 0
    stops: int = 0
    retried: int = 0
    cached: int = 0
    plain: int = 0
    stable: int = 0
    steps: int = 0


class IoError(NamedTuple):
    """An error of the host: `operation` as in ``read`` or ``write-zeroes``, the errno, and what was done about it."""

    operation: str
    error: int
    action: Policy


class BlkQueue:
    """The server of one queue. `set_call`, `set_capacity`, `set_write_through` and `set_limit` are for any thread at
    any time, everything else for the server's thread.
    """

    def __init__(
        self,
        setup: BlkQueueSetup,
        file: BlkFile,
        waker: Waker,
        kick_fd: int,
        spin_max_ns: int,
        links: Sequence[NbdLink] = (),
    ) -> None:
        """`links` are the NBD engine's, which nobody else has. Raises `OSError` if the engine is not to be had."""
        fields = {name: int(value) for name, value in setup._asdict().items()}
        error = ffi.new("int *")
        raw_links = ffi.new("struct tvmm_nbd_link *[]", [link.raw for link in links])
        raw_setup = ffi.new("struct tvmm_blk_setup *", {**fields, "link_count": len(links), "links": raw_links})
        raw = lib.tvmm_blk_new(raw_setup, file.raw, waker.raw, kick_fd, spin_max_ns, error)
        if not raw:
            raise OSError(-error[0], f"{setup.engine.name}: {os.strerror(-error[0])}")
        self.raw = raw
        self._keep: tuple[object, ...] = waker, file, tuple(links)
        self._ring: Vring | None = None
        self._in_use = threading.Lock()
        for link in links:
            link.in_use = self._in_use

    def close(self) -> None:
        """Give it back; the thread has ended. Nothing else may be called any more."""
        lib.tvmm_blk_free(self.raw)
        self.raw = ffi.NULL

    def start(self, ring: Vring, limits: BlkQueueLimits) -> None:
        """Serve `ring`, which is configured."""
        self.set_limits(limits)
        error = lib.tvmm_blk_start(self.raw, ring.raw)
        if error:
            raise HostError(f"the requests of a queue of {ring.raw.size}: {os.strerror(-error)}", "free some memory")
        self._ring = ring

    def set_limits(self, limits: BlkQueueLimits) -> None:
        """While the queue is not served. All but the capacity, which others may be changing."""
        fields = {name: int(value) for name, value in limits._asdict().items() if name not in ("serial", "capacity")}
        for name, value in fields.items():
            setattr(self.raw.limits, name, value)
        ffi.memmove(self.raw.limits.serial, limits.serial[:20].ljust(20, b"\0"), 20)

    def set_capacity(self, sectors: int) -> None:
        """For requests that are taken from now on."""
        lib.tvmm_blk_set_capacity(self.raw, sectors)

    def set_write_through(self, on: bool) -> None:
        """Whether writes are stable when they complete; for requests that are taken from now on."""
        lib.tvmm_blk_set_write_through(self.raw, on)

    def set_limit(self, limiter: Limiter, *, on: bool) -> None:
        """Whether requests that have not begun keep to it; the same one each time. The server is to be woken."""
        self._keep = *self._keep[:3], limiter
        lib.tvmm_blk_set_limit(self.raw, limiter.raw, on)

    def set_call(self, fd: int) -> None:
        """Where interrupts go: an eventfd, `CALL_PYTHON` or `CALL_NONE`."""
        lib.tvmm_set_call(ffi.addressof(self.raw, "queue"), fd)

    def stop(self) -> None:
        """Let go of the ring: what is at the host is waited for, nothing else is begun."""
        with self._in_use:
            lib.tvmm_blk_stop(self.raw)
        self._ring = None

    def active(self) -> bool:
        """Whether there is something to serve."""
        return bool(lib.tvmm_blk_active(self.raw))

    def serve(self) -> int:
        """Until Python is needed: a `SERVE_` word."""
        with self._in_use:
            return int(lib.tvmm_blk_serve(self.raw))

    def drain(self) -> bool:
        """Wait until nothing is under way. Whether Python has to interrupt the driver."""
        with self._in_use:
            lib.tvmm_blk_drain(self.raw)
        pending = bool(self.raw.call_pending)
        self.raw.call_pending = 0
        return pending

    def resume(self) -> None:
        """Repeat what was kept over an error, when the queue is served next."""
        lib.tvmm_blk_resume(self.raw)

    def take_error(self) -> IoError:
        """After `SERVE_FAILED`."""
        notice = self.raw.notice
        notice.pending = 0
        return IoError(OPERATIONS[notice.operation], int(notice.error), Policy(notice.action))

    @property
    def has_ring(self) -> bool:
        """Whether a ring is served, or was until it broke."""
        return bool(self.raw.queue.ring)

    @property
    def stopped(self) -> int:
        """The errno that the queue has stopped over; 0 if it did not."""
        return int(self.raw.stopped)

    @property
    def broken_reason(self) -> str:
        """After `SERVE_BROKEN`: why, in words."""
        match int(self.raw.broken):
            case lib.TVMM_BLK_BROKEN_RING:
                return self._ring.error_sentence if self._ring else ""
            case lib.TVMM_BLK_BROKEN_STATUS:
                return "no room for the status of a block request"
            case lib.TVMM_BLK_BROKEN_HEADER:
                return "a block request shorter than its header"
            case lib.TVMM_BLK_BROKEN_USED:
                return "the ring did not take a block request back"
        return ""

    @property
    def counters(self) -> BlkCounters:
        """As they are."""
        raw = self.raw.counters
        return BlkCounters(
            *(int(count) for count in raw.requests),
            *(int(count) for count in raw.errors),
            *(int(getattr(raw, name)) for name in BlkCounters._fields[2 * len(OPERATIONS) :]),
        )

    @property
    def latencies(self) -> dict[str, Times]:
        """How long requests took, by `OPERATIONS`: see blk_latency.h."""
        histograms = self.raw.latency.histograms
        return {name: read_times(histograms[index]) for index, name in enumerate(OPERATIONS)}

    def time_ns(self, operation: str) -> int:
        """The sum of that for one of `OPERATIONS`."""
        return int(self.raw.latency.histograms[OPERATIONS.index(operation)].sum_ns)


def direct_alignment(fd: int) -> tuple[int, int] | None:
    """What O_DIRECT asks of memory and of offsets, in bytes; None if the kernel does not say so for this file."""
    memory, offset = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    if lib.tvmm_direct_alignment(fd, memory, offset):
        return None
    return int(memory[0]), int(offset[0])


def in_memory(fd: int) -> bool:
    """Whether a file is on a file system that is nothing but memory."""
    return bool(lib.tvmm_in_memory(fd))


def can_punch(fd: int, end: int) -> bool:
    """Whether a file that is open for writing, `end` bytes long, can have holes punched."""
    return bool(lib.tvmm_can_punch(fd, end))


def zero_range(fd: int, offset: int, length: int) -> None:
    """Have zeroes in a file or block device, without writing them. Raises `OSError` where that is not possible."""
    error = lib.tvmm_zero_range(fd, offset, length)
    if error:
        raise OSError(-error, os.strerror(-error))
