"""RAM blocks in this process's address space, and guest memory as the rest of tvmm reads and writes it.

A block is anonymous memory, which the kernel may back with transparent huge pages; with `shared=on`, or with explicit
huge pages, it is a memfd mapped shared, so that a successor process or a vhost-user device can map it too.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from array import array
from typing import TYPE_CHECKING, Protocol

from tvmm.errors import HostError, MemoryAccessError
from tvmm.memory.layout import ram_ranges
from tvmm.memory.regions import Region, RegionTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.config.memory import MemoryConfig

__all__ = ["DirtyLog", "GuestRam", "RamBlock"]

MAIN_BLOCK, VRAM_BLOCK = "pc.ram", "vga.vram"
PRESENT, COMING, LOST = 0, 1, 2
"""All of it is here; some of it may be elsewhere; what was elsewhere will not come (TVMM_MEMORY_... of vring.h)."""
HUGE_SHIFT = 26
"""Where memfd_create(2) takes log2 of the huge page size (MFD_HUGE_SHIFT)."""
MADV_POPULATE_WRITE = 23
PIECE = 4 << 20
SEALS = 0x1 | 0x2 | 0x4
"""F_SEAL_SEAL, F_SEAL_SHRINK and F_SEAL_GROW of fcntl(2), of every memfd.

