"""Connections to an NBD server that are lost, fail, hang, and come back, while a disk's requests are on them."""

from __future__ import annotations

import errno
import os
import random
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support import nbd_peer as nbd
from tests.support.disk_driver import ALL, DISCARD, FLUSH, IN, IO_ERROR, OK, OUT, WRITE_ZEROES, ranges
from tests.support.nbd_disk import Backing, Collected, Remote, answers, remote
from tests.support.nbd_peer import ALL_FLAGS, Peer, Request
from tests.support.watch import Watch
from tvmm.config.disk import DiskConfig
from tvmm.kvm.blk import BlkFile, BlkQueue, BlkQueueSetup, Engine, IoError, Policy
from tvmm.kvm.nbd import LINKS_MAX, NbdLink, NbdTransmission
from tvmm.kvm.serve import Waker
from tvmm.memory.ram import MAIN_BLOCK
from tvmm.virtio.blk import Blk
from tvmm.virtio.device import Activation
from tvmm.virtio.features import Blk as Feature
from tvmm.virtio.features import Ring
from tvmm.virtio.runner.backing import blk_settings
from tvmm.virtio.runner.blk import BlkRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE_S = 30
SIMPLE = NbdTransmission(ALL_FLAGS, structured=False, extended=False)
STRUCTURED = NbdTransmission(ALL_FLAGS, structured=True, extended=False)
RINGS = {"split": 0, "packed": Ring.RING_PACKED, "packed-in-order": Ring.RING_PACKED | Ring.IN_ORDER}


async def mixed(one: Remote) -> list[bool]:
    """Requests of every kind, to their end: whether each came to what it should."""
    data = random.Random(1).randbytes(8192)
    one.server.bytes[1 << 20 : (1 << 20) + 4096] = data[4096:]
    pending = [
        one.add(OUT, 0, data, cuts=(16, 100)),
        one.add(IN, 2048, room=4096, cuts=(7,)),
        one.add(FLUSH),
        one.add(WRITE_ZEROES, data=ranges((64, 8, 1), (80, 8, 0))),
        one.add(DISCARD, data=ranges((128, 8, 0))),
        one.add(OUT, 200, data[:512]),
    ]
    one.slot.publish(0)
    back = await answers(one, *pending)
    return [answer.status == OK for answer in back] + [back[1].data == data[4096:], one.server.read(0, 8192) == data]


# -- lost and given again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(8))
@pytest.mark.parametrize("about", [SIMPLE, STRUCTURED], ids=["simple", "structured"])
async def test_sent_again(about: NbdTransmission, after: int) -> None:
    """A server that goes after so many requests: the next one gets what was not answered, in the same order."""
    async with remote(about, connect=False) as one:
        seen: list[Request] = []

        def answer(request: Request) -> bytes | None:
            seen.append(request)
            return one.server.answer(request) if len(seen) <= after else None

        peer = one.connect(one.link(), answer)
        one.activate()
        async with trio.open_nursery() as nursery:
            results: list[bool] = []

            async def work() -> None:
                results.extend(await mixed(one))

            nursery.start_soon(work)
            if after < 7:
                assert await one.wait_lost(one.link()) == "the server has closed the connection"
                assert peer.socket.fileno() == -1
                assert one.link().take_loss() == ""
                one.connect(one.link())
        assert all(results)
        assert len(results) == 8
        firsts = [(request.type, request.offset) for request in one.server.log]
        assert firsts[: min(after, 7)] == [(request.type, request.offset) for request in seen[:after]]
        assert len(one.server.log) == 7


async def test_requests_before_the_first_connection() -> None:
    """Wait for it, and for one that was never given a loss is not told."""
    async with remote(connect=False) as one:
        one.activate()
        pending = [one.add(IN, sector, room=512) for sector in range(60)]
        one.slot.publish(0)
        assert one.link().take_loss() == ""
        one.connect(one.link())
        assert {answer.status for answer in await answers(one, *pending)} == {OK}


