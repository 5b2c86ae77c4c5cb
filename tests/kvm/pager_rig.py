"""Source and destination of post-copy in one process, joined by socket pairs: for tests of pager and page server."""

from __future__ import annotations

import random
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tvmm.errors import HostError
from tvmm.kvm.lanes import LaneGroup, LaneReceiver, LaneSender, LaneStop, set_lane_buffers
from tvmm.kvm.page_server import PageServer, PageServerStop
from tvmm.kvm.pager import Pager, PagerStop
from tvmm.kvm.pages import PAGE, PageBitmap, RamPages
from tvmm.kvm.serve import Waker
from tvmm.kvm.uffd import FEATURE_MISSING_SHMEM, Uffd
from tvmm.memory.ram import RamBlock

if TYPE_CHECKING:
    from types import TracebackType


def _why_not() -> str:
    try:
        Uffd(FEATURE_MISSING_SHMEM).close()
    except HostError as error:
        return str(error)
    return ""


needs_userfaultfd = pytest.mark.skipif(bool(_why_not()), reason=_why_not())

SIZES = (("pc.ram", 3000), ("vga.vram", 65))
"""Blocks in pages; only the first is ever absent."""


class PostCopy:
    """All of `pc.ram` of the source is random with some zero pages, and that of the destination is stale.

    A context manager; `connect` gives it urgent connection and lanes, `cut` takes them.
    """

    def __init__(
        self, seed: int = 0, *, shared: bool = False, prefetch: int = 32, absent: PageBitmap | None = None
    ) -> None:
        """`absent`: what is to come, all of pc.ram if it is None."""
        self.random = random.Random(seed)
        self._stack = ExitStack()
        self.source_blocks = [self._block(name, pages, shared=False) for name, pages in SIZES]
        self.blocks = [self._block(name, pages, shared=shared) for name, pages in SIZES]
        source = RamPages([(block.name, block.view) for block in self.source_blocks])
        self.ram = RamPages([(block.name, block.view) for block in self.blocks])
        self._stack.callback(source.close)
        self._stack.callback(self.ram.close)
        for page in range(SIZES[0][1]):
            if self.random.random() > 0.2:
                self.source_blocks[0].view[page * PAGE : (page + 1) * PAGE] = self.random.randbytes(PAGE)
        self.absent = PageBitmap.of(self.ram)
        if absent is None:
            self.absent.mark("pc.ram", 0, SIZES[0][1])
        else:
            self.absent.merge(absent)
        for page in range(SIZES[0][1]):
            here = not self.absent.test("pc.ram", page)
            data = self.source_blocks[0].view[page * PAGE : (page + 1) * PAGE] if here else b"\xee" * PAGE
            self.blocks[0].view[page * PAGE : (page + 1) * PAGE] = data
        self.group = LaneGroup(source, PageBitmap.of(source), chunk_pages=64)
        self.group.bitmap.merge(self.absent)
        self.server = PageServer(self.group, prefetch=prefetch)
        self.waker, self.their_waker = Waker(), Waker()
        self._stack.callback(self.waker.close)
        self._stack.callback(self.their_waker.close)
        self.pager = Pager(self.ram, self.blocks[:1])
        self._stack.callback(self.pager.close)
        self._lanes: list[tuple[LaneSender, LaneReceiver]] = []
        self._sockets: list[socket.socket] = []
        self._calls: list[Future[object]] = []
        self._threads = ThreadPoolExecutor(16)
        self._stack.callback(self._threads.shutdown)

    def _block(self, name: str, pages: int, *, shared: bool) -> RamBlock:
        block = RamBlock(name, pages * PAGE, shared=shared)
        self._stack.callback(block.close)
        return block

    def __enter__(self) -> PostCopy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pager.release()
        self.cut()
        self._stack.close()

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A connection: the destination's end, the source's."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            set_lane_buffers(end)
        self._sockets += [ours, theirs]
        return ours, theirs

    def connect(self) -> tuple[Future[PagerStop], Future[PageServerStop]]:
        """An urgent connection, and both ends at work on it."""
        ours, theirs = self.pair()
        pager = self._threads.submit(self._serve, ours.fileno())
        server = self._threads.submit(self.server.serve, theirs.fileno(), self.their_waker)
        self._calls += [pager, server]  # type: ignore[list-item]
        return pager, server

    def _serve(self, fd: int) -> PagerStop:
        stop = self.pager.serve(fd, self.waker)
        if stop is PagerStop.COMPLETE:
            # Somebody may have come meanwhile to a page that was given back.
            self.pager.release()
        return stop

    def push(self, lanes: int = 1) -> list[Future[LaneStop]]:
        """A round of all that is left on so many lanes."""
        self.group.begin_round()
        self._lanes = []
        calls = []
        for _ in range(lanes):
            ours, theirs = self.pair()
            sender = LaneSender(theirs.fileno(), self.group, self.their_waker)
            receiver = LaneReceiver(ours.fileno(), self.ram, self.waker)
            receiver.pager = self.pager
            self._lanes.append((sender, receiver))
            calls += [self._threads.submit(receiver.receive), self._threads.submit(sender.send_round, 1)]
        self._calls += calls  # type: ignore[arg-type]
        return calls

    def touch(self, page: int, count: int = 1) -> Future[None]:
        """A thread that waits for pages."""
        return self._threads.submit(self.pager.touch, "pc.ram", page * PAGE, count * PAGE)

    def cut(self) -> None:
        """All connections, wherever they are; returns when all calls have come back."""
        for connection in self._sockets:
            connection.shutdown(socket.SHUT_RDWR)
        self.waker.wake()
        self.their_waker.wake()
        for call in self._calls:
            call.exception()
        for connection in self._sockets:
            connection.close()
        self._sockets, self._calls, self._lanes = [], [], []
        self.waker.clear()
        self.their_waker.clear()

    def recover(self) -> int:
        """What is left after a cut is the group's again, as the peers would tell each other."""
        data = self.pager.received.pack()
        return self.server.recover(PageBitmap.unpack(self.ram.names, self.ram.pages, data))

    def differing(self) -> list[int]:
        """Pages of the destination that are not as the source has them."""
        ours, theirs = bytes(self.blocks[0].view), bytes(self.source_blocks[0].view)
        return [at // PAGE for at in range(0, len(ours), PAGE) if ours[at : at + PAGE] != theirs[at : at + PAGE]]
