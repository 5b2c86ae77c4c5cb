"""RAM blocks and guest memory as tvmm reads and writes it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest

from tests.support.watch import Watch
from tvmm.config.memory import MemoryConfig
from tvmm.errors import HostError, MemoryAccessError
from tvmm.kvm.device_log import PAGE_SIZE, DeviceLog
from tvmm.memory.layout import HIGH_MEMORY, HOLE_START
from tvmm.memory.ram import MAIN_BLOCK, GuestRam, RamBlock
from tvmm.memory.regions import Region


@pytest.fixture(params=[True, False], ids=["shared", "private"])
def ram(request: pytest.FixtureRequest) -> Iterator[GuestRam]:
    """4 MiB of guest RAM."""
    made = GuestRam(MemoryConfig(4 << 20, shared=request.param))
    yield made
    made.close()


def test_what_is_written_is_read(ram: GuestRam) -> None:
    """Bytes come back from where they were put, and nowhere else."""
    ram.write(0x1234, b"guest memory")
    assert ram.read(0x1234, 12) == b"guest memory"
    assert ram.read(0x1233, 1) == ram.read(0x1240, 1) == b"\0"


def test_a_write_that_leaves_ram_changes_nothing(ram: GuestRam) -> None:
    """All of it or nothing."""
    end = 4 << 20
    with pytest.raises(MemoryAccessError, match="not RAM"):
        ram.write(end - 2, b"abc")
    assert ram.read(end - 2, 2) == b"\0\0"
    with pytest.raises(MemoryAccessError):
        ram.read(end, 1)


def test_zero_gives_fresh_memory(ram: GuestRam) -> None:
    """After a reset the guest reads zeros."""
    ram.write(0x2000, b"x" * 10000)
    ram.zero()
    assert ram.read(0x2000, 10000) == bytes(10000)


def test_ram_above_the_hole() -> None:
    """5 GiB: the last byte below the hole and the first above it are different places; the hole is none."""
    ram = GuestRam(MemoryConfig(5 << 30))
    try:
        ram.write(HOLE_START - 1, b"L")
        ram.write(HIGH_MEMORY, b"H")
        assert ram.read(HOLE_START - 1, 1) == b"L"
        assert ram.read(HIGH_MEMORY, 1) == b"H"
        with pytest.raises(MemoryAccessError):
            ram.read(HOLE_START, 1)
        with pytest.raises(MemoryAccessError):
            ram.window(HOLE_START - 1, 2)
    finally:
        ram.close()


def test_more_memory_than_can_be_is_one_clear_error() -> None:
    """The host's refusal names the block and says what to do."""
    with pytest.raises(HostError, match=r"pc\.ram.*--memory"):
        RamBlock("pc.ram", 1 << 62)


def test_huge_pages_that_are_not_there_are_one_clear_error() -> None:
    """The message holds the command that reserves them."""
    with pytest.raises(HostError, match="nr_hugepages"):
        RamBlock("pc.ram", 1 << 50, huge_page=2 << 20)


def test_writes_are_marked(ram: GuestRam) -> None:
    """With a log that is on, every page that `write` or `zero` changes, or that one says to have written oneself."""
    log = DeviceLog(ram)
    ram.dirty_log = log
    ram.write(0x10_0000, b"before")
    watch = Watch(ram, log, driver=False)
    ram.write(0x1FFE, b"four")
    two = {(MAIN_BLOCK, 1), (MAIN_BLOCK, 2)}
    assert watch.check() == (two, two)
    ram.write(0x3000, b"")
    assert watch.check() == (set(), set())
    ram.window(0x5000, PAGE_SIZE)[:] = b"x" * PAGE_SIZE
    ram.mark_written(0x5000, PAGE_SIZE)
    assert watch.check() == ({(MAIN_BLOCK, 5)}, {(MAIN_BLOCK, 5)})
    ram.zero()
    changed, marked = watch.check()
    assert changed == two | {(MAIN_BLOCK, 5), (MAIN_BLOCK, 0x100)}
    assert len(marked) == (4 << 20) // PAGE_SIZE
    with pytest.raises(MemoryAccessError):
        ram.mark_written(4 << 20, 1)
    log.close()
    ram.write(0x6000, b"the log is gone")


def test_another_block(ram: GuestRam) -> None:
    """It is nowhere until it has a region; who watches it hears of each write to it, and of no other."""
    block = ram.add_block("vga.vram", 4 * PAGE_SIZE)
    assert (block.fd >= 0) == (ram.blocks[MAIN_BLOCK].fd >= 0)
    with pytest.raises(MemoryAccessError):
        ram.read(0xC000_0000, 1)
    heard: list[tuple[int, int]] = []
    ram.watchers["vga.vram"] = lambda offset, length: heard.append((offset, length))
    ram.regions.add(Region(0xC000_0000, 4 * PAGE_SIZE, "vga.vram", 0, moves=True))
    ram.write(0x1000, b"elsewhere")
    ram.write(0xC000_0010, b"here")
    assert bytes(block.view[0x10:0x14]) == b"here"
    ram.mark_written(0xC000_1000, 8)
    ram.mark_block("vga.vram", 7, 1)
    ram.zero()
    assert heard == [(0x10, 4), (0x1000, 8), (7, 1), (0, 4 * PAGE_SIZE)]
    assert not any(block.view)


def test_nobody_can_cut_shared_memory_short() -> None:
    """Who has it mapped too would die of it; pages can be given back all the same."""
    block = RamBlock("pc.ram", 1 << 20)
    try:
        block.view[:4] = b"here"
        for size in (0, 1 << 19, 1 << 21):
            with pytest.raises(PermissionError):
                os.ftruncate(block.fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(block.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        block.zero()
        assert bytes(block.view[:4]) == bytes(4)
    finally:
        block.close()
