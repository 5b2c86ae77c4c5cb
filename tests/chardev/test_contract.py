"""What every backend with a viewer keeps to. Time is a mock clock's: to look for viewers costs none."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.chardev.fakes import FakeGuest, odd_bytes, open_descriptors
from tests.chardev.rigs import RECONNECTING, TWO_WAY, MakeRig, Rig
from tvmm.chardev.port import SerialHub, skipped_note
from tvmm.errors import HostError

MIB = 1 << 20

pytestmark = [pytest.mark.timeout(30), pytest.mark.usefixtures("autojump_clock")]

two_way = pytest.mark.parametrize("make", TWO_WAY.values(), ids=TWO_WAY.keys())
reconnecting = pytest.mark.parametrize("make", RECONNECTING.values(), ids=RECONNECTING.keys())

NOT_PLAIN = b"\x01\n"
"""Bytes that a terminal in the way changes: the escape, and newlines of output that is shown."""


@asynccontextmanager
async def running(rig: Rig, guest: FakeGuest) -> AsyncIterator[SerialHub]:
    """The rig's backend acquired, and a hub that runs it, inside the block."""
    async with rig.backend, trio.open_nursery() as nursery:
        hub = SerialHub(guest, rig.backend)
        await nursery.start(hub.run)
        yield hub
        nursery.cancel_scope.cancel()


@two_way
async def test_output_arrives_whole_at_a_slow_reader(make: MakeRig, tmp_path: Path) -> None:
    """1 MiB in odd pieces: the guest waits for the reader, then everything arrives in order."""
    data = odd_bytes(MIB, without=NOT_PLAIN)
    guest = FakeGuest()
    async with make(tmp_path) as rig, running(rig, guest), rig.connect() as viewer:
        assert await _greet(guest, viewer.receive) == b"hello"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.write_chunks, data)
            await trio.testing.wait_all_tasks_blocked(0.01)
            received = await viewer.receive(10, limit=1)
            assert guest.written < MIB
            received += await viewer.receive(9990, limit=777)
            received += await viewer.receive(MIB - 10_000)
    assert received == data


