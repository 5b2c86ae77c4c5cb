"""RAM on two sides, and lanes between them over socket pairs, for the tests of lanes."""

from __future__ import annotations

import random
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tvmm.kvm.lanes import LaneGroup, LaneReceiver, LaneSender, LaneStop
from tvmm.kvm.pages import PAGE, PageBitmap, RamPages
from tvmm.kvm.serve import Waker
from tvmm.memory.ram import RamBlock

if TYPE_CHECKING:
    from types import TracebackType

SIZES = (("pc.ram", 700), ("vga.vram", 65))
"""Blocks in pages: one with a chunk and a bit, none that ends at a word of its bitmap."""


class Ram:
    """Blocks of one side."""

    def __init__(self, stack: ExitStack, sizes: tuple[tuple[str, int], ...] = SIZES, *, fresh: bool = False) -> None:
        self.blocks = [RamBlock(name, pages * PAGE, shared=False) for name, pages in sizes]
        for block in self.blocks:
            stack.callback(block.close)
        self.pages = RamPages([(block.name, block.view) for block in self.blocks], fresh=fresh)
        stack.callback(self.pages.close)

    def contents(self) -> list[bytes]:
        """All of it."""
        return [bytes(block.view) for block in self.blocks]

    def write(self, block: int, page: int, data: bytes) -> None:
        """Bytes at the start of a page."""
        self.blocks[block].view[page * PAGE : page * PAGE + len(data)] = data

    def scribble(self, source: random.Random, bitmap: PageBitmap, count: int) -> None:
        """Write to `count` random pages, zeros to some, and mark them as a tracker would."""
        for _ in range(count):
            block = source.randrange(len(self.blocks))
            page = source.randrange(self.blocks[block].size // PAGE)
            self.write(block, page, bytes(PAGE) if source.random() < 0.2 else source.randbytes(PAGE))
            bitmap.mark(self.blocks[block].name, page)


class Lanes:
    """A source, a destination, and `count` lanes; a context manager."""

    def __init__(
        self,
        count: int = 1,
        *,
        skip_unchanged: bool = False,
        chunk_pages: int = 64,
        sides: tuple[RamPages, RamPages] | None = None,
    ) -> None:
        """`sides`: source and destination, in place of RAM that is made here."""
        self._stack = ExitStack()
        if sides is None:
            self.source, self.target = Ram(self._stack), Ram(self._stack, fresh=True)
            sides = self.source.pages, self.target.pages
        source, target = sides
        self.waker, self.their_waker = Waker(), Waker()
        self._stack.callback(self.waker.close)
        self._stack.callback(self.their_waker.close)
        self.bitmap = PageBitmap.of(source)
        self.group = LaneGroup(
            source, self.bitmap, skip_unchanged=skip_unchanged, chunk_pages=chunk_pages
        )
        pairs = [socket.socketpair() for _ in range(count)]
        for pair in pairs:
            for end in pair:
                self._stack.callback(end.close)
        self.ours, self.theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        self.senders = [LaneSender(end.fileno(), self.group, self.waker) for end in self.ours]
        self.receivers = [LaneReceiver(end.fileno(), target, self.their_waker) for end in self.theirs]
        self._pool = self._stack.enter_context(ThreadPoolExecutor(2 * count))

    def __enter__(self) -> Lanes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Threads first, in whatever call they are.
        self.waker.wake()
        self.their_waker.wake()
        self._stack.close()

    def send(self, number: int, stall_ms: int = 0) -> list[Future[LaneStop]]:
        """A round on each lane, on threads."""
        self.group.begin_round()
        return [self._pool.submit(sender.send_round, number, stall_ms) for sender in self.senders]

    def resume(self, lane: int, number: int) -> Future[LaneStop]:
        """One lane goes on with a round."""
        return self._pool.submit(self.senders[lane].send_round, number)

    def receive(self, stall_ms: int = 0) -> list[Future[LaneStop]]:
        """The other side of it."""
        return [self._pool.submit(receiver.receive, stall_ms) for receiver in self.receivers]

    def round(self, number: int) -> None:
        """A whole round, with its barrier."""
        stops = [future.result() for future in self.receive() + self.send(number)]
        assert set(stops) == {LaneStop.ROUND_END}
        assert {receiver.round for receiver in self.receivers} == {number}
