"""A disk's requests over NBD, against servers that keep the rules: every command, every kind of reply."""

from __future__ import annotations

import errno
import random
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import nbd_peer as nbd
from tests.support.disk_driver import ALL, DISCARD, FLUSH, IN, IO_ERROR, OK, OUT, WRITE_ZEROES, ranges
from tests.support.nbd_disk import Collected, answers, remote
from tests.support.nbd_peer import ALL_FLAGS, DONE, Chunks, Request
from tvmm.kvm.blk import IoError, Policy
from tvmm.kvm.nbd import NbdTransmission
from tvmm.virtio.features import Blk as Feature

SIZE = 4 << 20
SIMPLE = NbdTransmission(ALL_FLAGS, structured=False, extended=False)
STRUCTURED = NbdTransmission(ALL_FLAGS, structured=True, extended=False)
EXTENDED = NbdTransmission(ALL_FLAGS, structured=True, extended=True)
KINDS = {"simple": SIMPLE, "structured": STRUCTURED, "extended": EXTENDED}


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def about(request: pytest.FixtureRequest) -> NbdTransmission:
    """Each kind of reply."""
    assert isinstance(request.param, NbdTransmission)
    return request.param


async def test_every_operation(about: NbdTransmission) -> None:
    """Reads, writes, flushes, discards and zeroes reach the server as what they are."""
    async with remote(about) as one:
        one.activate()
        data = random.Random(1).randbytes(12288)
        assert (await one.ask(OUT, 8, data, cuts=(16, 700, 9000))).status == OK
        assert one.server.bytes[4096:16384] == data
        assert (await one.ask(IN, 8, room=12288, cuts=(512, 4096, 5000))) == (OK, data, 12289)
        assert (await one.ask(FLUSH)).status == OK
        assert one.server.flushed[4096:16384] == data
        assert (await one.ask(DISCARD, data=ranges((8, 8, 0)))).status == OK
        assert (await one.ask(WRITE_ZEROES, data=ranges((16, 4, 0), (20, 4, 1)))).status == OK
        kinds = [(request.type, request.offset, request.length) for request in one.server.log]
        assert kinds == [
            (nbd.WRITE, 4096, 12288),
            (nbd.READ, 4096, 12288),
            (nbd.FLUSH, 0, 0),
            (nbd.TRIM, 4096, 4096),
            (nbd.ZEROES, 8192, 2048),
            (nbd.ZEROES, 10240, 2048),
        ]
        assert [request.flags & nbd.NO_HOLE for request in one.server.log[-2:]] == [nbd.NO_HOLE, 0]


# -- what the export can -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("can", "types"),
    [
        (ALL_FLAGS, [nbd.WRITE]),
        (ALL_FLAGS & ~nbd.CAN_FUA, [nbd.WRITE, nbd.FLUSH]),
        (ALL_FLAGS & ~nbd.CAN_FUA & ~nbd.CAN_FLUSH, [nbd.WRITE]),
    ],
)
async def test_stable_writes(about: NbdTransmission, can: int, types: list[int]) -> None:
    """A write that has to be stable says so, or is flushed before it counts as done, or there is no way."""
    async with remote(about._replace(flags=can)) as one:
        one.activate(ALL & ~Feature.FLUSH & ~Feature.CONFIG_WCE)
        assert (await one.ask(OUT, 1, b"a" * 512)).status == OK
        assert [request.type for request in one.server.log] == types
        assert bool(one.server.log[0].flags & nbd.FUA) == bool(can & nbd.CAN_FUA)
        if can & nbd.CAN_FLUSH and not can & nbd.CAN_FUA:
            assert one.server.flushed[512:1024] == b"a" * 512
        assert one.runner.info().counters.written_bytes == 512


async def test_zeroes_without_a_command(about: NbdTransmission) -> None:
    """A server that knows no zeroes has them written; what it cannot trim or flush it is not asked to."""
    async with remote(about._replace(flags=nbd.HAS_FLAGS)) as one:
        one.activate()
        one.server.bytes[:] = b"x" * SIZE
        assert (await one.ask(WRITE_ZEROES, data=ranges((1, 4095, 1)))).status == OK
        assert one.server.bytes == b"x" * 512 + bytes(4095 * 512) + b"x" * (SIZE - 4096 * 512)
        assert (await one.ask(DISCARD, data=ranges((0, 1, 0)))).status == OK
        assert one.server.bytes[:512] == b"x" * 512
        assert (await one.ask(FLUSH)).status == OK
        assert {request.type for request in one.server.log} == {nbd.WRITE}


