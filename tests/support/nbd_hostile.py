"""NBD servers that say anything: a run of one, from a seed, against the C that reads replies and its twin in Python."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import trio

from tests.support import nbd_peer as nbd
from tests.support.disk_driver import IN, IO_ERROR, OK, OUT
from tests.support.nbd_disk import Collected, answers, remote
from tests.support.nbd_peer import ALL_FLAGS, DONE, Chunks, Request, simple
from tests.support.nbd_twin import Twin
from tvmm.kvm.nbd import NbdTransmission

if TYPE_CHECKING:
    from tests.support.disk_driver import Pending

__all__ = ["hostile_run"]

KINDS = (
    NbdTransmission(ALL_FLAGS, structured=False, extended=False),
    NbdTransmission(ALL_FLAGS, structured=True, extended=False),
    NbdTransmission(ALL_FLAGS, structured=True, extended=True),
)
APART = 64
"""Sectors between the requests of a run, which are told apart by their places."""
WAYS = 12


def right(request: Request, about: NbdTransmission, draw: Random) -> bytes:
    """A reply that keeps the rules."""
    chunks, reads = Chunks(extended=about.extended), request.type == nbd.READ
    if not about.structured:
        return simple(request, 0, draw.randbytes(request.length) if reads else b"")
    if not reads:
        return chunks.none(request)
    cut = draw.randrange(1, request.length)
    parts = [(0, cut), (cut, request.length)]
    draw.shuffle(parts)
    reply = b""
    for start, end in parts:
        at = request.offset + start
        if draw.random() < 0.3:
            reply += chunks.hole(request, at, end - start)
        else:
            reply += chunks.data(request, at, draw.randbytes(end - start))
    return reply + chunks.none(request)


def anything(requests: list[Request], about: NbdTransmission, draw: Random) -> bytes:
    """A message that makes some sense, or none."""
    request = draw.choice(requests)
    chunks = Chunks(extended=about.extended if draw.random() < 0.95 else not about.extended)
    offset = max(0, request.offset + draw.choice((0, 0, 0, 512, -1, request.length - 1, request.length)))
    length = draw.choice((request.length, 1, 511, 512, 0))
    flags = draw.choice((0, 0, DONE, 0xFFFF))
    error = draw.choice((1, 5, 28, 108, 0, 1 << 31))
    match draw.randrange(WAYS):
        case 0:
            return simple(request, error)
        case 1:
            return simple(request, 0, draw.randbytes(length))
        case 2:
            return chunks.none(request)
        case 3 | 4:
            return chunks.data(request, offset, draw.randbytes(length), flags)
        case 5:
            return chunks.hole(request, offset, length, flags)
        case 6:
            return chunks.error(request, error, b"x" * draw.choice((0, 3, 4096)), flags)
        case 7:
            return chunks.error(request, error, b"y", flags, offset=offset)
        case 8:
            return chunks.error(request, error, b"z", flags, kind=draw.choice((0x8003, 0xFFFF)))
        case 9:
            payload = draw.randbytes(draw.randrange(20))
            return chunks.chunk(request, draw.randrange(8), payload, flags, draw.choice((len(payload), 0, 1 << 20)))
        case 10:
            return chunks.none(request._replace(cookie=request.cookie ^ 1 << draw.randrange(64)))
    return draw.randbytes(draw.randrange(1, 40))


def stream(requests: list[Request], about: NbdTransmission, draw: Random) -> bytes:
    """All that the server says: right at first, then not; now and then a byte is changed."""
    order = list(requests)
    draw.shuffle(order)
    said = bytearray()
    for request in order:
        if draw.random() < 0.35:
            said += anything(requests, about, draw)
        said += right(request, about, draw)
    if draw.random() < 0.3:
        said[draw.randrange(len(said))] ^= 1 << draw.randrange(8)
    return bytes(said[: draw.randrange(1, len(said) + 1)]) if draw.random() < 0.2 else bytes(said)


async def _run(seed: int) -> str:
    draw = Random(seed)
    about = draw.choice(KINDS)
    async with remote(about, connect=False, werror="report") as one:
        one.server.bytes[:] = draw.randbytes(1 << 12) * (len(one.server.bytes) >> 12)
        requests: list[Request] = []

        def note(request: Request) -> bytes:
            requests.append(request)
            return b""

        said = Collected(note)
        peer = one.connect(one.link(), said)
        one.activate()
        asked: dict[int, tuple[bool, Pending]] = {}
        guards = []
        for number in range(draw.randrange(1, 9)):
            guards.append(one.slot.place(512))
            one.slot.ram.write(guards[-1], b"\xcc" * 512)
            reads, size = draw.random() < 0.7, draw.choice((512, 1024, 8192, 32768))
            cuts = sorted(draw.randrange(1, size) for _ in range(draw.randrange(3)))
            data = b"" if reads else draw.randbytes(size)
            pending = one.add(IN if reads else OUT, APART * number, data, size if reads else 0, cuts=cuts)
            assert pending is not None
            asked[512 * APART * number] = reads, pending
        one.slot.publish(0)
        await said.wait(len(asked))
        evil = stream(requests, about, draw)
        twin = Twin(about, requests)
        twin.feed(evil)
        while evil:
            part = draw.choice((1, 7, 100, 5000, 1 << 20))
            await peer.send(evil[:part])
            evil = evil[part:]
        if not twin.lost:
            peer.close()
        reason = await one.wait_lost(one.link())
        is_said = reason.startswith("protocol error") or "shutting down" in reason
        assert is_said == twin.lost, (reason, twin.lost)
        good = one.connect(one.link())
        found = dict(zip(asked, await answers(one, *(pending for _, pending in asked.values())), strict=True))
        again = {request.offset for request in one.server.log}
        for request in requests:
            answer, (reads, _) = found[request.offset], asked[request.offset]
            assert (request.offset in again) == (request.cookie not in twin.results)
            wanted: bytes | None = one.server.read(request.offset, request.length)
            if request.offset not in again:
                wanted = twin.results[request.cookie]
            assert answer.status == (IO_ERROR if wanted is None else OK)
            is_same = wanted is None or not reads or answer.data == wanted
            assert is_same
        for guard in guards:
            assert one.slot.ram.read(guard, 512) == b"\xcc" * 512
        good.close()
    return reason.split("(")[0]


def hostile_run(seed: int) -> str:
    """One disk, some requests, one such server and a good one after it. How it ended, without numbers."""
    return trio.run(_run, seed)
