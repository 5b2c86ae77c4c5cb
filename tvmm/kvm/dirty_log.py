"""Which pages of RAM were written since the last look, by vCPUs and by devices.

Two trackers with one interface. KVM's bitmap is one call for each memory slot, whatever the number of dirty pages;
with manual protection the bits stay set in KVM until the lanes clear them, chunk by chunk, just before they read the
pages (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; without it KVM protects all of them again in the look itself). The dirty rings
have an entry for each page that a vCPU wrote, and say which vCPU that was; they must be there before the first vCPU is
made, and take the bitmap away. Where KVM emulates guest kernel mode they can overflow unseen by the vCPU; that is
found out, at the next look, but no more than that can be done.

The order that both keep: the mark is taken and the page protected before the page is read. So a write that comes
later is found by a later look, and after a look with all vCPUs and devices paused nothing is missing.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Protocol

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.pages import PAGE, PageBitmap, log_slot_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.board import Board
    from tvmm.kvm.memory_map import MappedRam
    from tvmm.kvm.vcpu import KvmVcpu
    from tvmm.kvm.vm import Vm
    from tvmm.kvm.vram import VramMemory

__all__ = [
    "DeviceWrites",
    "DirtyRings",
    "DirtyTracker",
    "KvmBitmapTracker",
    "KvmRingTracker",
    "make_tracker",
    "with_vram",
]


class DeviceWrites(Protocol):
    """Marks of what devices wrote."""

    def start(self) -> None:
        """From now on they are kept."""

    def stop(self) -> None:
        """No longer."""

    def merge_into(self, block_name: str, words: Any) -> object:
        """Take the marks of a block and OR them into `words`, a ``uint64_t *`` of cffi with a bit for each page."""

    def pending_words(self, block_name: str) -> Any:
        """Those of a block that were not taken, to look at, as such a pointer; it may be NULL."""


class DirtyTracker(Protocol):
    """Says what was written. One thread at a time."""

    @property
    def log(self) -> Any:
        """For `LaneGroup`: has KVM protect pages again just before they are read. None: `sync` does it."""

    def start(self) -> None:
        """From now on nothing is missed; what is there now is to be sent as a whole. Raises `HostError`."""

    def stop(self) -> None:
        """No longer; idempotent. The guest is as before `start`."""

    def sync(self, bitmap: PageBitmap) -> int:
        """OR into `bitmap` what was written since the last look. How many bits are new. Raises `OSError`."""

    def spare(self, bitmap: PageBitmap, block_name: str, runs: Sequence[tuple[int, int]]) -> int:
        """The pages of these runs, (first, count), are free: clear their bits, but for those that were written since
        `start`. How many were cleared; 0 if it is not known what was written. Raises `OSError`.

        Between `start` and the first `sync`, while lanes are at work. What is written later is found by `sync`.
        """

    def vcpu_counts(self) -> list[int]:
        """Pages that each vCPU dirtied since the last call; empty if that is not known."""


class _Tracker:
    """What both trackers do alike: the slots' logging on and off, and the devices' marks."""

    def __init__(self, vm: Vm, ram: MappedRam, devices: DeviceWrites | None) -> None:
        """The slots of `vm` have the numbers of the regions of `ram` that do not move, in order."""
        self._vm = vm
        self._names = tuple(ram.blocks)
        self._pages = tuple(len(block.view) // PAGE for block in ram.blocks.values())
        self._slots = [
            (slot, self._names.index(region.block), region.offset // PAGE, region.size // PAGE)
            for slot, region in enumerate(region for region in ram.regions if not region.moves)
            if not region.read_only
        ]
        self._devices = devices
        self._logged: list[int] = []

    def _log(self) -> None:
        """Turn both on. Raises `HostError`."""
        if self._devices is not None:
            self._devices.start()
        try:
            for slot, _, _, _ in self._slots:
                self._vm.set_dirty_logging(slot, on=True)
                self._logged.append(slot)
        except OSError as error:
            self.stop()
            raise HostError(f"KVM does not log written pages: {error.strerror}") from error

    def stop(self) -> None:
        """See `DirtyTracker`."""
        raise NotImplementedError

    def _unlog(self) -> None:
        for slot in self._logged:
            self._vm.set_dirty_logging(slot, on=False)
        self._logged.clear()
        if self._devices is not None:
            self._devices.stop()

    def spare(self, bitmap: PageBitmap, block_name: str, runs: Sequence[tuple[int, int]]) -> int:
        """See `DirtyTracker`. None."""
        return 0

    def _check(self, bitmap: PageBitmap) -> None:
        if (bitmap.names, bitmap.pages) != (self._names, self._pages):
            raise ValueError(f"a bitmap of {', '.join(bitmap.names)} for RAM of {', '.join(self._names)}")

    def _merge_devices(self, bitmap: PageBitmap) -> int:
        """Marks of devices into `bitmap`; how many are new."""
        if self._devices is None:
            return 0
        before = bitmap.count()
        for index, name in enumerate(bitmap.names):
            self._devices.merge_into(name, bitmap.raw.blocks[index].words)
        return bitmap.count() - before


class KvmBitmapTracker(_Tracker):
    """KVM's dirty bitmap."""

    def __init__(
        self,
        vm: Vm,
        ram: MappedRam,
        devices: DeviceWrites | None = None,
        *,
        manual: bool = True,
        exact: bool = False,
    ) -> None:
        """Without `manual`, KVM protects pages in `sync`. `exact`: from `start` on it is known what was written, for
        `spare`; KVM protects all pages at once for that.
        """
        super().__init__(vm, ram, devices)
        self._manual = manual
        self._exact = exact
        self._raw: Any = None
        self._scratch: list[Any] = []

    def start(self) -> None:
        """See `DirtyTracker`."""
        manual = self._vm.protect_manually(on=self._manual, all_set=not self._exact)
        table, self._scratch = log_slot_table(self._slots)
        self._raw = ffi.new(
            "struct tvmm_dirty_log *",
            {"vm_fd": self._vm.fd, "manual": manual, "count": len(table), "slots": table},
        )
        self._log()

    def stop(self) -> None:
        """See `DirtyTracker`."""
        if self._raw is not None:
            self._unlog()
            self._raw = None

    @property
    def log(self) -> Any:
        """See `DirtyTracker`."""
        return self._raw if self._raw is not None and self._raw.manual else None

    def sync(self, bitmap: PageBitmap) -> int:
        """See `DirtyTracker`. Raises `ValueError` if `bitmap` is of other blocks than those of the RAM."""
        self._check(bitmap)
        added = int(lib.tvmm_log_sync(self._raw, bitmap.raw))
        if added < 0:
            raise OSError(-added, f"KVM_GET_DIRTY_LOG: {os.strerror(-added)}")
        return added + self._merge_devices(bitmap)

    def spare(self, bitmap: PageBitmap, block_name: str, runs: Sequence[tuple[int, int]]) -> int:
        """See `DirtyTracker`."""
        self._check(bitmap)
        if not self._exact or not self._raw.manual:
            return 0
        error = int(lib.tvmm_log_peek(self._raw))
        if error:
            raise OSError(-error, f"KVM_GET_DIRTY_LOG: {os.strerror(-error)}")
        block = self._names.index(block_name)
        marks = self._devices.pending_words(block_name) if self._devices is not None else ffi.NULL
        return sum(
            int(lib.tvmm_log_spare(self._raw, bitmap.raw, block, first, min(count, self._pages[block] - first), marks))
            for first, count in runs
            if 0 <= first < self._pages[block]
        )

    def vcpu_counts(self) -> list[int]:
        """Not known."""
        return []


