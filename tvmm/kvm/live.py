"""A snapshot of RAM as it is at one moment, while the guest goes on writing: userfaultfd write protection (live.h)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.pages import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.kvm.pages import RamPages
    from tvmm.kvm.snapshot import SnapshotPages

__all__ = ["CHUNK", "CHUNK_BYTES", "Frozen", "LiveCounters", "Piece"]

CHUNK = int(lib.TVMM_LIVE_CHUNK)
"""Pages that are copied at once."""
CHUNK_BYTES = CHUNK * PAGE
POOL_SHARE, POOL_MAX = 8, 1 << 14
"""Copies of pages that the guest wrote before their turn: at most an eighth of its RAM, and no more than 64 MiB."""


class LiveCounters(NamedTuple):
    """Writes that trapped; pages that were copied for them; writes that had to wait because there was no room for more
    copies; the longest that the handler took for one, in nanoseconds; pages that were protected in the pause.
    """

    faults: int = 0
    kept: int = 0
    waits: int = 0
    handled_ns_max: int = 0
    frozen: int = 0


class Piece(NamedTuple):
    """What `take` has copied: the block's number, its first page and how many. `data` has a bit for each page that is
    not known to be zero, bit 0 of word 0 first.
    """

    block: int
    first: int
    pages: int
    data: tuple[int, ...]


class Frozen:
    """The blocks of `pages`, which outlive it. Methods are for worker threads; none holds the interpreter lock.

    Its steps are `open`, `arm`, `rearm` any number of times, `freeze` while nobody writes, `take` by any number of
    threads until it returns None, `end`, `close`. From any step on, `end` and `close` may follow; after `abandon` what
    other threads are in comes back with an `InterruptedError`.
    """

    def __init__(self, pages: RamPages, *, grains: Sequence[int] = (), pool: int | None = None) -> None:
        """`grains`: for each block the bytes of the pages that its memory is made of, if they are huge. `pool`: copies
        that are kept at a time, in pages.
        """
        room = min(sum(pages.pages) // POOL_SHARE, POOL_MAX) if pool is None else pool
        sizes = [grain // PAGE or 1 for grain in grains] or [1] * len(pages.pages)
        if any(grain > CHUNK for grain in sizes):
            raise HostError(f"huge pages of more than {CHUNK_BYTES >> 20} MiB are too large for a live snapshot")
        self.raw = lib.tvmm_live_new(pages.raw, sizes, max(room, max(sizes)))
        if not self.raw:
            raise HostError("the host has no memory for a live snapshot", "free some and try again")
        self._pages = pages
        self._open = True

    def open(self) -> None:
        """From now on writes can be trapped. Raises `HostError` if the kernel or its rules refuse that."""
        error = -int(lib.tvmm_live_open(self.raw))
        if error:
            raise _refusal(error)

    def arm(self) -> None:
        """Protect all pages, while the guest runs. Raises `HostError`, `InterruptedError`."""
        self._check(lib.tvmm_live_arm(self.raw))

    def rearm(self) -> int:
        """Protect those again that were written since. How many they were. Raises as `arm`."""
        return self._check(lib.tvmm_live_rearm(self.raw))

    def freeze(self) -> int:
        """The same for the last time; pages are saved as they are now, while nobody writes."""
        return self._check(lib.tvmm_live_freeze(self.raw))

    def take(self, buffer: Any) -> Piece | None:
        """Copy a chunk to `buffer`, a writable one of `CHUNK_BYTES`; None when all are taken. Raises as `arm`."""
        piece = ffi.new("struct tvmm_live_piece *")
        with ffi.from_buffer("uint8_t[]", buffer, require_writable=True) as room:
            if len(room) < CHUNK_BYTES:
                raise ValueError(f"a buffer of {len(room)} bytes for a chunk")
            if not self._check(lib.tvmm_live_take(self.raw, room, piece)):
                return None
        return Piece(piece.block, piece.first, piece.pages, tuple(piece.data))

    def write(self, snapshot: SnapshotPages) -> None:
        """Take chunks and put them into a file until there are none, beside other threads that do the same. The blocks
        are the first ones of `snapshot`.

        Returns early when another thread has failed, or after `abandon`. Raises `HostError`: then nobody goes on.
        """
        error = -int(lib.tvmm_live_write(self.raw, snapshot.raw))
        if error and error != errno.ECANCELED:
            raise HostError(os.strerror(error))

    def secure(self, name: str, offset: int, length: int) -> None:
        """Bytes of a block are about to be dropped, past all protection: return when nothing of them is needed."""
        first, end = offset // PAGE, -(-(offset + length) // PAGE)
        self._check(lib.tvmm_live_secure(self.raw, self._pages.names.index(name), first, end - first))

    def abandon(self) -> None:
        """From any thread: every write is let through, what was taken is worth nothing."""
        lib.tvmm_live_abandon(self.raw)

    def end(self) -> None:
        """All as before; no other thread is in here any more. Raises `HostError` with nothing protected either."""
        self._check(lib.tvmm_live_end(self.raw))

    def close(self) -> None:
        """After `end`; idempotent."""
        if self._open:
            self._open = False
            lib.tvmm_live_free(self.raw)

    @property
    def chunks(self) -> int:
        """In all."""
        return int(self.raw.chunk_count)

    @property
    def left(self) -> int:
        """Those that nobody has taken yet."""
        return int(self.raw.left)

    def counters(self) -> LiveCounters:
        """So far."""
        counters = self.raw.counters
        return LiveCounters(*(int(getattr(counters, name)) for name in LiveCounters._fields))

    def _check(self, result: Any) -> int:
        number = int(result)
        if number == -errno.ECANCELED:
            raise InterruptedError("the snapshot is no longer wanted")
        if number < 0:
            raise HostError(f"the kernel does not protect the guest's memory: {os.strerror(-number)}")
        return number


def _refusal(error: int) -> HostError:
    if error in (errno.EPERM, errno.EACCES):
        return HostError(
            "a live snapshot needs the right to handle page faults of the kernel (CAP_SYS_PTRACE)",
            "run tvmm as root, or 'sysctl vm.unprivileged_userfaultfd=1', or save without --live",
        )
    if error in (errno.ENOSYS, errno.EOPNOTSUPP):
        return HostError(
            "this kernel has no userfaultfd write protection for the guest's memory (Linux 5.7, 5.19 with shared=on)",
            "save without --live",
        )
    if error == errno.EINVAL:
        return HostError(
            "the guest's memory is of a kind that the kernel does not write-protect, such as a file mapped privately",
            "save without --live",
        )
    if error == errno.EBUSY:
        return HostError("somebody else handles the page faults of the guest's memory", "try again when that is over")
    return HostError(f"the kernel does not protect the guest's memory: {os.strerror(error)}", "save without --live")
