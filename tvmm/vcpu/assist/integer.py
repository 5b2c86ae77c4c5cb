"""Integer instructions: bit counting and fields (POPCNT, BMI1, BMI2), CRC32, ADX, MOVBE, MOVNTI,
CMPXCHG16B.

Each does what its page in the Intel SDM, volume 2, says. Flags which that page leaves undefined are
cleared or kept, whichever is shorter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.vcpu.assist.cpu import CF, GENERAL_PROTECTION, OF, ZF, GuestException
from tvmm.vcpu.assist.operation import Unsupported

if TYPE_CHECKING:
    from tvmm.vcpu.assist.operation import Operation

__all__ = ["ROWS"]

CRC32C_POLYNOMIAL = 0x82F6_3B78
"""Castagnoli's, bit-reversed."""


def _popcnt(op: Operation) -> None:
    value = op.source(op.size)
    op.put(op.insn.reg, op.size, value.bit_count())
    op.set_flags(0 if value else ZF)


def _tzcnt(op: Operation) -> None:
    value, size = op.source(op.size), op.size
    count = (value & -value).bit_length() - 1 if value else 8 * size
    op.put(op.insn.reg, size, count)
    op.set_flags((0 if value else CF) | (0 if count else ZF), CF | ZF)


def _lzcnt(op: Operation) -> None:
    value, size = op.source(op.size), op.size
    count = 8 * size - value.bit_length()
    op.put(op.insn.reg, size, count)
    op.set_flags((0 if value else CF) | (0 if count else ZF), CF | ZF)


def _crc32_step(crc: int, data: bytes) -> int:
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (CRC32C_POLYNOMIAL if crc & 1 else 0)
    return crc


def _crc32_byte(op: Operation) -> None:
    value = op.source(1)
    _crc32(op, value.to_bytes(1, "little"))


def _crc32_word(op: Operation) -> None:
    value = op.source(op.size)
    _crc32(op, value.to_bytes(op.size, "little"))


def _crc32(op: Operation, data: bytes) -> None:
    op.put(op.insn.reg, 4, _crc32_step(op.get(op.insn.reg, 4), data))


def _add_carry(op: Operation, flag: int) -> None:
    size = 8 if op.insn.wide else 4
    total = op.get(op.insn.reg, size) + op.source(size) + bool(op.regs.rflags & flag)
    op.put(op.insn.reg, size, total)
    op.set_flags(flag if total >> (8 * size) else 0, flag)


def _adcx(op: Operation) -> None:
    _add_carry(op, CF)


def _adox(op: Operation) -> None:
    _add_carry(op, OF)


def _movbe_load(op: Operation) -> None:
    size = op.size
    op.put(op.insn.reg, size, int.from_bytes(op.load(size).to_bytes(size, "little"), "big"))


def _movbe_store(op: Operation) -> None:
    size = op.size
    op.store(int.from_bytes(op.get(op.insn.reg, size).to_bytes(size, "little"), "big"), size)


def _movnti(op: Operation) -> None:
    size = 8 if op.insn.wide else 4
    op.store(op.get(op.insn.reg, size), size)


def _cmpxchg16b(op: Operation) -> None:
    if not op.insn.wide or op.user:
        raise Unsupported
    address = op.address
    if address & 15:
        raise GuestException(GENERAL_PROTECTION, 0)
    regs = op.regs
    expected = regs.rax.to_bytes(8, "little") + regs.rdx.to_bytes(8, "little")
    desired = regs.rbx.to_bytes(8, "little") + regs.rcx.to_bytes(8, "little")
    found = op.cpu.compare_exchange(address, expected, desired)
    if found != expected:
        regs.rax = int.from_bytes(found[:8], "little")
        regs.rdx = int.from_bytes(found[8:], "little")
    op.set_flags(ZF if found == expected else 0, ZF)


def _bmi_size(op: Operation) -> int:
    if op.insn.vector_256:
        raise Unsupported
    return 8 if op.insn.wide else 4


def _andn(op: Operation) -> None:
    size = _bmi_size(op)
    result = ~op.get(op.insn.vvvv, size) & op.source(size)
    op.put(op.insn.reg, size, result)
    op.logic_flags(result, size)


def _bextr(op: Operation) -> None:
    size = _bmi_size(op)
    value, control = op.source(size), op.get(op.insn.vvvv, size)
    result = value >> (control & 0xFF) & (1 << (control >> 8 & 0xFF)) - 1
    op.put(op.insn.reg, size, result)
    op.set_flags(0 if result else ZF, ZF | CF | OF)


def _blsi(op: Operation) -> None:
    size = _bmi_size(op)
    value = op.source(size)
    result = value & -value
    op.put(op.insn.vvvv, size, result)
    op.logic_flags(result, size, carry=value != 0)