class DirtyRings:
    """The dirty rings of a VM's vCPUs, from before the first of them is made to after the last is closed."""

    def __init__(self, vm: Vm, entries: int, vcpus: int) -> None:
        """`entries` for each of at most `vcpus` vCPUs, a power of two. Raises `HostError` when KVM has no rings."""
        vm.enable_dirty_ring(entries)
        self.entries = entries
        self.raw = lib.tvmm_rings_new(vm.fd, entries, vcpus)
        if not self.raw:
            raise HostError("the host has no memory for dirty rings", "free some and start again")

    def close(self) -> None:
        """No vCPU may be left."""
        if self.raw:
            lib.tvmm_rings_free(self.raw)
            self.raw = ffi.NULL

    def add(self, vcpu: KvmVcpu) -> None:
        """Map a vCPU's ring. From now on its step empties it whenever it is full. Raises `HostError`."""
        error = lib.tvmm_rings_map(self.raw, vcpu.index, vcpu.fd)
        if error:
            raise HostError(f"the dirty ring of vCPU {vcpu.index} cannot be mapped: {os.strerror(-error)}")
        vcpu.raw.rings, vcpu.raw.index = self.raw, vcpu.index

    def full(self, index: int) -> None:
        """Empty the ring of one vCPU, which has left the guest because it is full. Raises `OSError`."""
        error = lib.tvmm_rings_full(self.raw, index)
        if error:
            raise OSError(-error, f"KVM_RESET_DIRTY_RINGS: {os.strerror(-error)}")

    @property
    def full_exits(self) -> int:
        """How often a vCPU had to leave the guest for that."""
        return int(self.raw.full_exits)

    def counts(self) -> list[int]:
        """Entries of each vCPU so far."""
        return [int(self.raw.rings[index].count) for index in range(self.raw.count)]


