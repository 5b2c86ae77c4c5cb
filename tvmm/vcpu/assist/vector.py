"""SSE2 to SSE4.1 integer instructions and their AVX and AVX2 forms, as far as kernel code uses them.

A VEX form takes its first operand from VEX.vvvv, has no alignment rule and clears what lies above its
result; a 256-bit one does the 128-bit operation in both halves. That holds for all instructions here
but the few in `_CROSSING`, which move data between halves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.vcpu.assist.cpu import CF, ZF
from tvmm.vcpu.assist.lanes import (
    BINARY,
    MASK64,
    MASK128,
    join,
    shift_left,
    shift_right,
    shift_right_signed,
    split,
)
from tvmm.vcpu.assist.operation import STATE_AVX, STATE_SSE, XMM, YMM_HIGH, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.vcpu.assist.lanes import Binary
    from tvmm.vcpu.assist.operation import Operation

    Handler = Callable[[Operation], None]
    Immediate = Callable[[int, int, int], int]
    """Both operands and the immediate to the result."""

__all__ = ["ROWS"]


def _halves(function: Binary, first: int, second: int, size: int) -> int:
    """A 128-bit function applied to each half of 16 or 32 bytes."""
    low = function(first & MASK128, second & MASK128) & MASK128
    if size == 16:
        return low
    return low | (function(first >> 128, second >> 128) & MASK128) << 128


def _binary(function: Binary) -> Handler:
    def handle(op: Operation) -> None:
        op.require_vector()
        size = op.vector_size if op.insn.vex else 16
        second = op.vector_source(size, aligned=not op.insn.vex)
        first = op.vector(op.insn.vvvv if op.insn.vex else op.insn.reg, size)
        op.put_vector(op.insn.reg, _halves(function, first, second, size))

    return handle


def _with_immediate(function: Immediate) -> Handler:
    def handle(op: Operation) -> None:
        immediate = op.insn.immediate
        _binary(lambda first, second: function(first, second, immediate))(op)

    return handle


def _unary(function: Callable[[int, int], int]) -> Handler:
    """Source and immediate to the result; VEX.vvvv is not used."""

    def handle(op: Operation) -> None:
        op.require_vector()
        size, immediate = op.vector_size if op.insn.vex else 16, op.insn.immediate
        source = op.vector_source(size, aligned=not op.insn.vex)
        op.put_vector(op.insn.reg, _halves(lambda value, _: function(value, immediate), source, 0, size))

    return handle


def _shift_by_vector(function: Binary) -> Handler:
    """The count is the low half of a 128-bit operand, whatever the size of the result."""

    def handle(op: Operation) -> None:
        op.require_vector()
        size = op.vector_size if op.insn.vex else 16
        count = op.vector_source(16, aligned=not op.insn.vex) & MASK64
        first = op.vector(op.insn.vvvv if op.insn.vex else op.insn.reg, size)
        op.put_vector(op.insn.reg, _halves(lambda value, _: function(value, count), first, 0, size))

    return handle


def _shift_by_immediate(function: Binary) -> Handler:
    """The result goes to the r/m register, or where VEX.vvvv says."""

    def handle(op: Operation) -> None:
        op.require_vector()
        size, count = op.vector_size if op.insn.vex else 16, op.insn.immediate
        first = op.vector(op.insn.rm, size)
        result = _halves(lambda value, _: function(value, count), first, 0, size)
        op.put_vector(op.insn.vvvv if op.insn.vex else op.insn.rm, result)

    return handle


def _shuffle(code: str, start: int) -> Binary:
    """Four lanes from `start` by two bits of the immediate each; the others stay."""

    def apply(value: int, immediate: int) -> int:
        lanes = list(split(value, code))
        lanes[start : start + 4] = [lanes[start + (immediate >> 2 * n & 3)] for n in range(4)]
        return join(lanes, code)

    return apply


def _shufps(first: int, second: int, immediate: int) -> int:
    a, b = split(first, "I"), split(second, "I")
    return join([(a if n < 2 else b)[immediate >> 2 * n & 3] for n in range(4)], "I")


def _palignr(first: int, second: int, immediate: int) -> int:
    return (first << 128 | second) >> 8 * immediate


def _pblendw(first: int, second: int, immediate: int) -> int:
    a, b = split(first, "H"), split(second, "H")
    return join([b[n] if immediate >> n & 1 else a[n] for n in range(8)], "H")


def _pclmulqdq(first: int, second: int, immediate: int) -> int:
    a = first >> 64 if immediate & 1 else first & MASK64
    b = second >> 64 if immediate & 16 else second & MASK64
    product = 0
    while b:
        lowest = b & -b
        product ^= a * lowest
        b ^= lowest
    return product


def _widen(source: str, target: str) -> Handler:
    """PMOVSX and PMOVZX: the lowest lanes of the source, each made wider."""
    ratio = {"b": 1, "h": 2, "i": 4, "q": 8}
    factor = ratio[target.lower()] // ratio[source.lower()]

    def handle(op: Operation) -> None:
        op.require_vector()
        size = op.vector_size if op.insn.vex else 16
        lanes = split(op.vector_source(size // factor), source)
        count = 16 // ratio[target.lower()]
        result = join(lanes[:count], target)
        if size == 32:
            result |= join(lanes[count : 2 * count], target) << 128
        op.put_vector(op.insn.reg, result)

    return handle


def _absolute(code: str) -> Binary:
    return lambda value, _: join(map(abs, split(value, code)), code)


def _ptest(op: Operation) -> None:
    op.require_vector()
    size = op.vector_size if op.insn.vex else 16
    second, first = op.vector_source(size, aligned=not op.insn.vex), op.vector(op.insn.reg, size)
    op.set_flags((0 if first & second else ZF) | (0 if ~first & second else CF))


def _vzero(op: Operation) -> None:
    """VZEROUPPER, and with VEX.L VZEROALL. 32-bit code reaches eight registers only."""
    op.require_vector()
    count = 16 if op.wide_code else 8
    image = op.change_image(STATE_SSE | STATE_AVX)
    image[YMM_HIGH : YMM_HIGH + 16 * count] = bytes(16 * count)
    if op.insn.vector_256:
        image[XMM : XMM + 16 * count] = bytes(16 * count)


def _broadcast(size: int) -> Handler:
    def handle(op: Operation) -> None:
        op.require_vector()
        value = op.vector_source(size)
        op.put_vector(op.insn.reg, int.from_bytes(value.to_bytes(size, "little") * (op.vector_size // size), "little"))

    return handle


def _insert_half(op: Operation) -> None:
    op.require_vector()
    shift = 128 * (op.insn.immediate & 1)
    first, second = op.vector(op.insn.vvvv, 32), op.vector_source(16)
    op.put_vector(op.insn.reg, first & ~(MASK128 << shift) | second << shift)


def _extract_half(op: Operation) -> None:
    op.require_vector()
    half = op.vector(op.insn.reg, 32) >> 128 * (op.insn.immediate & 1) & MASK128
    if op.insn.memory is None:
        op.put_vector(op.insn.rm, half)
    else:
        op.store(half, 16)


def _permute_halves(op: Operation) -> None:
    op.require_vector()
    if not op.insn.vector_256:
        raise Unsupported
    both = op.vector_source(32) << 256 | op.vector(op.insn.vvvv, 32)
    result = 0
    for shift in (0, 4):
        control = op.insn.immediate >> shift
        if not control & 8:
            result |= (both >> 128 * (control & 3) & MASK128) << 32 * shift
    op.put_vector(op.insn.reg, result)


def _permute_quads(op: Operation) -> None:
    op.require_vector()
    if not (op.insn.vector_256 and op.insn.wide):
        raise Unsupported
    value, control = op.vector_source(32), op.insn.immediate
    parts = [value >> 64 * (control >> 2 * n & 3) & MASK64 for n in range(4)]
    op.put_vector(op.insn.reg, sum(part << 64 * n for n, part in enumerate(parts)))


_WITH_VEX_FORM: dict[str, tuple[str, Handler]] = {
    **{opcode: (name, _binary(function)) for opcode, (name, function) in BINARY.items()},
    "66 0f d1": ("psrlw", _shift_by_vector(shift_right("H"))),
    "66 0f d2": ("psrld", _shift_by_vector(shift_right("I"))),
    "66 0f d3": ("psrlq", _shift_by_vector(shift_right("Q"))),
    "66 0f e1": ("psraw", _shift_by_vector(shift_right_signed("h"))),
    "66 0f e2": ("psrad", _shift_by_vector(shift_right_signed("i"))),
    "66 0f f1": ("psllw", _shift_by_vector(shift_left("H"))),
    "66 0f f2": ("pslld", _shift_by_vector(shift_left("I"))),
    "66 0f f3": ("psllq", _shift_by_vector(shift_left("Q"))),
    "66 0f 71 /2 reg": ("psrlw", _shift_by_immediate(shift_right("H"))),
    "66 0f 71 /4 reg": ("psraw", _shift_by_immediate(shift_right_signed("h"))),
    "66 0f 71 /6 reg": ("psllw", _shift_by_immediate(shift_left("H"))),
    "66 0f 72 /2 reg": ("psrld", _shift_by_immediate(shift_right("I"))),
    "66 0f 72 /4 reg": ("psrad", _shift_by_immediate(shift_right_signed("i"))),
    "66 0f 72 /6 reg": ("pslld", _shift_by_immediate(shift_left("I"))),
    "66 0f 73 /2 reg": ("psrlq", _shift_by_immediate(shift_right("Q"))),
    "66 0f 73 /3 reg": ("psrldq", _shift_by_immediate(lambda value, count: value >> 8 * count)),
    "66 0f 73 /6 reg": ("psllq", _shift_by_immediate(shift_left("Q"))),
    "66 0f 73 /7 reg": ("pslldq", _shift_by_immediate(lambda value, count: value << 8 * count)),
    "66 0f 70": ("pshufd", _unary(_shuffle("I", 0))),
    "f2 0f 70": ("pshuflw", _unary(_shuffle("H", 0))),
    "f3 0f 70": ("pshufhw", _unary(_shuffle("H", 4))),
    "66 0f38 1c": ("pabsb", _unary(_absolute("b"))),
    "66 0f38 1d": ("pabsw", _unary(_absolute("h"))),
    "66 0f38 1e": ("pabsd", _unary(_absolute("i"))),
    "np 0f c6": ("shufps", _with_immediate(_shufps)),
    "66 0f3a 0f": ("palignr", _with_immediate(_palignr)),
    "66 0f3a 0e": ("pblendw", _with_immediate(_pblendw)),
    "66 0f3a 44": ("pclmulqdq", _with_immediate(_pclmulqdq)),
    "66 0f38 17": ("ptest", _ptest),
    "66 0f38 20": ("pmovsxbw", _widen("b", "h")),
    "66 0f38 21": ("pmovsxbd", _widen("b", "i")),
    "66 0f38 22": ("pmovsxbq", _widen("b", "q")),
    "66 0f38 23": ("pmovsxwd", _widen("h", "i")),
    "66 0f38 24": ("pmovsxwq", _widen("h", "q")),
    "66 0f38 25": ("pmovsxdq", _widen("i", "q")),
    "66 0f38 30": ("pmovzxbw", _widen("B", "H")),
    "66 0f38 31": ("pmovzxbd", _widen("B", "I")),
    "66 0f38 32": ("pmovzxbq", _widen("B", "Q")),
    "66 0f38 33": ("pmovzxwd", _widen("H", "I")),
    "66 0f38 34": ("pmovzxwq", _widen("H", "Q")),
    "66 0f38 35": ("pmovzxdq", _widen("I", "Q")),
}

_CROSSING: dict[str, tuple[str, Handler]] = {
    "vex.np 0f 77": ("vzeroupper", _vzero),
    "vex.66 0f38 78": ("vpbroadcastb", _broadcast(1)),
    "vex.66 0f38 79": ("vpbroadcastw", _broadcast(2)),
    "vex.66 0f38 58": ("vpbroadcastd", _broadcast(4)),
    "vex.66 0f38 59": ("vpbroadcastq", _broadcast(8)),
    "vex.66 0f38 18": ("vbroadcastss", _broadcast(4)),
    "vex.66 0f38 19": ("vbroadcastsd", _broadcast(8)),
    "vex.66 0f38 1a mem": ("vbroadcastf128", _broadcast(16)),
    "vex.66 0f38 5a mem": ("vbroadcasti128", _broadcast(16)),
    "vex.66 0f3a 18": ("vinsertf128", _insert_half),
    "vex.66 0f3a 38": ("vinserti128", _insert_half),
    "vex.66 0f3a 19": ("vextractf128", _extract_half),
    "vex.66 0f3a 39": ("vextracti128", _extract_half),
    "vex.66 0f3a 06": ("vperm2f128", _permute_halves),
    "vex.66 0f3a 46": ("vperm2i128", _permute_halves),
    "vex.66 0f3a 00": ("vpermq", _permute_quads),
}

ROWS: dict[str, tuple[str, Handler]] = {
    **_WITH_VEX_FORM,
    **{f"vex.{opcode}": (f"v{name}", handler) for opcode, (name, handler) in _WITH_VEX_FORM.items()},
    **_CROSSING,
}
