"""System instructions: SMAP switches, RDTSCP, RDPID, INVPCID, VERR and VERW, XGETBV and XSETBV."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.vcpu.assist.cpu import (
    AC,
    CR4_OSXSAVE,
    CR4_PCIDE,
    CR4_TSD,
    EFER_LMA,
    GENERAL_PROTECTION,
    INVALID_OPCODE,
    MSR_TSC,
    MSR_TSC_AUX,
    ZF,
    GuestException,
)
from tvmm.vcpu.assist.operation import STATE_X87, XSTATE_BV
from tvmm.vcpu.assist.paging import is_canonical, paging_of

if TYPE_CHECKING:
    from tvmm.vcpu.assist.operation import Operation

__all__ = ["ROWS"]

INVPCID_ADDRESS, INVPCID_SINGLE, INVPCID_ALL_GLOBAL, INVPCID_ALL = range(4)


def _clac(op: Operation) -> None:
    if op.sregs.cs.dpl:
        raise GuestException(INVALID_OPCODE)
    op.set_flags(0, AC)


def _stac(op: Operation) -> None:
    if op.sregs.cs.dpl:
        raise GuestException(INVALID_OPCODE)
    op.set_flags(AC, AC)


def _rdtscp(op: Operation) -> None:
    if op.sregs.cr4 & CR4_TSD:
        op.require_kernel()
    tsc, aux = op.cpu.read_msr(MSR_TSC), op.cpu.read_msr(MSR_TSC_AUX)
    op.regs.rax, op.regs.rdx, op.regs.rcx = tsc & 0xFFFF_FFFF, tsc >> 32, aux & 0xFFFF_FFFF


def _rdpid(op: Operation) -> None:
    op.put(op.insn.rm, 8, op.cpu.read_msr(MSR_TSC_AUX) & 0xFFFF_FFFF)


def _invpcid(op: Operation) -> None:
    """All four kinds flush everything: more than was asked for is allowed (SDM volume 3, section
    4.10.4.2)."""
    op.require_kernel()
    kind = op.get(op.insn.reg, 8 if op.sregs.efer & EFER_LMA else 4)
    descriptor = op.load(16)
    pcid, address = descriptor & 0xFFFF_FFFF_FFFF_FFFF, descriptor >> 64
    single = kind in (INVPCID_ADDRESS, INVPCID_SINGLE)
    if (
        kind > INVPCID_ALL
        or pcid >> 12
        or (single and pcid and not op.sregs.cr4 & CR4_PCIDE)
        or (kind == INVPCID_ADDRESS and not is_canonical(paging_of(op.regs, op.sregs), address))
    ):
        raise GuestException(GENERAL_PROTECTION, 0)
    op.cpu.flush_translations()


def _verify(op: Operation, write: bool) -> None:
    """ZF tells whether the segment could be read (VERR) or written (VERW) from here."""
    selector = op.source(2)
    sregs = op.sregs
    table, limit = sregs.gdt.base, sregs.gdt.limit
    if selector & 4:
        table, limit = sregs.ldt.base, sregs.ldt.limit
    allowed = False
    if selector & ~3 and (selector | 7) <= limit:
        entry = int.from_bytes(op.cpu.read_linear(table + (selector & ~7), 8), "little")
        kind, dpl = entry >> 40 & 31, entry >> 45 & 3
        code, conforming, access = kind & 8, kind & 4, kind & 2
        if kind & 16:  # A code or data segment.
            readable = not write and bool(access) if code else not write or bool(access)
            allowed = readable and (bool(code and conforming) or dpl >= max(sregs.cs.dpl, selector & 3))
    op.set_flags(ZF if allowed else 0, ZF)


def _verr(op: Operation) -> None:
    _verify(op, False)


def _verw(op: Operation) -> None:
    _verify(op, True)


def _xgetbv(op: Operation) -> None:
    if not op.sregs.cr4 & CR4_OSXSAVE:
        raise GuestException(INVALID_OPCODE)
    index = op.regs.rcx & 0xFFFF_FFFF
    if index > 1:
        raise GuestException(GENERAL_PROTECTION, 0)
    value = op.cpu.get_xcr0()
    if index == 1:  # Of these, what is not in its initial state. The legacy x87 state counts as in use.
        value &= int.from_bytes(op.image()[XSTATE_BV : XSTATE_BV + 8], "little") | STATE_X87
    op.regs.rax, op.regs.rdx = value & 0xFFFF_FFFF, value >> 32


def _xsetbv(op: Operation) -> None:
    if not op.sregs.cr4 & CR4_OSXSAVE:
        raise GuestException(INVALID_OPCODE)
    op.require_kernel()
    value = (op.regs.rdx & 0xFFFF_FFFF) << 32 | op.regs.rax & 0xFFFF_FFFF
    if op.regs.rcx & 0xFFFF_FFFF or not value & STATE_X87:
        raise GuestException(GENERAL_PROTECTION, 0)
    op.cpu.set_xcr0(value)


ROWS = {
    "np 0f 01 /1 rm2": ("clac", _clac),
    "np 0f 01 /1 rm3": ("stac", _stac),
    "np 0f 01 /7 rm1": ("rdtscp", _rdtscp),
    "f3 0f c7 /7 reg": ("rdpid", _rdpid),
    "66 0f38 82 mem": ("invpcid", _invpcid),
    "np 0f 00 /4": ("verr", _verr),
    "66 0f 00 /4": ("verr", _verr),
    "np 0f 00 /5": ("verw", _verw),
    "66 0f 00 /5": ("verw", _verw),
    "np 0f 01 /2 rm0": ("xgetbv", _xgetbv),
    "np 0f 01 /2 rm1": ("xsetbv", _xsetbv),
}
