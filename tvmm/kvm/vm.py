"""One virtual machine of KVM: memory slots, interrupt chips, interrupt lines, vCPUs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, ioctl, ioctl_number, lib
from tvmm.kvm.vcpu import KvmVcpu

if TYPE_CHECKING:
    import mmap

__all__ = ["Vm"]

IOAPIC_PINS, PIC_PINS, TIMER_PIN = 24, 16, 2
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
        self._route_isa_interrupts()

    def _route_isa_interrupts(self) -> None:
        """Line i to pin i of PIC and IOAPIC, but the timer's line 0 to IOAPIC pin 2, as PCs are wired and tables say.

        KVM's own default has line 0 at pin 0, where no guest looks for the timer.
        """
        routes = []
        for line in range(IOAPIC_PINS):
            if line < PIC_PINS:
                chip = lib.KVM_IRQCHIP_PIC_MASTER if line < 8 else lib.KVM_IRQCHIP_PIC_SLAVE
                routes.append((line, chip, line % 8))
            if line != TIMER_PIN:
                routes.append((line, lib.KVM_IRQCHIP_IOAPIC, line or TIMER_PIN))
        table = ffi.new("struct kvm_irq_routing *", {"entries": len(routes)})
        table.nr = len(routes)
        for index, (line, chip, pin) in enumerate(routes):
            lib.tvmm_route_to_pin(ffi.addressof(table.entries, index), line, chip, pin)
        ioctl(self.fd, "KVM_SET_GSI_ROUTING", table)

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

    def set_irqfd(self, gsi: int, event_fd: int, *, assign: bool = True) -> None:
        """Connect an eventfd with interrupt line `gsi`: each write is one edge (KVM_IRQFD)."""
        request = ffi.new("struct kvm_irqfd *")
        request.fd = event_fd
        request.gsi = gsi
        request.flags = 0 if assign else lib.KVM_IRQFD_FLAG_DEASSIGN
        ioctl(self.fd, "KVM_IRQFD", request)

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