Who has it mapped as well dies of SIGBUS when it is cut short, so nobody can do that."""


class DirtyLog(Protocol):
    """Who wants to hear of what tvmm writes into RAM, as `DeviceLog` has it."""

    @property
    def on(self) -> bool:
        """Whether it wants to hear now."""

    def mark(self, block_name: str, offset: int, length: int) -> None:
        """These bytes of a block have been written."""


class RamBlock:
    """Named host memory of the guest. `map` is the mapping; bytes are the guest's, at any moment."""

    def __init__(self, name: str, size: int, *, shared: bool = True, huge_page: int = 0) -> None:
        """`size` in bytes; `huge_page` in bytes, 0 for ordinary pages. Raises `HostError` if there is not enough."""
        self.name = name
        self.size = size
        self.page_size = huge_page or mmap.PAGESIZE
        self.fd = -1
        self.unmap_file: Callable[[], None] | None = None
        """Of a private block at which a file is mapped: puts zeros in its place."""
        try:
            if shared or huge_page:
                flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
                if huge_page:
                    flags |= os.MFD_HUGETLB | (huge_page.bit_length() - 1) << HUGE_SHIFT
                self.fd = os.memfd_create(f"tvmm-{name}", flags)
                # Not needed by a machine with private memory.
                import fcntl

                os.ftruncate(self.fd, size)
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
                self.map = mmap.mmap(self.fd, size, mmap.MAP_SHARED)
            else:
                self.map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                self.map.madvise(mmap.MADV_HUGEPAGE)
        except (OSError, ValueError, OverflowError) as error:
            if self.fd >= 0:
                os.close(self.fd)
            raise _memory_error(name, size, huge_page, error) from error
        self.view = memoryview(self.map)

    def populate(self) -> None:
        """Have every page allocated now. Raises `HostError` if the host cannot."""
        try:
            self.map.madvise(MADV_POPULATE_WRITE)
        except OSError as error:
            raise _memory_error(self.name, self.size, 0, error) from error

    def forget_pages(self) -> None:
        """Have no page of a shared block mapped, as if it had never been touched here: its content stays.

        Piece by piece: to undo the mapping of 1 GiB takes a tenth of a second, in which this process could map nothing.
        """
        for start in range(0, self.size, PIECE):
            self.map.madvise(mmap.MADV_DONTNEED, start, min(PIECE, self.size - start))
            time.sleep(0)

    def zero(self) -> None:
        """Give all pages back to the host; the guest reads zeros, as after power-on."""
        if self.unmap_file is not None:
            self.unmap_file()
        else:
            self.map.madvise(mmap.MADV_REMOVE if self.fd >= 0 else mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap. No vCPU may run, and KVM must have let go of the buffer."""
        self.view.release()
        self.map.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class GuestRam:
    """Guest-physical memory: RAM blocks and the table that says where the guest sees them."""

    def __init__(self, config: MemoryConfig) -> None:
        """Allocates what `config` asks for. Raises `HostError` when the host cannot give it."""
        self.size = config.size
        self._prealloc = config.prealloc
        self._shared = config.shared or bool(config.hugepages)
        self.blocks: dict[str, RamBlock] = {}
        self.regions = RegionTable()
        self.dirty_log: DirtyLog | None = None
        """Hears of each write through this object, after it."""
        self.presence = array("i", [PRESENT])
        """PRESENT, COMING or LOST, for C too: what was elsewhere when it was lost is zeros that no disk is to get."""
        self.has: Callable[[str, int, int], bool] | None = None
        """Whether these bytes of a block are here, set along with `fetch`."""
        self.let_go: Callable[[], None] | None = None
        """Told before all of it is zeroed: what is still on its way is not needed any more."""
        self.fetch: Callable[[str, int, int], None] | None = None
        """Waits, without the interpreter lock, until these bytes of a block are here, while memory is still to come."""
        self.watchers: dict[str, Callable[[int, int], None]] = {}
        """By block: whoever else hears of these writes, by offset and length."""
        self.before_drop: Callable[[str, int, int], None] | None = None
        """Asked before bytes of a block are given back to the host, on the thread that is about to: returns when nobody
        needs them any more."""
        block = RamBlock(MAIN_BLOCK, config.size, shared=config.shared, huge_page=config.hugepages)
        self.blocks[MAIN_BLOCK] = block
        offset = 0
        for part in ram_ranges(config.size):
            self.regions.add(Region(part.start, part.size, MAIN_BLOCK, offset))
            offset += part.size
        if config.prealloc:
            try:
                block.populate()
            except HostError:
                self.close()
                raise

    def close(self) -> None:
        """Unmap all blocks."""
        for block in self.blocks.values():
            block.close()
        self.blocks.clear()

    def add_block(self, name: str, size: int) -> RamBlock:
        """One more block, seen by the guest nowhere yet. Before anybody makes a list of all blocks; `HostError`."""
        block = self.blocks[name] = RamBlock(name, size, shared=self._shared)
        if self._prealloc:
            block.populate()
        return block

    def zero(self) -> None:
        """All RAM as after power-on."""
        if self.let_go is not None:
            self.let_go()
        for block in self.blocks.values():
            self.about_to_drop(block.name, 0, block.size)
            block.zero()
        for block in self.blocks.values() if self._prealloc else ():
            block.populate()
        for block in self.blocks.values():
            self._mark(block.name, 0, block.size)
        self.presence[0] = PRESENT

    def read(self, gpa: int, length: int) -> bytes:
        """`length` bytes at `gpa`; raises `MemoryAccessError` unless all of them are RAM."""
        pieces = self.regions.spans(gpa, length)
        self._fetch(pieces)
        if len(pieces) == 1:
            region, offset, count = pieces[0]
            return bytes(self.blocks[region.block].view[offset : offset + count])
        return b"".join(
            self.blocks[region.block].view[offset : offset + count] for region, offset, count in pieces
        )

    def window(self, gpa: int, length: int) -> memoryview:
        """The bytes themselves, writable; raises `MemoryAccessError` unless they are RAM of one block in one run.

        Who writes there calls `mark_written` afterwards.
        """
        pieces = self.regions.spans(gpa, length)
        if len(pieces) != 1:
            raise MemoryAccessError(f"{length} bytes at {gpa:#x} are not in one piece")
        self._fetch(pieces)
        region, offset, count = pieces[0]
        return self.blocks[region.block].view[offset : offset + count]

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at `gpa`; raises `MemoryAccessError`, and writes nothing, unless all of it is writable RAM."""
        source = memoryview(data).cast("B")
        pieces = self.regions.spans(gpa, len(source))
        if any(region.read_only for region, _, _ in pieces):
            raise MemoryAccessError(f"write of {len(source)} bytes at {gpa:#x} touches read-only memory")
        self._fetch(pieces)
        done = 0
        for region, offset, count in pieces:
            self.blocks[region.block].view[offset : offset + count] = source[done : done + count]
            self._mark(region.block, offset, count)
            done += count

    def mark_written(self, gpa: int, length: int) -> None:
        """`length` bytes at `gpa` have been written past `write`; raises `MemoryAccessError` unless they are RAM."""
        for region, offset, count in self.regions.spans(gpa, length):
            self._mark(region.block, offset, count)

    def mark_block(self, block_name: str, offset: int, length: int) -> None:
        """The same for bytes of a block, wherever the guest sees them."""
        self._mark(block_name, offset, length)

    def _fetch(self, pieces: Sequence[tuple[Region, int, int]]) -> None:
        # Looked at once: another thread may find at any moment that all is here.
        fetch = self.fetch
        if fetch is not None:
            for region, offset, count in pieces:
                fetch(region.block, offset, count)

    def about_to_drop(self, block_name: str, offset: int, length: int) -> None:
        """Return when these bytes may be given back to the host, which no protection traps. May take a second."""
        if self.before_drop is not None:
            self.before_drop(block_name, offset, length)

    def _mark(self, block_name: str, offset: int, length: int) -> None:
        if self.dirty_log is not None and self.dirty_log.on:
            self.dirty_log.mark(block_name, offset, length)
        if block_name in self.watchers:
            self.watchers[block_name](offset, length)


def _memory_error(name: str, size: int, huge_page: int, error: Exception) -> HostError:
    number = getattr(error, "errno", None)
    if huge_page and number in (errno.ENOMEM, errno.EINVAL, errno.ENODEV):
        pages = -(-size // huge_page)
        kib = huge_page >> 10
        return HostError(
            f"the host has not enough free huge pages of {kib} KiB for {size >> 20} MiB of {name}",
            f"reserve them with 'echo {pages} > /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages'",
        )
    return HostError(f"the host gives no {size >> 20} MiB of memory for {name}: {error}", "ask for less with --memory")