class KvmRingTracker(_Tracker):
    """The dirty rings."""

    def __init__(
        self,
        rings: DirtyRings,
        vm: Vm,
        ram: MappedRam,
        devices: DeviceWrites | None = None,
        moving: Sequence[tuple[int, str]] = (),
    ) -> None:
        """`rings` are those of `vm`. `moving`: slots that others turn the log of on and off, and their whole blocks."""
        super().__init__(vm, ram, devices)
        self._rings = rings
        self._moving = [(slot, index := self._names.index(name), 0, self._pages[index]) for slot, name in moving]
        self._pending: PageBitmap | None = None
        self._keep: tuple[Any, ...] = ()
        self._counts = rings.counts()

    def start(self) -> None:
        """See `DirtyTracker`."""
        self._pending = PageBitmap(self._names, self._pages)
        table, scratch = log_slot_table([*self._slots, *self._moving])
        array = ffi.new("struct tvmm_log_slot[]", table)
        self._keep = (array, scratch)
        lib.tvmm_rings_track(self._rings.raw, self._pending.raw, array, len(table))
        self._counts = self._rings.counts()
        self._log()

    def stop(self) -> None:
        """See `DirtyTracker`. What is left in the rings is dropped, so that they are empty the next time."""
        if self._pending is None:
            return
        self._unlog()
        lib.tvmm_rings_track(self._rings.raw, ffi.NULL, ffi.NULL, 0)
        lib.tvmm_rings_sync(self._rings.raw, ffi.NULL)
        self._pending = None
        self._keep = ()

    @property
    def log(self) -> Any:
        """None."""
        return None

    def sync(self, bitmap: PageBitmap) -> int:
        """See `DirtyTracker`. Raises `ValueError` if `bitmap` is of other blocks than those of the RAM."""
        self._check(bitmap)
        added = int(lib.tvmm_rings_sync(self._rings.raw, bitmap.raw))
        if added == -errno.EOVERFLOW:
            raise OSError(errno.EOVERFLOW, "a dirty ring has overflowed: which pages were written is not known")
        if added < 0:
            raise OSError(-added, f"KVM_RESET_DIRTY_RINGS: {os.strerror(-added)}")
        return added + self._merge_devices(bitmap)

    def vcpu_counts(self) -> list[int]:
        """See `DirtyTracker`."""
        before, self._counts = self._counts, self._rings.counts()
        return [now - then for now, then in zip(self._counts, before, strict=True)]


class _WithVram:
    """Marks of devices, and the pages of a video memory, which keeps a log of its own."""

    def __init__(self, devices: DeviceWrites | None, vram: VramMemory) -> None:
        self._devices, self._vram = devices, vram

    def start(self) -> None:
        """See `DeviceWrites`."""
        if self._devices is not None:
            self._devices.start()
        try:
            self._vram.start()
        except HostError:
            self.stop()
            raise

    def stop(self) -> None:
        """See `DeviceWrites`."""
        self._vram.stop()
        if self._devices is not None:
            self._devices.stop()

    def merge_into(self, block_name: str, words: Any) -> None:
        """See `DeviceWrites`."""
        if self._devices is not None:
            self._devices.merge_into(block_name, words)
        if block_name == self._vram.block.name:
            self._vram.merge_into(words)

    def pending_words(self, block_name: str) -> Any:
        """See `DeviceWrites`: not those of the video memory, of which nothing is ever free."""
        return self._devices.pending_words(block_name) if self._devices is not None else ffi.NULL


def with_vram(devices: DeviceWrites | None, vram: VramMemory) -> DeviceWrites:
    """`devices`, and what anybody writes to `vram`."""
    return _WithVram(devices, vram)


def make_tracker(board: Board, devices: DeviceWrites | None = None, *, exact: bool = False) -> DirtyTracker:
    """The rings if the machine has them, else the bitmap; with its video memory if it has one. `exact`: `spare` is to
    be used, which rings do not know.
    """
    moving: list[tuple[int, str]] = []
    if board.devices is not None and board.devices.display is not None:
        vram = board.devices.display.vram
        devices = with_vram(devices, vram)
        moving.append((vram.slot, vram.block.name))
    if board.rings is not None:
        return KvmRingTracker(board.rings, board.vm, board.ram, devices, moving)
    return KvmBitmapTracker(board.vm, board.ram, devices, exact=exact)
