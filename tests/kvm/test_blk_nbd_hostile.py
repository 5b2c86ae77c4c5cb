"""NBD servers that break the rules: the connection is lost, with a reason, and memory beside the read is as it was."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import nbd_peer as nbd
from tests.support.disk_driver import IN, OK, OUT
from tests.support.nbd_disk import Collected, answers, remote
from tests.support.nbd_hostile import hostile_run
from tests.support.nbd_peer import ALL_FLAGS, DONE, Chunks, Request, simple
from tvmm.kvm.nbd import NbdTransmission

if TYPE_CHECKING:
    from collections.abc import Callable

SIMPLE = NbdTransmission(ALL_FLAGS, structured=False, extended=False)
STRUCTURED = NbdTransmission(ALL_FLAGS, structured=True, extended=False)
EXTENDED = NbdTransmission(ALL_FLAGS, structured=True, extended=True)
CHUNKS, LONG = Chunks(extended=False), Chunks(extended=True)
LENGTH = 4096
"""Of the read that is outstanding, beside a write of 512 bytes."""


def many_errors(read: Request, write: Request) -> bytes:
    """More than any request has."""
    return CHUNKS.error(read, errno.EIO, flags=0) * 65


def many_pieces(read: Request, write: Request) -> bytes:
    """Every other byte, from behind."""
    return b"".join(CHUNKS.data(read, read.offset + LENGTH - 1 - 2 * number, b"x") for number in range(1000))


def every_second_hole(read: Request, write: Request) -> bytes:
    """Not out of order, and one is missing."""
    holes = (CHUNKS.hole(read, read.offset + 512 * number, 512) for number in (0, 2, 3, 4, 5, 6, 7))
    return b"".join(holes) + CHUNKS.none(read)


HOSTILE: list[tuple[str, NbdTransmission, Callable[[Request, Request], bytes], str]] = [
    ("noise", SIMPLE, lambda read, write: bytes(range(64)), "something that is no reply"),
    ("zeroes", STRUCTURED, lambda read, write: bytes(64), "something that is no reply"),
    ("a request", STRUCTURED, lambda read, write: nbd.COMPACT.pack(nbd.COMPACT_MAGIC, 0, 0, 0, 0, 0), "no reply"),
    ("nobody's", SIMPLE, lambda read, write: simple(read._replace(cookie=1 << 63)), "nobody made"),
    ("an old cookie", SIMPLE, lambda read, write: simple(write) + simple(write), "nobody made"),
    ("a large index", SIMPLE, lambda read, write: simple(read._replace(cookie=read.cookie | 0xFFFE)), "nobody made"),
    ("our own flush", SIMPLE, lambda read, write: simple(read._replace(cookie=0xFFFF_FFFF)), "nobody made"),
    ("twice at once", STRUCTURED, lambda read, write: CHUNKS.none(write) + CHUNKS.none(write), "nobody made"),
    ("simple to a read", STRUCTURED, lambda read, write: simple(read, 0, bytes(LENGTH)), "simple reply to a read"),
    ("simple error to a read", STRUCTURED, lambda read, write: simple(read, 5), "simple reply to a read"),
    ("simple, extended", EXTENDED, lambda read, write: simple(write), "extended headers were agreed"),
    ("chunk, simple", SIMPLE, lambda read, write: CHUNKS.none(write), "not agreed"),
    ("chunk, extended", EXTENDED, lambda read, write: CHUNKS.none(write), "not agreed"),
    ("extended chunk", STRUCTURED, lambda read, write: LONG.none(write), "not agreed"),
    ("simple after chunks", STRUCTURED, lambda read, write: CHUNKS.error(write, 5, flags=0) + simple(write), "after"),
    ("none, not done", STRUCTURED, lambda read, write: CHUNKS.chunk(write, nbd.NONE), "empty chunk"),
    ("none with data", STRUCTURED, lambda read, write: CHUNKS.chunk(write, nbd.NONE, b"x", DONE), "empty chunk"),
    ("no data", STRUCTURED, lambda read, write: CHUNKS.none(read), "without all of the data"),
    ("too little", STRUCTURED, lambda read, write: CHUNKS.data(read, read.offset, bytes(100), DONE), "without all"),
    ("missing", STRUCTURED, every_second_hole, "without all"),
    ("too much", STRUCTURED, lambda read, write: CHUNKS.data(read, read.offset, bytes(LENGTH + 1), DONE), "outside"),
    ("before", STRUCTURED, lambda read, write: CHUNKS.data(read, read.offset - 1, bytes(LENGTH), DONE), "outside"),
    ("behind", STRUCTURED, lambda read, write: CHUNKS.data(read, read.offset + LENGTH, b"x", DONE), "outside"),
    ("far behind", STRUCTURED, lambda read, write: CHUNKS.data(read, (1 << 64) - 1, bytes(LENGTH), DONE), "outside"),
    ("hole too large", STRUCTURED, lambda read, write: CHUNKS.hole(read, read.offset, 0xFFFF_FFFF, DONE), "outside"),
    ("hole of nothing", STRUCTURED, lambda read, write: CHUNKS.hole(read, read.offset, 0), "outside"),
    ("hole of 11 bytes", STRUCTURED, lambda read, write: CHUNKS.chunk(read, nbd.HOLE, bytes(11)), "hole that is"),
    ("data of nothing", STRUCTURED, lambda read, write: CHUNKS.data(read, read.offset, b""), "no length"),
    ("data of 3 bytes", STRUCTURED, lambda read, write: CHUNKS.chunk(read, nbd.DATA, bytes(3)), "no length"),
    ("twice", STRUCTURED, lambda read, write: CHUNKS.data(read, read.offset, bytes(9)) * 2, "there already"),
    (
        "overlap",
        STRUCTURED,
        lambda read, write: CHUNKS.data(read, read.offset + 8, bytes(9)) + CHUNKS.hole(read, read.offset, 9),
        "there already",
    ),
    ("pieces", STRUCTURED, many_pieces, "too many pieces"),
    ("to a write", STRUCTURED, lambda read, write: CHUNKS.data(write, write.offset, bytes(512), DONE), "no read"),
    ("hole in a write", STRUCTURED, lambda read, write: CHUNKS.hole(write, write.offset, 512, DONE), "no read"),
    ("status", STRUCTURED, lambda read, write: CHUNKS.chunk(read, 5, bytes(12), DONE), "type 5"),
    ("unknown", STRUCTURED, lambda read, write: CHUNKS.chunk(write, 0x7FFF, b"", DONE), "type 32767"),
    ("error 0", STRUCTURED, lambda read, write: CHUNKS.error(write, 0), "without a number"),
    ("short error", STRUCTURED, lambda read, write: CHUNKS.chunk(write, nbd.ERROR, bytes(5)), "error of 5 bytes"),
    ("long error", STRUCTURED, lambda read, write: CHUNKS.chunk(write, nbd.ERROR, b"", 0, 1 << 31), "error of 2147"),
    ("text", STRUCTURED, lambda read, write: CHUNKS.chunk(write, nbd.ERROR, bytes((0, 0, 0, 5, 0, 7))), "wrong length"),
    ("long text", STRUCTURED, lambda read, write: CHUNKS.error(write, 5, b"x" * 4097), "wrong length"),
    ("no offset", STRUCTURED, lambda read, write: CHUNKS.error(write, 5, kind=nbd.ERROR_OFFSET), "wrong length"),
    ("error outside", STRUCTURED, lambda read, write: CHUNKS.error(write, 5, offset=0), "error outside"),
    ("errors", STRUCTURED, many_errors, "more errors"),
    ("another offset", EXTENDED, lambda read, write: LONG.none(write._replace(offset=7)), "another offset"),
    ("64 bits", EXTENDED, lambda read, write: LONG.chunk(read, nbd.DATA, b"", 0, (1 << 64) - 1), ""),
]


@pytest.mark.parametrize(
    ("about", "reply", "word"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
@pytest.mark.parametrize("part", [1 << 20, 1], ids=["at once", "byte by byte"])
async def test_rules_that_are_broken(
    about: NbdTransmission, reply: Callable[[Request, Request], bytes], word: str, part: int
) -> None:
    """The connection is lost over it; guest memory beside the read's buffer is as it was; a good server goes on."""
    async with remote(about, connect=False) as one:
        one.server.bytes[:] = random.Random(1).randbytes(len(one.server.bytes))
        requests: list[Request] = []

        def note(request: Request) -> bytes:
            requests.append(request)
            return b""

        said = Collected(note)
        peer = one.connect(one.link(), said)
        one.activate()
        before, read, behind = (one.slot.place(LENGTH + 1) for _ in range(3))
        for place in (behind, read, before):
            one.slot.give_back(place, LENGTH + 1)
        one.slot.ram.write(before, b"\xcc" * (behind + LENGTH + 1 - before))
        one.slot.place(LENGTH + 1)
        pending = [one.add(IN, 64, room=LENGTH, cuts=(1000,)), one.add(OUT, 1, b"w" * 512)]
        one.slot.publish(0)
        await said.wait(2)
        evil = reply(*requests)
        with trio.fail_after(30):
            while evil:
                await peer.send(evil[:part])
                evil = evil[part:]
        if not word:
            peer.close()
        reason = await one.wait_lost(one.link())
        assert word in reason
        assert reason.startswith("protocol error: ") or not word
        for place in (before, behind):
            assert one.slot.ram.read(place, LENGTH + 1) == b"\xcc" * (LENGTH + 1)
        one.connect(one.link())
        left = [one_pending for one_pending in pending if one_pending not in one.answers]
        for answer in await answers(one, *left):
            assert answer.status == OK
        assert (await one.ask(IN, 64, room=LENGTH)).data == one.server.read(64 * 512, LENGTH)


