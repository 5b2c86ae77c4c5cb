"""The guest's virtio drivers against what the README says of them: patterns on disk, and that each fault is found."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from tests.wiring.guests import GuestShell, guest

pytestmark = pytest.mark.guest

MIB = 1 << 20
BLOCK, WORDS = 4096, 512
SEED = 7
MASK = (1 << 64) - 1
EVERY_RING = ("", "packed", "noevent noindirect noinorder", "packed noevent noindirect noinorder intx")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """2 MiB of zeros."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(2 * MIB))
    return path


def pattern(number: int, generation: int, seed: int) -> bytes:
    """A block as the README describes it."""
    word = (number ^ generation << 32 ^ seed * 0x9E3779B97F4A7C15) & MASK
    words = [number, generation, seed]
    for _ in range(WORDS - 3):
        word = (word * 6364136223846793005 + 1442695040888963407) & MASK
        words.append(word)
    return struct.pack(f"<{WORDS}Q", *words)


def write_block(image: Path, number: int, data: bytes) -> None:
    """Change the image behind the guest's back."""
    with image.open("r+b") as file:
        file.seek(number * BLOCK)
        file.write(data)


async def test_pattern_is_the_documented_one(image: Path) -> None:
    """Two passes of blkfill leave generation 2 in every block, and nothing behind the area is touched."""
    async with guest(disk=[str(image)]) as shell:
        for _ in range(2):
            assert re.search(
                r"blkfill: 256 blocks, 1 passes in \d+ us, 0 failed requests", await shell.ask("blkfill 0 1 7")
            )
    data = image.read_bytes()
    assert [data[n * BLOCK : (n + 1) * BLOCK] for n in range(256)] == [pattern(n, 2, SEED) for n in range(256)]
    assert data[MIB:] == bytes(MIB)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (pattern(8, 1, SEED), 0),
        (pattern(9, 1, SEED), 1),
        (pattern(9, 3, SEED), 1),
        (pattern(9, 2, SEED + 1), 2),
        (pattern(9, 2, SEED)[:2048] + pattern(9, 1, SEED)[2048:], 256),
        (pattern(9, 2, SEED)[:-1] + b"\0", 511),
    ],
    ids=["misplaced", "older", "newer", "seed", "torn", "one byte"],
)
async def test_each_kind_of_damage_is_found(image: Path, data: bytes, word: int) -> None:
    """One wrong block is one error, with the first word that is not what was written."""
    async with guest(disk=[str(image)]) as shell:
        for _ in range(2):
            await shell.ask("blkfill 0 1 7")
        assert "blkcheck: 256 blocks, 0 errors, 0 unreadable" in await shell.ask("blkcheck 0 1 7")
        write_block(image, 9, data)
        found = await shell.ask("blkcheck 0 1 7")
    assert f"block 9: word {word} " in found
    assert "blkcheck: 256 blocks, 1 errors, 0 unreadable" in found


async def test_pattern_of_another_guest(image: Path) -> None:
    """A guest that did not write the area takes any generation but no damage."""
    for number in range(256):
        write_block(image, number, pattern(number, 1 + number % 3, SEED))
    async with guest(disk=[str(image)]) as shell:
        assert "blkcheck: 256 blocks, 0 errors, 0 unreadable" in await shell.ask("blkcheck 0 1 7")
        write_block(image, 200, pattern(200, 1, SEED)[:-8] + bytes(8))
        assert "blkcheck: 256 blocks, 1 errors, 0 unreadable" in await shell.ask("blkcheck 0 1 7")


@pytest.mark.parametrize("words", EVERY_RING)
@pytest.mark.parametrize("transport", ["pci", "mmio"])
async def test_stress_and_resets(image: Path, transport: str, words: str) -> None:
    """Random requests are all verified, and go on to be after resets of the device and of its queue alone."""
    disk = [f"{image},transport={transport},packed=on,in_order=on"]
    async with guest(words, disk=disk) as shell:
        stress = await shell.ask("blkstress 0 1 3 500")
        assert re.search(r"blkstress: \d+ writes, \d+ reads, \d+ flushes in \d+ us, 0 wrong, 0 failed", stress)
        for what in ("", " queue"):
            assert re.search(r"blkreset: 20 resets .* 0 errors", await shell.ask(f"blkreset 0 20{what}"))
        assert "blkcheck: 256 blocks, 0 errors, 0 unreadable" in await shell.ask("blkcheck 0 1 3")


BENCH = re.compile(
    r"blkbench (\w+) (\d+) B QD (\d+): (\d+) IOPS, [\d.]+ MiB/s, latency avg ([\d.]+) min ([\d.]+) max ([\d.]+) us, "
    r"(\d+) kicks, (\d+) interrupts, (\d+) errors"
)


async def bench(shell: GuestShell, arguments: str) -> tuple[str, ...]:
    """The fields of blkbench's line."""
    found = BENCH.search(await shell.ask(f"blkbench 0 {arguments}"))
    assert found is not None
    return found.groups()


@pytest.mark.parametrize("option", ["", " sg", " irq", " irq sg"])
async def test_bench_line(image: Path, option: str) -> None:
    """One line with every figure; latencies are ordered, kicks were needed, only `irq` takes interrupts."""
    async with guest(disk=[str(image)]) as shell:
        what, size, depth, rate, average, least, most, kicks, interrupts, errors = await bench(
            shell, f"randwrite 64K 8 1{option}"
        )
    assert (what, size, depth, errors) == ("randwrite", "65536", "8", "0")
    assert int(rate) > 0
    assert 0 < float(least) <= float(average) <= float(most)
    assert int(kicks) > 0
    assert (int(interrupts) > 0) == ("irq" in option)


@pytest.mark.parametrize("words", EVERY_RING)
async def test_pump_pattern(tmp_path: Path, words: str) -> None:
    """What the guest pumps through a port arrives whole and in order."""
    file = tmp_path / "port.log"
    size = 300_000
    device = [f"virtio-console,chardev=file={file},packed=on,in_order=on"]
    async with guest(words, device=device) as shell:
        assert f"vcon pump 0: {size} bytes in " in await shell.ask(f"vcon pump 0 {size}")
    expected = b"".join(
        (offset.to_bytes(8, "little") + bytes(n % 256 for n in range(8, BLOCK)))[: size - offset]
        for offset in range(0, size, BLOCK)
    )
    assert file.read_bytes() == expected


async def test_wrong_arguments_print_the_usage(image: Path) -> None:
    """Arguments that make no sense are answered by the usage, devices that are not there by a line."""
    async with guest(disk=[str(image)]) as shell:
        for line in (
            "blkbench 0 read 100 1 1",
            "blkbench 0 read 4096 257 1",
            "blkbench 0 copy 4096 1 1",
            "blkfill 0 1",
        ):
            assert f"usage: {line.split()[0]} " in await shell.ask(line)
        assert "the disk has only 2 MiB" in await shell.ask("blkfill 0 3 1")
        assert "there is no blk 1" in await shell.ask("blk 1")
        assert "there is no net 0" in await shell.ask("link 0")
