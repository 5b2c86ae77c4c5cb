"""Whoever comes with disks, or asks for them, in place of the other side: nothing is written but what was agreed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.copied_disks import GuestDisk, target_in
from tests.support.hostile_source import HELLO, HostileSource, waiting_for
from tests.support.moving_guests import World
from tests.support.patience import PATIENT
from tvmm.config.incoming import MigrationAddress
from tvmm.migration.disk_frames import DiskFrame, FrameKind
from tvmm.migration.link import Link, LinkLost, listen, read_opening
from tvmm.migration.messages import FROM_SOURCE, Copies, Grants, Image, Images, RoundDone, Stored, Wants, Welcome
from tvmm.migration.outgoing import Outgoing
from tvmm.migration.secure import Insecure
from tvmm.migration.source import SourceState
from tvmm.migration.wire import Kind, Opening, Reply, pack

SIZE = 1 << 20
IMAGE = Image("disk0", SIZE, SIZE, b"f" * 32, b"s" * 32)
WANTS = Wants(("storage",))
DATA, ZEROES, END = FrameKind


@pytest.fixture
def copy(world: World, tmp_path: Path) -> Path:
    """Where the destination of `world` puts a disk."""
    world.destination.targets.append(target_in(tmp_path / "copy"))
    return tmp_path / "copy"


@pytest.mark.parametrize(
    "said",
    [
        (WANTS,),
        (Images((IMAGE,)),),
        (WANTS, Images(())),
        (WANTS, Images((IMAGE, IMAGE))),
        (WANTS, Images(tuple(IMAGE._replace(name=f"disk{number}") for number in range(257)))),
        (WANTS, Images((IMAGE._replace(name=""),))),
        (WANTS, Images((IMAGE._replace(name="a\nb"),))),
        (WANTS, Images((IMAGE._replace(name="a" * 257),))),
        (WANTS, Images((IMAGE._replace(size=-512),))),
        (WANTS, Images((IMAGE._replace(size=513),))),
        (WANTS, Images((IMAGE._replace(size=1 << 63),))),
        (WANTS, Images((IMAGE._replace(allocated=-1),))),
        (WANTS, Images((IMAGE._replace(file=b"f" * 65),))),
        (WANTS, Images((IMAGE._replace(stamp=b"f" * 65),))),
    ],
)
async def test_lists_of_disks_that_are_none(world: World, copy: Path, said: tuple[Any, ...]) -> None:
    """The connection is refused, nothing is made, and the destination waits on."""
    async with waiting_for(world) as source:
        link = await source.control()
        for message in (*said, HELLO):
            await link.send(message)
        with pytest.raises(LinkLost):
            await link.receive()
        assert source.incoming.status.state == "none"
    assert not copy.exists()


async def test_nothing_stays_open_when_it_is_cancelled(world: World, copy: Path) -> None:
    """By the destination's user, while a source has come for disks and for page requests and says nothing."""
    before = len(os.listdir("/proc/self/fd"))
    async with waiting_for(world) as source:
        if "postcopy" not in world.destination.features():
            pytest.skip("needs userfaultfd")
        link = await source.control()
        for message in (Wants(("postcopy", "storage")), Images((IMAGE,)), HELLO):
            await link.send(message)
        assert await link.receive() == Grants(("postcopy", "storage"))
        welcome = await link.receive()
        assert isinstance(welcome, Welcome)
        assert await link.receive() == Copies((0,))
        for kind in (Kind.STORAGE, Kind.REQUESTS):
            assert (await source.open(Opening(kind, token=welcome.token)))[1] is Reply.GO
        # They are taken by then.
        assert (await source.open(Opening(Kind.STORAGE)))[1] is Reply.NO_SUCH_TOKEN
    assert len(os.listdir("/proc/self/fd")) <= before


