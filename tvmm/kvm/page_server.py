"""The source of a post-copy migration: sends pages that the destination's guest waits for (page_server.h).

Lanes push all other pages meanwhile, from the same bitmap. After a cut::

    server.recover(received)      # no lane at work: what the destination has not, is to be sent
    group.begin_round()           # and goes over new lanes
    server.serve(fd, waker)
"""

from __future__ import annotations

import os
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ProtocolError
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.pages import PageBitmap
from tvmm.kvm.prompt import prompt_thread

if TYPE_CHECKING:
    from tvmm.kvm.lanes import LaneGroup
    from tvmm.kvm.serve import Waker

__all__ = ["PREFETCH_PAGES", "PageServer", "PageServerCounters", "PageServerStop"]

PREFETCH_PAGES = 16
"""Pages around one that is asked for. Who touches pages at random waits for the half of them, some 40 us with 32 pages;
who goes on beside the last one does not wait at all."""


class PageServerStop(IntEnum):
    """Why `PageServer.serve` comes back."""

    WOKEN = lib.TVMM_SERVER_WOKEN
    """Somebody woke the waker. Called again with the same connection, it goes on where it was."""
    LOST = lib.TVMM_SERVER_LOST
    """The connection ended or broke."""


class PageServerCounters(NamedTuple):
    """Since the server was made: requests, pages sent for them, how many of those a lane had taken, pages sent besides,
    bytes.
    """

    requests: int
    pages: int
    taken: int
    prefetched: int
    bytes: int


class PageServer:
    """Sends pages of a group's RAM that are asked for."""

    def __init__(self, group: LaneGroup, *, prefetch: int = PREFETCH_PAGES) -> None:
        """Made when the guest is paused for good and the group's bitmap has all that the destination lacks, before
        lanes begin to take it: that is kept for `recover`. `prefetch`: a power of two up to 64, or 0.
        """
        if prefetch & (prefetch - 1) or not 0 <= prefetch <= lib.TVMM_PREFETCH_MAX:
            raise ValueError(f"no window of {prefetch} pages")
        self._group = group
        self.wanted = PageBitmap.of(group.ram)
        """What the destination lacked at first; read only."""
        self.wanted.merge(group.bitmap)
        self.raw = ffi.new("struct tvmm_page_server *")
        self.raw.group, self.raw.fd = group.raw, -2
        self.raw.prefetch = prefetch

    def serve(self, fd: int, waker: Waker) -> PageServerStop:
        """Answer requests until there is something to decide; on one thread at a time, without the interpreter lock.

        `fd` is a stream socket, TCP (with TCP_NODELAY) or unix, blocking or not. Limits of the group's bandwidth do not
        hold. Raises `ProtocolError` for what is no request.
        """
        with prompt_thread():
            stop = int(lib.tvmm_page_server_serve(self.raw, fd, waker.raw))
        if stop == lib.TVMM_SERVER_REFUSED:
            value, limit = int(self.raw.refused_value), int(self.raw.refused_limit)
            raise ProtocolError(_REFUSALS[int(self.raw.refusal)].format(value=value, limit=limit))
        return PageServerStop(stop)

    @property
    def failure(self) -> str:
        """After LOST: what the system says about the connection, empty if the peer ended it."""
        return os.strerror(self.raw.failure) if self.raw.failure else ""

    def recover(self, received: PageBitmap) -> int:
        """The group's bitmap becomes what the destination still lacks, of which it has `received`: how many pages.

        No lane and no `serve` may be at work. What they had taken and not sent is in it again.
        """
        if (received.names, received.pages) != (self.wanted.names, self.wanted.pages):
            raise ValueError("the bitmap is of other blocks than the RAM")
        lib.tvmm_bitmap_lacking(self._group.bitmap.raw, self.wanted.raw, received.raw)
        return self._group.bitmap.count()

    @property
    def counters(self) -> PageServerCounters:
        """Read at any time."""
        raw = self.raw.counters
        return PageServerCounters(raw.requests, raw.pages, raw.taken, raw.prefetched, raw.bytes)


_REFUSALS = {
    int(lib.TVMM_REQUEST_BAD_MAGIC): "a request for pages starts with {value:#x} and not with {limit:#x}",
    int(lib.TVMM_REQUEST_BAD_ZERO): "a request for pages has {value:#x} where zeros belong",
    int(lib.TVMM_REQUEST_BAD_BLOCK): "a request is for pages of block {value}, of {limit}",
    int(lib.TVMM_REQUEST_BAD_COUNT): "a request is for {value} pages, of at most {limit} and at least one",
    int(lib.TVMM_REQUEST_BAD_RANGE): "a request is for pages up to {value} of a block of {limit}",
}
