"""Repair of SYSCALL where KVM enters the handler with user privileges.

Without hardware virtualization, KVM performs SYSCALL from user mode by setting RIP to LSTAR and saving
RCX and R11, but leaves CS and SS at privilege level 3. The fetch of the handler's first instruction
then faults: it is user code that fetches from a kernel page. The guest's page-fault handler is entered,
finds an impossible fault and kills the process.

Page-fault handlers of kernels that use SMAP begin with CLAC (maybe after ENDBR64), which KVM does not
emulate, so tvmm gets control before anything else has happened: the exception frame still lies at RSP.
If all of it says that this is such a SYSCALL, the frame is taken back and the handler is entered as
SYSCALL should have done it. CS needs no repair, since the exception has loaded the kernel's.

A user program that jumps to LSTAR makes nearly the same frame, and must not get a system call out of it
with an R11 of its choice, because the kernel takes user flags from there. It is told apart by its
flags: SYSCALL has cleared those in SFMASK, among them IF, which user code cannot clear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.vcpu.assist.cpu import MSR_LSTAR, MSR_SFMASK, RF, GuestException

if TYPE_CHECKING:
    from tvmm.vcpu.assist.cpu import AssistCpu

__all__ = ["repair_syscall"]

FRAME_SIZE = 48
"""Error code, RIP, CS, RFLAGS, RSP, SS: what a fault pushes in long mode."""
USER_FETCH_FROM_KERNEL_PAGE = 0x15
"""Error code of #PF: present, user, instruction fetch."""
FLAGS_ALWAYS, FLAGS_KNOWN = 1 << 1, 0x3F_7FD7
"""The flag that is always set, and all flags there are."""
SYSCALL_INSTRUCTION = b"\x0f\x05"


def repair_syscall(cpu: AssistCpu) -> bool:
    """Enter the handler if the vCPU stands at the entry of #PF because of such a SYSCALL; else change
    nothing."""
    regs, sregs = cpu.regs, cpu.sregs
    target = sregs.cr2
    # Cheap checks first, for this is asked at every CLAC: the usual fault is at a user address, and SYSCALL leaves
    # user flags in R11, which hardly anything else looks like.
    if not target >> 63 or regs.r11 & FLAGS_ALWAYS != FLAGS_ALWAYS or regs.r11 & ~FLAGS_KNOWN:
        return False
    try:
        frame = cpu.read_linear(regs.rsp, FRAME_SIZE)
        if int.from_bytes(frame[0:8], "little") != USER_FETCH_FROM_KERNEL_PAGE:
            return False
        if int.from_bytes(frame[8:16], "little") != target or frame[16] & 3 != 3:
            return False
        if target != cpu.read_msr(MSR_LSTAR):
            return False
        if cpu.read_linear((regs.rcx - 2) & 0xFFFF_FFFF_FFFF_FFFF, 2, user=True) != SYSCALL_INSTRUCTION:
            return False
        flags = int.from_bytes(frame[24:32], "little") & ~RF
        if flags & cpu.read_msr(MSR_SFMASK):
            return False
    except GuestException:
        return False
    regs.rip = target
    regs.rsp = int.from_bytes(frame[32:40], "little")
    regs.rflags = flags
    return True