def _blsmsk(op: Operation) -> None:
    size = _bmi_size(op)
    value = op.source(size)
    result = (value ^ value - 1) & (1 << 8 * size) - 1
    op.put(op.insn.vvvv, size, result)
    op.logic_flags(result, size, carry=value == 0)


def _blsr(op: Operation) -> None:
    size = _bmi_size(op)
    value = op.source(size)
    result = value & (value - 1) & (1 << 8 * size) - 1
    op.put(op.insn.vvvv, size, result)
    op.logic_flags(result, size, carry=value == 0)


def _bzhi(op: Operation) -> None:
    size = _bmi_size(op)
    value, index = op.source(size), op.get(op.insn.vvvv, size) & 0xFF
    result = value & (1 << min(index, 8 * size)) - 1
    op.put(op.insn.reg, size, result)
    op.logic_flags(result, size, carry=index >= 8 * size)


def _pdep(op: Operation) -> None:
    size = _bmi_size(op)
    value, mask, result = op.get(op.insn.vvvv, size), op.source(size), 0
    while mask:
        lowest = mask & -mask
        if value & 1:
            result |= lowest
        value >>= 1
        mask ^= lowest
    op.put(op.insn.reg, size, result)


def _pext(op: Operation) -> None:
    size = _bmi_size(op)
    value, mask, result, position = op.get(op.insn.vvvv, size), op.source(size), 0, 0
    while mask:
        lowest = mask & -mask
        if value & lowest:
            result |= 1 << position
        position += 1
        mask ^= lowest
    op.put(op.insn.reg, size, result)


def _mulx(op: Operation) -> None:
    size = _bmi_size(op)
    product = op.source(size) * op.get(2, size)
    op.put(op.insn.vvvv, size, product)
    op.put(op.insn.reg, size, product >> 8 * size)  # Second: it wins when both name one register.


def _rorx(op: Operation) -> None:
    size = _bmi_size(op)
    value, count = op.source(size), op.insn.immediate & (8 * size - 1)
    op.put(op.insn.reg, size, value >> count | value << 8 * size - count)


def _shlx(op: Operation) -> None:
    size = _bmi_size(op)
    op.put(op.insn.reg, size, op.source(size) << (op.get(op.insn.vvvv, size) & 8 * size - 1))


def _shrx(op: Operation) -> None:
    size = _bmi_size(op)
    op.put(op.insn.reg, size, op.source(size) >> (op.get(op.insn.vvvv, size) & 8 * size - 1))


def _sarx(op: Operation) -> None:
    size = _bmi_size(op)
    value = op.source(size)
    if value >> 8 * size - 1:
        value -= 1 << 8 * size
    op.put(op.insn.reg, size, value >> (op.get(op.insn.vvvv, size) & 8 * size - 1))


ROWS = {
    "f3 0f b8": ("popcnt", _popcnt),
    "f3 0f bc": ("tzcnt", _tzcnt),
    "f3 0f bd": ("lzcnt", _lzcnt),
    "f2 0f38 f0": ("crc32", _crc32_byte),
    "f2 0f38 f1": ("crc32", _crc32_word),
    "66 0f38 f6": ("adcx", _adcx),
    "f3 0f38 f6": ("adox", _adox),
    "np 0f38 f0 mem": ("movbe", _movbe_load),
    "66 0f38 f0 mem": ("movbe", _movbe_load),
    "np 0f38 f1 mem": ("movbe", _movbe_store),
    "66 0f38 f1 mem": ("movbe", _movbe_store),
    "np 0f c3 mem": ("movnti", _movnti),
    "np 0f c7 /1 mem": ("cmpxchg16b", _cmpxchg16b),
    "vex.np 0f38 f2": ("andn", _andn),
    "vex.np 0f38 f7": ("bextr", _bextr),
    "vex.np 0f38 f3 /1": ("blsr", _blsr),
    "vex.np 0f38 f3 /2": ("blsmsk", _blsmsk),
    "vex.np 0f38 f3 /3": ("blsi", _blsi),
    "vex.np 0f38 f5": ("bzhi", _bzhi),
    "vex.f2 0f38 f5": ("pdep", _pdep),
    "vex.f3 0f38 f5": ("pext", _pext),
    "vex.f2 0f38 f6": ("mulx", _mulx),
    "vex.f2 0f3a f0": ("rorx", _rorx),
    "vex.66 0f38 f7": ("shlx", _shlx),
    "vex.f2 0f38 f7": ("shrx", _shrx),
    "vex.f3 0f38 f7": ("sarx", _sarx),
}
