"""Arithmetic on 128-bit vectors held as integers: lanes out, a function over them, lanes in.

A 256-bit AVX2 operation does the same in both of its halves, with very few exceptions, so 128 bits is
all that this file knows.
"""

from __future__ import annotations

import operator
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Binary = Callable[[int, int], int]
    """Both operands to the result, 128 bits each."""

__all__ = ["BINARY", "join", "shift_left", "shift_right", "shift_right_signed", "split"]

MASK64 = (1 << 64) - 1
MASK128 = (1 << 128) - 1

_BITS = {"b": 8, "h": 16, "i": 32, "q": 64}
_STRUCTS = {code: Struct(f"<{128 // _BITS[code.lower()]}{code}") for code in "bBhHiIqQ"}


def split(value: int, code: str) -> tuple[int, ...]:
    """The lanes of a vector, lowest first; `code` as in `struct`: b, h, i, q signed, capitals unsigned."""
    return _STRUCTS[code].unpack(value.to_bytes(16, "little"))


def join(lanes: Iterable[int], code: str) -> int:
    """The vector with these lanes, each reduced to its width."""
    mask = (1 << _BITS[code.lower()]) - 1
    return int.from_bytes(_STRUCTS[code.upper()].pack(*[lane & mask for lane in lanes]), "little")


def _lanewise(code: str, function: Binary) -> Binary:
    def apply(first: int, second: int) -> int:
        return join(map(function, split(first, code), split(second, code)), code)

    return apply


def _saturate(code: str) -> Callable[[int], int]:
    bits = _BITS[code.lower()]
    low, high = (0, (1 << bits) - 1) if code.isupper() else (-1 << bits - 1, (1 << bits - 1) - 1)
    return lambda value: low if value < low else high if value > high else value


def _saturating(code: str, function: Binary) -> Binary:
    clamp = _saturate(code)
    return _lanewise(code, lambda a, b: clamp(function(a, b)))


def _when(test: Callable[[int, int], bool]) -> Binary:
    return lambda a, b: -1 if test(a, b) else 0


def _pack(source: str, target: str) -> Binary:
    """Narrow the lanes of both operands with saturation: the first one's below."""
    clamp = _saturate(target)

    def apply(first: int, second: int) -> int:
        return join([clamp(lane) for lane in split(first, source) + split(second, source)], target)

    return apply


