"""x87 control and MXCSR: what a kernel needs to set up, check and clean the FPU. No arithmetic.

The x87 part of an XSAVE image is the FXSAVE area: control word at 0, status word at 2, abridged tags at
4 (a set bit is a register in use), opcode and pointers at 6 to 23, registers of 16 bytes from 32, in
stack order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.vcpu.assist.cpu import (
    CR0_EM,
    CR0_MP,
    CR0_NE,
    CR0_TS,
    DEVICE_NOT_AVAILABLE,
    FLOATING_POINT,
    GENERAL_PROTECTION,
    INVALID_OPCODE,
    GuestException,
)
from tvmm.vcpu.assist.operation import MXCSR, STATE_SSE, STATE_X87

if TYPE_CHECKING:
    from tvmm.vcpu.assist.operation import Operation

__all__ = ["MXCSR_KNOWN", "ROWS", "initial_x87"]

MXCSR_KNOWN = 0xFFFF
"""Bits of MXCSR that exist, unless the image's own mask says otherwise."""
REGISTERS = 32
SUMMARY, BUSY, TOP = 1 << 7, 1 << 15, 7 << 11
PENDING = 0x3F


def initial_x87() -> bytes:
    """Bytes 0 to 23 of the area after FNINIT."""
    return (0x37F).to_bytes(2, "little") + bytes(22)


def _status(op: Operation) -> int:
    return int.from_bytes(op.image()[2:4], "little")


def _check_pending(op: Operation) -> None:
    if _status(op) & SUMMARY and op.sregs.cr0 & CR0_NE:
        raise GuestException(FLOATING_POINT)


def _fwait(op: Operation) -> None:
    if op.sregs.cr0 & CR0_TS and op.sregs.cr0 & CR0_MP:
        raise GuestException(DEVICE_NOT_AVAILABLE)
    _check_pending(op)


def _fnclex(op: Operation) -> None:
    op.require_fpu()
    status = _status(op) & ~(BUSY | SUMMARY | 0x7F)
    op.change_image(STATE_X87)[2:4] = status.to_bytes(2, "little")


def _fninit(op: Operation) -> None:
    op.require_fpu()
    op.change_image(STATE_X87)[0:24] = initial_x87()


def _fnstsw_ax(op: Operation) -> None:
    op.require_fpu()
    op.put(0, 2, _status(op))


def _fnstsw(op: Operation) -> None:
    op.require_fpu()
    op.store(_status(op), 2)


def _fnstcw(op: Operation) -> None:
    op.require_fpu()
    op.store(int.from_bytes(op.image()[0:2], "little"), 2)


def _fldcw(op: Operation) -> None:
    op.require_fpu()
    _check_pending(op)
    control = op.load(2) & 0x1F7F | 0x40
    image = op.change_image(STATE_X87)
    image[0:2] = control.to_bytes(2, "little")
    # Exceptions that are flagged already may now be masked or not: the summary follows.
    status = _status(op) & ~(SUMMARY | BUSY)
    if status & ~control & PENDING:
        status |= SUMMARY | BUSY
    image[2:4] = status.to_bytes(2, "little")


def _fild(op: Operation) -> None:
    """Push a 32-bit integer. Kernels do it to overwrite the last instruction and data pointers."""
    op.require_fpu()
    _check_pending(op)
    value = op.load(4)
    image = op.change_image(STATE_X87)
    status = _status(op)
    top = (status >> 11) - 1 & 7
    if image[4] >> top & 1:  # Stack overflow, masked as after FNINIT: the default NaN, IE, SF and C1.
        number = (0xFFFF << 64) | (3 << 62)
        status |= 0x241
    else:
        number = _extended(value - (1 << 32) if value >> 31 else value)
        status &= ~0x200
    status = status & ~TOP | top << 11
    image[4] |= 1 << top
    # The image holds the registers in stack order: all move down by one.
    image[REGISTERS + 16 : REGISTERS + 128] = image[REGISTERS : REGISTERS + 112]
    image[REGISTERS : REGISTERS + 16] = number.to_bytes(16, "little")
    image[2:4] = status.to_bytes(2, "little")


def _extended(value: int) -> int:
    """An integer of up to 64 bits in 80-bit extended format."""
    if value == 0:
        return 0
    sign, magnitude = (1 << 79, -value) if value < 0 else (0, value)
    length = magnitude.bit_length()
    return sign | (16383 + length - 1) << 64 | magnitude << 64 - length


def _emms(op: Operation) -> None:
    if op.sregs.cr0 & CR0_EM:
        raise GuestException(INVALID_OPCODE)
    op.require_fpu()
    _check_pending(op)
    image = op.change_image(STATE_X87)
    image[2:4] = (_status(op) & ~TOP).to_bytes(2, "little")
    image[4] = 0


def _ldmxcsr(op: Operation) -> None:
    op.require_vector()
    value = op.load(4)
    known = int.from_bytes(op.image()[MXCSR + 4 : MXCSR + 8], "little") or MXCSR_KNOWN
    if value & ~known:
        raise GuestException(GENERAL_PROTECTION, 0)
    op.change_image(STATE_SSE)[MXCSR : MXCSR + 4] = value.to_bytes(4, "little")


def _stmxcsr(op: Operation) -> None:
    op.require_vector()
    op.store(int.from_bytes(op.image()[MXCSR : MXCSR + 4], "little"), 4)


ROWS = {
    "np 9b": ("fwait", _fwait),
    "np db /4 rm2": ("fnclex", _fnclex),
    "np db /4 rm3": ("fninit", _fninit),
    "np df /4 rm0": ("fnstsw", _fnstsw_ax),
    "np dd /7 mem": ("fnstsw", _fnstsw),
    "np d9 /7 mem": ("fnstcw", _fnstcw),
    "np d9 /5 mem": ("fldcw", _fldcw),
    "np db /0 mem": ("fild", _fild),
    "np 0f 77": ("emms", _emms),
    "np 0f ae /2 mem": ("ldmxcsr", _ldmxcsr),
    "np 0f ae /3 mem": ("stmxcsr", _stmxcsr),
    "vex.np 0f ae /2 mem": ("vldmxcsr", _ldmxcsr),
    "vex.np 0f ae /3 mem": ("vstmxcsr", _stmxcsr),
}
