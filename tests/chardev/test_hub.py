"""The hub: back-pressure, viewers, the order of input, and the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.chardev.fakes import FakeGuest, HoldingBackend, odd_bytes
from tvmm.chardev.none import NoneBackend
from tvmm.chardev.port import INPUT_PENDING, MAX_VIEWERS, Backend, SerialHub, skipped_note
from tvmm.errors import HostError


@asynccontextmanager
async def running(
    guest: FakeGuest, backend: Backend, history_bytes: int = 64 * 1024
) -> AsyncIterator[tuple[SerialHub, trio.Nursery]]:
    """A hub that runs inside the block."""
    async with trio.open_nursery() as nursery:
        hub = SerialHub(guest, backend, history_bytes=history_bytes)
        await nursery.start(hub.run)
        yield hub, nursery
        nursery.cancel_scope.cancel()


async def receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    """The next `count` bytes of a stream, or fewer if it ends."""
    data = bytearray()
    while len(data) < count and (more := await stream.receive_some(count - len(data))):
        data += more
    return bytes(data)


async def test_bytes_are_consumed_only_when_the_backend_took_them() -> None:
    """With a backend that takes nothing the guest can write one ring's worth, and goes on once it does."""
    guest, backend = FakeGuest(), HoldingBackend()
    data = odd_bytes(300_000)
    async with running(guest, backend) as (_, nursery):
        nursery.start_soon(guest.write_chunks, data)
        await trio.testing.wait_all_tasks_blocked()
        assert guest.written == 64 * 1024
        assert not backend.taken
        backend.open.set()
        await trio.testing.wait_all_tasks_blocked()
    assert backend.taken == data


async def test_guest_never_waits_for_none() -> None:
    """Without a backend all output is dropped at once."""
    guest = FakeGuest()
    async with running(guest, NoneBackend()):
        await guest.write_chunks(odd_bytes(300_000))
        await trio.testing.wait_all_tasks_blocked()
    assert guest.written == 300_000


async def test_viewer_sees_history_and_what_follows() -> None:
    """A viewer gets what was kept from before it came, then the rest, and its input reaches the guest."""
    guest = FakeGuest()
    ours, theirs = trio.testing.memory_stream_pair()
    async with running(guest, NoneBackend()) as (hub, nursery):
        await guest.write(b"before ")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(hub.attach, theirs)
        assert await receive_exactly(ours, 7) == b"before "
        await guest.write(b"after")
        assert await receive_exactly(ours, 5) == b"after"
        await ours.send_all(b"typed")
        assert await guest.wait_received(5) == b"typed"


async def test_slow_viewer_skips_and_does_not_hold_the_guest() -> None:
    """A viewer that reads nothing for a while is told how many bytes it lost, and sees the newest."""
    guest = FakeGuest()
    ours, theirs = trio.testing.lockstep_stream_pair()
    data = odd_bytes(10_000)
    async with running(guest, NoneBackend(), history_bytes=100) as (hub, nursery):
        await guest.write(b"x")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(hub.attach, theirs)
        await trio.testing.wait_all_tasks_blocked()
        await guest.write(data)
        await trio.testing.wait_all_tasks_blocked()
        expected = b"x" + skipped_note(9900) + data[-100:]
        assert await receive_exactly(ours, len(expected)) == expected


async def test_viewers_come_and_go() -> None:
    """A viewer that leaves is forgotten; the others and the guest are not disturbed."""
    guest = FakeGuest()
    ours, theirs = trio.testing.memory_stream_pair()
    left, leaving = trio.testing.memory_stream_pair()
    async with running(guest, NoneBackend()) as (hub, nursery):
        nursery.start_soon(hub.attach, theirs)
        async with trio.open_nursery() as viewer:
            viewer.start_soon(hub.attach, leaving)
            await guest.write(b"one")
            assert await receive_exactly(left, 3) == b"one"
            await left.aclose()
        await guest.write(b"two")
        assert await receive_exactly(ours, 6) == b"onetwo"


async def test_number_of_viewers_is_bounded() -> None:
    """One viewer too many is turned away, the others stay."""
    guest = FakeGuest()
    pairs = [trio.testing.memory_stream_pair() for _ in range(MAX_VIEWERS + 1)]
    async with running(guest, NoneBackend()) as (hub, nursery):
        for _, theirs in pairs[:-1]:
            nursery.start_soon(hub.attach, theirs)
        await trio.testing.wait_all_tasks_blocked()
        await hub.attach(pairs[-1][1])
        assert await pairs[-1][0].receive_some() == b""
        await guest.write(b"hello")
        for ours, _ in pairs[:-1]:
            assert await receive_exactly(ours, 5) == b"hello"


