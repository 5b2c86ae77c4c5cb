"""One vCPU of KVM: the run step, and its state as records."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, ioctl, ioctl_number, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tvmm.kvm.bus_lock import BusLock
    from tvmm.kvm.uart import TransmitRing
    from tvmm.vcpu.cpuid import CpuidEntry

__all__ = [
    "FAILED",
    "KICK",
    "MMIO_READ",
    "MMIO_WRITE",
    "OTHER",
    "PIO_IN",
    "PIO_STRING",
    "KvmVcpu",
    "step",
]

KICK: int = lib.TVMM_KICK
PIO_IN: int = lib.TVMM_PIO_IN
PIO_STRING: int = lib.TVMM_PIO_STRING
MMIO_WRITE: int = lib.TVMM_MMIO_WRITE
MMIO_READ: int = lib.TVMM_MMIO_READ
OTHER: int = lib.TVMM_OTHER
FAILED: int = lib.TVMM_FAILED

XSAVE_SIZE = 4096
DR6_RESET, DR7_RESET = 0xFFFF_0FF0, 0x400

step = lib.tvmm_step
"""`step(raw, response)`: run until an exit needs Python; what it returns is described in shim.h."""


class KvmVcpu:
    """A vCPU descriptor with its shared run page.

    Registers are read and set only while no thread is in `step`; the caller sees to that.
    """

    def __init__(self, fd: int, index: int, run_size: int) -> None:
        self.fd = fd
        self.index = index
        error = ffi.new("int *")
        self.raw = lib.tvmm_vcpu_new(fd, run_size, error)
        if not self.raw:
            os.close(fd)
            raise HostError(f"vCPU {index} cannot be mapped: {os.strerror(error[0])}")

    def close(self) -> None:
        """Unmap and close. The vCPU's thread must have ended."""
        if self.fd >= 0:
            lib.tvmm_vcpu_free(self.raw)
            os.close(self.fd)
            self.fd = -1
            self.raw = ffi.NULL

    # --- running ---

    def set_uart(self, ring: TransmitRing) -> None:
        """Let the C step serve the serial port's data and line status where the model allows it."""
        self.raw.uart = ring.raw

    def set_bus(self, lock: BusLock) -> None:
        """From now on a step that returns a port or memory access holds `lock` until the next one."""
        self._bus = lock
        self.raw.bus = lock.raw

    def release_bus(self) -> None:
        """Let go of the bus before the next step, if this vCPU holds it. On its own thread."""
        lib.tvmm_release_bus(self.raw)

    def enter_thread(self) -> None:
        """The calling thread is the one that will `step`; blocks its signals but for the kick."""
        lib.tvmm_thread_enter(self.raw)

    def leave_thread(self) -> None:
        """Undo `enter_thread`, on the same thread."""
        lib.tvmm_thread_leave(self.raw)

    def kick(self) -> None:
        """Get the thread out of KVM_RUN, or keep it from entering: any thread may call this."""
        lib.tvmm_kick(self.raw)

    def unkick(self) -> None:
        """Allow KVM_RUN again; the vCPU's thread calls it before it looks at what is wanted."""
        lib.tvmm_unkick(self.raw)

    @property
    def exits(self) -> int:
        """Exits to user space so far."""
        return int(self.raw.exits)

    @property
    def exits_in_c(self) -> int:
        """Those of them that needed no Python."""
        return int(self.raw.exits_in_c)

    def string_io(self) -> tuple[Any, int, int, bool]:
        """The pending string access: (writable buffer, bytes an element, port, whether it reads)."""
        data, size = ffi.new("uint8_t **"), ffi.new("uint32_t *")
        port, is_in = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        count = lib.tvmm_string_io(self.raw, data, size, port, is_in)
        return ffi.buffer(data[0], count * size[0]), int(size[0]), int(port[0]), bool(is_in[0])

    def exit_words(self) -> list[int]:
        """The first four 64-bit words of the exit's union, for reports."""
        words = ffi.new("uint64_t[4]")
        return [int(words[index]) for index in range(lib.tvmm_exit_words(self.raw, words, 4))]

    def internal_error(self) -> tuple[int, list[int]]:
        """(suberror, data words) of the pending KVM_EXIT_INTERNAL_ERROR."""
        suberror, data = ffi.new("uint32_t *"), ffi.new("uint64_t[16]")
        count = lib.tvmm_internal_data(self.raw, suberror, data, 16)
        return int(suberror[0]), [int(data[index]) for index in range(count)]

    # --- state: the kernel's structures, as cffi views with the field names of <linux/kvm.h> ---

    def _get(self, call: str, type_name: str) -> Any:
        value = ffi.new(f"struct {type_name} *")
        ioctl(self.fd, call, value)
        return value

    def get_regs(self) -> Any:
        """KVM_GET_REGS."""
        return self._get("KVM_GET_REGS", "kvm_regs")

    def set_regs(self, regs: Any) -> None:
        """KVM_SET_REGS."""
        ioctl(self.fd, "KVM_SET_REGS", regs)

    def new_regs(self) -> Any:
        """All-zero general registers, to fill and set."""
        return ffi.new("struct kvm_regs *")

    def get_sregs(self) -> Any:
        """KVM_GET_SREGS."""
        return self._get("KVM_GET_SREGS", "kvm_sregs")

    def set_sregs(self, sregs: Any) -> None:
        """KVM_SET_SREGS."""
        ioctl(self.fd, "KVM_SET_SREGS", sregs)

    def get_events(self) -> Any:
        """KVM_GET_VCPU_EVENTS."""
        return self._get("KVM_GET_VCPU_EVENTS", "kvm_vcpu_events")

    def set_events(self, events: Any) -> None:
        """KVM_SET_VCPU_EVENTS."""
        ioctl(self.fd, "KVM_SET_VCPU_EVENTS", events)

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE: 0 runnable, 1 uninitialized, 2 INIT received, 3 halted, 4 SIPI received."""
        return int(self._get("KVM_GET_MP_STATE", "kvm_mp_state").mp_state)

    def set_mp_state(self, state: int) -> None:
        """KVM_SET_MP_STATE."""
        ioctl(self.fd, "KVM_SET_MP_STATE", ffi.new("struct kvm_mp_state *", {"mp_state": state}))

    def get_lapic(self) -> bytearray:
        """KVM_GET_LAPIC: the register page's first KiB."""
        return bytearray(ffi.buffer(self._get("KVM_GET_LAPIC", "kvm_lapic_state")))

    def set_lapic(self, registers: bytes | bytearray) -> None:
        """KVM_SET_LAPIC."""
        state = ffi.new("struct kvm_lapic_state *")
        ffi.memmove(state, registers, ffi.sizeof("struct kvm_lapic_state"))
        ioctl(self.fd, "KVM_SET_LAPIC", state)

    def get_xsave(self) -> bytearray:
        """KVM_GET_XSAVE: 4096 bytes in the standard format."""
        return bytearray(ffi.buffer(self._get("KVM_GET_XSAVE", "kvm_xsave")))[:XSAVE_SIZE]

    def set_xsave(self, image: bytes | bytearray) -> None:
        """KVM_SET_XSAVE."""
        state = ffi.new("struct kvm_xsave *")
        ffi.memmove(state, image, min(len(image), XSAVE_SIZE))
        ioctl(self.fd, "KVM_SET_XSAVE", state)

    def get_xcr0(self) -> int:
        """XCR0 out of KVM_GET_XCRS."""
        xcrs = self._get("KVM_GET_XCRS", "kvm_xcrs")
        for index in range(xcrs.nr_xcrs):
            if xcrs.xcrs[index].xcr == 0:
                return int(xcrs.xcrs[index].value)
        return 1

    def set_xcr0(self, value: int) -> None:
        """XCR0 through KVM_SET_XCRS."""
        xcrs = ffi.new("struct kvm_xcrs *")
        xcrs.nr_xcrs = 1
        xcrs.xcrs[0].value = value
        ioctl(self.fd, "KVM_SET_XCRS", xcrs)

    def reset_debug_registers(self) -> None:
        """KVM_SET_DEBUGREGS with the values after power-on (Intel SDM volume 3, table 10-1)."""
        registers = ffi.new("struct kvm_debugregs *", {"dr6": DR6_RESET, "dr7": DR7_RESET})
        ioctl(self.fd, "KVM_SET_DEBUGREGS", registers)

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        """KVM_SET_CPUID2."""
        ioctl(self.fd, "KVM_SET_CPUID2", _cpuid_table(entries))

    def get_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_CPUID2: what KVM made of it."""
        from tvmm.kvm.system import MAX_CPUID_ENTRIES, cpuid_entries

        table = ffi.new("struct kvm_cpuid2 *", {"entries": MAX_CPUID_ENTRIES})
        table.nent = MAX_CPUID_ENTRIES
        ioctl(self.fd, "KVM_GET_CPUID2", table)
        return cpuid_entries(table)

    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """KVM_GET_MSRS; those after the first that KVM refuses are left out."""
        table = ffi.new("struct kvm_msrs *", {"entries": len(indices)})
        table.nmsrs = len(indices)
        for position, index in enumerate(indices):
            table.entries[position].index = index
        done = ioctl(self.fd, "KVM_GET_MSRS", table)
        return {int(table.entries[position].index): int(table.entries[position].data) for position in range(done)}

    def set_msrs(self, values: Iterable[tuple[int, int]]) -> int:
        """KVM_SET_MSRS: how many of them, from the front, were accepted. KVM stops at the first that it refuses."""
        pairs = list(values)
        table = ffi.new("struct kvm_msrs *", {"entries": len(pairs)})
        table.nmsrs = len(pairs)
        for position, (index, value) in enumerate(pairs):
            table.entries[position].index = index
            table.entries[position].data = value
        return ioctl(self.fd, "KVM_SET_MSRS", table)

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ: the guest's time stamp counter frequency."""
        return ioctl_number(self.fd, "KVM_GET_TSC_KHZ")


def _cpuid_table(entries: Sequence[CpuidEntry]) -> Any:
    table = ffi.new("struct kvm_cpuid2 *", {"entries": len(entries)})
    table.nent = len(entries)
    for index, entry in enumerate(entries):
        raw = table.entries[index]
        raw.function, raw.index, raw.flags, raw.eax, raw.ebx, raw.ecx, raw.edx = entry
    return table
