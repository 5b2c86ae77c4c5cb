"""Guest memory as devices reach it: where it lies for C, what is written into it, what of it is still on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tvmm.kvm.calls import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tvmm.kvm.device_log import DeviceLog
    from tvmm.memory.regions import Region

__all__ = ["MappedRam", "MemoryMap"]


class Block(Protocol):
    """Host memory, as `RamBlock` has it."""

    view: memoryview


class MappedRam(Protocol):
    """Where guest memory lies, as `GuestRam` says it."""

    @property
    def regions(self) -> Iterable[Region]:
        """In ascending order."""

    @property
    def blocks(self) -> Mapping[str, Block]:
        """By name."""


class MemoryMap:
    """Guest-physical to host addresses, for C. Close it before the RAM: it keeps the blocks' buffers exported."""

    def __init__(self, ram: MappedRam, log: DeviceLog | None = None) -> None:
        """The regions of `ram` as they are now; after a change make another one and restore the rings with it.

        What rings and devices write with this map is marked in `log`, which is closed after it.
        """
        self._log = log
        self._ram = ram
        self._buffers = {name: ffi.from_buffer("uint8_t[]", block.view) for name, block in ram.blocks.items()}
        runs: list[Region] = []
        for region in ram.regions:
            if region.moves:
                continue
            if runs and runs[-1]._replace(size=0, gpa=runs[-1].end, offset=runs[-1].offset + runs[-1].size) == (
                region._replace(size=0)
            ):
                runs[-1] = runs[-1]._replace(size=runs[-1].size + region.size)
            else:
                runs.append(region)
        regions = [
            {
                "gpa": run.gpa,
                "size": run.size,
                "hva": self._buffers[run.block] + run.offset,
                "flags": lib.TVMM_REGION_READ_ONLY if run.read_only else 0,
            }
            for run in runs
        ]
        presence = getattr(ram, "presence", None)
        self._presence = ffi.NULL if presence is None else ffi.from_buffer("int32_t[]", presence)
        fields = {
            "count": len(regions),
            "log": log.raw if log is not None else ffi.NULL,
            "presence": self._presence,
            "regions": regions,
        }
        self.raw = ffi.new("struct tvmm_memory_map *", fields)

    def missing(self, pieces: Iterable[memoryview]) -> list[tuple[str, int, int]]:
        """Which of these pieces of guest memory are still on their way, for `bring`; none of a guest that is whole."""
        has = getattr(self._ram, "has", None)
        if has is None:
            return []
        found = []
        for piece in pieces:
            address = int(ffi.cast("uintptr_t", ffi.from_buffer(piece)))
            for name, buffer in self._buffers.items():
                offset = address - int(ffi.cast("uintptr_t", buffer))
                if 0 <= offset < len(buffer) and not has(name, offset, len(piece)):
                    found.append((name, offset, len(piece)))
        return found

    def bring(self, missing: Iterable[tuple[str, int, int]]) -> None:
        """Return when they are here, on a thread that may wait for long; without the interpreter lock."""
        for name, offset, length in missing:
            fetch = getattr(self._ram, "fetch", None)
            if fetch is not None:
                fetch(name, offset, length)

    def fill(self, pieces: Iterable[memoryview], data: bytes) -> int:
        """Write `data` into pieces of guest memory, as `Batch.writable` gives them, in their order, and mark it.

        How many bytes that were: all, or as many as there is room for.
        """
        at = 0
        for piece in pieces:
            if at == len(data):
                break
            part = data[at : at + len(piece)]
            piece[: len(part)] = part
            at += len(part)
            if self._log is not None and self._log.on:
                self._log.mark_written(piece[: len(part)])
        return at

    def place(self, piece: memoryview) -> tuple[str, int]:
        """Where a piece of guest memory, as a `Batch` gives it, lies: name of the block, and offset there in bytes."""
        with ffi.from_buffer("uint8_t[]", piece) as start:
            for name, buffer in self._buffers.items():
                offset = int(ffi.cast("uintptr_t", start)) - int(ffi.cast("uintptr_t", buffer))
                if 0 <= offset < len(buffer):
                    return name, offset
        raise ValueError("no block has these bytes")

    def close(self) -> None:
        """Let go of the RAM. No ring may be used with this map any more."""
        self.raw.count = 0
        self.raw.log = ffi.NULL
        for buffer in self._buffers.values():
            ffi.release(buffer)
        self._buffers.clear()