async def test_large_requests_are_divided(about: NbdTransmission) -> None:
    """Into as much as the server takes at once, whole blocks."""
    async with remote(about._replace(minimum_block=1024, maximum_payload=5000)) as one:
        one.activate()
        data = random.Random(2).randbytes(16384)
        assert (await one.ask(OUT, 2, data, cuts=(1000, 7000))).status == OK
        assert (await one.ask(IN, 2, room=16384, cuts=(333, 9999))).data == data
        assert [request.length for request in one.server.log] == [4096] * 8


async def test_requests_that_are_no_blocks(about: NbdTransmission) -> None:
    """Are the driver's mistake, which no pause of the machine mends; where it may, the device finds another way."""
    async with remote(about._replace(minimum_block=4096), werror="stop", rerror="stop") as one:
        errors: list[IoError] = []
        one.runner.on_io_error = errors.append
        assert one.slot.model.config_bytes()[20:24] == (4096).to_bytes(4, "little")
        one.activate()
        assert (await one.ask(IN, 1, room=4096)).status == IO_ERROR
        assert (await one.ask(OUT, 0, bytes(512))).status == IO_ERROR
        assert (await one.ask(WRITE_ZEROES, data=ranges((1, 8, 0)))).status == IO_ERROR
        assert (await one.ask(DISCARD, data=ranges((1, 8, 0)))).status == OK
        assert (await one.ask(IN, 8, room=4096)).status == OK
        assert len(one.server.log) == 1
        assert {error.action for error in errors} == {Policy.REPORT}


# -- replies -----------------------------------------------------------------------------------------------


async def test_many_at_once_in_any_order(about: NbdTransmission) -> None:
    """The server answers when it likes; each request has its own data, over one connection and over five."""
    for links in (1, 4):
        async with remote(about, links=links, connect=False, in_order=False) as one:
            one.server.bytes[:] = random.Random(3).randbytes(SIZE)
            said = [Collected(one.server.answer) for _ in range(links)]
            peers = [one.connect(one.link(number), said[number]) for number in range(links)]
            one.activate()
            pending = [one.add(IN, 8 * number, room=4096, cuts=(number * 7 + 1,)) for number in range(60)]
            one.slot.publish(0)
            waiting = []
            for peer, collected in zip(peers, said, strict=True):
                await collected.wait(60 // links)
                waiting += [(peer, reply) for reply in collected.replies]
            random.Random(4).shuffle(waiting)
            for peer, reply in waiting:
                await peer.send(reply)
            for number, got in enumerate(await answers(one, *pending)):
                assert got == (OK, one.server.read(4096 * number, 4096), 4097)
            assert one.runner.info().counters.reads == 60


def pieces(chunks: Chunks, request: Request, disk: bytearray, draw: random.Random) -> bytes:
    """A reply to a read in many chunks, out of order, holes where there are zeroes."""
    edges = sorted({0, request.length, *(draw.randrange(1, request.length) for _ in range(draw.randrange(6)))})
    spans = list(pairwise(edges))
    draw.shuffle(spans)
    done_with_last = draw.random() < 0.5
    reply = b""
    for index, (start, end) in enumerate(spans):
        flags = DONE if done_with_last and index == len(spans) - 1 else 0
        at = request.offset + start
        data = bytes(disk[at : request.offset + end])
        if any(data):
            reply += chunks.data(request, at, data, flags)
        else:
            reply += chunks.hole(request, at, len(data), flags)
    return reply if done_with_last else reply + chunks.none(request)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([STRUCTURED, EXTENDED]), st.integers(0, (1 << 32) - 1))
