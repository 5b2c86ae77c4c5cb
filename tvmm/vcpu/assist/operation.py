"""One instruction being carried out: its operands, and what it changes.

Handlers read all they need, then write memory, then registers. A fault can come only from the reads and
from the one write to memory, so an instruction that faults has changed nothing. The XSAVE image is
fetched when a vector or x87 register is first touched, and handed back by `finish`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.vcpu.assist.cpu import (
    AF,
    ARITHMETIC_FLAGS,
    CF,
    CR0_EM,
    CR0_TS,
    CR4_OSFXSR,
    CR4_OSXSAVE,
    DEVICE_NOT_AVAILABLE,
    EFER_LMA,
    GENERAL_PROTECTION,
    INVALID_OPCODE,
    MASK64,
    OF,
    RF,
    SF,
    ZF,
    GuestException,
)

if TYPE_CHECKING:
    from tvmm.vcpu.assist.cpu import AssistCpu, GuestRegs, GuestSregs
    from tvmm.vcpu.assist.decode import Instruction

__all__ = ["REGISTERS", "ExtendedState", "Operation", "Unsupported", "long_mode"]

REGISTERS = (
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rsp",
    "rbp",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
)

# Offsets in an XSAVE image (SDM volume 1, chapter 13).
MXCSR = 24
XMM = 160
XSTATE_BV = 512
YMM_HIGH = 576
STATE_X87, STATE_SSE, STATE_AVX = 1, 2, 4

MASK128 = (1 << 128) - 1


class Unsupported(Exception):
    """A form of the instruction that is not covered."""


def long_mode(sregs: GuestSregs) -> bool:
    """Whether the vCPU runs 64-bit code."""
    return bool(sregs.efer & EFER_LMA and sregs.cs.l)


class ExtendedState:
    """The XSAVE image of a vCPU: fetched when first needed, handed back once, if it was changed."""

    __slots__ = ("_changed", "_cpu", "_image")

    def __init__(self, cpu: AssistCpu) -> None:
        self._cpu = cpu
        self._image: bytearray | None = None
        self._changed = False

    def read(self) -> bytearray:
        """The image, not to be changed."""
        if self._image is None:
            self._image = bytearray(self._cpu.get_xsave())
        return self._image

    def change(self) -> bytearray:
        """The image, to be changed."""
        self._changed = True
        return self.read()

    def write_back(self) -> None:
        """Give KVM what was changed."""
        if self._changed:
            self._cpu.set_xsave(bytes(self.read()))


class Operation:
    """Operands of one instruction on one vCPU. Sizes are in bytes, values unsigned."""

    __slots__ = ("_extended", "cpu", "insn", "next_rip", "regs", "sregs", "user", "wide_code")

    def __init__(self, cpu: AssistCpu, insn: Instruction, extended: ExtendedState) -> None:
        self.cpu = cpu
        self.insn = insn
        self.regs: GuestRegs = cpu.regs
        self.sregs: GuestSregs = cpu.sregs
        self.wide_code = long_mode(self.sregs)
        limit = MASK64 if self.wide_code else 0xFFFF_FFFF
        self.next_rip = (self.regs.rip + insn.length) & limit
        self.user = self.sregs.cs.dpl == 3
        self._extended = extended

    def finish(self) -> None:
        """The instruction is complete: go to the next one."""
        self.regs.rip = self.next_rip
        self.regs.rflags &= ~RF

    # General registers.

    @property
    def size(self) -> int:
        """Operand size of an integer instruction: 8 with REX.W or VEX.W, 2 with the prefix, else 4."""
        return 8 if self.insn.wide else 2 if self.insn.operand_66 else 4

    def get(self, number: int, size: int) -> int:
        """A general register (sizes 2, 4, 8; for 1 the byte registers of `insn.rex`)."""
        if size == 1 and not self.insn.rex and 4 <= number <= 7:
            value: int = getattr(self.regs, REGISTERS[number - 4])
            return value >> 8 & 0xFF
        value = getattr(self.regs, REGISTERS[number])
        return value & (1 << 8 * size) - 1

    def put(self, number: int, size: int, value: int) -> None:
        """Set a general register: 4 bytes clear the upper half, 2 bytes keep the rest."""
        name = REGISTERS[number]
        value &= (1 << 8 * size) - 1
        if size == 2:
            value |= getattr(self.regs, name) & ~0xFFFF
        setattr(self.regs, name, value)

    # Memory and r/m operands.

    @property
    def address(self) -> int:
        """Linear address of the memory operand."""
        memory = self.insn.memory
        if memory is None:
            raise Unsupported
        value = memory.displacement
        if memory.rip_relative:
            value += self.next_rip
        if memory.base_register is not None:
            value += getattr(self.regs, REGISTERS[memory.base_register])
        if memory.index_register is not None:
            value += getattr(self.regs, REGISTERS[memory.index_register]) * memory.scale
        value &= MASK64 if memory.address_size == 8 else 0xFFFF_FFFF
        segment = memory.segment
        if segment is None and not self.wide_code:
            segment = "ss" if memory.base_register in (4, 5) else "ds"
        if segment is not None:
            value += getattr(self.sregs, segment).base
        return value & (MASK64 if self.wide_code else 0xFFFF_FFFF)

    def load(self, size: int, alignment: int = 1) -> int:
        """The memory operand. Raises #GP unless it is aligned."""
        address = self.address
        if address & (alignment - 1):
            raise GuestException(GENERAL_PROTECTION, 0)
        return int.from_bytes(self.cpu.read_linear(address, size, self.user), "little")

    def store(self, value: int, size: int, alignment: int = 1) -> None:
        """Write the memory operand. Raises #GP unless it is aligned."""
        address = self.address
        if address & (alignment - 1):
            raise GuestException(GENERAL_PROTECTION, 0)
        self.cpu.write_linear(address, (value & (1 << 8 * size) - 1).to_bytes(size, "little"), self.user)

    def source(self, size: int) -> int:
        """The r/m operand: register or memory."""
        return self.get(self.insn.rm, size) if self.insn.memory is None else self.load(size)

    # Flags.

    def set_flags(self, value: int, changed: int = ARITHMETIC_FLAGS) -> None:
        """Set the flags of `changed` to those of `value`."""
        self.regs.rflags = self.regs.rflags & ~changed | value & changed

    def logic_flags(self, result: int, size: int, carry: bool = False) -> None:
        """SF and ZF by the result, CF as given, OF clear, AF and PF clear (architecturally undefined)."""
        flags = (CF if carry else 0) | (0 if result else ZF)
        if result >> (8 * size - 1) & 1:
            flags |= SF
        self.set_flags(flags, CF | ZF | SF | OF | AF)

    # Rights.

    def require_kernel(self) -> None:
        """#GP outside of privilege level 0."""
        if self.sregs.cs.dpl:
            raise GuestException(GENERAL_PROTECTION, 0)

    def require_fpu(self) -> None:
        """#NM when the guest has the FPU switched off."""
        if self.sregs.cr0 & (CR0_EM | CR0_TS):
            raise GuestException(DEVICE_NOT_AVAILABLE)

    def require_vector(self) -> None:
        """#UD or #NM unless the guest has enabled SSE (for a VEX form: AVX)."""
        if self.insn.vex:
            if not self.sregs.cr4 & CR4_OSXSAVE or self.cpu.get_xcr0() & 6 != 6:
                raise GuestException(INVALID_OPCODE)
        elif self.sregs.cr0 & CR0_EM or not self.sregs.cr4 & CR4_OSFXSR:
            raise GuestException(INVALID_OPCODE)
        if self.sregs.cr0 & CR0_TS:
            raise GuestException(DEVICE_NOT_AVAILABLE)

    # Extended state.

    def image(self) -> bytearray:
        """The XSAVE image, to be read."""
        return self._extended.read()

    def change_image(self, states: int) -> bytearray:
        """The XSAVE image, to be changed in the components `states`."""
        image = self._extended.change()
        image[XSTATE_BV] |= states
        return image

    def vector(self, number: int, size: int = 16) -> int:
        """A vector register: the low `size` bytes (up to 16) or all 32 of it."""
        image = self.image()
        low = int.from_bytes(image[XMM + 16 * number : XMM + 16 * number + min(size, 16)], "little")
        if size <= 16:
            return low
        high = image[YMM_HIGH + 16 * number : YMM_HIGH + 16 * number + 16]
        return low | int.from_bytes(high, "little") << 128

    def put_vector(self, number: int, value: int) -> None:
        """Set a vector register: a VEX form clears what is above, another leaves it alone."""
        image = self.change_image(STATE_SSE | STATE_AVX if self.insn.vex else STATE_SSE)
        image[XMM + 16 * number : XMM + 16 * number + 16] = (value & MASK128).to_bytes(16, "little")
        if self.insn.vex:
            high = (value >> 128).to_bytes(16, "little")
            image[YMM_HIGH + 16 * number : YMM_HIGH + 16 * number + 16] = high

    @property
    def vector_size(self) -> int:
        """16, or 32 with VEX.L."""
        return 32 if self.insn.vector_256 else 16

    def vector_source(self, size: int, aligned: bool = False) -> int:
        """The r/m operand of a vector instruction."""
        if self.insn.memory is None:
            return self.vector(self.insn.rm, size)
        return self.load(size, size if aligned else 1)
