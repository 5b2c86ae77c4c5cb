"""Run one instruction on the real processor: the oracle that instruction assist is compared with.

The instruction is put between hand-written machine code that loads all general registers but RSP, the flags
and the x87, SSE and AVX state, and that stores them again behind it. Only instructions that user mode may
execute, that cannot fault with the operands given and that leave RSP, DF and TF alone may be run.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import NamedTuple

from tvmm.vcpu.assist.operation import REGISTERS

__all__ = ["GENERAL", "NativeCpu", "State", "host_features"]

GENERAL = REGISTERS
NUMBERS = tuple(number for number in range(16) if number != 4)
"""Registers that are loaded and stored: all but RSP."""

PAGE = 4096
CODE, REGISTERS_IN, FLAGS_IN, REGISTERS_OUT, FLAGS_OUT = 0, 0x1000, 0x1080, 0x1100, 0x1180
XSAVE_IN, XSAVE_OUT, DATA = 0x2000, 0x3000, 0x4000
SIZE = 0x5000
INSTRUCTION = 0x200
"""Where in the code page the instruction begins, always: so that it can have RIP-relative operands."""

STATES = 7
PUSHES = bytes.fromhex("53 55 41 54 41 55 41 56 41 57")
POPS = bytes.fromhex("41 5f 41 5e 41 5d 41 5c 5d 5b c3")


class State(NamedTuple):
    """Registers by number (RSP's is ignored), flags, a 4 KiB XSAVE image and the data page."""

    registers: tuple[int, ...]
    flags: int
    image: bytes
    data: bytes


def host_features() -> frozenset[str]:
    """The flags that Linux names for this processor."""
    with open("/proc/cpuinfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("flags"):
                return frozenset(line.split(":")[1].split())
    return frozenset()


class NativeCpu:
    """An executable page with data pages behind it."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, SIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.data_address = self.base + DATA
        self.instruction_address = self.base + INSTRUCTION
        self._call = ctypes.CFUNCTYPE(None)(self.base + CODE)

    def run(self, instruction: bytes, state: State) -> State:
        """The state after `instruction`."""
        self._write(XSAVE_IN, state.image)
        self._write(XSAVE_OUT, bytes(PAGE))
        self._write(DATA, state.data)
        self._write(REGISTERS_IN, b"".join(value.to_bytes(8, "little") for value in state.registers))
        self._write(FLAGS_IN, state.flags.to_bytes(8, "little"))
        before = self._before()
        self._write(CODE, before + b"\x90" * (INSTRUCTION - len(before)) + instruction)
        self._write(INSTRUCTION + len(instruction), self._after(INSTRUCTION + len(instruction)))
        self._call()
        registers = self._read(REGISTERS_OUT, 128)
        return State(
            tuple(int.from_bytes(registers[8 * n : 8 * n + 8], "little") for n in range(16)),
            int.from_bytes(self._read(FLAGS_OUT, 8), "little"),
            self._read(XSAVE_OUT, PAGE),
            self._read(DATA, PAGE),
        )

    def _write(self, offset: int, data: bytes) -> None:
        self._map[offset : offset + len(data)] = data

    def _read(self, offset: int, length: int) -> bytes:
        return self._map[offset : offset + length]

    @staticmethod
    def _relative(at: int, opcode: bytes, target: int) -> bytes:
        """An instruction at `at` whose last four bytes are the distance to `target`."""
        return opcode + (target - at - len(opcode) - 4).to_bytes(4, "little", signed=True)

    def _before(self) -> bytes:
        code = PUSHES + b"\xb8" + STATES.to_bytes(4, "little") + b"\xba\0\0\0\0"  # mov eax; mov edx
        code += self._relative(len(code), bytes.fromhex("48 0f ae 2d"), XSAVE_IN)  # xrstor64
        code += self._relative(len(code), bytes.fromhex("ff 35"), FLAGS_IN) + b"\x9d"  # push; popfq
        for number in NUMBERS:
            opcode = bytes((0x48 | (number & 8) >> 1, 0x8B, 0x05 | (number & 7) << 3))
            code += self._relative(len(code), opcode, REGISTERS_IN + 8 * number)
        return code

    def _after(self, at: int) -> bytes:
        code = b""
        for number in NUMBERS:
            opcode = bytes((0x48 | (number & 8) >> 1, 0x89, 0x05 | (number & 7) << 3))
            code += self._relative(at + len(code), opcode, REGISTERS_OUT + 8 * number)
        code += b"\x9c" + self._relative(at + len(code) + 1, bytes.fromhex("8f 05"), FLAGS_OUT)  # pushfq; pop
        code += b"\xb8" + STATES.to_bytes(4, "little") + b"\xba\0\0\0\0"
        code += self._relative(at + len(code), bytes.fromhex("48 0f ae 25"), XSAVE_OUT)  # xsave64
        return code + POPS
