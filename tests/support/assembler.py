"""Encodes instructions from the table's own columns, to be run natively and by instruction assist."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Form", "encode"]

PREFIX_BYTES = (b"", b"\x66", b"\xf3", b"\xf2")
MAP_BYTES = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")


class Form(NamedTuple):
    """One encoding. A memory operand is [base] or [base + index * scale] with an 8 or 32 bit displacement."""

    vex: bool
    map: int
    opcode: int
    prefix: int
    reg: int
    rm: int = 0
    base: int | None = None
    index_register: int | None = None
    scale: int = 1
    displacement: int = 0
    wide: bool = False
    operand_66: bool = False
    vector_256: bool = False
    vvvv: int = 0
    immediate: int | None = None


def encode(form: Form) -> bytes:
    """The bytes of an instruction."""
    high_r, high_x, high_b = form.reg >> 3, (form.index_register or 0) >> 3, (form.base or form.rm) >> 3
    code = b""
    if form.vex:
        pp = form.prefix | (form.vector_256 << 2) | (~form.vvvv & 15) << 3
        if high_x or high_b or form.wide or form.map != 1:
            first = form.map | (high_r ^ 1) << 7 | (high_x ^ 1) << 6 | (high_b ^ 1) << 5
            code += bytes((0xC4, first, form.wide << 7 | pp))
        else:
            code += bytes((0xC5, (high_r ^ 1) << 7 | pp))
    else:
        if form.operand_66 and form.prefix != 1:
            code += b"\x66"
        code += PREFIX_BYTES[form.prefix]
        # Always a REX, so that byte registers 4 to 7 are the low ones, as with any 64-bit compiler's code.
        code += bytes((0x40 | form.wide << 3 | high_r << 2 | high_x << 1 | high_b,))
        code += MAP_BYTES[form.map]
    code += bytes((form.opcode,)) + _operands(form)
    return code if form.immediate is None else code + bytes((form.immediate,))


def _operands(form: Form) -> bytes:
    reg = (form.reg & 7) << 3
    if form.base is None:
        return bytes((0xC0 | reg | form.rm & 7,))
    short = -128 <= form.displacement <= 127
    mod = 0x40 if short else 0x80
    displacement = form.displacement.to_bytes(1 if short else 4, "little", signed=True)
    if form.index_register is None and form.base & 7 != 4:
        return bytes((mod | reg | form.base & 7,)) + displacement
    index = 4 if form.index_register is None else form.index_register & 7
    sib = {1: 0, 2: 1, 4: 2, 8: 3}[form.scale] << 6 | index << 3 | form.base & 7
    return bytes((mod | reg | 4, sib)) + displacement
