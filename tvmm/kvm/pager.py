"""The destination of a post-copy migration: the guest runs, and pages come when it touches them (pager.h).

What happens to a page is decided in C on the serving thread, without the interpreter lock, because who waits for a page
may hold it. Still Python must not touch an absent page by itself when there is no connection: nobody could make one
then. So whoever looks at guest memory calls `Pager.touch` before, which waits without the lock; `GuestRam.fetch` is the
hook for it.

In order::

    pager = Pager(ram, [guest_ram.blocks["pc.ram"]])     # nothing is absent yet
    pager.expect(bitmap)                                 # these pages are; again with more, between two rounds
    for receiver in receivers: receiver.pager = pager    # what lanes bring goes through the pager from now on
    while (stop := pager.serve(fd, waker)) is not PagerStop.COMPLETE:   # on a thread of its own; then the guest runs
        ...                                              # WOKEN, LOST: serve(-1, waker) until there is another fd
    pager.release()                                      # complete, or given up
    pager.close()                                        # when no thread is in a call any more
"""

from __future__ import annotations

import os
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.histogram import read_times
from tvmm.kvm.lanes import refusal
from tvmm.kvm.pages import PageBitmap
from tvmm.kvm.prompt import prompt_thread
from tvmm.kvm.uffd import FEATURE_MISSING_SHMEM, MISSING, Uffd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.kvm.pages import RamPages
    from tvmm.kvm.serve import Waker
    from tvmm.memory.ram import RamBlock
    from tvmm.metrics.histogram import Times

__all__ = ["NO_CONNECTION", "REQUEST_BYTES", "Pager", "PagerCounters", "PagerStop"]

REQUEST_BYTES = int(lib.TVMM_REQUEST_BYTES)
NO_CONNECTION = -1
"""In place of the connection: only what needs none is answered."""


class PagerStop(IntEnum):
    """Why `Pager.serve` comes back."""

    WOKEN = lib.TVMM_PAGER_WOKEN
    """Somebody woke the waker. Called again with the same connection, it goes on where it was."""
    COMPLETE = lib.TVMM_PAGER_COMPLETE
    """All pages are here."""
    LOST = lib.TVMM_PAGER_LOST
    """The connection ended or broke. Who waits goes on waiting, and is asked for again on the next connection."""
    RELEASED = lib.TVMM_PAGER_RELEASED
    """Somebody called `release`: nobody waits any more."""


class PagerCounters(NamedTuple):
    """Since the pager was made: faults that were reported; pages that were asked for, came because of that (or around
    it), came over lanes, came twice; and faults at pages that the guest had given back to the host, which are zero.
    """

    faults: int
    requests: int
    urgent: int
    pushed: int
    duplicates: int
    returned: int


