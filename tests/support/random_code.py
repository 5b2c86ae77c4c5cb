"""Random machine code for guests that mean no good: noise, and instructions that reach KVM, devices and tvmm.

Deterministic: the same `Random` gives the same bytes on every Python.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from struct import pack

from tvmm.memory.layout import IOAPIC_BASE, LAPIC_BASE

__all__ = ["SPIN", "instructions", "noise"]

SPIN = b"\xeb\xfe"
"""JMP to itself."""

PORTS = (
    *range(0x3F8, 0x400), 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, *range(0x600, 0x60C), 0xCF8, 0xCF9, 0xCFC,
    0x20, 0x21, 0xA0, 0xA1, 0x40, 0x41, 0x42, 0x43, 0x501, 0x502, 0x4D0,
)  # fmt: skip
"""Where devices of tvmm and of KVM answer."""

MSRS = (
    0x10, 0x1B, 0x3A, 0x3B, 0x8B, 0xFE, 0x174, 0x175, 0x176, 0x179, 0x17A, 0x1A0, 0x200, 0x277, 0x2FF, 0x38F, 0x6E0,
    0x800, 0x802, 0x80B, 0x830, 0xDA0, 0x4B564D00, 0x4B564D01, 0x4B564D02, 0x4B564D03, 0x4B564D04, 0x40000000,
    0x40000001, 0xC0000080, 0xC0000081, 0xC0000082, 0xC0000084, 0xC0000100, 0xC0000102, 0xC0000103, 0xC0010015,
)  # fmt: skip

CONTROL = tuple(
    bytes.fromhex(text)
    for text in (
        "f4", "fa", "fb", "fc", "fd", "cc", "f1", "cf", "48cf", "cb", "9c", "9d", "0fa2", "0f31", "0f01f9", "0f06",
        "0f08", "0f09", "0f05", "0f07", "0f34", "0f35", "0f01c1", "0f01d9", "0f01c8", "0f01c9", "0f01ca", "0f01cb",
        "0f01d0", "0f01d1", "0f01f8", "0f0b", "0fff", "0faa", "9b", "dbe3", "0f77", "90", "f390", "c9", "ce", "d7",
    )
)  # fmt: skip
"""Instructions without operands that change how the processor runs, or that emulators get wrong."""

TAME_CONTROL = tuple(
    bytes.fromhex(text)
    for text in (
        "fb", "fa", "fc", "cc", "9c58", "5058", "0fa2", "0f31", "90", "f390", "0f09", "fbf4", "0f20c0", "0f20d8"
    )
)  # fmt: skip
"""Those of them that leave the processor as it was, or nearly."""

SYSTEM_MEMORY = (b"\x0f\x01", b"\x0f\x00", b"\x0f\xae", b"\x0f\xc7", b"\x0f\x20", b"\x0f\x22", b"\x0f\x21", b"\x0f\x23")
"""Opcodes with a ModRM byte: descriptor tables, FXSAVE and XSAVE, CMPXCHG16B, control and debug registers."""

ASSISTED = (
    b"\xf3\x0f\xb8", b"\xf2\x0f\x38\xf1", b"\x66\x0f\xef", b"\x0f\xef", b"\x0f\x28", b"\x66\x0f\x6f", b"\xf3\x0f\x6f",
    b"\x66\x0f\x38\x00", b"\xf3\x0f\x38\xf6", b"\xf3\x0f\xbd", b"\xdf", b"\xdb", b"\xd9", b"\xdd",
    b"\xc5\xf9\xef", b"\xc5\xfd\x6f", b"\xc4\xe2\x78\xf2", b"\x66\x0f\x38\x82", b"\xf0\x48\x0f\xc7", b"\x0f\x38\xf0",
)  # fmt: skip
"""What KVM's emulator hands out; a ModRM byte follows."""


def noise(random: Random, length: int) -> bytes:
    """Bytes."""
    return random.randbytes(length)


def instructions(random: Random, length: int, *, wide: bool, wild: bool) -> bytes:
    """At least `length` bytes of instructions that mostly decode, for 64-bit (`wide`) or 32-bit code.

    Without `wild` only those that any KVM can emulate and that do not pull the rug from under the code: such a guest
    lives longer, and gets further.
    """
    makers = _TAME + _WILD if wild else _TAME
    code = b""
    while len(code) < length:
        code += random.choice(makers)(random, wide)
    return code


