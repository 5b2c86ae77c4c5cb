"""What an assist sees of a virtual CPU, and how it raises a guest exception.

`AssistCpu` is all that instruction assist asks of the machine around it: register objects shaped like
KVM's own (`struct kvm_regs`, `struct kvm_sregs`), memory through the guest's page tables,
model-specific registers and the XSAVE image. The vCPU loop implements it on KVM; tests implement it on
a byte array.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.vcpu.assist.xsave import XsaveComponent

__all__ = [
    "AssistCpu",
    "DescriptorTable",
    "GuestException",
    "GuestRegs",
    "GuestSregs",
    "PageFault",
    "Segment",
]

# Exception vectors (Intel SDM volume 3, table 6-1).
DEBUG = 1
BREAKPOINT = 3
INVALID_OPCODE = 6
DEVICE_NOT_AVAILABLE = 7
STACK_FAULT = 12
GENERAL_PROTECTION = 13
PAGE_FAULT = 14
FLOATING_POINT = 16

# RFLAGS.
CF, PF, AF, ZF, SF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7
TF, IF, DF, OF, RF, AC = 1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 16, 1 << 18
ARITHMETIC_FLAGS = CF | PF | AF | ZF | SF | OF

# Control registers and EFER.
CR0_PE, CR0_MP, CR0_EM, CR0_TS, CR0_NE, CR0_WP, CR0_PG = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 16, 1 << 31
CR4_TSD, CR4_PSE, CR4_PAE, CR4_OSFXSR, CR4_LA57 = 1 << 2, 1 << 4, 1 << 5, 1 << 9, 1 << 12
CR4_PCIDE, CR4_OSXSAVE, CR4_SMEP, CR4_SMAP = 1 << 17, 1 << 18, 1 << 20, 1 << 21
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1, 1 << 8, 1 << 10, 1 << 11

# Model-specific registers.
MSR_XSS = 0xDA0
MSR_STAR = 0xC000_0081
MSR_LSTAR = 0xC000_0082
MSR_SFMASK = 0xC000_0084
MSR_TSC = 0x10
MSR_TSC_AUX = 0xC000_0103

MASK64 = (1 << 64) - 1


class GuestException(Exception):
    """The instruction ends in an exception of the guest: nothing was written, RIP stays where it is."""

    def __init__(self, vector: int, error_code: int | None = None) -> None:
        super().__init__(vector, error_code)
        self.vector = vector
        self.error_code = error_code


class PageFault(GuestException):
    """#PF at a linear address; the error code is the architecture's."""

    def __init__(self, address: int, error_code: int) -> None:
        super().__init__(PAGE_FAULT, error_code)
        self.address = address


class Segment(Protocol):
    """A segment register, as `struct kvm_segment`."""

    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741 - KVM's name
    g: int


class DescriptorTable(Protocol):
    """GDTR or IDTR, as `struct kvm_dtable`."""

    base: int
    limit: int


class GuestRegs(Protocol):
    """General registers, as `struct kvm_regs`. Values are unsigned 64-bit and assignments must be so
    too."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int


class GuestSregs(Protocol):
    """Segment and control registers, as `struct kvm_sregs`."""

    @property
    def cs(self) -> Segment: ...
    @property
    def ds(self) -> Segment: ...
    @property
    def es(self) -> Segment: ...
    @property
    def fs(self) -> Segment: ...
    @property
    def gs(self) -> Segment: ...
    @property
    def ss(self) -> Segment: ...
    @property
    def tr(self) -> Segment: ...
    @property
    def ldt(self) -> Segment: ...
    @property
    def gdt(self) -> DescriptorTable: ...
    @property
    def idt(self) -> DescriptorTable: ...

    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int


class AssistCpu(Protocol):
    """One vCPU that stands before an instruction KVM did not emulate.

    `regs` is written back to KVM after each assist that succeeded, `sregs` only after `sregs_changed()`.
    """

    @property
    def regs(self) -> GuestRegs: ...
    @property
    def sregs(self) -> GuestSregs: ...

    def sregs_changed(self) -> None:
        """Have `sregs` written back too (KVM flushes the guest's translations when it does)."""

    def read_linear(self, address: int, length: int, user: bool = False) -> bytes:
        """Read through the guest's page tables, with the rights of the kernel, or of user code if `user`.

        Raises `PageFault`, and `MemoryAccessError` where there is no RAM behind the page.
        """

    def write_linear(self, address: int, data: bytes, user: bool = False) -> None:
        """Write through the guest's page tables, with rights as for reading: all of `data` or nothing.

        Raises `PageFault`, and `MemoryAccessError` where there is no RAM behind the page.
        """

    def compare_exchange(self, address: int, expected: bytes, desired: bytes) -> bytes:
        """Write `desired` if memory holds `expected` (same length, aligned to it); return what was there.

        Excludes every other `compare_exchange` of the machine, whichever vCPU does it.
        Raises `PageFault` also when only the write would fault, as the instruction does.
        """

    def inject(self, vector: int, error_code: int | None) -> None:
        """Deliver an exception before the next instruction. CR2 and RIP are set already."""

    def read_msr(self, index: int) -> int:
        """The value of a model-specific register; raises `GuestException` (#GP) if KVM does not know it."""

    def write_msr(self, index: int, value: int) -> None:
        """Set a model-specific register; raises `GuestException` (#GP) if KVM refuses."""

    def get_xsave(self) -> bytes:
        """The extended state in the standard (not compacted) XSAVE format of KVM_GET_XSAVE, 4096 bytes."""

    def set_xsave(self, image: bytes) -> None:
        """Replace the extended state; same format."""

    @property
    def xsave_layout(self) -> Mapping[int, XsaveComponent]:
        """The state components above SSE by number, as the processor lays them out in `get_xsave`."""

    def flush_translations(self) -> None:
        """Have KVM drop what it has cached of the guest's page tables.

        Setting the same CR3 again does not do it; setting another and then the old one does.
        """

    def get_xcr0(self) -> int:
        """XCR0."""

    def set_xcr0(self, value: int) -> None:
        """Set XCR0; raises `GuestException` (#GP) if KVM refuses the value."""
