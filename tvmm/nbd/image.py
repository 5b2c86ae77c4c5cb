"""A disk whose bytes are at an NBD server: what `DiskImage` is for files.

It has the links of all queues, gives them their connections, and looks after them while the disk is in use (`tended`):
a connection that is lost is made anew, and the queue repeats what it had outstanding.
"""

from __future__ import annotations

import errno
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tvmm.errors import HostError, ImageError, UserError
from tvmm.kvm.nbd import NbdLink
from tvmm.nbd.connect import run_now
from tvmm.nbd.constants import Flag
from tvmm.nbd.handshake import DoesNotFit
from tvmm.nbd.local import LocalServer
from tvmm.nbd.outage import Outage
from tvmm.virtio.blk_request import SECTOR

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tvmm.nbd.connect import Connection, Server
    from tvmm.nbd.handshake import Export

__all__ = ["LINGER_S", "NbdImage"]

BLOCK_MAX = 1 << 20
LINGER_S = 5.0
"""What a server gets to answer the last requests of a machine that ends."""


class NbdImage:
    """See `Backing` of `tvmm.virtio.runner.blk` for the fields.

    `warn`, `on_size` and `on_lost_writes` are called in the event loop: the second when the export has got larger, the
    third when what was not flushed is lost; it returns whether there was any that the guest takes for written.
    """

    direct = False
    fd = plain_fd = -1
    memory_align = offset_align = 1
    is_device = in_memory = False

    def __init__(
        self,
        server: Server,
        *,
        read_only: bool = False,
        queues: int = 1,
        connections: int = 0,
        patience_s: float = 30.0,
        name: str = "disk",
        lock_now: bool = True,
    ) -> None:
        """Connects, and waits for that. Raises `UserError`.

        `connections`: how many are wanted at most, 0 for one of each queue. Requests wait for `patience_s` for a server
        that is away; `name` begins lines about that. The server belongs to the image, also if this raises.
        Without `lock_now` somebody else has the image of a server of our own still, and `lock` comes later.
        """
        self.path = server.name
        self.read_only = read_only
        self.warnings: list[str] = []
        self.warn: Callable[[str], None] = lambda line: None
        self.on_size: Callable[[int], None] = lambda size: None
        self.on_lost_writes: Callable[[], bool] = lambda: False
        self._server = server
        self._queues = queues
        self._name = name
        self._outage = Outage(name, patience_s)
        self._links: list[_Link] = []
        self._resting = False
        wanted = max(connections or queues, queues)
        try:
            if isinstance(server, LocalServer) and not lock_now:
                self._resting = True
                self._examine(server.look())
                self._links += [_Link(number) for number in range(wanted)]
            else:
                self._connect_first(wanted)
        except BaseException:
            self.close()
            raise

    # -- the first connections -------------------------------------------------------------------------------

    def _connect_first(self, wanted: int) -> None:
        first = run_now(self._server.connect)
        try:
            self._examine(first.export)
            count = self._allowed(first.export, wanted)
            found = [first, *run_now(lambda: self._connect_more(count - 1))]
        except BaseException:
            first.say_goodbye()
            first.close()
            raise
        for number, connection in enumerate(found):
            link = _Link(number)
            self._links.append(link)
            link.give(connection)

    def _examine(self, export: Export) -> None:
        what = f"NBD export {self.path}"
        if export.size % SECTOR:
            raise ImageError(
                f"{what} has {export.size} bytes, which is no whole number of sectors of {SECTOR}",
                "enlarge what is behind it, or 'nbdkit --filter=truncate ... round-up=512'",
            )
        if export.has(Flag.READ_ONLY) and not self.read_only and not self._resting:
            raise ImageError(f"{what} is for reading only", "say readonly=on, or have the server let it be written")
        self.size = self._there = export.size
        self.logical_block = max(SECTOR, export.minimum_block)
        self.physical_block = min(max(self.logical_block, export.preferred_block), BLOCK_MAX)
        # One that rests has been looked at for reading only; ours can trim.
        self.can_unmap = not self.read_only and (export.has(Flag.SEND_TRIM) or self._resting)
        self.export = export
        if self.size % self.logical_block:
            raise ImageError(
                f"{what} has {export.size} bytes, which is no whole number of its blocks of {self.logical_block}",
                "look at the server",
            )
        if not self.read_only and not export.has(Flag.SEND_FLUSH):
            self.warnings.append("the server has no flush: what the guest has flushed may be lost if it fails")

    def _allowed(self, export: Export, wanted: int) -> int:
        if wanted == 1 or export.has(Flag.CAN_MULTI_CONN):
            return wanted
        if self._queues > 1:
            raise ImageError(
                f"NBD export {self.path} allows one connection, and each of {self._queues} queues needs one",
                "say queues=1, or have the server allow several",
            )
        self.warnings.append(f"the server allows one connection: connections={wanted} is not used")
        return 1

    async def _connect_more(self, count: int) -> list[Connection]:
        found: list[Connection] = []
        try:
            for _ in range(count):
                found.append(await self._server.connect())
        except BaseException:
            for connection in found:
                connection.close()
            raise
        return found

    # -- Backing -------------------------------------------------------------------------------------------

    def links(self, index: int) -> tuple[NbdLink, ...]:
        """The connections of queue `index`: every so manieth."""
        return tuple(link.raw for link in self._links if link.number % self._queues == index)

    def resize(self, size: int) -> None:
        """Raises `ImageError`: the server decides."""
        if isinstance(self._server, LocalServer):
            raise ImageError(
                f"disk image {self.path} is open in qemu-nbd, which cannot resize it",
                f"stop the machine, then 'qemu-img resize {self.path} SIZE'",
            )
        raise ImageError(
            f"{self.path} is at a server, which says how large it is",
            "enlarge it there and start the server again: the guest is told when it is back",
        )

    def flush(self) -> None:
        """Have what was written on the server's disk. Raises `HostError`.

        While the queues run they flush what the guest wants to have flushed, and this does nothing.
        """
        if self.read_only:
            return
        for link in self._links:
            try:
                link.raw.flush()
            except OSError as error:
                if error.errno == errno.EBUSY:
                    continue
                raise HostError(
                    f"{self.path} cannot be written back: {os.strerror(error.errno or errno.EIO)}",
                    "look at the NBD server",
                ) from error

    def lock(self) -> None:
        """Open the image, if the server is ours and rests. Raises `ImageError` if somebody else has it open.

        Of somebody else's server nothing: it knows who may have it.
        """
        if not self._resting:
            return
        found = run_now(lambda: self._connect_more(len(self._links)))
        try:
            if found[0].export.size != self.size:
                raise ImageError(
                    f"disk image {self.path} had {self.size} bytes and has {found[0].export.size} now", "start again"
                )
            for link, connection in zip(self._links, found, strict=True):
                link.give(connection)
        except BaseException:
            for connection in found:
                connection.close()
            self._server.close()
            raise
        self.export = found[0].export
        self._resting = False

    def unlock(self) -> None:
        """Have a server of our own write everything, and close the image: somebody else may open it then. Held."""
        if self._resting or not isinstance(self._server, LocalServer):
            return
        self._resting = True
        for link in self._links:
            link.raw.hang_up()
        self._server.stop()

    def forget(self) -> None:
        """Nothing: this host has nothing of it."""

    def close(self) -> None:
        """Say goodbye."""
        for link in self._links:
            link.close()
        self._links.clear()
        self._server.close()

    # -- while it is in use ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def tended(self) -> AsyncIterator[None]:
        """Connections that are lost come back within the block.

        What ends the block from outside does not end the care: queues that have to finish what they have under way may
        need it. A server that does not answer then is given up after `LINGER_S`.
        """
        done = trio.Event()
        async with trio.open_nursery() as nursery:
            for link in self._links:
                nursery.start_soon(self._tend, link, done, name=f"nbd {link.number}")
            nursery.start_soon(self._give_up_late, done, name="nbd end")
            try:
                yield
            finally:
                done.set()

    async def _tend(self, link: _Link, done: trio.Event) -> None:
        """Look after one link, until `done`."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:

                async def stop() -> None:
                    await done.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(stop)
                if link.connection is not None and link.connection.needs_pump:
                    nursery.start_soon(link.connection.pump)
                while True:
                    await trio.lowlevel.wait_readable(link.raw.lost_fd)
                    reason = link.raw.take_loss()
                    if self._resting:
                        continue
                    connection = await self._bring_back(link, reason or "no reason is known")
                    if connection.needs_pump:
                        nursery.start_soon(connection.pump)

    async def _give_up_late(self, done: trio.Event) -> None:
        try:
            await done.wait()
        except trio.Cancelled:
            with trio.CancelScope(shield=True), trio.move_on_after(LINGER_S):
                await done.wait()
            if not done.is_set():
                for link in self._links:
                    link.raw.fail(errno.EIO)
            raise

    async def _bring_back(self, link: _Link, reason: str) -> Connection:
        """A new connection for a link that has lost its own, given to it."""
        self._say(self._outage.lost(link.number, reason, trio.current_time()))
        last = [reason]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fail_late, link, last)
            while True:
                await trio.sleep(self._outage.next_delay(link.number))
                try:
                    connection = await self._server.connect()
                except UserError as error:
                    last[0] = error.message
                    continue
                try:
                    self._compare(connection.export)
                    # Before a flush that is repeated succeeds.
                    self._tell_of_crash()
                    link.give(connection)
                    break
                except UserError as error:
                    last[0] = error.message
                    connection.close()
            nursery.cancel_scope.cancel()
        self._say(self._outage.back(link.number, trio.current_time()))
        return connection

    def _tell_of_crash(self) -> None:
        """A server of ours keeps a format's tables in memory until they are flushed; one that dies has lost them.

        No replay helps then: the guest was told that it is written. What it may be told is that a flush has failed.
        """
        server = self._server
        if not isinstance(server, LocalServer) or not server.crashed:
            return
        server.crashed = False
        if not self.read_only and self.on_lost_writes():
            self.warn(
                f"{self._name}: qemu-nbd was killed, and what the guest had not flushed may be lost: "
                "its flushes fail from now on; start it again and have it check its file systems"
            )

    async def _fail_late(self, link: _Link, last: list[str]) -> None:
        await trio.sleep_until(self._outage.deadline)
        link.raw.fail(errno.EIO)
        self._say(self._outage.overdue(last[0], trio.current_time()))

    def _compare(self, now: Export) -> None:
        """The export that is there again with what the guest knows. Raises `DoesNotFit` if it is of no use."""
        then = self.export
        if now.size % SECTOR or now.minimum_block > self.logical_block:
            raise DoesNotFit(f"{self.path} is there again in blocks that do not fit this disk")
        if len(self._links) > 1 and not now.has(Flag.CAN_MULTI_CONN):
            raise DoesNotFit(f"{self.path} is there again, and allows one connection only")
        if now.size != self._there:
            self._size_changed(now.size)
        if now.has(Flag.READ_ONLY) and not then.has(Flag.READ_ONLY) and not self.read_only:
            self.warn(f"{self.path} is for reading only now: writes fail")
        if then.has(Flag.SEND_FLUSH) and not now.has(Flag.SEND_FLUSH) and not self.read_only:
            self.warn(f"{self.path} has no flush any more: what is flushed may be lost if the server fails")
        self.export = now

    def _size_changed(self, size: int) -> None:
        self._there = size
        if size < self.size:
            self.warn(
                f"{self.path} has {size} bytes now, and the guest knows of {self.size}: "
                "what is behind the end fails"
            )
        elif size > self.size:
            self.size = size
            self.on_size(size)

    def _say(self, line: str) -> None:
        if line:
            self.warn(line)


class _Link:
    """One connection's place."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.raw = NbdLink()
        self.connection: Connection | None = None

    def give(self, connection: Connection) -> None:
        """Have it used. Raises `HostError`; the connection is the caller's again then."""
        try:
            self.raw.give(connection.fd, connection.transmission)
        except OSError as error:
            raise HostError(f"a connection cannot be used: {error.strerror}", "raise 'ulimit -n'") from error
        if self.connection is not None and not self.connection.needs_pump:
            self.connection.close()
        connection.given()
        self.connection = connection

    def close(self) -> None:
        """Say goodbye."""
        self.raw.close()
        if self.connection is not None:
            self.connection.close()
            self.connection = None
