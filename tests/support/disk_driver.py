"""A driver of virtio-blk on a `FakeSlot`: requests in, statuses and data out."""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import pairwise
from struct import pack
from typing import TYPE_CHECKING, NamedTuple

from tests.support.driver_ring import Buffer
from tests.support.fake_slot import FakeSlot, serving
from tvmm.config.disk import DiskConfig
from tvmm.virtio.blk import Blk
from tvmm.virtio.features import Blk as Feature
from tvmm.virtio.features import Ring
from tvmm.virtio.runner.backing import blk_settings
from tvmm.virtio.runner.blk import BlkRunner
from tvmm.virtio.runner.image import DiskImage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

__all__ = ["ALL", "DISCARD", "FLUSH", "GET_ID", "IN", "OUT", "WRITE_ZEROES", "Answer", "Disk", "disk", "ranges"]

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IO_ERROR, UNSUPPORTED = 0, 1, 2
NO_STATUS = 0xEE
ALL = Ring.VERSION_1 | Feature.FLUSH | Feature.CONFIG_WCE | Feature.DISCARD | Feature.WRITE_ZEROES


class Answer(NamedTuple):
    """What came back. `status` 0xEE: the device wrote none."""

    status: int
    data: bytes
    used: int


class Pending(NamedTuple):
    """A request under way: its chain, where room and status are and how long, and all memory that it has."""

    id: int
    writable: int
    writable_length: int
    homes: tuple[tuple[int, int], ...]


def ranges(*parts: tuple[int, int, int]) -> bytes:
    """Sector, sectors, flags of each."""
    return b"".join(pack("<QII", *part) for part in parts)


def _cut(gpa: int, length: int, cuts: Sequence[int], *, writable: bool) -> list[Buffer]:
    edges = sorted({0, length, *(cut for cut in cuts if cut < length)})
    return [Buffer(gpa + at, following - at, writable) for at, following in pairwise(edges)]


class Disk:
    """One disk with its slot, and its driver."""

    def __init__(self, slot: FakeSlot, runner: BlkRunner, image: DiskImage, warnings: list[str]) -> None:
        self.slot = slot
        self.runner = runner
        self.image = image
        self.warnings = warnings
        self.features = 0
        self.answers: dict[Pending, Answer] = {}
        self._pending: dict[tuple[int, int], Pending] = {}

    def activate(self, features: int = ALL, size: int = 256, *, by_python: bool = False) -> None:
        """Up to DRIVER_OK."""
        self.features = features
        self._pending.clear()
        self.slot.activate(self.runner, features, size, by_python=by_python)

    async def reset(self) -> None:
        """To the state before."""
        await self.slot.reset(self.runner)

    def add(
        self,
        kind: int,
        sector: int = 0,
        data: bytes = b"",
        room: int = 0,
        queue: int = 0,
        cuts: Sequence[int] = (),
        offset: int = 0,
    ) -> Pending | None:
        """Offer a request, which `publish` shows; None if the ring is full. `offset`: bytes that it is misplaced by."""
        slot = self.slot
        readable = pack("<IIQ", kind, 0, sector) + data
        # Before the data, which is as aligned as it can be, the header.
        lengths = (len(readable) + 496 + offset, room + 1 + offset)
        homes = tuple((slot.place(length), length) for length in lengths)
        at, to = homes[0][0] + 496 + offset, homes[1][0] + offset
        slot.ram.write(at, readable)
        slot.ram.write(to + room, bytes([NO_STATUS]))
        pieces = _cut(at, len(readable), (16, *cuts), writable=False) + _cut(to, room + 1, (room, *cuts), writable=True)
        indirect = self.features & Ring.INDIRECT_DESC and len(pieces) <= 32
        number = slot.drivers[queue].add(pieces, 0 if indirect else None)
        if number is None:
            return None
        pending = Pending(number, to, room + 1, homes)
        self._pending[queue, number] = pending
        return pending

    async def collect(self, queue: int = 0) -> list[Pending]:
        """Wait until something has come back; `answers` has it."""
        back = []
        for number, used in await self.slot.wait_used(queue):
            pending = self._pending.pop((queue, number))
            written = self.slot.ram.read(pending.writable, pending.writable_length)
            self.answers[pending] = Answer(written[-1], written[:-1], used)
            for home in pending.homes:
                self.slot.give_back(*home)
            back.append(pending)
        return back

    async def ask(
        self,
        kind: int,
        sector: int = 0,
        data: bytes = b"",
        room: int = 0,
        queue: int = 0,
        cuts: Sequence[int] = (),
        offset: int = 0,
    ) -> Answer:
        """One request to its end."""
        pending = self.add(kind, sector, data, room, queue, cuts, offset)
        assert pending is not None
        self.slot.publish(queue)
        while pending not in self.answers:
            await self.collect(queue)
        return self.answers.pop(pending)


@asynccontextmanager
async def disk(path: Path | str, **options: object) -> AsyncIterator[Disk]:
    """A disk that is served inside of the block, not activated yet. `options`: of `DiskConfig`."""
    config = DiskConfig(str(path), **options)  # type: ignore[arg-type]
    image = DiskImage(config.file, read_only=config.readonly, direct=config.o_direct, locking=config.locking)
    warnings: list[str] = []
    try:
        slot = FakeSlot(Blk(blk_settings(image, config)))
    except BaseException:
        image.close()
        raise
    assert isinstance(slot.model, Blk)
    runner = BlkRunner(slot.model, slot.ends, image, config, warnings.append)
    async with serving(slot, runner):
        yield Disk(slot, runner, image, warnings)
