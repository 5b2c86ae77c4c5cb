"""One virtual machine of KVM: memory slots, interrupt chips, interrupt lines, vCPUs."""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, Any

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, ioctl, ioctl_number, lib
from tvmm.kvm.routes import IrqRoutes
from tvmm.kvm.vcpu import KvmVcpu

if TYPE_CHECKING:
    import mmap

__all__ = ["Vm"]

IRQCHIP_COUNT = 3
"""Master PIC, slave PIC, IOAPIC."""

RING_ENTRY_BYTES = 16
"""A struct kvm_dirty_gfn."""

TSS_PAGES = 0xFFFB_D000
IDENTITY_MAP_PAGE = 0xFFFB_C000
"""Pages that KVM on Intel takes for real mode; they must lie in the hole, where no RAM is."""

CLOCK_DATA = struct.Struct("<QI4xQ24x")
"""`struct kvm_clock_data`: clock, flags, realtime; older kernel headers do not name the last."""


class Vm:
    """A KVM VM descriptor. Lives until `close`, which must come after the vCPUs'."""

    def __init__(self, fd: int, run_size: int) -> None:
        self.fd = fd
        self._run_size = run_size
        # What a VM can do, which may be less than what KVM can.
        self._xsave2_size = self.check_extension("XSAVE2")
        self._has_sregs2 = self.check_extension("SREGS2") > 0
        self._clock_flags = self.check_extension("ADJUST_CLOCK")
        self._mapped: dict[int, object] = {}
        self._regions: dict[int, Any] = {}

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def check_extension(self, name: str) -> int:
        """KVM_CHECK_EXTENSION on this VM for capability `name` (without ``KVM_CAP_``): 0 when it is lacking."""
        return ioctl_number(self.fd, "KVM_CHECK_EXTENSION", getattr(lib, f"KVM_CAP_{name}"))

    def report_triple_faults(self) -> bool:
        """Let a vCPU's events say whether a triple fault is on its way (KVM_CAP_X86_TRIPLE_FAULT_EVENT).

        False where this KVM cannot: it is then lost if a vCPU is saved at that moment.
        """
        if not self.check_extension("X86_TRIPLE_FAULT_EVENT"):
            return False
        request = ffi.new("struct kvm_enable_cap *", {"cap": lib.KVM_CAP_X86_TRIPLE_FAULT_EVENT, "args": [1]})
        ioctl(self.fd, "KVM_ENABLE_CAP", request)
        return True

    def get_clock(self) -> tuple[int, int]:
        """KVM_GET_CLOCK: the paravirtual clock and the host's real-time clock at that moment, both in nanoseconds.

        A kernel that does not tell them together (before 5.16, or without a stable TSC) lets us read the second one.
        """
        image = bytearray(CLOCK_DATA.size)
        ioctl(self.fd, "KVM_GET_CLOCK", ffi.from_buffer(image))
        clock_ns, flags, realtime_ns = CLOCK_DATA.unpack(image)
        return clock_ns, realtime_ns if flags & lib.KVM_CLOCK_REALTIME else time.time_ns()

    def set_clock(self, clock_ns: int, realtime_ns: int | None = None) -> None:
        """KVM_SET_CLOCK: the paravirtual clock is `clock_ns` from now on.

        With `realtime_ns`: it was so when the host's real-time clock said that, and what has passed since is added; if
        that moment is still to come, nothing is.
        """
        flags = 0
        if realtime_ns is not None:
            flags = self._clock_flags & lib.KVM_CLOCK_REALTIME
            if not flags:
                clock_ns += max(0, time.time_ns() - realtime_ns)
        ioctl(self.fd, "KVM_SET_CLOCK", ffi.from_buffer(CLOCK_DATA.pack(clock_ns, flags, realtime_ns or 0)))

    def release_memory(self) -> None:
        """Let go of the memory that was mapped into slots; no vCPU may run again."""
        for slot in self._mapped:
            region = ffi.new("struct kvm_userspace_memory_region *", {"slot": slot})
            ioctl(self.fd, "KVM_SET_USER_MEMORY_REGION", region)
        for buffer in self._mapped.values():
            ffi.release(buffer)
        self._mapped.clear()
        self._regions.clear()

    def create_irqchip(self) -> None:
        """PIC, IOAPIC and LAPICs, and the i8254 timer with port 0x61, all in the kernel."""
        ioctl_number(self.fd, "KVM_SET_TSS_ADDR", TSS_PAGES)
        address = ffi.new("uint64_t *", IDENTITY_MAP_PAGE)
        ioctl(self.fd, "KVM_SET_IDENTITY_MAP_ADDR", address)
        ioctl_number(self.fd, "KVM_CREATE_IRQCHIP")
        pit = ffi.new("struct kvm_pit_config *", {"flags": lib.KVM_PIT_SPEAKER_DUMMY})
        ioctl(self.fd, "KVM_CREATE_PIT2", pit)
        self.routes = IrqRoutes(self.fd)
        self.routes.apply()

    def set_memory(
        self, slot: int, gpa: int, memory: mmap.mmap | memoryview, *, read_only: bool = False, log: bool = False
    ) -> None:
        """Put `memory` at guest-physical `gpa` as slot number `slot` (KVM_SET_USER_MEMORY_REGION).

        With `log` KVM notes from the start which pages are written. The buffer stays exported until `remove_memory` or
        `release_memory`. Raises `HostError` when the kernel refuses.
        """
        buffer = ffi.from_buffer(memory)
        region = ffi.new("struct kvm_userspace_memory_region *")
        region.slot = slot
        region.flags = (lib.KVM_MEM_READONLY if read_only else 0) | (lib.KVM_MEM_LOG_DIRTY_PAGES if log else 0)
        region.guest_phys_addr = gpa
        region.memory_size = len(buffer)
        region.userspace_addr = int(ffi.cast("uintptr_t", buffer))
        try:
            ioctl(self.fd, "KVM_SET_USER_MEMORY_REGION", region)
        except OSError as error:
            ffi.release(buffer)
            raise HostError(
                f"KVM refuses {len(memory)} bytes of memory at {gpa:#x}: {error.strerror}"
            ) from error
        self._mapped[slot] = buffer
        self._regions[slot] = region

    def remove_memory(self, slot: int) -> None:
        """The guest sees nothing any more where slot `slot` was; vCPUs may run. Raises `OSError`."""
        ioctl(self.fd, "KVM_SET_USER_MEMORY_REGION", ffi.new("struct kvm_userspace_memory_region *", {"slot": slot}))
        del self._regions[slot]
        ffi.release(self._mapped.pop(slot))

    def set_dirty_logging(self, slot: int, *, on: bool) -> None:
        """Have KVM note which pages of a slot are written, or not (KVM_MEM_LOG_DIRTY_PAGES). Raises `OSError`.

        Only the flag of the slot changes; vCPUs may run.
        """
        region = self._regions[slot]
        before = region.flags
        region.flags = before | lib.KVM_MEM_LOG_DIRTY_PAGES if on else before & ~lib.KVM_MEM_LOG_DIRTY_PAGES
        try:
            ioctl(self.fd, "KVM_SET_USER_MEMORY_REGION", region)
        except OSError:
            region.flags = before
            raise

    def protect_manually(self, *, on: bool, all_set: bool = True) -> bool:
        """Whether dirty bits stay set until KVM_CLEAR_DIRTY_LOG (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2), from the next slot
        on that is logged. With `all_set` all of them are set at first where KVM can do that; without it none, and KVM
        has to protect all pages at once, 20 ms for each GiB. False if KVM cannot do either.
        """
        offered = ioctl_number(self.fd, "KVM_CHECK_EXTENSION", lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
        wanted = lib.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | (lib.KVM_DIRTY_LOG_INITIALLY_SET if all_set else 0)
        flags = offered & wanted if on else 0
        if offered:
            self._enable("MANUAL_DIRTY_LOG_PROTECT2", flags)
        return bool(flags)

    def enable_dirty_ring(self, entries: int) -> None:
        """Give each vCPU made from now on a ring of what it wrote, in place of the slots' bitmaps.

        `entries` is a power of two. Raises `HostError` when KVM has no rings or not of that size.
        """
        limit = ioctl_number(self.fd, "KVM_CHECK_EXTENSION", lib.KVM_CAP_DIRTY_LOG_RING_ACQ_REL) // RING_ENTRY_BYTES
        if not limit:
            raise HostError("KVM on this host has no dirty rings", "leave out dirty-ring")
        if entries > limit:
            raise HostError(f"KVM on this host has dirty rings of {limit} entries at most, not {entries}")
        try:
            self._enable("DIRTY_LOG_RING_ACQ_REL", entries * RING_ENTRY_BYTES)
        except OSError as error:
            raise HostError(f"KVM makes no dirty rings of {entries} entries: {error.strerror}") from error

    def _enable(self, name: str, argument: int) -> None:
        request = ffi.new("struct kvm_enable_cap *", {"cap": getattr(lib, f"KVM_CAP_{name}")})
        request.args[0] = argument
        ioctl(self.fd, "KVM_ENABLE_CAP", request)

    def set_irqfd(self, gsi: int, event_fd: int, *, assign: bool = True, resample_fd: int = -1) -> None:
        """Connect an eventfd with interrupt `gsi`: each write is one edge, or one message (KVM_IRQFD).

        With a `resample_fd` the line stays up from a write to the guest's end of interrupt, which is told there.
        """
        request = ffi.new("struct kvm_irqfd *")
        request.fd = event_fd
        request.gsi = gsi
        request.flags = 0 if assign else lib.KVM_IRQFD_FLAG_DEASSIGN
        if resample_fd >= 0:
            request.flags |= lib.KVM_IRQFD_FLAG_RESAMPLE
            request.resamplefd = resample_fd
        ioctl(self.fd, "KVM_IRQFD", request)

    def set_ioeventfd(
        self, event_fd: int, address: int, length: int, value: int | None = None, *, assign: bool = True
    ) -> None:
        """Have writes of `length` bytes (0: of any width) at guest-physical `address` go to an eventfd (KVM_IOEVENTFD).

        With a `value` only those of that value. The guest does not leave KVM for them.
        """
        request = ffi.new("struct kvm_ioeventfd *")
        request.fd, request.addr, request.len = event_fd, address, length
        if value is not None:
            request.datamatch = value
            request.flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
        if not assign:
            request.flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN
        ioctl(self.fd, "KVM_IOEVENTFD", request)

    def get_chips(self) -> list[bytes]:
        """KVM_GET_IRQCHIP of both PICs and the IOAPIC, and KVM_GET_PIT2, as the kernel's structures."""
        images = []
        for chip in range(IRQCHIP_COUNT):
            state = ffi.new("struct kvm_irqchip *", {"chip_id": chip})
            ioctl(self.fd, "KVM_GET_IRQCHIP", state)
            images.append(bytes(ffi.buffer(state)))
        pit = ffi.new("struct kvm_pit_state2 *")
        ioctl(self.fd, "KVM_GET_PIT2", pit)
        return [*images, bytes(ffi.buffer(pit))]

    def set_chips(self, images: list[bytes]) -> None:
        """Put back what `get_chips` gave. Raises `ValueError` for other lengths."""
        sizes = [ffi.sizeof("struct kvm_irqchip")] * IRQCHIP_COUNT + [ffi.sizeof("struct kvm_pit_state2")]
        if [len(image) for image in images] != sizes:
            raise ValueError(f"images of chips are to have {sizes} bytes")
        for image in images[:IRQCHIP_COUNT]:
            ioctl(self.fd, "KVM_SET_IRQCHIP", ffi.from_buffer(image))
        ioctl(self.fd, "KVM_SET_PIT2", ffi.from_buffer(images[IRQCHIP_COUNT]))

    def create_vcpu(self, index: int) -> KvmVcpu:
        """KVM_CREATE_VCPU with APIC id `index`. Raises `HostError` when the kernel refuses."""
        try:
            fd = ioctl_number(self.fd, "KVM_CREATE_VCPU", index)
        except OSError as error:
            raise HostError(f"KVM makes no vCPU {index}: {error.strerror}") from error
        return KvmVcpu(
            fd, index, self._run_size, xsave2_size=self._xsave2_size, has_sregs2=self._has_sregs2
        )