class Pager:
    """Guest RAM with pages that are still elsewhere. All methods but `serve` may be called on any thread."""

    def __init__(self, ram: RamPages, blocks: Sequence[RamBlock]) -> None:
        """`ram` as the lanes have it; `blocks` are those of it whose pages may be absent, all here now.

        Nobody may have pages allocated in advance any more (`RamPages.populate`). Raises `HostError` where userfaultfd
        is not allowed, for huge pages, and for blocks at which a file is mapped privately.
        """
        self._ram = ram
        self.received = PageBitmap.of(ram)
        """Pages that are here; read only. Its `pack` is what a source has to know to go on after a cut."""
        self.received.fill()
        self._claimed, self._requested = PageBitmap.of(ram), PageBitmap.of(ram)
        self._claimed.fill()
        self._numbers = {name: number for number, name in enumerate(ram.names)}
        for block in blocks:
            # Here it is known whether the memory is a file, from which a page must be taken out.
            ram.raw.blocks[self._numbers[block.name]].fd = block.fd
        self._paged = ffi.new("uint8_t[]", [name in {block.name for block in blocks} for name in ram.names])
        self._uffd = Uffd(FEATURE_MISSING_SHMEM)
        try:
            for block in blocks:
                self._uffd.register(block, MISSING)
            error = ffi.new("int *")
            raw = lib.tvmm_pager_new(
                ram.raw, self._claimed.raw, self.received.raw, self._requested.raw, self._paged, self._uffd.fd, error
            )
            if not raw:
                raise HostError(f"no pager: {os.strerror(-error[0])}", "raise the limit with 'ulimit -n'")
        except BaseException:
            self._uffd.close()
            raise
        self.raw: Any = raw

    def expect(self, bitmap: PageBitmap) -> None:
        """These pages were never sent, or are stale: take them out of memory, and have whoever touches them wait.

        More may be expected later, also pages that have come meanwhile. No lane may be in a round. Most of it belongs
        before the pause. Where memory is anonymous, what it takes grows with the runs of pages: all of 1 GiB 4 ms of a
        processor's time, 100,000 pages scattered in it 40 ms. Pages of a file the kernel gives back one by one, 1.5 us
        each and 2.5 us more for each run, whether they are mapped or not: either of these takes 0.4 s.

        Raises `ValueError` for pages of a block that has none to wait for, and `HostError` if the host does not take
        them: then memory is neither old nor new.
        """
        if (bitmap.names, bitmap.pages) != (self._ram.names, self._ram.pages):
            raise ValueError("the bitmap is of other blocks than the RAM")
        for name, paged in zip(bitmap.names, self._paged, strict=True):
            if not paged and any(bitmap.words(name)):
                raise ValueError(f"no page of {name} can be waited for")
        error = -int(lib.tvmm_pager_expect(self.raw, bitmap.raw))
        if error:
            raise HostError(f"the host does not take pages of guest memory back: {os.strerror(error)}")

    @property
    def remaining(self) -> int:
        """Pages that are to come; none after `release`."""
        return 0 if self.raw.released else int(self.raw.remaining)

    @property
    def overwriting(self) -> bool:
        """Whether a page that comes replaces one that is here: true for rounds of pre-copy between two calls of
        `expect`, and never while the guest runs. False at first.
        """
        return bool(self.raw.overwriting)

    @overwriting.setter
    def overwriting(self, on: bool) -> None:
        self.raw.overwriting = on

    @property
    def counters(self) -> PagerCounters:
        """Read at any time."""
        raw = self.raw.counters
        return PagerCounters(raw.faults, raw.requests, raw.urgent, raw.pushed, raw.duplicates, raw.returned)

    @property
    def service_times(self) -> Times:
        """How long faults waited, from when they were reported until their page was there. Read at any time."""
        return read_times(ffi.addressof(self.raw, "service"))

    def serve(self, fd: int, waker: Waker) -> PagerStop:
        """Answer faults until there is something to decide; on one thread at a time, and best one of its own, which
        is made prompt meanwhile. Lanes beside it should be `yielding`.

        `fd` is a stream socket to the source's page server, TCP (with TCP_NODELAY) or unix, blocking or not; or
        `NO_CONNECTION`, with which only faults at pages that are here are answered. What was half sent and half read on
        a connection is kept as long as calls name the same, and forgotten with LOST or an error.

        Raises `ProtocolError` for what is no frame of pages, with nothing of it in memory, and `HostError` when the
        host does not do its part; the connection is of no use then, and all who wait go on waiting.
        """
        with prompt_thread():
            stop = int(lib.tvmm_pager_serve(self.raw, fd, waker.raw))
        if stop == lib.TVMM_PAGER_REFUSED:
            raise refusal(self.raw.intake)
        if stop == lib.TVMM_PAGER_FAILED:
            raise HostError(
                f"the host does not put pages of the guest into memory: {os.strerror(self.raw.failure)}",
                "free some memory",
            )
        return PagerStop(stop)

    @property
    def failure(self) -> str:
        """After LOST: what the system says about the connection, empty if the peer ended it."""
        return os.strerror(self.raw.failure) if self.raw.failure else ""

    def touch(self, name: str, offset: int, length: int) -> None:
        """Wait until these bytes of a block are here, without the interpreter lock; cheap if they are."""
        number = self._numbers[name]
        if offset < 0 or length < 0 or offset + length > self._ram.pages[number] * int(lib.TVMM_PAGE):
            raise ValueError(f"block {name} has no {length} bytes from {offset} on")
        lib.tvmm_pager_touch(self.raw, number, offset, length)

    def release(self) -> None:
        """Nobody waits any more: pages that are not here are zeros from now on, and what comes later is dropped.

        For a guest that is complete, and for one that is given up. Idempotent.
        """
        lib.tvmm_pager_release(self.raw)

    def close(self) -> None:
        """Release it. No thread may be in a call, and no lane has it, or will be used again. Idempotent."""
        if self.raw is not None:
            self.release()
            self._uffd.close()
            lib.tvmm_pager_free(self.raw)
            self.raw = None