@two_way
async def test_input_arrives_whole_at_a_slow_guest(make: MakeRig, tmp_path: Path) -> None:
    """Everything typed reaches the guest in order, also while it does not read for a while."""
    data = odd_bytes(100_000, without=NOT_PLAIN)
    guest = FakeGuest()
    guest.set_reads(False)
    async with (
        make(tmp_path) as rig,
        running(rig, guest),
        rig.connect() as viewer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(viewer.input.send_all, data)
        await trio.testing.wait_all_tasks_blocked(0.01)
        guest.set_reads(True)
        assert await guest.wait_received(len(data)) == data


@two_way
async def test_both_ways_at_once(make: MakeRig, tmp_path: Path) -> None:
    """Neither direction waits for the other."""
    data = odd_bytes(50_000, without=NOT_PLAIN)
    guest = FakeGuest()
    async with (
        make(tmp_path) as rig,
        running(rig, guest),
        rig.connect() as viewer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(viewer.input.send_all, data)
        nursery.start_soon(guest.write_chunks, data)
        assert await viewer.receive(len(data)) == data
        assert await guest.wait_received(len(data)) == data


@two_way
async def test_last_words_arrive(make: MakeRig, tmp_path: Path) -> None:
    """When the guest ends, run returns once the viewer has been given the rest."""
    data = odd_bytes(10_000, without=NOT_PLAIN)
    guest = FakeGuest()
    async with make(tmp_path) as rig, rig.backend, trio.open_nursery() as nursery:
        hub = SerialHub(guest, rig.backend)
        await nursery.start(hub.run)
        async with rig.connect() as viewer:
            assert await _greet(guest, viewer.receive) == b"hello"
            nursery.start_soon(guest.write_chunks, data)
            received = await viewer.receive(5000)
            guest.finish()
            received += await viewer.receive(5000)
            await hub.drain()
    assert received == data


@two_way
async def test_cancelling_leaves_nothing_behind(make: MakeRig, tmp_path: Path) -> None:
    """After a cancellation in the middle of traffic no descriptor and no name is left."""
    guest = FakeGuest()
    guest.set_reads(False)
    async with make(tmp_path) as rig:
        before = open_descriptors()
        with trio.CancelScope() as scope:
            async with running(rig, guest), rig.connect() as viewer, trio.open_nursery() as nursery:
                assert all(name.exists() for name in rig.names)
                nursery.start_soon(guest.write_chunks, odd_bytes(MIB))
                nursery.start_soon(viewer.input.send_all, odd_bytes(MIB))
                await trio.testing.wait_all_tasks_blocked(0.01)
                scope.cancel()
        assert scope.cancelled_caught
        assert open_descriptors() == before
        assert not any(os.path.lexists(name) for name in rig.names)


@two_way
async def test_failing_leaves_nothing_behind(make: MakeRig, tmp_path: Path) -> None:
    """An error next to a running backend passes through unchanged and leaves nothing either."""
    async with make(tmp_path) as rig:
        before = open_descriptors()
        with pytest.raises(HostError, match="something else"):
            async with rig.backend:
                await SerialHub(_Broken(), rig.backend).run()
        assert open_descriptors() == before
        assert not any(os.path.lexists(name) for name in rig.names)


class _Broken(FakeGuest):
    async def receive_some(self) -> bytes:
        await trio.testing.wait_all_tasks_blocked()
        raise HostError("something else broke")


@reconnecting
async def test_guest_does_not_wait_for_nobody(make: MakeRig, tmp_path: Path) -> None:
    """With nobody connected output goes on; who comes gets the latest and is told how much is gone."""
    guest = FakeGuest()
    data = odd_bytes(100_000, without=NOT_PLAIN)
    async with make(tmp_path) as rig, running(rig, guest):
        await guest.write_chunks(data)
        await trio.testing.wait_all_tasks_blocked(0.01)
        note = skipped_note(len(data) - 64 * 1024)
        async with rig.connect() as viewer:
            assert await viewer.receive(len(note) + 64 * 1024) == note + data[-64 * 1024 :]


@reconnecting
async def test_returning_viewer_gets_what_it_missed(make: MakeRig, tmp_path: Path) -> None:
    """Output from between two connections comes first in the second, and none comes twice."""
    guest = FakeGuest()
    async with make(tmp_path) as rig, running(rig, guest):
        for turn in range(3):
            between, during = b"between %d;" % turn, b"during %d;" % turn
            await guest.write(between)
            await trio.testing.wait_all_tasks_blocked(0.01)
            async with rig.connect() as viewer:
                assert await viewer.receive(len(between)) == between
                await guest.write(during)
                assert await viewer.receive(len(during)) == during
                await viewer.input.send_all(b"%d" % turn)
                await guest.wait_received(turn + 1)
    assert guest.received == b"012"


@reconnecting
async def test_leaving_frees_the_guest(make: MakeRig, tmp_path: Path) -> None:
    """A viewer that reads nothing holds the guest until it leaves."""
    guest = FakeGuest()
    async with (
        make(tmp_path) as rig,
        running(rig, guest),
        trio.open_nursery() as nursery,
        rig.connect() as viewer,
    ):
        assert await _greet(guest, viewer.receive) == b"hello"
        nursery.start_soon(guest.write_chunks, odd_bytes(MIB))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert guest.written < MIB
    assert guest.written == MIB + 5


async def _greet(guest: FakeGuest, receive: object) -> bytes:
    """Let the guest write and the viewer read: from here on it is known to be connected."""
    await guest.write(b"hello")
    assert callable(receive)
    greeting = await receive(5)
    assert isinstance(greeting, bytes)
    return greeting
