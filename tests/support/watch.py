"""The rule that migration lives by, as a check: every page in which tvmm has changed a byte is marked in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tvmm.kvm.calls import ffi
from tvmm.kvm.device_log import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.kvm.device_log import DeviceLog
    from tvmm.kvm.memory_map import Block
    from tvmm.memory.regions import RegionTable

__all__ = ["Page", "Watch", "WatchedMemory", "take_marks"]

Page = tuple[str, int]
"""Block and number."""
CHUNK = 16 * PAGE_SIZE
"""Bytes that are compared at once."""


class WatchedMemory(Protocol):
    """Guest memory with the way in which a test's driver writes it."""

    regions: RegionTable

    @property
    def blocks(self) -> Mapping[str, Block]:
        """By name."""

    def write(self, gpa: int, data: bytes) -> None:
        """As the guest."""


def take_marks(ram: WatchedMemory, log: DeviceLog) -> set[Page]:
    """Take what is marked."""
    marks = set()
    for name, block in ram.blocks.items():
        words = ffi.new("uint64_t[]", -(-len(block.view) // PAGE_SIZE // 64))
        taken = log.merge_into(name, words)
        pages = {(name, 64 * index + bit) for index, word in enumerate(words) for bit in range(64) if word >> bit & 1}
        assert taken == len(pages)
        marks |= pages
    return marks


class Watch:
    """From now on, what is written by `ram.write` is the guest's doing, and all else tvmm's; or, without `driver`, all.

    The shadow is RAM as it would be if tvmm had not written since the last `check`: where RAM differs from it, tvmm
    wrote.
    """

    def __init__(self, ram: WatchedMemory, log: DeviceLog, *, driver: bool = True) -> None:
        """Starts the log. Nobody may be writing."""
        self.ram = ram
        self.log = log
        self._shadow = {name: bytearray(block.view) for name, block in ram.blocks.items()}
        write = ram.write

        def write_both(gpa: int, data: bytes) -> None:
            write(gpa, data)
            done = 0
            for region, offset, count in ram.regions.spans(gpa, len(data)):
                self._shadow[region.block][offset : offset + count] = data[done : done + count]
                done += count

        if driver:
            ram.__dict__["write"] = write_both
        log.start()

    def check(self) -> tuple[set[Page], set[Page]]:
        """Each page that tvmm changed since the last check is marked; both sets: changed, marked.

        Nobody may be writing meanwhile.
        """
        marked = take_marks(self.ram, self.log)
        changed = set()
        for name, shadow in self._shadow.items():
            view = self.ram.blocks[name].view
            for start in range(0, len(view), CHUNK):
                now, before = bytes(view[start : start + CHUNK]), shadow[start : start + CHUNK]
                if now != before:
                    shadow[start : start + CHUNK] = now
                    pages = range(0, len(now), PAGE_SIZE)
                    changed |= {
                        (name, (start + at) // PAGE_SIZE)
                        for at in pages
                        if now[at : at + PAGE_SIZE] != before[at : at + PAGE_SIZE]
                    }
        assert changed <= marked, f"written and not marked: {sorted(changed - marked)}"
        return changed, marked
