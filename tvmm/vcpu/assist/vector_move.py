"""Moves between vector registers, memory and general registers: SSE to SSE4.1 and their AVX forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.vcpu.assist.lanes import MASK64, join, split
from tvmm.vcpu.assist.operation import Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.vcpu.assist.operation import Operation

    Handler = Callable[[Operation], None]

__all__ = ["ROWS"]

_WIDTHS = {"B": 1, "H": 2, "I": 4, "Q": 8}


def _full_size(op: Operation) -> int:
    return op.vector_size if op.insn.vex else 16


def _load(aligned: bool) -> Handler:
    def handle(op: Operation) -> None:
        op.require_vector()
        op.put_vector(op.insn.reg, op.vector_source(_full_size(op), aligned))

    return handle


def _store(aligned: bool) -> Handler:
    def handle(op: Operation) -> None:
        op.require_vector()
        size = _full_size(op)
        value = op.vector(op.insn.reg, size)
        if op.insn.memory is None:
            op.put_vector(op.insn.rm, value)
        else:
            op.store(value, size, size if aligned else 1)

    return handle


def _scalar_load(size: int) -> Handler:
    """MOVSS, MOVSD: memory clears the rest, a register replaces the lowest lane only."""

    def handle(op: Operation) -> None:
        op.require_vector()
        value = op.vector_source(size)
        if op.insn.memory is None:
            rest = op.vector(op.insn.vvvv if op.insn.vex else op.insn.reg)
            value |= rest >> 8 * size << 8 * size
        op.put_vector(op.insn.reg, value)

    return handle


def _scalar_store(size: int) -> Handler:
    def handle(op: Operation) -> None:
        op.require_vector()
        value = op.vector(op.insn.reg, size)
        if op.insn.memory is not None:
            op.store(value, size)
            return
        rest = op.vector(op.insn.vvvv if op.insn.vex else op.insn.rm)
        op.put_vector(op.insn.rm, rest >> 8 * size << 8 * size | value)

    return handle


def _load_low(op: Operation) -> None:
    """MOVLPS, MOVLPD; between registers MOVHLPS."""
    op.require_vector()
    rest = op.vector(op.insn.vvvv if op.insn.vex else op.insn.reg)
    low = op.load(8) if op.insn.memory is not None else op.vector(op.insn.rm) >> 64
    op.put_vector(op.insn.reg, rest >> 64 << 64 | low)


def _load_high(op: Operation) -> None:
    """MOVHPS, MOVHPD; between registers MOVLHPS."""
    op.require_vector()
    rest = op.vector(op.insn.vvvv if op.insn.vex else op.insn.reg)
    op.put_vector(op.insn.reg, rest & MASK64 | op.vector_source(8) << 64)


def _store_low(op: Operation) -> None:
    op.require_vector()
    op.store(op.vector(op.insn.reg, 8), 8)


def _store_high(op: Operation) -> None:
    op.require_vector()
    op.store(op.vector(op.insn.reg) >> 64, 8)


def _from_general(op: Operation) -> None:
    """MOVD, MOVQ into a vector register."""
    op.require_vector()
    op.put_vector(op.insn.reg, op.source(8 if op.insn.wide else 4))


def _to_general(op: Operation) -> None:
    """MOVD, MOVQ out of one."""
    op.require_vector()
    size = 8 if op.insn.wide else 4
    value = op.vector(op.insn.reg, size)
    if op.insn.memory is None:
        op.put(op.insn.rm, size, value)
    else:
        op.store(value, size)


def _movq_load(op: Operation) -> None:
    op.require_vector()
    op.put_vector(op.insn.reg, op.vector_source(8))


def _movq_store(op: Operation) -> None:
    op.require_vector()
    value = op.vector(op.insn.reg, 8)
    if op.insn.memory is None:
        op.put_vector(op.insn.rm, value)
    else:
        op.store(value, 8)


def _signs(code: str) -> Handler:
    """PMOVMSKB, MOVMSKPS, MOVMSKPD: the top bit of each lane."""
    width = 8 * _WIDTHS[code]

    def handle(op: Operation) -> None:
        op.require_vector()
        size = _full_size(op)
        value = op.vector(op.insn.rm, size)
        result = sum((value >> width * (n + 1) - 1 & 1) << n for n in range(8 * size // width))
        op.put(op.insn.reg, 4, result)

    return handle


def _insert(code: str) -> Handler:
    """PINSRB and so on: one lane from a general register or memory."""
    size = _WIDTHS[code]

    def handle(op: Operation) -> None:
        op.require_vector()
        if op.insn.vector_256:
            raise Unsupported
        value = op.load(size) if op.insn.memory is not None else op.get(op.insn.rm, 8)
        lanes = list(split(op.vector(op.insn.vvvv if op.insn.vex else op.insn.reg), code))
        lanes[op.insn.immediate % len(lanes)] = value
        op.put_vector(op.insn.reg, join(lanes, code))

    return handle


def _insert_wide(op: Operation) -> None:
    _insert("Q" if op.insn.wide else "I")(op)


def _extract(code: str) -> Handler:
    """PEXTRB and so on: one lane to a general register, zero-extended, or to memory."""
    size = _WIDTHS[code]

    def handle(op: Operation) -> None:
        op.require_vector()
        lanes = split(op.vector(op.insn.reg), code)
        value = lanes[op.insn.immediate % len(lanes)]
        if op.insn.memory is None:
            op.put(op.insn.rm, 8, value)
        else:
            op.store(value, size)

    return handle


def _extract_wide(op: Operation) -> None:
    _extract("Q" if op.insn.wide else "I")(op)


def _extract_to_register(op: Operation) -> None:
    """The older form of PEXTRW, with its operands the other way round."""
    op.require_vector()
    op.put(op.insn.reg, 8, split(op.vector(op.insn.rm), "H")[op.insn.immediate & 7])


_WITH_VEX_FORM: dict[str, tuple[str, Handler]] = {
    "np 0f 10": ("movups", _load(False)),
    "66 0f 10": ("movupd", _load(False)),
    "np 0f 11": ("movups", _store(False)),
    "66 0f 11": ("movupd", _store(False)),
    "np 0f 28": ("movaps", _load(True)),
    "66 0f 28": ("movapd", _load(True)),
    "np 0f 29": ("movaps", _store(True)),
    "66 0f 29": ("movapd", _store(True)),
    "66 0f 6f": ("movdqa", _load(True)),
    "66 0f 7f": ("movdqa", _store(True)),
    "f3 0f 6f": ("movdqu", _load(False)),
    "f3 0f 7f": ("movdqu", _store(False)),
    "f2 0f f0 mem": ("lddqu", _load(False)),
    "66 0f38 2a mem": ("movntdqa", _load(True)),
    "np 0f 2b mem": ("movntps", _store(True)),
    "66 0f 2b mem": ("movntpd", _store(True)),
    "66 0f e7 mem": ("movntdq", _store(True)),
    "f3 0f 10": ("movss", _scalar_load(4)),
    "f2 0f 10": ("movsd", _scalar_load(8)),
    "f3 0f 11": ("movss", _scalar_store(4)),
    "f2 0f 11": ("movsd", _scalar_store(8)),
    "np 0f 12": ("movlps", _load_low),
    "66 0f 12 mem": ("movlpd", _load_low),
    "np 0f 13 mem": ("movlps", _store_low),
    "66 0f 13 mem": ("movlpd", _store_low),
    "np 0f 16": ("movhps", _load_high),
    "66 0f 16 mem": ("movhpd", _load_high),
    "np 0f 17 mem": ("movhps", _store_high),
    "66 0f 17 mem": ("movhpd", _store_high),
    "66 0f 6e": ("movd", _from_general),
    "66 0f 7e": ("movd", _to_general),
    "f3 0f 7e": ("movq", _movq_load),
    "66 0f d6": ("movq", _movq_store),
    "66 0f d7 reg": ("pmovmskb", _signs("B")),
    "np 0f 50 reg": ("movmskps", _signs("I")),
    "66 0f 50 reg": ("movmskpd", _signs("Q")),
    "66 0f c4": ("pinsrw", _insert("H")),
    "66 0f3a 20": ("pinsrb", _insert("B")),
    "66 0f3a 22": ("pinsrd", _insert_wide),
    "66 0f c5 reg": ("pextrw", _extract_to_register),
    "66 0f3a 14": ("pextrb", _extract("B")),
    "66 0f3a 15": ("pextrw", _extract("H")),
    "66 0f3a 16": ("pextrd", _extract_wide),
}

ROWS: dict[str, tuple[str, Handler]] = {
    **_WITH_VEX_FORM,
    **{f"vex.{opcode}": (f"v{name}", handler) for opcode, (name, handler) in _WITH_VEX_FORM.items()},
}