async def test_an_answer_before_the_question() -> None:
    """A reply to a write that was not sent in full ends the connection, so that the rest of it is no new request."""
    async with remote(SIMPLE, size=16 << 20, connect=False) as one:
        peer = nbd.Peer(SIMPLE, one.server.answer)
        with peer.client:
            one.link().give(peer.client.fileno(), SIMPLE)
        one.activate()
        pending = one.add(OUT, 0, bytes(8 << 20))
        one.slot.publish(0)
        head = nbd.Request(*nbd.COMPACT.unpack(await peer.socket.recv(nbd.COMPACT.size))[1:])
        await peer.send(simple(head))
        assert "not sent yet" in await one.wait_lost(one.link())
        peer.close()
        one.connect(one.link())
        assert (await answers(one, pending))[0].status == OK


@settings(max_examples=40, deadline=None)
@given(st.integers(0, (1 << 32) - 1))
def test_against_the_twin(seed: int) -> None:
    """Streams of right, wrong and damaged replies: the C comes to what its twin in Python comes to."""
    hostile_run(seed)


async def test_a_flood() -> None:
    """Replies without an end, to one who asked for nothing."""
    async with remote(SIMPLE, connect=False) as one:
        peer = one.connect(one.link())
        one.activate()
        await peer.send(simple(Request(0, 0, 7, 0, 0)) * 100_000)
        assert "nobody made" in await one.wait_lost(one.link())
