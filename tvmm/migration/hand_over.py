"""Memory that goes from a source to a destination on the same host without a copy: both map the same memfds.

The feature `MEMFD`. When it is granted no lane is opened and no round is sent: the source makes one more connection, of
kind RAM, and passes a descriptor for each block (`tvmm.migration.descriptors`). The destination maps them in place of
its own memory, says so with `RoundDone` 0, and the rest is as ever: the guest is paused, State, Ready, Commit.

Until Commit the destination only borrows: what is written there on the way, which is KVM's clock pages at most, stays
in private pages of its own, so that the source goes on with memory that nobody has touched. With Commit it maps the
memory shared; the source lets go of it when the guest runs there.

Taps are features of their own, by the names of their interfaces (`tap_feature`): wanted by a source that has them, and
granted by a destination that is to have the same ones and cannot open them. Their queues come over the same connection,
behind the blocks if memory is handed over too. From the guest's pause on frames wait in them for whoever reads next.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from tvmm.errors import ProtocolError
from tvmm.migration.descriptors import check_memory, is_trusted, receive_descriptors, send_descriptors
from tvmm.migration.link import LinkLost, open_connection
from tvmm.migration.messages import RoundDone
from tvmm.migration.wire import Kind, Opening, readable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tvmm.memory.ram import GuestRam
    from tvmm.migration.guest import ArrivingGuest, LeavingGuest
    from tvmm.migration.link import Address
    from tvmm.migration.secure import Securer
    from tvmm.migration.talk import Talk

__all__ = [
    "MEMFD",
    "MemoryArrival",
    "can_be_passed",
    "only_here",
    "pass_memory",
    "pass_taps",
    "tap_feature",
    "taps_in",
    "why_copied",
]

MEMFD = "memfd"
TAP = "tap "
"""What the name of a tap as a feature, and of each of its queues, begins with. No interface's name has a blank."""
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


def tap_feature(name: str) -> str:
    """The feature that the tap on interface `name` goes along."""
    return TAP + name


def taps_in(features: Iterable[str]) -> frozenset[str]:
    """Interfaces of the taps among these."""
    return frozenset(feature.removeprefix(TAP) for feature in features if feature.startswith(TAP))


def only_here(features: frozenset[str]) -> frozenset[str]:
    """Those for which descriptors come: nobody gets or takes them who is on another host, or another user."""
    return features & ({MEMFD} | {tap_feature(name) for name in taps_in(features)})


def _queue(name: str, number: int) -> str:
    """What a queue of the tap `name` is called in Descriptors."""
    return f"{TAP}{name} {number}"


async def pass_memory(guest: LeavingGuest, address: Address, security: Securer, token: bytes, talk: Talk) -> None:
    """At the source: have the destination map all blocks. Raises as `open_connection` and `Talk.expect`."""
    files = {name: block.fd for name, block in guest.ram.blocks.items()}
    await _pass(files | _queues(guest, talk), address, security, token)
    await talk.expect(RoundDone, TAKEN_SECONDS, "take over the guest's memory")


async def pass_taps(guest: LeavingGuest, address: Address, security: Securer, token: bytes, talk: Talk) -> None:
    """At the source, where memory is copied: taps alone, if any. Raises as `open_connection` and `Talk.hear`."""
    if only_here(talk.granted):
        await _pass(_queues(guest, talk), address, security, token)
        await talk.hear(RoundDone, TAKEN_SECONDS, "take over the guest's taps")


def _queues(guest: LeavingGuest, talk: Talk) -> dict[str, int]:
    """Descriptors of the taps that are to go along."""
    granted = taps_in(talk.granted)
    return {
        _queue(name, number): fd
        for name, fds in guest.taps().items()
        if name in granted
        for number, fd in enumerate(fds)
    }


async def _pass(files: dict[str, int], address: Address, security: Securer, token: bytes) -> None:
    stream = await open_connection(address, Opening(Kind.RAM, security.kind, token=token))
    try:
        if not is_trusted(stream):
            raise ProtocolError("who waits there is another user: the guest's memory and taps are not for them")
        await send_descriptors(stream, list(files), list(files.values()))
    finally:
        await trio.aclose_forcefully(stream)


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

    async def receive(self) -> dict[str, int]:
        """Descriptors by name: the caller's to close. Raises `LinkLost` or `ProtocolError`."""
        with trio.move_on_after(MEMORY_SECONDS) as patience:
            await self._came.wait()
            assert self._stream is not None
            files = await receive_descriptors(self._stream)
        if patience.cancelled_caught:
            raise LinkLost("its connection for memory did not come")
        return files

    async def lend(self, guest: ArrivingGuest, granted: frozenset[str]) -> None:
        """Have `guest` borrow what comes of what was `granted`: memory, and taps.

        Raises as `receive`, `ArrivingGuest.take_taps` and `ArrivingGuest.borrow_memory`.
        """
        files = await self.receive()
        try:
            taps = _taken_out(files)
            try:
                _check_blocks(files, guest.ram if MEMFD in granted else None)
                await guest.take_taps(taps)
            finally:
                for fds in taps.values():
                    for fd in fds:
                        os.close(fd)
            if MEMFD in granted:
                await guest.borrow_memory(files)
        finally:
            close_all(files)

    async def close(self) -> None:
        """Once no task can let another one in."""
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)


def _taken_out(files: dict[str, int]) -> dict[str, list[int]]:
    """Queues of taps in their order, by the interface's name. Raises `ProtocolError`, and has then taken out none."""
    found: dict[str, list[str]] = {}
    for name in files:
        if name.startswith(TAP):
            tap = name.removeprefix(TAP).rpartition(" ")[0]
            queues = found.setdefault(tap, [])
            queues.append(name)
            if name != _queue(tap, len(queues) - 1):
                raise ProtocolError(f"the source has sent {readable(name)} in another place than its own")
    return {tap: [files.pop(name) for name in queues] for tap, queues in found.items()}


def _check_blocks(files: dict[str, int], ram: GuestRam | None) -> None:
    """Raise `ProtocolError` unless these are memory for all of `ram`, and nothing else."""
    blocks = ram.blocks if ram is not None else {}
    if list(files) != list(blocks):
        raise ProtocolError("the source has sent other blocks of memory than it has announced")
    for name, block in blocks.items():
        check_memory(files[name], name, block.size, block.page_size)


def close_all(files: dict[str, int]) -> None:
    """Close descriptors, and forget them."""
    while files:
        os.close(files.popitem()[1])
