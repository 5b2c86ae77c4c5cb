"""Who reads and writes guest memory that may still be on its way asks for it first."""

from __future__ import annotations

import pytest

from tvmm.config.memory import MemoryConfig
from tvmm.errors import MemoryAccessError
from tvmm.memory.ram import GuestRam

MIB = 1 << 20


def test_each_access_is_fetched_before() -> None:
    """Reads, writes and windows, by block and offset; not those that are refused."""
    ram = GuestRam(MemoryConfig(size=16 * MIB))
    try:
        asked: list[tuple[str, int, int]] = []

        def fetch(block: str, offset: int, length: int) -> None:
            asked.append((block, offset, length))
            ram.blocks[block].view[offset] = 7

        ram.fetch = fetch
        assert ram.read(0x5000, 2) == b"\7\0"
        ram.write(0x6000, b"ab")
        assert bytes(ram.window(0x6000, 2)) == b"\7b"
        with pytest.raises(MemoryAccessError):
            ram.read(1 << 50, 1)
        assert asked == [("pc.ram", 0x5000, 2), ("pc.ram", 0x6000, 2), ("pc.ram", 0x6000, 2)]
        ram.fetch = None
        assert ram.read(0x7000, 1) == b"\0"
        assert len(asked) == 3
    finally:
        ram.close()
