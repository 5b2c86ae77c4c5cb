"""The shape of an instruction: prefixes, opcode, ModRM, displacement, immediate.

This decoder splits bytes and judges nothing. What an opcode does, and whether its combination of
prefixes exists, is for the tables of `emulate`. Only what KVM's own emulator leaves over is covered:
the opcode maps 0F, 0F 38 and 0F 3A, their VEX forms, and of the one-byte map the x87 escapes. Formats
follow the Intel SDM, volume 2, chapter 2.

64-bit and 32-bit code are known, with 64-bit and 32-bit addresses. 16-bit code and addresses are
refused: code that old uses none of these instructions.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MAX_LENGTH", "DecodeError", "Instruction", "Memory", "Truncated", "decode"]

MAX_LENGTH = 15
"""No instruction is longer; the processor raises #GP for one that would be."""

NO_PREFIX, PREFIX_66, PREFIX_F3, PREFIX_F2 = range(4)
"""The mandatory prefix, numbered as VEX.pp does."""

MAP_ONE_BYTE, MAP_0F, MAP_0F38, MAP_0F3A = range(4)
"""The opcode map, numbered as VEX.mmmmm does."""

_SEGMENTS = {0x26: "es", 0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x64: "fs", 0x65: "gs"}

# Opcodes of map 0F with no ModRM byte, and those with a one-byte immediate behind it.
_WITHOUT_MODRM = frozenset([*range(0x05, 0x0C), 0x0E, *range(0x30, 0x38), 0x77, *range(0x80, 0x90)]) | frozenset(
    [*range(0xA0, 0xA3), *range(0xA8, 0xAB), *range(0xC8, 0xD0)]
)
_WITH_IMMEDIATE = frozenset((0x70, 0x71, 0x72, 0x73, 0xA4, 0xAC, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6))


class DecodeError(Exception):
    """Not an instruction of the maps covered here."""


class Truncated(DecodeError):
    """The bytes end before the instruction does."""


class Memory(NamedTuple):
    """A memory operand: registers by number (None if absent), the rest as encoded.

    `rip_relative` means: relative to the end of the instruction. `segment` is the override, if any.
    """

    base_register: int | None
    index_register: int | None
    scale: int
    displacement: int
    rip_relative: bool
    segment: str | None
    address_size: int


class Instruction(NamedTuple):
    """One instruction, split. `reg`, `rm` and `vvvv` have their REX or VEX extension bit in.

    `memory` is None when `rm` names a register. `operand_66` tells an operand-size prefix also where
    another mandatory prefix has replaced it (as in `popcnt ax, cx`).
    """

    length: int
    vex: bool
    map: int
    opcode: int
    prefix: int
    operand_66: bool
    lock: bool
    rex: bool
    wide: bool
    vector_256: bool
    vvvv: int
    mod: int
    reg: int
    rm: int
    memory: Memory | None
    immediate: int


class _Bytes:
    """Bytes in order, with the two ways they can run out."""

    __slots__ = ("code", "position")

    def __init__(self, code: bytes) -> None:
        self.code = code
        self.position = 0

    def take(self) -> int:
        if self.position >= MAX_LENGTH:
            raise DecodeError("longer than any instruction")
        if self.position >= len(self.code):
            raise Truncated("ends within an instruction")
        value = self.code[self.position]
        self.position += 1
        return value

    def signed(self, length: int) -> int:
        data = bytes(self.take() for _ in range(length))
        return int.from_bytes(data, "little", signed=True)


class _Prefixes:
    """What stands before the opcode, in the legacy and the VEX way."""

    __slots__ = (
        "address_67",
        "b",
        "lock",
        "map",
        "operand_66",
        "r",
        "repeat",
        "rex",
        "segment",
        "vex",
        "vex_l",
        "vex_pp",
        "vvvv",
        "w",
        "x",
    )

    def __init__(self) -> None:
        self.operand_66 = self.address_67 = self.lock = self.rex = self.vex = self.vex_l = self.w = False
        self.repeat = NO_PREFIX
        self.segment: str | None = None
        self.r = self.x = self.b = self.vvvv = self.vex_pp = 0
        self.map = MAP_ONE_BYTE

    @property
    def mandatory(self) -> int:
        if self.vex:
            return self.vex_pp
        return self.repeat or (PREFIX_66 if self.operand_66 else NO_PREFIX)