def test_reads_in_chunks(about: NbdTransmission, seed: int) -> None:
    """However a server divides its data, and the bytes are divided on their way, the driver has what is there."""
    draw = random.Random(seed)

    async def run() -> None:
        async with remote(about, connect=False) as one:
            for start in range(0, SIZE, 3 * 4096):
                one.server.bytes[start : start + 4096] = draw.randbytes(4096)
            said = Collected(lambda request: pieces(one.server.chunks, request, one.server.bytes, draw))
            count = draw.randrange(1, 9)
            peer = one.connect(one.link(), said)
            one.activate()
            asked = []
            for _ in range(count):
                sector, sectors = draw.randrange(SIZE // 512 - 300), draw.choice((1, 7, 31, 256))
                cuts = sorted(draw.randrange(1, 512 * sectors) for _ in range(draw.randrange(5)))
                asked.append((sector, sectors, one.add(IN, sector, room=512 * sectors, cuts=cuts)))
            one.slot.publish(0)
            await said.wait(count)
            everything = b"".join(said.replies)
            while everything:
                part = draw.choice((1, 3, 20, 500, 5000, 100_000))
                await peer.send(everything[:part])
                everything = everything[part:]
            found = await answers(one, *(pending for _, _, pending in asked))
            for (sector, sectors, _), got in zip(asked, found, strict=True):
                assert got == (OK, one.server.read(512 * sector, 512 * sectors), 512 * sectors + 1)

    trio.run(run)


async def test_every_byte_alone(about: NbdTransmission) -> None:
    """Replies of all kinds that arrive a byte at a time."""
    async with remote(about, connect=False) as one:
        one.server.bytes[:] = random.Random(5).randbytes(SIZE)
        said = Collected(one.server.answer)
        peer = one.connect(one.link(), said)
        one.activate()
        pending = [one.add(IN, 3, room=1024, cuts=(100,)), one.add(OUT, 9, b"w" * 512), one.add(IN, 1 << 12, room=512)]
        one.slot.publish(0)
        await said.wait(3)
        for byte in b"".join(said.replies):
            await peer.send(bytes([byte]))
        first, second, third = await answers(one, *pending)
        assert first == (OK, one.server.read(1536, 1024), 1025)
        assert (second.status, third.status) == (OK, OK)


async def test_large_transfers(about: NbdTransmission) -> None:
    """Several MiB each way, more than a connection holds: sent and received as it empties and fills."""
    size = 12 << 20
    async with remote(about, size=size) as one:
        data = random.Random(6).randbytes(2 << 20)
        one.activate()
        writes = [one.add(OUT, index << 12, data[index:] + data[:index], cuts=(4096, 70_000)) for index in range(4)]
        one.slot.publish(0)
        assert {answer.status for answer in await answers(one, *writes)} == {OK}
        reads = [one.add(IN, index << 12, room=2 << 20, cuts=(100, 1 << 20)) for index in range(4)]
        one.slot.publish(0)
        for index, got in enumerate(await answers(one, *reads)):
            same = got.data == data[index:] + data[:index]
            assert same


# -- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        *((number, number) for number in (errno.EPERM, errno.EIO, errno.ENOMEM, errno.ENOSPC, errno.EOVERFLOW)),
        (errno.EINVAL, errno.EINVAL),
        (errno.ENOENT, errno.EIO),
        (0xFFFF_FFFF, errno.EIO),
    ],
)
async def test_errors_of_the_server(about: NbdTransmission, said: int, heard: int) -> None:
    """Are told as what they are, and the connection lives on."""
    async with remote(about, connect=False, werror="report") as one:

        def answer(request: Request) -> bytes:
            if request.offset:
                return one.server.answer(request)
            return nbd.simple(request, said) if about is SIMPLE else one.server.chunks.error(request, said, b"because")

        one.connect(one.link(), answer)
        errors: list[IoError] = []
        one.runner.on_io_error = errors.append
        one.activate()
        for kind, data, room in ((IN, b"", 1024), (OUT, bytes(512), 0)):
            assert (await one.ask(kind, 0, data, room)).status == IO_ERROR
        assert errors[0] == IoError("read", heard, Policy.REPORT)
        assert (await one.ask(IN, 1, room=1024)).status == OK
        assert one.link().take_loss() == ""


async def test_errors_in_chunks() -> None:
    """Before and after data, at a place, of a kind that nobody knows: the request fails when its reply ends."""
    async with remote(STRUCTURED, connect=False) as one:
        chunks = one.server.chunks

        def answer(request: Request) -> bytes:
            at = request.offset
            match at // 512:
                case 0:
                    error = chunks.error(request, errno.EIO, b"x" * 4096, 0)
                    return chunks.data(request, at, bytes(512)) + error + chunks.none(request)
                case 1:
                    error = chunks.error(request, errno.EIO, offset=at + 5, flags=0)
                    return error + error + chunks.data(request, at, bytes(512), DONE)
                case 2:
                    return chunks.error(request, errno.EIO, kind=0x8FFF)
                case 3:
                    return chunks.error(request, errno.EIO, b"with more", kind=0xFFFF, offset=77)
            return one.server.answer(request)

        one.connect(one.link(), answer)
        one.activate()
        pending = [one.add(IN, sector, room=512) for sector in range(5)]
        one.slot.publish(0)
        assert [got.status for got in await answers(one, *pending)] == [IO_ERROR] * 4 + [OK]


async def test_simple_replies_beside_chunks() -> None:
    """Are allowed for all but reads."""
    async with remote(STRUCTURED, connect=False) as one:

        def answer(request: Request) -> bytes:
            if request.type == nbd.READ:
                return one.server.answer(request)
            return nbd.simple(request, one.server.carry_out(request))

        one.connect(one.link(), answer)
        one.activate()
        assert (await one.ask(OUT, 5, b"q" * 512)).status == OK
        assert (await one.ask(FLUSH)).status == OK
        assert (await one.ask(IN, 5, room=512)).data == b"q" * 512