def _interleave(code: str, high: bool) -> Binary:
    def apply(first: int, second: int) -> int:
        a, b = split(first, code), split(second, code)
        half = slice(len(a) // 2, None) if high else slice(len(a) // 2)
        return join([lane for pair in zip(a[half], b[half], strict=True) for lane in pair], code)

    return apply


def _even_product(code: str) -> Binary:
    """64-bit products of the even 32-bit lanes."""

    def apply(first: int, second: int) -> int:
        products = map(operator.mul, split(first, code)[::2], split(second, code)[::2])
        return join(products, "q")

    return apply


def _multiply_add_words(first: int, second: int) -> int:
    products = list(map(operator.mul, split(first, "h"), split(second, "h")))
    return join(map(operator.add, products[::2], products[1::2]), "i")


def _multiply_add_bytes(first: int, second: int) -> int:
    products = list(map(operator.mul, split(first, "B"), split(second, "b")))
    return join(map(_saturate("h"), map(operator.add, products[::2], products[1::2])), "h")


def _sum_of_differences(first: int, second: int) -> int:
    differences = [abs(a - b) for a, b in zip(split(first, "B"), split(second, "B"), strict=True)]
    return join((sum(differences[:8]), sum(differences[8:])), "Q")


def _shuffle_bytes(first: int, second: int) -> int:
    lanes = split(first, "B")
    return join([0 if at & 0x80 else lanes[at & 15] for at in split(second, "B")], "B")


def _horizontal(code: str, function: Binary) -> Binary:
    def apply(first: int, second: int) -> int:
        both = split(first, code) + split(second, code)
        return join(map(function, both[::2], both[1::2]), code)

    return apply


def _sign(a: int, b: int) -> int:
    return a if b > 0 else -a if b < 0 else 0


def _average(a: int, b: int) -> int:
    return a + b + 1 >> 1


def _rounded_high(a: int, b: int) -> int:
    return (a * b >> 14) + 1 >> 1


BINARY: dict[str, tuple[str, Binary]] = {
    # Logic; the forms for single and double precision move the same bits.
    "np 0f 54": ("andps", operator.and_),
    "66 0f 54": ("andpd", operator.and_),
    "66 0f db": ("pand", operator.and_),
    "np 0f 55": ("andnps", lambda a, b: ~a & b),
    "66 0f 55": ("andnpd", lambda a, b: ~a & b),
    "66 0f df": ("pandn", lambda a, b: ~a & b),
    "np 0f 56": ("orps", operator.or_),
    "66 0f 56": ("orpd", operator.or_),
    "66 0f eb": ("por", operator.or_),
    "np 0f 57": ("xorps", operator.xor),
    "66 0f 57": ("xorpd", operator.xor),
    "66 0f ef": ("pxor", operator.xor),
    # Sums and differences.
    "66 0f fc": ("paddb", _lanewise("B", operator.add)),
    "66 0f fd": ("paddw", _lanewise("H", operator.add)),
    "66 0f fe": ("paddd", _lanewise("I", operator.add)),
    "66 0f d4": ("paddq", _lanewise("Q", operator.add)),
    "66 0f f8": ("psubb", _lanewise("B", operator.sub)),
    "66 0f f9": ("psubw", _lanewise("H", operator.sub)),
    "66 0f fa": ("psubd", _lanewise("I", operator.sub)),
    "66 0f fb": ("psubq", _lanewise("Q", operator.sub)),
    "66 0f ec": ("paddsb", _saturating("b", operator.add)),
    "66 0f ed": ("paddsw", _saturating("h", operator.add)),
    "66 0f dc": ("paddusb", _saturating("B", operator.add)),
    "66 0f dd": ("paddusw", _saturating("H", operator.add)),
    "66 0f e8": ("psubsb", _saturating("b", operator.sub)),
    "66 0f e9": ("psubsw", _saturating("h", operator.sub)),
    "66 0f d8": ("psubusb", _saturating("B", operator.sub)),
    "66 0f d9": ("psubusw", _saturating("H", operator.sub)),
    "66 0f38 01": ("phaddw", _horizontal("h", operator.add)),
    "66 0f38 02": ("phaddd", _horizontal("i", operator.add)),
    "66 0f38 05": ("phsubw", _horizontal("h", operator.sub)),
    "66 0f38 06": ("phsubd", _horizontal("i", operator.sub)),
    "66 0f f6": ("psadbw", _sum_of_differences),
    "66 0f e0": ("pavgb", _lanewise("B", _average)),
    "66 0f e3": ("pavgw", _lanewise("H", _average)),
    # Products.
    "66 0f d5": ("pmullw", _lanewise("h", operator.mul)),
    "66 0f e5": ("pmulhw", _lanewise("h", lambda a, b: a * b >> 16)),
    "66 0f e4": ("pmulhuw", _lanewise("H", lambda a, b: a * b >> 16)),
    "66 0f38 0b": ("pmulhrsw", _lanewise("h", _rounded_high)),
    "66 0f38 40": ("pmulld", _lanewise("i", operator.mul)),
    "66 0f f4": ("pmuludq", _even_product("I")),
    "66 0f38 28": ("pmuldq", _even_product("i")),
    "66 0f f5": ("pmaddwd", _multiply_add_words),
    "66 0f38 04": ("pmaddubsw", _multiply_add_bytes),
    # Comparisons, extremes, signs.
    "66 0f 74": ("pcmpeqb", _lanewise("B", _when(operator.eq))),
    "66 0f 75": ("pcmpeqw", _lanewise("H", _when(operator.eq))),
    "66 0f 76": ("pcmpeqd", _lanewise("I", _when(operator.eq))),
    "66 0f38 29": ("pcmpeqq", _lanewise("Q", _when(operator.eq))),
    "66 0f 64": ("pcmpgtb", _lanewise("b", _when(operator.gt))),
    "66 0f 65": ("pcmpgtw", _lanewise("h", _when(operator.gt))),
    "66 0f 66": ("pcmpgtd", _lanewise("i", _when(operator.gt))),
    "66 0f38 37": ("pcmpgtq", _lanewise("q", _when(operator.gt))),
    "66 0f da": ("pminub", _lanewise("B", min)),
    "66 0f de": ("pmaxub", _lanewise("B", max)),
    "66 0f ea": ("pminsw", _lanewise("h", min)),
    "66 0f ee": ("pmaxsw", _lanewise("h", max)),
    "66 0f38 38": ("pminsb", _lanewise("b", min)),
    "66 0f38 39": ("pminsd", _lanewise("i", min)),
    "66 0f38 3a": ("pminuw", _lanewise("H", min)),
    "66 0f38 3b": ("pminud", _lanewise("I", min)),
    "66 0f38 3c": ("pmaxsb", _lanewise("b", max)),
    "66 0f38 3d": ("pmaxsd", _lanewise("i", max)),
    "66 0f38 3e": ("pmaxuw", _lanewise("H", max)),
    "66 0f38 3f": ("pmaxud", _lanewise("I", max)),
    "66 0f38 08": ("psignb", _lanewise("b", _sign)),
    "66 0f38 09": ("psignw", _lanewise("h", _sign)),
    "66 0f38 0a": ("psignd", _lanewise("i", _sign)),
    # Order of lanes.
    "66 0f38 00": ("pshufb", _shuffle_bytes),
    "66 0f 60": ("punpcklbw", _interleave("B", False)),
    "66 0f 61": ("punpcklwd", _interleave("H", False)),
    "66 0f 62": ("punpckldq", _interleave("I", False)),
    "66 0f 6c": ("punpcklqdq", _interleave("Q", False)),
    "66 0f 68": ("punpckhbw", _interleave("B", True)),
    "66 0f 69": ("punpckhwd", _interleave("H", True)),
    "66 0f 6a": ("punpckhdq", _interleave("I", True)),
    "66 0f 6d": ("punpckhqdq", _interleave("Q", True)),
    "np 0f 14": ("unpcklps", _interleave("I", False)),
    "66 0f 14": ("unpcklpd", _interleave("Q", False)),
    "np 0f 15": ("unpckhps", _interleave("I", True)),
    "66 0f 15": ("unpckhpd", _interleave("Q", True)),
    "66 0f 63": ("packsswb", _pack("h", "b")),
    "66 0f 67": ("packuswb", _pack("h", "B")),
    "66 0f 6b": ("packssdw", _pack("i", "h")),
    "66 0f38 2b": ("packusdw", _pack("i", "H")),
}
"""Opcode to name and function, for all instructions `first = first op second/memory` of whole vectors."""


def shift_left(code: str) -> Binary:
    """Lanes (unsigned `code`) and a count to the lanes shifted left; a count beyond the lane gives 0."""
    bits = _BITS[code.lower()]

    def apply(value: int, count: int) -> int:
        return join([lane << count for lane in split(value, code)], code) if count < bits else 0

    return apply


def shift_right(code: str) -> Binary:
    """The same to the right, filling with zeros."""
    bits = _BITS[code.lower()]

    def apply(value: int, count: int) -> int:
        return join([lane >> count for lane in split(value, code)], code) if count < bits else 0

    return apply


def shift_right_signed(code: str) -> Binary:
    """The same to the right (signed `code`), filling with the sign."""
    bits = _BITS[code.lower()]

    def apply(value: int, count: int) -> int:
        return join([lane >> min(count, bits - 1) for lane in split(value, code)], code)

    return apply