def _read_prefixes(data: _Bytes, long_mode: bool) -> tuple[_Prefixes, int]:
    """Everything up to the opcode, and the opcode."""
    found = _Prefixes()
    while True:
        byte = data.take()
        if byte == 0x66:
            found.operand_66 = True
        elif byte == 0x67:
            found.address_67 = True
        elif byte == 0xF0:
            found.lock = True
        elif byte == 0xF2:
            found.repeat = PREFIX_F2
        elif byte == 0xF3:
            found.repeat = PREFIX_F3
        elif byte in _SEGMENTS:
            # In 64-bit code only FS and GS have a base, and the other overrides are ignored.
            if not long_mode or byte >= 0x64:
                found.segment = _SEGMENTS[byte]
        elif long_mode and 0x40 <= byte <= 0x4F:
            rex = byte
            byte = data.take()
            # A REX before another prefix has no effect, and one before VEX is undefined.
            if byte in (0x66, 0x67, 0xF0, 0xF2, 0xF3, 0xC4, 0xC5) or byte in _SEGMENTS or byte >> 4 == 4:
                raise DecodeError("REX is not the last prefix")
            found.rex = True
            found.w, found.r, found.x, found.b = bool(rex & 8), rex << 1 & 8, rex << 2 & 8, rex << 3 & 8
            break
        else:
            break
    if byte in (0xC4, 0xC5):
        return found, _read_vex(data, found, byte, long_mode)
    if byte == 0x0F:
        byte = data.take()
        found.map = {0x38: MAP_0F38, 0x3A: MAP_0F3A}.get(byte, MAP_0F)
        if found.map != MAP_0F:
            byte = data.take()
    return found, byte


def _read_vex(data: _Bytes, found: _Prefixes, first: int, long_mode: bool) -> int:
    """The VEX prefix whose first byte is taken; returns the opcode behind it."""
    if found.lock or found.repeat or found.operand_66:
        raise DecodeError("VEX after a prefix that it contains")
    second = data.take()
    if not long_mode and second & 0xC0 != 0xC0:
        raise DecodeError("LES or LDS")
    found.vex = True
    found.r = ~second >> 4 & 8
    if first == 0xC5:
        found.map = MAP_0F
        last = second
    else:
        found.map = second & 31
        found.x, found.b = ~second >> 3 & 8, ~second >> 2 & 8
        last = data.take()
        found.w = bool(last & 0x80)
        if found.map not in (MAP_0F, MAP_0F38, MAP_0F3A):
            raise DecodeError("a VEX map that does not exist")
    found.vvvv = ~last >> 3 & 15
    found.vex_l = bool(last & 4)
    found.vex_pp = last & 3
    if not long_mode:
        found.r = found.x = found.b = 0
        found.w = False
        found.vvvv &= 7
    return data.take()


def _read_memory(data: _Bytes, found: _Prefixes, mod: int, rm: int, long_mode: bool) -> Memory:
    """SIB and displacement."""
    if found.address_67 and not long_mode:
        raise DecodeError("16-bit addresses")
    base: int | None = rm | found.b
    index: int | None = None
    scale = 1
    relative = False
    width = (0, 1, 4)[mod]
    if rm == 4:
        sib = data.take()
        scale = 1 << (sib >> 6)
        index = (sib >> 3 & 7) | found.x
        if index == 4:
            index = None
        base = (sib & 7) | found.b
        if sib & 7 == 5 and mod == 0:
            base, width = None, 4
    elif rm == 5 and mod == 0:
        base, width, relative = None, 4, long_mode
    displacement = data.signed(width)
    size = 4 if not long_mode or found.address_67 else 8
    return Memory(base, index, scale, displacement, relative, found.segment, size)


def decode(code: bytes, long_mode: bool) -> Instruction:
    """Split the instruction that `code` begins with, in 64-bit code if `long_mode`, else in 32-bit code.

    Raises `Truncated` if `code` is too short and `DecodeError` for what is not covered.
    """
    data = _Bytes(code)
    found, opcode = _read_prefixes(data, long_mode)
    mod = reg = rm = 0
    memory = None
    if found.map == MAP_ONE_BYTE:
        if not 0xD8 <= opcode <= 0xDF and opcode not in (0x9B, 0xCC):
            raise DecodeError("an opcode that KVM emulates")
        has_modrm = opcode >= 0xD8
    else:
        has_modrm = found.map != MAP_0F or opcode not in _WITHOUT_MODRM
    if has_modrm:
        modrm = data.take()
        mod, reg, rm = modrm >> 6, (modrm >> 3 & 7) | found.r, modrm & 7
        if mod == 3:
            rm |= found.b
        else:
            memory = _read_memory(data, found, mod, rm, long_mode)
    immediate = 0
    if found.map == MAP_0F3A or (found.map == MAP_0F and opcode in _WITH_IMMEDIATE):
        immediate = data.take()
    return Instruction(
        length=data.position,
        vex=found.vex,
        map=found.map,
        opcode=opcode,
        prefix=found.mandatory,
        operand_66=found.operand_66,
        lock=found.lock,
        rex=found.rex,
        wide=found.w,
        vector_256=found.vex_l,
        vvvv=found.vvvv,
        mod=mod,
        reg=reg,
        rm=rm,
        memory=memory,
        immediate=immediate,
    )