async def test_lost_in_the_middle_of_a_reply() -> None:
    """Half of a read's data, and the connection is gone: all of it comes from the next one."""
    async with remote(SIMPLE, connect=False) as one:
        one.server.bytes[:] = random.Random(2).randbytes(len(one.server.bytes))
        said = Collected(one.server.answer)
        peer = one.connect(one.link(), said)
        one.activate()
        pending = [one.add(IN, 0, room=512), one.add(IN, 8, room=65536)]
        one.slot.publish(0)
        await said.wait(2)
        whole = b"".join(said.replies)
        await peer.send(whole[: len(whole) // 2])
        assert (await answers(one, pending[0]))[0].data == one.server.read(0, 512)
        peer.close()
        await one.wait_lost(one.link())
        one.connect(one.link())
        assert (await answers(one, pending[1]))[0].data == one.server.read(4096, 65536)


async def test_lost_in_the_middle_of_a_write() -> None:
    """A request that was sent in part is sent whole to the next server, whatever that one can."""
    data = random.Random(3).randbytes(8 << 20)
    async with remote(SIMPLE, size=16 << 20, connect=False) as one:
        client, deaf = socket.socketpair()
        with client, deaf:
            one.link().give(client.fileno(), SIMPLE)
            one.activate()
            pending = [one.add(OUT, 0, data), one.add(OUT, 1 << 14, b"z" * 512)]
            one.slot.publish(0)
            await trio.lowlevel.wait_readable(deaf)
        assert await one.wait_lost(one.link())
        one.server.about = SIMPLE._replace(extended=True, structured=True, maximum_payload=1 << 20, flags=nbd.HAS_FLAGS)
        one.server.chunks.extended = True
        one.connect(one.link())
        assert {answer.status for answer in await answers(one, *pending)} == {OK}
        same = one.server.read(0, len(data)) == data
        assert same
        assert one.server.log[0].length == 1 << 20


async def test_a_server_that_is_shutting_down() -> None:
    """Says so instead of carrying a request out: nothing has failed, and the next connection has it."""
    async with remote(connect=False) as one:
        one.connect(one.link(), lambda request: one.server.chunks.error(request, errno.ESHUTDOWN))
        one.activate()
        pending = one.add(OUT, 0, b"s" * 512)
        one.slot.publish(0)
        assert await one.wait_lost(one.link()) == "the server is shutting down"
        one.connect(one.link())
        assert (await answers(one, pending))[0].status == OK
        assert one.runner.info().counters.write_errors == 0


async def test_lost_with_nothing_to_do() -> None:
    """A connection that ends while the driver rests is told at once, and the next one is used."""
    async with remote() as one:
        one.activate()
        assert (await one.ask(FLUSH)).status == OK
        peer = one.connect(one.link())
        assert (await one.ask(FLUSH)).status == OK
        peer.close()
        assert await one.wait_lost(one.link())
        one.connect(one.link())
        assert (await one.ask(FLUSH)).status == OK


async def test_hung_up_by_this_side() -> None:
    """By any thread, whatever the server does."""
    async with remote(connect=False) as one:
        said = Collected(one.server.answer)
        one.connect(one.link(), said)
        one.activate()
        pending = one.add(IN, 0, room=512)
        one.slot.publish(0)
        await said.wait(1)
        one.link().hang_up()
        assert await one.wait_lost(one.link()) == "this side has hung up"
        one.link().hang_up()
        one.connect(one.link())
        assert (await answers(one, pending))[0].status == OK


async def test_a_stable_write_is_repeated_whole() -> None:
    """The connection goes between the write and the flush behind it: both are done again."""
    about = STRUCTURED._replace(flags=ALL_FLAGS & ~nbd.CAN_FUA)
    async with remote(about, connect=False) as one:
        one.connect(one.link(), lambda request: None if request.type == nbd.FLUSH else one.server.answer(request))
        one.activate(ALL & ~Feature.FLUSH & ~Feature.CONFIG_WCE)
        pending = one.add(OUT, 0, b"t" * 512)
        one.slot.publish(0)
        await one.wait_lost(one.link())
        one.connect(one.link())
        assert (await answers(one, pending))[0].status == OK
        assert [request.type for request in one.server.log] == [nbd.WRITE, nbd.WRITE, nbd.FLUSH]


async def test_other_links_take_over() -> None:
    """What no server has seen need not wait for its own link; what one has seen does."""
    async with remote(links=2, connect=False) as one:
        one.activate()
        early = [one.add(IN, sector, room=512) for sector in range(10)]
        one.slot.publish(0)
        said = Collected(one.server.answer)
        peer = one.connect(one.link(0), said)
        await said.wait(10)
        peer.close()
        await one.wait_lost(one.link(0))
        one.connect(one.link(1))
        late = [one.add(IN, sector, room=512) for sector in range(10)]
        one.slot.publish(0)
        assert {answer.status for answer in await answers(one, *late)} == {OK}
        assert not any(pending in one.answers for pending in early)
        one.connect(one.link(0))
        assert {answer.status for answer in await answers(one, *early)} == {OK}


# -- failing -----------------------------------------------------------------------------------------------


async def test_failing_until_the_next_connection() -> None:
    """What is outstanding and what comes fails with the errno that was given, and no more after the next give."""
    async with remote(connect=False) as one:
        errors: list[IoError] = []
        one.runner.on_io_error = errors.append
        said = Collected(one.server.answer)
        one.connect(one.link(), said)
        one.activate()
        pending = one.add(IN, 0, room=512)
        one.slot.publish(0)
        await said.wait(1)
        one.link().fail(errno.EHOSTUNREACH)
        assert (await answers(one, pending))[0].status == IO_ERROR
        assert (await one.ask(OUT, 0, bytes(512))).status == IO_ERROR
        assert errors[0] == IoError("read", errno.EHOSTUNREACH, Policy.REPORT)
        one.connect(one.link())
        assert (await one.ask(IN, 0, room=512)).status == OK
        assert one.link().take_loss() == ""


async def test_failing_may_stop_the_machine() -> None:
    """With rerror=stop what failed is repeated after the release, by a server that is back."""
    async with remote(connect=False, rerror="stop") as one:
        heard = trio.Event()
        token = trio.lowlevel.current_trio_token()
        one.runner.on_io_error = lambda error: token.run_sync_soon(heard.set)
        one.activate()
        one.link().fail(errno.EIO)
        pending = [one.add(IN, 0, room=512) for _ in range(5)]
        one.slot.publish(0)
        with trio.fail_after(PATIENCE_S):
            await heard.wait()
        await one.runner.hold()
        assert one.runner.info().stopped == errno.EIO
        one.connect(one.link())
        one.runner.release()
        assert {answer.status for answer in await answers(one, *pending)} == {OK}


async def test_the_last_order_counts() -> None:
    """Before anything runs: given, failing, given again; sockets that were not used are closed."""
    link = NbdLink()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link.give(ours.fileno(), SIMPLE)
        link.fail(errno.EIO)
        ours.close()
        assert theirs.recv(1) == b""
    link.close()


# -- hold, reset and the end, with a server that is not there -----------------------------------------------


@asynccontextmanager
async def out_of_reach(how: str) -> AsyncIterator[tuple[Remote, list[nbd.Request]]]:
    """A disk with requests that no server answers: its connection is lost, or silent."""
    async with remote(connect=False) as one:
        said = Collected(one.server.answer)
        peer = one.connect(one.link(), said)
        one.activate()
        for number in range(4):
            assert one.add(OUT, 8 * number, bytes([number + 1]) * 4096)
            assert one.add(IN, 2048, room=1024)
        one.slot.publish(0)
        await said.wait(8)
        if how == "lost":
            peer.close()
            await one.wait_lost(one.link())
        one.server.log.clear()
        yield one, one.server.log


@pytest.mark.parametrize("how", ["lost", "silent"])
async def test_held_and_released(how: str) -> None:
    """A pause does not wait for a server that is not there; what it had is kept, and repeated after the release."""
    async with out_of_reach(how) as (one, log):
        with trio.fail_after(PATIENCE_S):
            await one.runner.hold()
        [queue] = one.runner.save().queues
        assert (len(queue.kept), queue.stopped) == (8, 0)
        if how == "silent":
            assert one.link().take_loss() == "the server does not answer"
        one.runner.release()
        one.connect(one.link())
        while len(one.answers) < 8:
            await one.collect()
        assert {answer.status for answer in one.answers.values()} == {OK}
        assert one.server.read(0, 16384) == b"".join(bytes([number + 1]) * 4096 for number in range(4))
        assert [request.type for request in log] == [nbd.WRITE, nbd.READ] * 4


@pytest.mark.parametrize("how", ["lost", "silent"])
async def test_reset(how: str) -> None:
    """Nor does a reset of the device; what it had is forgotten."""
    async with out_of_reach(how) as (one, log):
        await one.reset()
        one.connect(one.link())
        one.activate()
        assert (await one.ask(IN, 0, room=512)).status == OK
        assert [request.type for request in log] == [nbd.READ]


@pytest.mark.parametrize("how", ["lost", "silent"])
async def test_end(how: str) -> None:
    """Nor does the end of the machine."""
    with trio.fail_after(PATIENCE_S):
        async with out_of_reach(how):
            pass


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS.keys())
async def test_another_machine_goes_on(ring: int) -> None:
    """What was kept is in the record, and done by the runner that has it then, over its own connection."""
    async with remote(connect=False) as one:
        said = Collected(one.server.answer)
        peer = one.connect(one.link(), said)
        one.activate(ALL & ~(Ring.RING_PACKED | Ring.IN_ORDER) | ring)
        pending = [one.add(OUT, 8 * number, bytes([number + 1]) * 512, cuts=(100,)) for number in range(8)]
        one.slot.publish(0)
        await said.wait(8)
        peer.close()
        await one.wait_lost(one.link())
        one.server.bytes[:] = bytes(len(one.server.bytes))
        await one.runner.hold()
        state = one.runner.save()
        config = DiskConfig("nbd://test")
        backing = Backing(one.backing.size, 1, 1, 1)
        model = Blk(blk_settings(backing, config))
        model.restore(one.slot.model.state(), one.features)
        runner = BlkRunner(model, one.slot.ends, backing, config, one.warnings.append)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(runner.run)
                runner.set_call(0, one.slot.calls[0])
                await runner.hold()
                await runner.restore(Activation(one.features, tuple(one.slot.setups)), state)
                assert runner.save() == state
                one.connect(backing.all_links[0][0])
                runner.release()
                assert {answer.status for answer in await answers(one, *pending)} == {OK}
                nursery.cancel_scope.cancel()
        finally:
            runner.close()
        assert [one.server.bytes[4096 * number] for number in range(8)] == list(range(1, 9))


async def test_partial_data_is_marked() -> None:
    """Bytes of a reply that never ended are in guest memory: its pages are marked for migration."""
    async with remote(SIMPLE, connect=False) as one:
        said = Collected(one.server.answer)
        peer = one.connect(one.link(), said)
        one.activate()
        one.server.bytes[:] = b"\xaa" * len(one.server.bytes)
        room = one.slot.place(513)
        one.slot.give_back(room, 513)
        await one.runner.hold()
        watch = Watch(one.slot.ram, one.slot.log)
        one.runner.release()
        assert one.add(IN, 0, room=512)
        one.slot.publish(0)
        await said.wait(1)
        watch.check()
        await peer.send(said.replies[0][:100])
        peer.close()
        await one.wait_lost(one.link())
        await one.runner.hold()
        changed, marked = watch.check()
        assert changed <= marked
        assert (MAIN_BLOCK, room >> 12) in marked
        assert one.slot.ram.read(room, 84) == b"\xaa" * 84


# -- a flush of the owner's, and the end -------------------------------------------------------------------


async def test_flush_of_the_owner() -> None:
    """While the queue is held: what was written is stable; errors are the server's."""
    async with remote() as one:
        link = one.link()
        one.activate()
        assert (await one.ask(OUT, 0, b"f" * 512)).status == OK
        with pytest.raises(OSError, match="busy"):
            link.flush()
        await one.runner.hold()
        await trio.to_thread.run_sync(link.flush)
        assert one.server.flushed[:512] == b"f" * 512
        one.connect(link, lambda request: one.server.chunks.error(request, errno.ENOSPC))
        with pytest.raises(OSError, match="No space"):
            await trio.to_thread.run_sync(link.flush)
        one.connect(link, lambda request: None)
        with pytest.raises(OSError, match="not connected"):
            await trio.to_thread.run_sync(link.flush)
        assert await one.wait_lost(link) == "the server has closed the connection"
        with pytest.raises(OSError, match="not connected"):
            link.flush()
        link.fail(errno.EHOSTDOWN)
        with pytest.raises(OSError, match="Host is down"):
            link.flush()
        one.connect(link, about=STRUCTURED._replace(flags=nbd.HAS_FLAGS))
        link.flush()
        one.runner.release()
        assert (await one.ask(IN, 0, room=512)).data == b"f" * 512


async def test_goodbye() -> None:
    """A server whose machine ends is told."""
    async with trio.open_nursery() as nursery, remote(connect=False) as one:
        peer = Peer(one.server.about, one.server.answer)
        one.link().give(peer.client.fileno(), peer.about)
        peer.client.close()
        nursery.start_soon(peer.serve)
        one.activate()
        assert (await one.ask(FLUSH)).status == OK
    assert peer.said_goodbye


# -- what the owner does wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"minimum_block": 0},
        {"minimum_block": 513},
        {"minimum_block": 1 << 17},
        {"minimum_block": -1},
        {"minimum_block": 1 << 40},
        {"maximum_payload": 0},
        {"maximum_payload": -5},
        {"minimum_block": 4096, "maximum_payload": 512},
    ],
)
def test_exports_that_are_none(wrong: dict[str, Any]) -> None:
    """Blocks and payloads of impossible sizes."""
    link = NbdLink()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(ValueError, match="impossible"):
            link.give(ours.fileno(), SIMPLE._replace(**wrong))
        link.give(ours.fileno(), SIMPLE._replace(maximum_payload=1 << 40))
        for error in (0, -1, 5000):
            with pytest.raises(ValueError, match="errno"):
                link.fail(error)
    with pytest.raises(OSError, match="Bad file"):
        link.give(-1, SIMPLE)
    link.close()


def test_links_that_a_queue_cannot_have() -> None:
    """None, too many, or another queue's."""
    setup = BlkQueueSetup(-1, -1, engine=Engine.NBD)
    waker, kick, links = Waker(), os.eventfd(0), [NbdLink() for _ in range(LINKS_MAX + 1)]
    first = BlkQueue(setup, BlkFile(), waker, kick, 0, links[:1])
    for wrong in ([], links[1:] + links[1:2], links[:2]):
        with pytest.raises(OSError, match="NBD"):
            BlkQueue(setup, BlkFile(), waker, kick, 0, wrong)
    first.close()
    BlkQueue(setup, BlkFile(), waker, kick, 0, links[:LINKS_MAX]).close()
    for link in links:
        link.close()
    waker.close()
    os.close(kick)
