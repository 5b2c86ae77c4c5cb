"""A disk's requests over NBD, against servers that keep the rules: every command, every kind of reply."""

from __future__ import annotations

import random

import pytest

from tests.support import nbd_peer as nbd
from tests.support.disk_driver import DISCARD, FLUSH, IN, OK, OUT, WRITE_ZEROES, ranges
from tests.support.nbd_disk import remote
from tests.support.nbd_peer import ALL_FLAGS
from tvmm.kvm.nbd import NbdTransmission

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
