"""Exits that end the machine, in words: what happened, where, with which registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EXIT_NAMES", "INTERNAL_ERROR", "SHUTDOWN", "crash_title", "format_registers", "instruction_bytes"]

EXIT_NAMES = {
    0: "UNKNOWN",
    1: "EXCEPTION",
    2: "IO",
    3: "HYPERCALL",
    4: "DEBUG",
    5: "HLT",
    6: "MMIO",
    7: "IRQ_WINDOW_OPEN",
    8: "SHUTDOWN",
    9: "FAIL_ENTRY",
    10: "INTR",
    11: "SET_TPR",
    12: "TPR_ACCESS",
    16: "NMI",
    17: "INTERNAL_ERROR",
    24: "SYSTEM_EVENT",
    26: "IOAPIC_EOI",
    27: "HYPERV",
    29: "X86_RDMSR",
    30: "X86_WRMSR",
    31: "DIRTY_RING_FULL",
    33: "X86_BUS_LOCK",
    35: "X86_NOTIFY",
    39: "MEMORY_FAULT",
}
"""KVM_EXIT_* of <linux/kvm.h> by number."""

SHUTDOWN = 8
FAIL_ENTRY = 9
INTERNAL_ERROR = 17
SYSTEM_EVENT = 24

SUBERRORS = {
    1: "KVM cannot emulate the instruction",
    2: "an exception came up while KVM delivered another (simultaneous exceptions)",
    3: "an exit came up while KVM delivered an event",
    4: "the processor gave an exit reason that KVM does not know",
}
"""KVM_INTERNAL_ERROR_* of <linux/kvm.h>."""

EMULATION_SUBERROR = 1


def crash_title(reason: int, words: Sequence[int], suberror: int = 0) -> str:
    """One line on what ended the guest: `reason` is KVM's exit reason, `words` the exit's first 64-bit words."""
    if reason == SHUTDOWN:
        return "triple fault: the guest met an exception while it handled a double fault"
    if reason == FAIL_ENTRY:
        return f"the processor refused to enter the guest (hardware reason {words[0] if words else 0:#x})"
    if reason == INTERNAL_ERROR:
        return f"KVM internal error {suberror}: {SUBERRORS.get(suberror, 'not known to tvmm')}"
    return f"unexpected exit {reason} (KVM_EXIT_{EXIT_NAMES.get(reason, '?')})"


def instruction_bytes(data: Sequence[int]) -> bytes:
    """The instruction that KVM names in the data words of an emulation failure; empty if it names none.

    Word 0 holds flags (bit 0: bytes are there), words 1 and 2 length and up to 15 bytes
    (Documentation/virt/kvm/api.rst, KVM_EXIT_INTERNAL_ERROR, emulation_failure).
    """
    if len(data) < 3 or not data[0] & 1:
        return b""
    raw = b"".join((word & (1 << 64) - 1).to_bytes(8, "little") for word in data[1:3])
    return raw[1 : 1 + min(raw[0], 15)]


_GENERAL = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
)


def format_registers(regs: Any, sregs: Any) -> str:
    """General, segment and control registers as lines; arguments have the field names of kvm_regs and kvm_sregs."""
    lines = [f"  rip {regs.rip:016x}  rflags {regs.rflags:016x}"]
    lines += ["  " + "  ".join(f"{name:<3} {getattr(regs, name):016x}" for name in row) for row in _GENERAL]
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr"):
        segment = getattr(sregs, name)
        lines.append(
            f"  {name}  {segment.selector:04x} base {segment.base:016x} limit {segment.limit:08x} "
            f"type {segment.type:x} dpl {segment.dpl} {'64-bit' if segment.l else '32-bit' if segment.db else '16-bit'}"
        )
    lines.append(
        f"  cr0 {sregs.cr0:x}  cr2 {sregs.cr2:x}  cr3 {sregs.cr3:x}  cr4 {sregs.cr4:x}  efer {sregs.efer:x}"
    )
    lines.append(
        f"  gdt {sregs.gdt.base:x}+{sregs.gdt.limit:x}  idt {sregs.idt.base:x}+{sregs.idt.limit:x}"
    )
    return "\n".join(lines)
