"""Memory that goes from a source to a destination on the same host without a copy: both map the same memfds.

The feature `MEMFD`. When it is granted no lane is opened and no round is sent: the source makes one more connection, of
kind RAM, and passes a descriptor for each block (`tvmm.migration.descriptors`). The destination maps them in place of
its own memory, says so with `RoundDone` 0, and the rest is as ever: the guest is paused, State, Ready, Commit.

Until Commit the destination only borrows: what is written there on the way, which is KVM's clock pages at most, stays
in private pages of its own, so that the source goes on with memory that nobody has touched. With Commit it maps the
memory shared; the source lets go of it when the guest runs there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from tvmm.errors import ProtocolError
from tvmm.migration.descriptors import check_memory, is_trusted, receive_descriptors, send_descriptors
from tvmm.migration.link import LinkLost, open_connection
from tvmm.migration.messages import RoundDone
from tvmm.migration.wire import Kind, Opening

if TYPE_CHECKING:
    from tvmm.memory.ram import GuestRam
    from tvmm.migration.guest import ArrivingGuest
    from tvmm.migration.link import Address
    from tvmm.migration.secure import Securer
    from tvmm.migration.talk import Talk

__all__ = ["MEMFD", "MemoryArrival", "can_be_passed", "pass_memory", "why_copied"]

MEMFD = "memfd"
MEMORY_SECONDS = 30.0
"""For the connection with the descriptors to come."""
TAKEN_SECONDS = 120.0
"""For the word that the destination has mapped all of it."""


def can_be_passed(ram: GuestRam) -> bool:
    """Whether all of it is memory that another process can map."""
    return all(block.fd >= 0 for block in ram.blocks.values())


def why_copied(ram: GuestRam) -> str:
    """What to tell a user whose guest's memory was copied over a unix socket."""
    where = "the destination's" if can_be_passed(ram) else "the guest's"
    return f"{where} memory is not shared: with --memory ...,shared=on on both sides none of it would have been copied"


async def pass_memory(ram: GuestRam, address: Address, security: Securer, token: bytes, talk: Talk) -> None:
    """At the source: have the destination map all blocks. Raises as `open_connection` and `Talk.expect`."""
    stream = await open_connection(address, Opening(Kind.RAM, security.kind, token=token))
    try:
        if not is_trusted(stream):
            raise ProtocolError("who waits there is another user: the guest's memory is not for them")
        blocks = ram.blocks
        await send_descriptors(stream, list(blocks), [block.fd for block in blocks.values()])
    finally:
        await trio.aclose_forcefully(stream)
    await talk.expect(RoundDone, TAKEN_SECONDS, "take over the guest's memory")


class MemoryArrival:
    """At the destination: the connection with the descriptors, and what comes over it."""

    def __init__(self) -> None:
        self._came = trio.Event()
        self._stream: trio.abc.Stream | None = None

    def take(self, stream: trio.abc.Stream) -> None:
        """The connection is here. Raises `ProtocolError`: there is one at most, and not from everybody."""
        if self._came.is_set():
            raise ProtocolError("a second connection for memory has no place here")
        if not is_trusted(stream):
            raise ProtocolError("memory is taken from this user and from root alone")
        self._stream = stream
        self._came.set()

    async def receive(self, ram: GuestRam) -> dict[str, int]:
        """A descriptor for each block of `ram`: the caller's to close. Raises `LinkLost` or `ProtocolError`."""
        with trio.move_on_after(MEMORY_SECONDS) as patience:
            await self._came.wait()
            assert self._stream is not None
            files = await receive_descriptors(self._stream)
        if patience.cancelled_caught:
            raise LinkLost("its connection for memory did not come")
        try:
            if list(files) != list(ram.blocks):
                raise ProtocolError("the source has sent other blocks of memory than it has announced")
            for name, block in ram.blocks.items():
                check_memory(files[name], name, block.size, block.page_size)
        except BaseException:
            close_all(files)
            raise
        return files

    async def lend(self, guest: ArrivingGuest) -> None:
        """Have `guest` borrow what comes. Raises as `receive`, and `HostError`."""
        files = await self.receive(guest.ram)
        try:
            await guest.borrow_memory(files)
        finally:
            close_all(files)

    async def close(self) -> None:
        """Once no task can let another one in."""
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)


def close_all(files: dict[str, int]) -> None:
    """Close descriptors, and forget them."""
    while files:
        os.close(files.popitem()[1])
