"""The memory of a display: a RAM block that the guest moves about, and which of its pages were written.

It is a memory slot of KVM's at the address where the guest has put the BAR, so that the guest's writes are plain writes
to memory. Where there is no slot, because KVM would not make one, the same bytes can be reached by `read` and `write`.

Two want to know what was written: who looks at the screen (`VramWatch`) and a migration (`start` to `stop`). KVM tells
each page once and then protects it again, so what it tells is kept for both. While nobody asks nothing is logged, and
the guest's writes cost nothing. When the BAR moves the slot goes, and with it what KVM has noted since the last look:
all pages count as written then.

With dirty rings KVM has no bitmap, and the screen is compared as a whole; a migration finds the pages in its rings.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.pages import PAGE
from tvmm.memory.ram import VRAM_BLOCK
from tvmm.memory.regions import Region

if TYPE_CHECKING:
    from tvmm.kvm.vm import Vm
    from tvmm.memory.ram import GuestRam

__all__ = ["VRAM_SLOT", "VramMemory", "VramWatch"]

VRAM_SLOT = 64
"""Of KVM's memory slots; those of RAM have the numbers from 0 on."""
WORD_PAGES = 64


class VramWatch:
    """For one who looks at the screen. Any thread, one at a time."""

    def __init__(self, vram: VramMemory) -> None:
        self._vram = vram

    @property
    def is_on(self) -> bool:
        """Whether written pages are noted."""
        return self._vram.watched

    def turn_on(self) -> None:
        """From now on they are noted. Raises `HostError` if KVM does not; then `take` knows nothing."""
        self._vram.set_watched(on=True)

    def turn_off(self) -> None:
        """No longer."""
        self._vram.set_watched(on=False)

    def take(self) -> bytes | None:
        """A byte for each page of 4 KiB, 1 if it was written since the last call; None if that is not known.

        A page may be read once it was taken: what is written later is found the next time.
        """
        return self._vram.take()


