"""What every way to serve a disk has in common: requests in all ring formats, on all engines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.support.disk_driver import (
    ALL,
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IO_ERROR,
    OK,
    OUT,
    UNSUPPORTED,
    WRITE_ZEROES,
    Answer,
    Pending,
    disk,
    ranges,
)
from tests.virtio.ring_parts import FEATURES, feature_names
from tests.virtio.runner.disks import BACKENDS, Backend, memory_folder, new_image, skip_without

SIZE = 1 << 20
SECTORS = SIZE // 512


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each way."""
    assert isinstance(request.param, Backend)
    return request.param


@pytest.fixture
def path(backend: Backend, tmp_path: Path) -> Iterator[Path]:
    """An image of pseudo-random bytes where that way wants it."""
    content = Random(1).randbytes(SIZE)
    if not backend.in_memory:
        path = new_image(tmp_path, SIZE, content)
        skip_without(path, backend)
        yield path
        return
    for folder in memory_folder():
        yield new_image(folder, SIZE, content)


async def test_each_request(backend: Backend, path: Path) -> None:
    """Read, write, flush, identify: what the driver gets, and what is in the file afterwards."""
    content = path.read_bytes()
    async with disk(path, serial="disk-7", **backend.options) as one:
        one.activate()
        assert await one.ask(IN, 3, room=1024) == Answer(OK, content[3 * 512 : 5 * 512], 1025)
        data = os.urandom(8192)
        assert await one.ask(OUT, 16, data) == Answer(OK, b"", 1)
        assert await one.ask(FLUSH) == Answer(OK, b"", 1)
        assert await one.ask(IN, 16, room=8192) == Answer(OK, data, 8193)
        assert await one.ask(IN, SECTORS - 1, room=512) == Answer(OK, content[-512:], 513)
        assert await one.ask(GET_ID, room=20) == Answer(OK, b"disk-7".ljust(20, b"\0"), 21)
        assert await one.ask(IN, SECTORS) == Answer(OK, b"", 1)
        counters = one.runner.info().counters
        assert (counters.reads, counters.writes, counters.flushes, counters.get_ids) == (4, 1, 1, 1)
        assert (counters.read_bytes, counters.written_bytes) == (1024 + 8192 + 512, 8192)
        [times] = one.runner.latencies()
        timed = {operation: found.count for operation, found in times.items()}
        assert timed == {"read": 4, "write": 1, "flush": 1, "discard": 0, "write-zeroes": 0, "get-id": 1}
        assert all(found.sum_ns for found in times.values() if found.count)
    assert path.read_bytes() == content[:8192] + data + content[16384:]


async def test_refusals(backend: Backend, path: Path) -> None:
    """Requests that cannot be get a status, count, and do no harm."""
    content = path.read_bytes()
    async with disk(path, **backend.options) as one:
        one.activate()
        assert (await one.ask(IN, SECTORS, room=512)).status == IO_ERROR
        assert (await one.ask(OUT, SECTORS - 1, bytes(1024))).status == IO_ERROR
        assert (await one.ask(OUT, (1 << 64) - 1, bytes(512))).status == IO_ERROR
        assert (await one.ask(OUT, 0, bytes(100))).status == IO_ERROR
        assert (await one.ask(77)).status == UNSUPPORTED
        assert one.runner.info().counters.refused == 5
    assert path.read_bytes() == content


async def test_discard_and_zeroes(backend: Backend, path: Path) -> None:
    """What is discarded may be anything, what is zeroed reads as zero; sectors beside them stay."""
    content = bytearray(path.read_bytes())
    async with disk(path, **backend.options) as one:
        one.activate()
        zeroes = ranges((9, 3, 0), (64, 64, 1), (SECTORS - 1, 1, 1))
        assert await one.ask(WRITE_ZEROES, 0, zeroes) == Answer(OK, b"", 1)
        for sector, count in ((9, 3), (64, 64), (SECTORS - 1, 1)):
            content[sector * 512 : (sector + count) * 512] = bytes(count * 512)
        assert (await one.ask(IN, 0, room=SIZE)).data == content
        if one.image.can_unmap:
            assert await one.ask(DISCARD, 0, ranges((256, 512, 0))) == Answer(OK, b"", 1)
            after = (await one.ask(IN, 0, room=SIZE)).data
            assert after[: 256 * 512] == content[: 256 * 512]
            assert after[768 * 512 :] == content[768 * 512 :]
            assert one.runner.info().counters.discards == 1
        assert one.runner.info().counters.write_zeroes == 1
    assert path.stat().st_size == SIZE


@pytest.mark.parametrize("features", FEATURES, ids=feature_names)
async def test_ring_formats(backend: Backend, path: Path, features: int) -> None:
    """Two hundred requests, many at once, in every format: each answer is what a plain file would have given."""
    await exercise(backend, path, ALL | features, Random(features), 200, 12)


@pytest.mark.parametrize("seed", range(4))
async def test_pieces_and_places(backend: Backend, path: Path, seed: int) -> None:
    """The same with a deep queue, and with buffers that are cut anywhere and lie anywhere."""
    await exercise(backend, path, ALL, Random(seed), 400, 256, odd=True)


async def exercise(
    backend: Backend, path: Path, features: int, random: Random, count: int, size: int, *, odd: bool = False
) -> None:
    """Requests on parts of the disk that no other request in flight has; a bytearray is the oracle."""
    model = bytearray(path.read_bytes())
    slices = 32
    busy: set[int] = set()
    expected: dict[Pending, tuple[int, bytes | None]] = {}
    async with disk(path, **backend.options) as one:
        one.activate(features, size if features & (1 << 34) else 1 << size.bit_length() - 1)
        started = 0
        while started < count or expected:
            while started < count:
                part = random.choice([part for part in range(slices) if part not in busy] or [-1])
                if part < 0:
                    break
                sector = part * (SECTORS // slices) + random.randrange(SECTORS // slices - 8)
                length = random.randrange(1, 9) * 512
                at = sector * 512
                cuts = [random.randrange(1, length) for _ in range(random.randrange(4))] if odd else []
                offset = random.choice((0, 0, 1, 512, 300)) if odd else 0
                kind = random.choice((IN, OUT, WRITE_ZEROES, FLUSH))
                data, room = b"", 0
                if kind == IN:
                    room = length
                elif kind == OUT:
                    data = random.randbytes(length)
                elif kind == WRITE_ZEROES:
                    data = ranges((sector, length // 512, random.randrange(2)))
                pending = one.add(kind, sector, data, room, 0, cuts, offset)
                if pending is None:
                    break
                started += 1
                busy.add(part)
                expected[pending] = (part, bytes(model[at : at + length]) if kind == IN else None)
                if kind == OUT:
                    model[at : at + length] = data
                elif kind == WRITE_ZEROES:
                    model[at : at + length] = bytes(length)
            one.slot.publish(0)
            for pending in await one.collect():
                part, wanted = expected.pop(pending)
                busy.discard(part)
                answer = one.answers.pop(pending)
                assert answer.status == OK
                assert wanted is None or answer.data == wanted
        assert not one.slot.reasons
        [ring] = one.runner.rings
        assert ring.counters.chains == ring.counters.returned == count
    assert path.read_bytes() == model
