"""Pages of a guest that runs into a snapshot file, round after round, as a dirty log tells of them (rounds.h)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.pages import PAGE, PageBitmap
from tvmm.kvm.snapshot import write_error

if TYPE_CHECKING:
    from tvmm.kvm.serve import Waker
    from tvmm.kvm.snapshot import SnapshotPages

__all__ = ["SnapshotRounds"]


class SnapshotRounds:
    """Of the first blocks of a file, those of `bitmap`, where all pages are marked at first.

    `begin`, then `write` by any number of threads at once, and again; in a pause `begin` and `keep`, then `begin` and
    `put`. `write`, `keep` and `put` do not hold the interpreter lock.
    """

    def __init__(self, pages: SnapshotPages, bitmap: PageBitmap, room: int) -> None:
        """`pages` outlives it. `room`: pages that can be kept, for which memory is taken now. Raises `HostError`."""
        self.bitmap = bitmap
        self._pages = pages
        self.raw = lib.tvmm_rounds_new(pages.raw, bitmap.raw, room)
        if not self.raw:
            raise HostError("the host has no memory for a live snapshot", "free some and try again")
        bitmap.fill()

    def begin(self, log: Any = None) -> None:
        """A round; `log` is that of a `DirtyTracker`. No thread is at work."""
        raw = self.raw
        raw.log = ffi.NULL if log is None else log
        raw.cursor = raw.pages = raw.bytes = raw.stop = 0

    def end_first(self) -> None:
        """All pages have been put once."""
        self.raw.first = 0

    @property
    def pages(self) -> int:
        """How many were taken in this round."""
        return int(self.raw.pages)

    @property
    def bytes(self) -> int:
        """What was written in it."""
        return int(self.raw.bytes)

    @property
    def kept_bytes(self) -> int:
        """What was copied in the pause."""
        return int(self.raw.kept) * PAGE

    def write(self, waker: Waker) -> None:
        """Write marked pages and clear their marks. Returns early when `waker` is woken. Raises `HostError`."""
        self._check(int(lib.tvmm_rounds_write(self.raw, waker.raw)))

    def keep(self) -> int:
        """Copy marked pages and clear their marks, as far as there is room, while nobody writes to them. How many pages
        this thread left."""
        return int(lib.tvmm_rounds_keep(self.raw))

    def put(self, waker: Waker) -> None:
        """Write what was kept. As `write`."""
        self._check(int(lib.tvmm_rounds_put(self.raw, waker.raw)))

    def close(self) -> None:
        """No thread is at work; idempotent."""
        if self.raw:
            lib.tvmm_rounds_free(self.raw)
            self.raw = ffi.NULL

    def _check(self, result: int) -> None:
        if result in (0, -errno.EINTR):
            return
        if result == -errno.ENOMEM:
            raise HostError(f"no memory for copies of pages: {os.strerror(errno.ENOMEM)}")
        raise write_error(-result)
