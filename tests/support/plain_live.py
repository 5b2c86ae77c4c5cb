"""The twin of live_claims.c in plain Python: who does what with a page of a live snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tvmm.kvm.live import CHUNK
from tvmm.kvm.pages import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PlainChunk", "PlainLive"]

AROUND_MAX, STREAMS = 64, 8


@dataclass
class PlainChunk:
    """Pages `first` to `first + pages` of a block, and copies of those that were written before their turn."""

    block: int
    first: int
    pages: int
    state: str = "unsaved"
    rank: int = 0
    kept: dict[int, bytes] = field(default_factory=dict)


class PlainLive:
    """Over the memory that the C twin has too."""

    def __init__(self, blocks: Sequence[memoryview], pool: int) -> None:
        self.blocks = blocks
        self.pool = pool
        self.phase = "arming"
        self.noted: set[tuple[int, int]] = set()
        self.chunks = [
            PlainChunk(index, first, min(CHUNK, len(view) // PAGE - first))
            for index, view in enumerate(blocks)
            for first in range(0, len(view) // PAGE, CHUNK)
        ]
        self._lists: dict[int, list[int]] = {1: [], 2: []}
        self._streams: list[tuple[int, int]] = [(-1, 0)] * STREAMS
        self._turn = 0

    def page(self, block: int, page: int) -> bytes:
        """Its bytes now."""
        return bytes(self.blocks[block][page * PAGE : (page + 1) * PAGE])

    def fault(self, block: int, page: int) -> tuple[str, int, int]:
        """What is done about a write: ``lift`` or ``wait``, and the run that is let through."""
        number = next(
            number
            for number, chunk in enumerate(self.chunks)
            if chunk.block == block and chunk.first <= page < chunk.first + chunk.pages
        )
        chunk = self.chunks[number]
        place = number * CHUNK + page - chunk.first
        stream, around = self._around(place)
        count = min(around, chunk.first + chunk.pages - page)
        answer = "lift"
        if self.phase == "arming":
            self.noted |= {(block, each) for each in range(page, page + count)}
        elif chunk.state == "copying":
            answer = "wait"
        elif chunk.state == "unsaved":
            count = self._keep(number, page, count)
            answer = "lift" if count else "wait"
        if answer == "lift":
            self._streams[stream] = place + count, self._streams[stream][1]
        return answer, page, count

    def _around(self, place: int) -> tuple[int, int]:
        for index, (expected, around) in enumerate(self._streams):
            if expected == place:
                around = min(2 * around, AROUND_MAX)
                self._streams[index] = expected, around
                return index, around
        index = self._turn % STREAMS
        self._turn += 1
        self._streams[index] = self._streams[index][0], 1
        return index, 1

    def _keep(self, number: int, first: int, count: int) -> int:
        chunk = self.chunks[number]
        self._raise(number, 1)
        for done in range(count):
            content = self.page(chunk.block, first + done)
            if first + done in chunk.kept:
                continue
            if any(content):
                if not self.pool:
                    if not done:
                        self._raise(number, 2)
                    return done
                self.pool -= 1
            chunk.kept[first + done] = content
        return count

    def _raise(self, number: int, rank: int) -> None:
        if self.chunks[number].rank < rank:
            self.chunks[number].rank = rank
            self._lists[rank].append(number)

    def claim(self) -> int | None:
        """The chunk that is copied next."""
        unsaved = [number for number, chunk in enumerate(self.chunks) if chunk.state == "unsaved"]
        for rank in (2, 1):
            while self._lists[rank]:
                number = self._lists[rank].pop(0)
                if number in unsaved:
                    self.chunks[number].state = "copying"
                    return number
        if not unsaved:
            return None
        self.chunks[unsaved[0]].state = "copying"
        return unsaved[0]

    def fill(self, number: int) -> bytes:
        """What the chunk had at the moment."""
        chunk = self.chunks[number]
        pages = range(chunk.first, chunk.first + chunk.pages)
        return b"".join(chunk.kept.get(page) or self.page(chunk.block, page) for page in pages)

    def saved(self, number: int) -> None:
        """Its copies are not needed any more."""
        chunk = self.chunks[number]
        self.pool += sum(any(content) for content in chunk.kept.values())
        chunk.kept.clear()
        chunk.state = "saved"