def _number(random: Random) -> int:
    """32 bits, often at an edge."""
    return random.choice((0, 1, 0x7F, 0xFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, random.getrandbits(32)))


def _address(random: Random) -> int:
    """RAM of a small machine, or a hole or device in the 32-bit space."""
    return random.choice(
        (
            0x10_0000 + random.randrange(0x10_0000),
            random.randrange(0x10_0000),
            LAPIC_BASE + random.randrange(0x1000),
            IOAPIC_BASE + random.randrange(0x20),
            0xC000_0000 + random.randrange(0x1000_0000),
            random.getrandbits(32),
        )
    )


def _port(random: Random) -> bytes:
    """MOV DX, port."""
    return b"\x66\xba" + pack("<H", random.choice((random.choice(PORTS), random.getrandbits(16))))


def _set(register: int, value: int) -> bytes:
    """MOV to a 32-bit register."""
    return bytes((0xB8 + register,)) + pack("<I", value)


def _port_access(random: Random, wide: bool) -> bytes:
    access = random.choice((b"\xec", b"\xed", b"\xee", b"\xef", b"\x66\xed", b"\x66\xef"))
    return _port(random) + _set(0, _number(random)) + access


def _short_port_access(random: Random, wide: bool) -> bytes:
    return bytes((random.choice((0xE4, 0xE5, 0xE6, 0xE7)), random.getrandbits(8)))


def _string_access(random: Random, wide: bool) -> bytes:
    access = random.choice((b"\x6c", b"\x6d", b"\x6e", b"\x6f", b"\x66\x6d", b"\x66\x6f", b"\xa4", b"\xab", b"\xa5"))
    count = random.choice((0, 1, 15, 4096, 0xFFFF_FFFF, random.getrandbits(16)))
    registers = _set(1, count) + _set(6, _address(random)) + _set(7, _address(random))
    return _port(random) + registers + random.choice((b"\xf3", b"\xf2", b"")) + access


def _memory_access(random: Random, wide: bool) -> bytes:
    modrm = b"\x04\x25" if wide else b"\x05"
    access = random.choice((b"\x88", b"\x89", b"\x8a", b"\x8b", b"\x66\x89", b"\xf0\x0f\xb1", b"\xf0\x01", b"\x0f\xc1"))
    address = _address(random)
    if wide and address >> 31:
        # A 32-bit displacement is signed: reach the upper half through a register.
        return _set(3, address) + access + b"\x03"
    return access + modrm + pack("<I", address)


def _msr(random: Random, wide: bool) -> bytes:
    index = random.choice((random.choice(MSRS), random.choice(MSRS), random.getrandbits(32)))
    registers = _set(1, index) + _set(0, _number(random)) + _set(2, random.choice((0, 0, _number(random))))
    return registers + random.choice((b"\x0f\x30", b"\x0f\x30", b"\x0f\x32"))


def _control(random: Random, wide: bool) -> bytes:
    return random.choice(CONTROL)


def _tame_control(random: Random, wide: bool) -> bytes:
    return random.choice(TAME_CONTROL)


def _interrupt(random: Random, wide: bool) -> bytes:
    return b"\xcd" + random.randbytes(1)


def _system(random: Random, wide: bool) -> bytes:
    opcode = random.choice((random.choice(SYSTEM_MEMORY), random.choice(ASSISTED)))
    return _set(random.choice((0, 1, 2, 3, 6, 7)), _address(random)) + opcode + random.randbytes(random.randrange(1, 4))


def _jump(random: Random, wide: bool) -> bytes:
    kind = random.choice((b"\xeb", b"\xe8", b"\x74", b"\x75", b"\xe2", b"\xe3"))
    if kind == b"\xe8":
        return kind + pack("<i", random.randrange(-64, 256))
    return kind + pack("<b", random.randrange(-24, 64))


def _noise(random: Random, wide: bool) -> bytes:
    return random.randbytes(random.randrange(1, 9))


_Maker = Callable[[Random, bool], bytes]

_TAME: tuple[_Maker, ...] = (
    _port_access,
    _port_access,
    _port_access,
    _short_port_access,
    _string_access,
    _memory_access,
    _memory_access,
    _msr,
    _tame_control,
    _tame_control,
)
_WILD: tuple[_Maker, ...] = (_interrupt, _control, _system, _system, _jump, _noise)
