"""A disk on a `FakeSlot` whose queues go to NBD servers, each link to its own `Peer`."""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import trio

from tests.support.disk_driver import Disk
from tests.support.fake_slot import FakeSlot, serving
from tests.support.nbd_peer import ALL_FLAGS, NbdDisk, Peer
from tvmm.config.disk import DiskConfig
from tvmm.kvm.nbd import NbdLink, NbdTransmission
from tvmm.virtio.blk import Blk
from tvmm.virtio.runner.backing import blk_settings
from tvmm.virtio.runner.blk import BlkRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.disk_driver import Answer, Pending
    from tests.support.nbd_peer import Request

__all__ = ["Backing", "Collected", "Remote", "answers", "remote"]

PATIENCE_S = 30
STRUCTURED = NbdTransmission(ALL_FLAGS, structured=True, extended=False)


class Backing:
    """An export as a disk's runner has it."""

    def __init__(self, size: int, queues: int, links: int, block: int) -> None:
        self.path = "nbd://test"
        self.size = size
        self.read_only = self.direct = self.is_device = self.in_memory = False
        self.warnings: list[str] = []
        self.fd = self.plain_fd = -1
        self.memory_align = self.offset_align = 1
        self.logical_block = self.physical_block = max(block, 512)
        self.can_unmap = True
        self.all_links = [tuple(NbdLink() for _ in range(links)) for _ in range(queues)]

    def links(self, index: int) -> tuple[NbdLink, ...]:
        """Of a queue."""
        return self.all_links[index]

    def resize(self, size: int) -> None:
        """As it is told."""
        self.size = size

    def flush(self) -> None:
        """On each link."""
        for links in self.all_links:
            for link in links:
                link.flush()

    def lock(self) -> None:
        """Nothing to do."""

    def unlock(self) -> None:
        """Nothing to do."""

    def forget(self) -> None:
        """Nothing to do."""

    def tended(self) -> nullcontext[None]:
        """By the test."""
        return nullcontext()

    def close(self) -> None:
        """All links."""
        for links in self.all_links:
            for link in links:
                link.close()


class Collected:
    """An answer that a peer does not send: replies are kept until the test sends them."""

    def __init__(self, answer: Callable[[Request], bytes]) -> None:
        self.replies: list[bytes] = []
        self._answer = answer
        self._changed = trio.Event()

    def __call__(self, request: Request) -> bytes:
        self.replies.append(self._answer(request))
        self._changed.set()
        return b""

    async def wait(self, count: int) -> None:
        """Until there are so many."""
        with trio.fail_after(PATIENCE_S):
            while len(self.replies) < count:
                self._changed = trio.Event()
                await self._changed.wait()


async def answers(one: Disk, *wanted: Pending | None, queue: int = 0) -> list[Answer]:
    """Of requests that were added, in that order."""
    while not all(pending in one.answers for pending in wanted):
        await one.collect(queue)
    return [one.answers.pop(pending) for pending in wanted if pending is not None]


class Remote(Disk):
    """A `Disk` with links. `server` is what a good peer answers with."""

    backing: Backing
    server: NbdDisk
    nursery: trio.Nursery

    def link(self, index: int = 0, queue: int = 0) -> NbdLink:
        """One of them."""
        return self.backing.all_links[queue][index]

    def connect(
        self,
        link: NbdLink,
        answer: Callable[[Request], bytes | None] | None = None,
        about: NbdTransmission | None = None,
    ) -> Peer:
        """Give a link a connection to a new peer, which is served."""
        peer = Peer(about or self.server.about, answer or self.server.answer)
        link.give(peer.client.fileno(), peer.about)
        peer.client.close()
        self.nursery.start_soon(peer.serve)
        return peer

    async def wait_lost(self, link: NbdLink) -> str:
        """The reason."""
        with trio.fail_after(PATIENCE_S):
            await trio.lowlevel.wait_readable(link.lost_fd)
        return link.take_loss()


@asynccontextmanager
async def remote(
    about: NbdTransmission = STRUCTURED,
    *,
    size: int = 4 << 20,
    links: int = 1,
    connect: bool = True,
    **options: object,
) -> AsyncIterator[Remote]:
    """Such a disk, served inside of the block and not activated yet. `options`: of `DiskConfig`."""
    config = DiskConfig("nbd://test", **options)  # type: ignore[arg-type]
    backing = Backing(size, config.queues or 1, links, about.minimum_block)
    slot = FakeSlot(Blk(blk_settings(backing, config)))
    assert isinstance(slot.model, Blk)
    runner = BlkRunner(slot.model, slot.ends, backing, config, backing.warnings.append)
    async with serving(slot, runner) as nursery:
        one = Remote(slot, runner, backing, backing.warnings)  # type: ignore[arg-type]
        one.backing, one.nursery, one.server = backing, nursery, NbdDisk(size, about)
        for queue in backing.all_links if connect else ():
            for link in queue:
                one.connect(link)
        yield one
