"""Register state of a vCPU: what a boot protocol asks for, power-on state, and the records that a library user sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tvmm.boot.entry import EntryState, Segment
    from tvmm.kvm.vcpu import KvmVcpu

__all__ = ["PowerOn", "Registers", "apply_entry", "connect_pic", "power_on", "read_registers", "write_registers"]

MP_RUNNABLE = 0
MP_UNINITIALIZED = 1

RFLAGS_RESERVED = 2

APIC_LVT_LINT0 = 0x350
APIC_LVT_LINT1 = 0x360
LVT_EXTINT = 0x700
LVT_NMI = 0x400

EVENT_NMI_PENDING = 13
EVENT_FLAGS = slice(20, 24)
"""Of `struct kvm_vcpu_events`."""

XCR0_RESET = 1
XSAVE_BYTES = 4096
FCW_RESET, MXCSR_RESET = 0x37F, 0x1F80

MSR_MISC_ENABLE = 0x1A0
MISC_ENABLE_FAST_STRING = 1
MSR_MTRR_DEF_TYPE = 0x2FF
MTRR_ON_WRITE_BACK = 1 << 11 | 6
"""A stock kernel takes all memory for uncached, and says so, when no firmware has turned MTRRs on."""


class Registers(NamedTuple):
    """The general registers of a paused vCPU, each 64 bits."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = RFLAGS_RESERVED


class PowerOn(NamedTuple):
    """What KVM gave a new vCPU, kept to go back to at a reset."""

    sregs: Any
    lapic: bytes


def read_registers(cpu: KvmVcpu) -> Registers:
    """The general registers. The vCPU must not be running."""
    raw = cpu.get_regs()
    return Registers(*(int(getattr(raw, name)) for name in Registers._fields))


def write_registers(cpu: KvmVcpu, registers: Registers) -> None:
    """Set all general registers. The vCPU must not be running."""
    raw = cpu.new_regs()
    for name, value in zip(Registers._fields, registers, strict=True):
        setattr(raw, name, value)
    cpu.set_regs(raw)


def power_on(cpu: KvmVcpu) -> PowerOn:
    """Remember the state of a new vCPU."""
    return PowerOn(cpu.get_sregs(), bytes(cpu.get_lapic()))


def back_to_power_on(cpu: KvmVcpu, state: PowerOn, msrs: list[tuple[int, int]]) -> None:
    """Undo what the guest did to this vCPU; `msrs` are (index, value) after a reset.

    The paravirtual clock is among them: KVM would go on writing it into the memory of the next guest.
    """
    for msr in msrs:  # One by one: KVM stops at the first of several that it refuses.
        cpu.set_msrs([msr])
    _clear_events(cpu)
    cpu.set_sregs(state.sregs)
    write_registers(cpu, Registers())
    cpu.set_xcr0(XCR0_RESET)
    cpu.set_xsave(_initial_xsave())
    cpu.reset_debug_registers()
    cpu.set_lapic(state.lapic)
    cpu.set_mp_state(MP_RUNNABLE if cpu.index == 0 else MP_UNINITIALIZED)


def _clear_events(cpu: KvmVcpu) -> None:
    """No event waits any more, and the vCPU is not halted for a page of guest memory that the host was to bring.

    KVM halts a vCPU in the kernel that needs such a page, until the page is there. What was to wake it is forgotten
    when the asynchronous page faults are switched off, as the reset values of the MSRs do, and the halt is not; no
    ioctl tells or takes it away. An NMI does, and one that is taken back before the vCPU runs only wakes it (Linux
    6.4 and newer).
    """
    # The flags that say which fields this KVM has stay.
    events = bytearray(cpu.get_structure("events"))
    flags = events[EVENT_FLAGS]
    events[:] = bytes(len(events))
    events[EVENT_FLAGS] = flags
    events[EVENT_NMI_PENDING] = 1
    cpu.set_structure("events", bytes(events))
    events[EVENT_NMI_PENDING] = 0
    cpu.set_structure("events", bytes(events))


def _initial_xsave() -> bytes:
    """The standard-format image of x87 and SSE as FNINIT and a reset leave them, everything else initial."""
    image = bytearray(XSAVE_BYTES)
    image[0:2] = FCW_RESET.to_bytes(2, "little")
    image[24:28] = MXCSR_RESET.to_bytes(4, "little")
    return bytes(image)


def connect_pic(cpu: KvmVcpu) -> None:
    """LINT0 takes the PIC's interrupts and LINT1 the NMI, as firmware leaves the boot CPU (virtual wire mode)."""
    lapic = cpu.get_lapic()
    lapic[APIC_LVT_LINT0 : APIC_LVT_LINT0 + 4] = LVT_EXTINT.to_bytes(4, "little")
    lapic[APIC_LVT_LINT1 : APIC_LVT_LINT1 + 4] = LVT_NMI.to_bytes(4, "little")
    cpu.set_lapic(lapic)


def set_boot_msrs(cpu: KvmVcpu) -> None:
    """What firmware would have written before it starts a kernel."""
    cpu.set_msrs([(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING), (MSR_MTRR_DEF_TYPE, MTRR_ON_WRITE_BACK)])


def apply_entry(cpu: KvmVcpu, entry: EntryState) -> None:
    """Registers of the boot CPU as the boot protocol wants them."""
    sregs = cpu.get_sregs()
    _set_segment(sregs.cs, entry.code)
    for name in ("ds", "es", "fs", "gs", "ss"):
        _set_segment(getattr(sregs, name), entry.data)
    _set_segment(sregs.tr, entry.task)
    sregs.gdt.base, sregs.gdt.limit = entry.gdt
    sregs.idt.base, sregs.idt.limit = entry.idt
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = entry.cr0, entry.cr3, entry.cr4, entry.efer
    cpu.set_sregs(sregs)
    write_registers(cpu, Registers(**entry.registers))


def _set_segment(raw: Any, segment: Segment) -> None:
    raw.selector, raw.base, raw.limit = segment.selector, segment.base, segment.limit
    raw.type, raw.present, raw.dpl, raw.db = segment.type, segment.present, segment.dpl, segment.db
    raw.s, raw.l, raw.g = segment.s, segment.l, segment.g
    raw.avl = 0
    raw.unusable = 0 if segment.present else 1
