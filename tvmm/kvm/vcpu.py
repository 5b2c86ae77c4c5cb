"""One vCPU of KVM: the run step, and its state as records."""

from __future__ import annotations

import errno
import os
import struct
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
"""Of KVM_GET_XSAVE, and the least of KVM_GET_XSAVE2."""

MSR_ENTRY = struct.Struct("<I4xQ")
MSRS_HEADER = struct.Struct("<I4x")
"""`struct kvm_msr_entry` and what comes before the entries in `struct kvm_msrs`."""

MSRS_PER_CALL = 255
"""KVM refuses 256 (MAX_IO_MSRS) and more in one call."""

CPUID_HEADER, CPUID_ENTRY = struct.Struct("<I4x"), struct.Struct("<7I12x")

STRUCTURES = {
    "regs": ("KVM_GET_REGS", "KVM_SET_REGS", "struct kvm_regs"),
    "sregs": ("KVM_GET_SREGS", "KVM_SET_SREGS", "struct kvm_sregs"),
    "sregs2": ("KVM_GET_SREGS2", "KVM_SET_SREGS2", "struct kvm_sregs2"),
    "debugregs": ("KVM_GET_DEBUGREGS", "KVM_SET_DEBUGREGS", "struct kvm_debugregs"),
    "events": ("KVM_GET_VCPU_EVENTS", "KVM_SET_VCPU_EVENTS", "struct kvm_vcpu_events"),
    "lapic": ("KVM_GET_LAPIC", "KVM_SET_LAPIC", "struct kvm_lapic_state"),
}
"""What `get_structure` and `set_structure` move."""
DR6_RESET, DR7_RESET = 0xFFFF_0FF0, 0x400

step = lib.tvmm_step
"""`step(raw, response)`: run until an exit needs Python; what it returns is described in shim.h."""