async def test_input_keeps_its_order() -> None:
    """Bytes and breaks reach the guest in the order of the calls, whoever makes them."""
    guest = FakeGuest()
    async with running(guest, NoneBackend()) as (hub, _):
        await hub.send(b"one")
        await hub.send_break()
        await hub.send(b"")
        await hub.send(b"two" * 100)
        await hub.send_break()
        assert await guest.wait_received(303) == b"one" + b"two" * 100
        await trio.testing.wait_all_tasks_blocked()
    assert guest.breaks_at == [3, 303]


async def test_input_is_bounded_and_lossless() -> None:
    """A sender waits once enough input is pending for a guest that does not read, and nothing is lost."""
    guest = FakeGuest()
    guest.set_reads(False)
    guest.fifo_bytes = 4096
    accepted = 0
    data = odd_bytes(2 * INPUT_PENDING)

    async def send() -> None:
        nonlocal accepted
        for start in range(0, len(data), 1000):
            await hub.send(data[start : start + 1000])
            accepted += len(data[start : start + 1000])

    async with running(guest, NoneBackend()) as (hub, nursery):
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert INPUT_PENDING <= accepted < INPUT_PENDING + 2000
        guest.set_reads(True)
        assert await guest.wait_received(len(data)) == data


async def test_viewer_of_a_deaf_guest_can_leave() -> None:
    """Input that the guest does not take neither keeps its viewer from leaving, nor is it lost."""
    guest = FakeGuest()
    guest.set_reads(False)
    ours, theirs = trio.testing.memory_stream_pair()
    async with running(guest, NoneBackend()) as (hub, nursery):
        async with trio.open_nursery() as viewer:
            viewer.start_soon(hub.attach, theirs)
            await ours.send_all(b"reboot\n")
            await ours.aclose()
        nursery.start_soon(hub.send, b"later")
        guest.set_reads(True)
        assert await guest.wait_received(12) == b"reboot\nlater"


async def test_serving_viewers_over_a_socket() -> None:
    """Viewers that connect to a listener are attached, until cancelled."""
    guest = FakeGuest()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with running(guest, NoneBackend()) as (hub, nursery):
        await nursery.start(hub.serve_viewers, listeners)
        stream = await trio.testing.open_stream_to_socket_listener(listeners[0])
        async with stream:
            await guest.write(b"hello")
            assert await receive_exactly(stream, 5) == b"hello"


async def test_run_ends_with_the_guest_and_delivers_its_last_words() -> None:
    """When the guest writes no more, backend and viewers get the rest, and run returns."""
    guest, backend = FakeGuest(), HoldingBackend()
    ours, theirs = trio.testing.memory_stream_pair()
    backend.open.set()
    async with trio.open_nursery() as nursery:
        hub = SerialHub(guest, backend)
        nursery.start_soon(hub.run)
        nursery.start_soon(hub.attach, theirs)
        await guest.write(b"panic")
        guest.finish()
        await hub.drain()
    assert backend.taken == b"panic"
    assert await receive_exactly(ours, 100) == b"panic"


async def test_draining_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """A backend that takes nothing delays the end of a machine by its patience, not for ever."""
    guest, backend = FakeGuest(), HoldingBackend()
    async with running(guest, backend) as (hub, _):
        await guest.write(b"unheard")
        guest.finish()
        start = trio.current_time()
        await hub.drain()
        assert trio.current_time() - start == pytest.approx(backend.patience)


async def test_backend_error_is_raised_as_itself() -> None:
    """What the user has to read is not wrapped into groups."""
    guest, backend = FakeGuest(), HoldingBackend()
    backend.error = HostError("no more room")
    backend.open.set()
    await guest.write(b"x")
    with pytest.raises(HostError, match="no more room"):
        await SerialHub(guest, backend).run()


async def test_holders_are_told_to_who_watches() -> None:
    """At once how it is, then each change; viewers do not count."""
    told: list[bool] = []
    ours, theirs = trio.testing.memory_stream_pair()
    async with running(FakeGuest(), NoneBackend()) as (hub, nursery):
        hub.watch_holders(told.append)
        nursery.start_soon(hub.attach, theirs)
        await trio.testing.wait_all_tasks_blocked()
        assert told == [False]
        with hub.follow(holding=True):
            assert told == [False, True]
        assert told == [False, True, False]
        await ours.aclose()


async def test_input_that_moved_comes_first() -> None:
    """What waited on another machine is in front of what waits here, and what waits can be asked for."""
    guest = FakeGuest()
    hub = SerialHub(guest, NoneBackend())
    await hub.send(b"here")
    await hub.send_break()
    hub.put_back_input(b"first ")
    hub.put_back_input(b"")
    assert hub.queued_input() == b"first here"
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        await trio.testing.wait_all_tasks_blocked()
        assert hub.queued_input() == b""
        assert bytes(guest.received) == b"first here"
        nursery.cancel_scope.cancel()
