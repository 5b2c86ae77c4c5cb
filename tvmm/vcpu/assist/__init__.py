"""Instruction assist: what KVM's emulator does not know of a guest kernel's instructions, done here.

KVM hands such an instruction out as KVM_EXIT_INTERNAL_ERROR, suberror 1, with its bytes. With hardware
virtualization that is rare; without it, KVM emulates the whole guest kernel and Linux needs some of
these thousands of times in one boot. `Assist.handle` looks the few frequent ones up by their bytes; the
decoder and the tables of all the others are imported when the first of them turns up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.errors import MemoryAccessError
from tvmm.vcpu.assist.cpu import (
    AC,
    BREAKPOINT,
    CR0_MP,
    CR0_NE,
    CR0_TS,
    DEVICE_NOT_AVAILABLE,
    EFER_LMA,
    FLOATING_POINT,
    INVALID_OPCODE,
    MASK64,
    RF,
    AssistCpu,
    GuestException,
    PageFault,
)
from tvmm.vcpu.assist.syscall import repair_syscall

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Assist", "AssistCpu", "GuestException", "PageFault", "repair_syscall"]


def _skip(cpu: AssistCpu, length: int) -> None:
    rip = cpu.regs.rip + length
    cpu.regs.rip = rip & (MASK64 if cpu.sregs.efer & EFER_LMA else 0xFFFF_FFFF)


def _clac(cpu: AssistCpu) -> str:
    if repair_syscall(cpu):
        return "syscall"
    if cpu.sregs.cs.dpl:
        raise GuestException(INVALID_OPCODE)
    cpu.regs.rflags &= ~(AC | RF)
    _skip(cpu, 3)
    return "clac"


def _stac(cpu: AssistCpu) -> str:
    if cpu.sregs.cs.dpl:
        raise GuestException(INVALID_OPCODE)
    cpu.regs.rflags = cpu.regs.rflags & ~RF | AC
    _skip(cpu, 3)
    return "stac"


def _int3(cpu: AssistCpu) -> str:
    _skip(cpu, 1)  # #BP is a trap: the frame points behind the instruction.
    cpu.inject(BREAKPOINT, None)
    return "int3"


def _fwait(cpu: AssistCpu) -> str:
    cr0 = cpu.sregs.cr0
    if cr0 & CR0_TS and cr0 & CR0_MP:
        raise GuestException(DEVICE_NOT_AVAILABLE)
    if cpu.get_xsave()[2] & 0x80 and cr0 & CR0_NE:  # The x87 status word's error summary.
        raise GuestException(FLOATING_POINT)
    cpu.regs.rflags &= ~RF
    _skip(cpu, 1)
    return "fwait"


_FREQUENT: dict[bytes, Callable[[AssistCpu], str]] = {
    b"\x0f\x01\xca": _clac,
    b"\x0f\x01\xcb": _stac,
}
_ONE_BYTE: dict[bytes, Callable[[AssistCpu], str]] = {b"\xcc": _int3, b"\x9b": _fwait}


class Assist:
    """Emulates single instructions for the vCPUs of a machine. Holds no state of theirs."""

    def handle(self, cpu: AssistCpu, code: bytes) -> str | None:
        """Do the instruction at RIP, whose bytes `code` begins with, and return its name (for statistics).

        `code` may be longer than the instruction, or shorter if KVM fetched no more of it. An exception
        that the instruction raises is injected and counts as done. Returns None, with the vCPU
        unchanged, for an instruction that is not known or whose operand is not in RAM.
        """
        done = _FREQUENT.get(code[:3]) or _ONE_BYTE.get(code[:1])
        try:
            if done is not None:
                return done(cpu)
            if repair_syscall(cpu):  # A page-fault handler that does not begin with CLAC.
                return "syscall"
            from tvmm.vcpu.assist.emulate import emulate

            return emulate(cpu, code)
        except GuestException as fault:
            if isinstance(fault, PageFault):
                cpu.sregs.cr2 = fault.address
                cpu.sregs_changed()
            cpu.inject(fault.vector, fault.error_code)
            return f"exception-{fault.vector}"
        except MemoryAccessError:
            return None