class KvmVcpu:
    """A vCPU descriptor with its shared run page.

    Registers are read and set only while no thread is in `step`; the caller sees to that.
    """

    def __init__(
        self, fd: int, index: int, run_size: int, *, xsave2_size: int = 0, has_sregs2: bool = False
    ) -> None:
        """`xsave2_size` is what the VM says about KVM_CAP_XSAVE2: bytes of that image, 0 where there is none."""
        self.fd = fd
        self.index = index
        self.has_sregs2 = has_sregs2
        self._xsave2_size = xsave2_size
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

    @property
    def reasons(self) -> dict[int, int]:
        """How many exits there were by KVM_EXIT_*, those of kicks (INTR) included; 63 and above are one."""
        counts = ffi.unpack(self.raw.reasons, len(self.raw.reasons))
        return {reason: count for reason, count in enumerate(counts) if count}

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

    # --- the same as bytes, for records: the layouts are part of the kernel's ABI ---

    def get_structure(self, name: str) -> bytes:
        """One of `STRUCTURES` as the kernel lays it out."""
        call, _, kind = STRUCTURES[name]
        image = bytearray(ffi.sizeof(kind))
        ioctl(self.fd, call, ffi.from_buffer(image))
        return bytes(image)

    def set_structure(self, name: str, image: bytes) -> None:
        """Set one of `STRUCTURES`. Raises `ValueError` for a wrong length, `OSError` when KVM refuses."""
        _, call, kind = STRUCTURES[name]
        if len(image) != ffi.sizeof(kind):
            raise ValueError(f"{name} has {len(image)} bytes, not {ffi.sizeof(kind)}")
        ioctl(self.fd, call, ffi.from_buffer(image))

    @property
    def xsave_size(self) -> int:
        """Bytes of `get_xsave_image`."""
        return max(self._xsave2_size, XSAVE_SIZE)

    def get_xsave_image(self) -> bytes:
        """KVM_GET_XSAVE2, or KVM_GET_XSAVE where there is none: all state components in the standard format."""
        image = bytearray(self.xsave_size)
        ioctl(self.fd, "KVM_GET_XSAVE2" if self._xsave2_size else "KVM_GET_XSAVE", ffi.from_buffer(image))
        return bytes(image)

    def set_xsave_image(self, image: bytes) -> None:
        """KVM_SET_XSAVE, which reads `xsave_size` bytes whatever it gets. Raises `ValueError` for another length."""
        if len(image) != self.xsave_size:
            raise ValueError(f"the xsave image has {len(image)} bytes, not {self.xsave_size}")
        ioctl(self.fd, "KVM_SET_XSAVE", ffi.from_buffer(image))

    def get_cpuid_image(self) -> bytes:
        """KVM_GET_CPUID2 as an array of `struct kvm_cpuid_entry2`, 40 bytes each."""
        from tvmm.kvm.system import MAX_CPUID_ENTRIES

        image = bytearray(CPUID_HEADER.size + MAX_CPUID_ENTRIES * CPUID_ENTRY.size)
        CPUID_HEADER.pack_into(image, 0, MAX_CPUID_ENTRIES)
        ioctl(self.fd, "KVM_GET_CPUID2", ffi.from_buffer(image))
        (count,) = CPUID_HEADER.unpack_from(image)
        return bytes(image[CPUID_HEADER.size : CPUID_HEADER.size + count * CPUID_ENTRY.size])

    def set_cpuid_image(self, image: bytes) -> None:
        """KVM_SET_CPUID2 with what `get_cpuid_image` gave. Raises `ValueError` unless it is whole entries."""
        count, rest = divmod(len(image), CPUID_ENTRY.size)
        if rest:
            raise ValueError(f"{len(image)} bytes of CPUID are not a number of entries")
        ioctl(self.fd, "KVM_SET_CPUID2", ffi.from_buffer(CPUID_HEADER.pack(count) + image))

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
        """KVM_GET_MSRS; those after the first that KVM refuses are left out. At most `MSRS_PER_CALL`."""
        entries = b"".join([MSR_ENTRY.pack(index, 0) for index in indices])
        image = bytearray(MSRS_HEADER.pack(len(indices)) + entries)
        done = ioctl(self.fd, "KVM_GET_MSRS", ffi.from_buffer(image))
        end = MSRS_HEADER.size + done * MSR_ENTRY.size
        return dict(MSR_ENTRY.iter_unpack(memoryview(image)[MSRS_HEADER.size : end]))

    def set_msrs(self, values: Iterable[tuple[int, int]]) -> int:
        """KVM_SET_MSRS: how many of them, from the front, were accepted. KVM stops at the first that it refuses.

        At most `MSRS_PER_CALL`.
        """
        entries = [MSR_ENTRY.pack(index, value) for index, value in values]
        return ioctl(self.fd, "KVM_SET_MSRS", ffi.from_buffer(MSRS_HEADER.pack(len(entries)) + b"".join(entries)))

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ: the guest's time stamp counter frequency."""
        return ioctl_number(self.fd, "KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ. Only where `Kvm.has_tsc_control`: elsewhere a refused frequency may be reported later."""
        ioctl_number(self.fd, "KVM_SET_TSC_KHZ", khz)

    def tell_clock_was_stopped(self) -> bool:
        """KVM_KVMCLOCK_CTRL: the guest's watchdogs are not to count the time that it was paused.

        False where the guest has no paravirtual clock, or this KVM no such call.
        """
        try:
            ioctl_number(self.fd, "KVM_KVMCLOCK_CTRL")
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTTY):
                return False
            raise
        return True


def _cpuid_table(entries: Sequence[CpuidEntry]) -> Any:
    table = ffi.new("struct kvm_cpuid2 *", {"entries": len(entries)})
    table.nent = len(entries)
    for index, entry in enumerate(entries):
        raw = table.entries[index]
        raw.function, raw.index, raw.flags, raw.eax, raw.ebx, raw.ecx, raw.edx = entry
    return table