async def welcomed(source: HostileSource) -> tuple[Link, bytes]:
    """A source that may send blocks."""
    link = await source.control()
    for message in (WANTS, Images((IMAGE,)), HELLO):
        await link.send(message)
    assert await link.receive() == Grants(("storage",))
    welcome = await link.receive()
    assert isinstance(welcome, Welcome)
    assert await link.receive() == Copies((0,))
    return link, welcome.token


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (DiskFrame(DATA, 0, 512, SIZE).to_bytes(), "behind the end"),
        (DiskFrame(ZEROES, 0, 1024, SIZE - 512).to_bytes(), "behind the end"),
        (DiskFrame(DATA, 1, 512, 0).to_bytes(), "behind the end of disk 1"),
        (DiskFrame(DATA, 0, 1 << 20, 0).to_bytes(), "a frame of 1048576 bytes"),
        (DiskFrame(DATA, 0, 100, 0).to_bytes(), "a frame of 100 bytes"),
        (DiskFrame(END, 0, 0, 1).to_bytes(), "a round that is not number 0"),
        (bytes(16), "no frame"),
        (DiskFrame(DATA, 0, 1024, 0).to_bytes() + b"cut", "closed the connection for disks"),
    ],
)
async def test_frames_that_are_none(world: World, copy: Path, data: bytes, why: str) -> None:
    """The guest is abandoned, and the image has nothing of it."""
    async with waiting_for(world) as source:
        _, token = await welcomed(source)
        await source.lane(token, 0)
        stream, reply = await source.open(Opening(Kind.STORAGE, token=token))
        assert reply is Reply.GO
        await stream.send_all(data)
        await stream.send_eof()
        assert why in await source.until_over()
    assert copy.read_bytes() == bytes(SIZE)


async def test_a_second_connection_for_disks(world: World, copy: Path) -> None:
    """Has no place, and does no harm; nor has one without the token, or before there is a migration."""
    async with waiting_for(world) as source:
        _, reply = await source.open(Opening(Kind.STORAGE))
        assert reply is Reply.NO_SUCH_TOKEN
        link, token = await welcomed(source)
        await source.lane(token, 0)
        first, _ = await source.open(Opening(Kind.STORAGE, token=token))
        second, reply = await source.open(Opening(Kind.STORAGE, token=token))
        assert reply is Reply.GO
        assert not await second.receive_some()
        await first.send_all(DiskFrame(END, 0, 0, 0).to_bytes())
        word = await link.receive()
        assert isinstance(word, Stored)
        assert word.number == 0


async def test_a_connection_for_disks_that_nobody_has_asked_for(world: World) -> None:
    """Of a source that copies none."""
    async with waiting_for(world) as source:
        _, token = await source.greeted()
        stream, _ = await source.open(Opening(Kind.STORAGE, token=token))
        assert not await stream.receive_some()
        assert source.incoming.status.state == "active"


# --- the destination ---


@pytest.fixture
def disk(world: World, tmp_path: Path) -> Iterator[GuestDisk]:
    """Of the source."""
    made = GuestDisk(tmp_path / "disk0", SIZE, SIZE)
    world.source.disks.append(made)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("at_once", "why"),
    [
        ((Welcome(1, b"t" * 16),), "does not copy disks"),
        ((Grants(()), Welcome(1, b"t" * 16)), "does not copy disks"),
        ((Grants(("storage",)), Welcome(1, b"t" * 16), RoundDone(0)), "RoundDone in place of Copies"),
        ((Grants(("storage",)), Welcome(1, b"t" * 16), Copies(())), "that there are not"),
        ((Grants(("storage",)), Welcome(1, b"t" * 16), Copies((1,))), "that there are not"),
        ((Grants(("storage",)), Welcome(1, b"t" * 16), Copies((-1,))), "that there are not"),
        ((Grants(("storage",)), Welcome(1, b"t" * 16), Copies((0, 0))), "that there are not"),
        ((Grants(("storage",)), Welcome(1, b"t" * 16), Copies((0,)), Stored(1)), "confirms round 1 of disks"),
        ((Grants(("storage",)), Welcome(1, b"t" * 16), Copies((0,)), Stored(0, -1)), "confirms round 0 of disks"),
        ((Grants(("storage",)), Welcome(1, b"t" * 16), Copies((0,)), Stored(0), Stored(0)), "confirms round 0"),
    ],
)
async def test_answers_that_are_none(world: World, disk: GuestDisk, at_once: tuple[Any, ...], why: str) -> None:
    """The guest goes on at its source, and its disk is not tracked any more."""

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(LinkLost, trio.BrokenResourceError):
            opening = await read_opening(stream)
            await stream.send_all(Reply.GO.to_bytes())
            if opening.kind is Kind.CONTROL:
                link = Link(stream, FROM_SOURCE)
                for _ in range(3):
                    await link.receive()
                await stream.send_all(b"".join(map(pack, at_once)))
            while await stream.receive_some():
                pass

    with tempfile.TemporaryDirectory(prefix="tvmm-") as directory, trio.fail_after(60):
        address = MigrationAddress("unix", path=f"{directory}/there")
        async with listen(address) as listeners, trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            parameters = PATIENT._replace(connections=1, copy_storage=True)
            out = Outgoing(world.source, address, parameters, Insecure(), lambda status: None)
            assert await out.run(trio.Event()) is SourceState.FAILED
            assert why in out.status.reason
            nursery.cancel_scope.cancel()
    assert disk.changes is None
    assert world.running == {"source"}
