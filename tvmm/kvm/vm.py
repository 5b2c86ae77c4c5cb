"""One virtual machine of KVM: memory slots, interrupt chips, interrupt lines, vCPUs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, ioctl, ioctl_number, lib
from tvmm.kvm.routes import IrqRoutes
from tvmm.kvm.vcpu import KvmVcpu

if TYPE_CHECKING:
    import mmap

__all__ = ["Vm"]

IRQCHIP_COUNT = 3
"""Master PIC, slave PIC, IOAPIC."""

TSS_PAGES = 0xFFFB_D000
IDENTITY_MAP_PAGE = 0xFFFB_C000
"""Pages that KVM on Intel takes for real mode; they must lie in the hole, where no RAM is."""


class Vm:
    """A KVM VM descriptor. Lives until `close`, which must come after the vCPUs'."""

    def __init__(self, fd: int, run_size: int) -> None:
        self.fd = fd
        self._run_size = run_size
        self._mapped: dict[int, object] = {}

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def release_memory(self) -> None:
        """Let go of the memory that was mapped into slots; no vCPU may run again."""
        for slot in self._mapped:
            region = ffi.new("struct kvm_userspace_memory_region *", {"slot": slot})
            ioctl(self.fd, "KVM_SET_USER_MEMORY_REGION", region)
        for buffer in self._mapped.values():
            ffi.release(buffer)
        self._mapped.clear()

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

    def set_memory(self, slot: int, gpa: int, memory: mmap.mmap | memoryview, *, read_only: bool = False) -> None:
        """Put `memory` at guest-physical `gpa` as slot number `slot` (KVM_SET_USER_MEMORY_REGION).

        The buffer stays exported until `release_memory`. Raises `HostError` when the kernel refuses.
        """
        buffer = ffi.from_buffer(memory)
        region = ffi.new("struct kvm_userspace_memory_region *")
        region.slot = slot
        region.flags = lib.KVM_MEM_READONLY if read_only else 0
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
        """Put back what `get_chips` gave."""
        for image in images[:IRQCHIP_COUNT]:
            state = ffi.new("struct kvm_irqchip *")
            ffi.memmove(state, image, len(image))
            ioctl(self.fd, "KVM_SET_IRQCHIP", state)
        pit = ffi.new("struct kvm_pit_state2 *")
        ffi.memmove(pit, images[IRQCHIP_COUNT], len(images[IRQCHIP_COUNT]))
        ioctl(self.fd, "KVM_SET_PIT2", pit)

    def create_vcpu(self, index: int) -> KvmVcpu:
        """KVM_CREATE_VCPU with APIC id `index`. Raises `HostError` when the kernel refuses."""
        try:
            return KvmVcpu(ioctl_number(self.fd, "KVM_CREATE_VCPU", index), index, self._run_size)
        except OSError as error:
            raise HostError(f"KVM makes no vCPU {index}: {error.strerror}") from error