class VramMemory:
    """`size` is in bytes, a power of two from 256 KiB on. Close the VM's memory before the RAM, as ever.

    All methods may be called by any thread, also while vCPUs run.
    """

    def __init__(self, vm: Vm, ram: GuestRam, *, has_rings: bool = False) -> None:
        """`ram` has the block `VRAM_BLOCK`; `has_rings`: `vm` has dirty rings."""
        self.block = ram.blocks[VRAM_BLOCK]
        self.pages = self.block.size // PAGE
        if self.block.size % (WORD_PAGES * PAGE):
            raise ValueError(f"a video memory of {self.block.size} bytes")
        self.slot = VRAM_SLOT
        self.refusals = 0
        """How often KVM would not map it: the guest then leaves KVM for each access."""
        self.watched = False
        self.watch = VramWatch(self)
        self._vm, self._ram, self._has_rings = vm, ram, has_rings
        self._lock = threading.Lock()
        self._region: Region | None = None
        self._logged = self._migrates = False
        self._all = True
        """Whether all of it counts as written, for the watch."""
        self._some = False
        """Whether there may be something in `touched`."""
        self._scratch, self._pending = (ffi.new("uint64_t[]", self.pages // WORD_PAGES) for _ in range(2))
        self._touched = ffi.new("uint8_t[]", self.pages)
        self._raw = ffi.new(
            "struct tvmm_vram_log *",
            {
                "vm_fd": vm.fd,
                "slot": VRAM_SLOT,
                "pages": self.pages,
                "scratch": self._scratch,
                "touched": self._touched,
                "pending": self._pending,
            },
        )
        self._nothing = bytes(self.pages)
        ram.watchers[VRAM_BLOCK] = self.mark

    @property
    def view(self) -> memoryview:
        """The bytes, wherever the guest sees them."""
        return self.block.view

    @property
    def address(self) -> int | None:
        """Where the guest sees them; None: nowhere."""
        region = self._region
        return region.gpa if region is not None else None

    # -- where it is ---------------------------------------------------------------------------------------

    def move(self, old: int | None, new: int | None) -> None:
        """The BAR is at `new` now, and no longer at `old`; never raises."""
        with self._lock:
            self._unmap()
            if new is not None:
                self._map(new)

    def _unmap(self) -> None:
        if self._region is None:
            return
        self._ram.regions.remove(self._region)
        self._region = None
        self._vm.remove_memory(VRAM_SLOT)
        self._logged = False
        self._mark_all()

    def _map(self, address: int) -> None:
        log = self._wants_log()
        try:
            self._prepare(log=log)
            self._vm.set_memory(VRAM_SLOT, address, self.block.view, log=log)
        except (HostError, OSError):
            self.refusals += 1
            return
        self._logged = log
        # A new log may begin with all pages in it.
        self._all = True
        self._region = Region(address, self.block.size, VRAM_BLOCK, 0, moves=True)
        self._ram.regions.add(self._region)

    # -- accesses that came past KVM -----------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`; ones behind the end."""
        data = bytes(self.block.view[offset : offset + size])
        return int.from_bytes(data.ljust(size, b"\xff"), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """`size` bytes at `offset`, as many as there are."""
        data = value.to_bytes(size, "little")[: max(self.block.size - offset, 0)]
        self.block.view[offset : offset + len(data)] = data
        self._ram.mark_block(VRAM_BLOCK, offset, len(data))

    def mark(self, offset: int, length: int) -> None:
        """`length` bytes at `offset` were written, and not by a vCPU: for the watch."""
        if not length:
            return
        first, last = offset // PAGE, (offset + length - 1) // PAGE
        with self._lock:
            if self.watched:
                ffi.memmove(self._touched + first, b"\1" * (last + 1 - first), last + 1 - first)
                self._some = True

    def forget(self) -> None:
        """Its bytes are others now, as after a migration: all of it counts as written."""
        with self._lock:
            self._mark_all()

    def _mark_all(self) -> None:
        self._all = True
        if self._migrates:
            lib.tvmm_bits_set(self._pending, 0, self.pages)

    # -- the log -------------------------------------------------------------------------------------------

    def _wants_log(self) -> bool:
        return self._migrates or (self.watched and not self._has_rings)

    def _prepare(self, *, log: bool) -> None:
        if log and not self._has_rings:
            self._vm.protect_manually(on=True)

    def _settle(self) -> None:
        """Turn KVM's log on or off. Raises `OSError`."""
        wanted = self._wants_log()
        if self._region is None or wanted == self._logged:
            return
        self._prepare(log=wanted)
        self._vm.set_dirty_logging(VRAM_SLOT, on=wanted)
        self._logged = wanted

    def _collect(self) -> None:
        """Take what KVM knows. Raises `OSError`."""
        if not self._logged or self._has_rings:
            return
        count = int(lib.tvmm_vram_collect(self._raw))
        if count < 0:
            raise OSError(-count, f"KVM_GET_DIRTY_LOG: {os.strerror(-count)}")
        if count:
            self._some = True

    def set_watched(self, *, on: bool) -> None:
        """See `VramWatch`."""
        with self._lock:
            if on == self.watched:
                return
            self.watched, self._all = on, True
            try:
                self._settle()
            except OSError as error:
                self.watched = False
                raise HostError(f"KVM does not log written pages: {error.strerror}") from error

    def take(self) -> bytes | None:
        """See `VramWatch`."""
        with self._lock:
            if not self.watched or self._has_rings:
                return None
            try:
                self._collect()
            except OSError:
                self._all = True
                return None
            taken: bytes | None = self._nothing
            if self._some:
                taken = bytes(ffi.buffer(self._touched))
                ffi.memmove(self._touched, self._nothing, self.pages)
            known, self._all, self._some = not self._all, False, False
            return taken if known else None

    # -- migration: as `DeviceWrites` ----------------------------------------------------------------------

    def start(self) -> None:
        """From now on pages are noted for a migration; what there is now is sent as a whole. Raises `HostError`."""
        with self._lock:
            self._migrates = True
            ffi.memmove(self._pending, bytes(ffi.sizeof(self._pending)), ffi.sizeof(self._pending))
            try:
                self._settle()
            except OSError as error:
                self._migrates = False
                raise HostError(f"KVM does not log written pages: {error.strerror}") from error

    def stop(self) -> None:
        """No longer."""
        with self._lock:
            self._migrates = False
            self._settle()

    def merge_into(self, words: Any) -> None:
        """Take the pages and set their bits in `words`, a ``uint64_t *`` with a bit for each. Raises `OSError`."""
        with self._lock:
            self._collect()
            lib.tvmm_bits_merge(words, self._pending, self.pages // WORD_PAGES)
            ffi.memmove(self._pending, bytes(ffi.sizeof(self._pending)), ffi.sizeof(self._pending))
