"""Both ends of post-copy in plain Python, the slow and obvious way: what the C of pager and server is compared with."""

from __future__ import annotations

import struct

from tests.support.plain_lanes import PAGE, PAGES, ZEROS, Frame

REQUEST = struct.Struct("<4sHHII")
MAGIC = b"TVPQ"
COUNT_MAX = 256
PIECE = 8
"""Pages around one that is asked for, that go in one frame or two."""


class Refused(Exception):
    """These bytes are no request."""


def request(block: int, first: int, count: int = 1, *, magic: bytes = MAGIC, zero: int = 0) -> bytes:
    """A request's bytes, whether it is a good one or not."""
    return REQUEST.pack(magic, block, zero, first, count)


class PlainServer:
    """Answers a whole stream of requests, each of them before it looks at the next one."""

    def __init__(self, blocks: list[bytes], left: set[tuple[int, int]], prefetch: int) -> None:
        """`left`: pages that nobody has taken, as (block, page); those that are sent are taken out of it."""
        self.blocks, self.left, self.prefetch = blocks, left, prefetch

    def answer(self, data: bytes) -> list[Frame]:
        """The frames for one request, with those for what lies around it. Raises `Refused`."""
        magic, block, zero, first, count = REQUEST.unpack(data)
        if magic != MAGIC or zero or block >= len(self.blocks) or not 1 <= count <= COUNT_MAX:
            raise Refused
        if first + count > len(self.blocks[block]) // PAGE:
            raise Refused
        frames = self._frames(block, list(range(first, first + count)))
        if not self.prefetch:
            return frames
        last = first + count - 1
        window = last // self.prefetch * self.prefetch
        behind = [page for page in range(last + 1, window + self.prefetch) if (block, page) in self.left]
        before = [page for page in range(window, last) if (block, page) in self.left]
        for pages in (behind, before):
            for at in range(0, len(pages), PIECE):
                frames += self._frames(block, pages[at : at + PIECE])
        return frames

    def _frames(self, block: int, pages: list[int]) -> list[Frame]:
        data = {page: self.blocks[block][page * PAGE : (page + 1) * PAGE] for page in pages}
        zeros = tuple(page for page in pages if not any(data[page]))
        others = tuple(page for page in pages if any(data[page]))
        self.left -= {(block, page) for page in pages}
        frames = [Frame(ZEROS, block, zeros)] if zeros else []
        if others:
            frames.append(Frame(PAGES, block, others, b"".join(data[page] for page in others)))
        return frames


class PlainPager:
    """Memory with absent pages, and the rule by which pages are put there."""

    def __init__(self, blocks: list[bytearray], absent: set[tuple[int, int]]) -> None:
        self.blocks, self.absent = blocks, set(absent)

    def take(self, frame: Frame) -> None:
        """A page that is absent is put there; what is there stays."""
        for index, page in enumerate(frame.pages):
            if (frame.block, page) in self.absent:
                self.absent.discard((frame.block, page))
                data = frame.data[index * PAGE : (index + 1) * PAGE] if frame.kind == PAGES else bytes(PAGE)
                self.blocks[frame.block][page * PAGE : (page + 1) * PAGE] = data
