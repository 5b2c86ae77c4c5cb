"""System instructions of the assist, and what each demands of the machine's state."""

from __future__ import annotations

import pytest

from tests.support.assist_cpu import FakeCpu, initial_image, segment
from tvmm.vcpu.assist import Assist
from tvmm.vcpu.assist.xsave import XsaveComponent, compacted_offsets, xsave_layout
from tvmm.vcpu.cpuid import CpuidEntry

ZF = 0x40
MEMORY = 0x5000


def vcpu(**registers: int) -> FakeCpu:
    """A vCPU with a page of memory at 0x5000, which RBX points to."""
    cpu = FakeCpu((MEMORY, bytearray(4096)))
    cpu.regs.rbx = MEMORY
    for name, value in registers.items():
        setattr(cpu.regs, name, value)
    return cpu


def handle(cpu: FakeCpu, text: str) -> str | None:
    """Let the assist do the instruction."""
    return Assist().handle(cpu, bytes.fromhex(text))


def test_rdtscp() -> None:
    """EDX:EAX is the time stamp counter, ECX is TSC_AUX; upper halves are cleared."""
    cpu = vcpu(rax=-1 & (1 << 64) - 1)
    cpu.msrs[0x10], cpu.msrs[0xC0000103] = 0x1234_5678_9ABC_DEF0, 7
    assert handle(cpu, "0f 01 f9") == "rdtscp"
    assert (cpu.regs.rdx, cpu.regs.rax, cpu.regs.rcx) == (0x1234_5678, 0x9ABC_DEF0, 7)


def test_rdtscp_of_user_code_with_tsd() -> None:
    """CR4.TSD takes it away from user code."""
    cpu = vcpu()
    cpu.sregs.cr4 |= 4
    assert handle(cpu, "0f 01 f9") == "rdtscp"
    cpu.sregs.cs.dpl = 3
    assert handle(cpu, "0f 01 f9") == "exception-13"
    assert cpu.injected == [(13, 0)]


def test_rdpid() -> None:
    """The register is TSC_AUX, in all 64 bits."""
    cpu = vcpu(r9=-1 & (1 << 64) - 1)
    cpu.msrs[0xC0000103] = 0x8000_0001
    assert handle(cpu, "f3 41 0f c7 f9") == "rdpid"
    assert cpu.regs.r9 == 0x8000_0001


@pytest.mark.parametrize("kind", range(4))
def test_invpcid_flushes(kind: int) -> None:
    """All four kinds have KVM drop what it cached."""
    cpu = vcpu(rax=kind)
    assert handle(cpu, "66 0f 38 82 03") == "invpcid"
    assert cpu.flushes == 1


@pytest.mark.parametrize(
    ("kind", "pcid", "address", "pcide", "vector"),
    [
        (4, 0, 0, True, 13),
        (1 << 32, 0, 0, True, 13),
        (1, 0x1000, 0, True, 13),
        (1, 5, 0, False, 13),
        (0, 5, 0, False, 13),
        (0, 0, 1 << 63, True, 13),
        (2, 5, 1 << 63, False, 0),
        (0, 5, 0xFFFF_8000_0000_0000, True, 0),
    ],
)
def test_invpcid_checks(kind: int, pcid: int, address: int, pcide: bool, vector: int) -> None:
    """Unknown kinds, reserved bits, PCIDs that are off and addresses that are not canonical raise #GP."""
    cpu = vcpu(rax=kind)
    cpu.sregs.cr4 |= (1 << 17) * pcide
    cpu.windows[0][1][:16] = pcid.to_bytes(8, "little") + address.to_bytes(8, "little")
    expected = f"exception-{vector}" if vector else "invpcid"
    assert handle(cpu, "66 0f 38 82 03") == expected
    assert cpu.flushes == (0 if vector else 1)


@pytest.mark.parametrize("text", ["66 0f 38 82 03", "0f 01 d1", "48 0f c7 2b", "48 0f c7 1b"])
def test_kernel_only(text: str) -> None:
    """INVPCID, XSETBV, XSAVES and XRSTORS raise #GP in user code."""
    cpu = vcpu(rax=1)
    cpu.sregs.cs.dpl = 3
    assert handle(cpu, text) == "exception-13"
    assert cpu.flushes == 0


DESCRIPTORS = {
    "read-only data": (0x10, False),
    "data": (0x12, True),
    "code": (0x18, None),
    "readable code": (0x1A, False),
    "conforming code": (0x1E, False),
    "system": (0x02, None),
}
"""Type field (with the S bit above it), and whether VERW accepts it; None: VERR refuses it as well."""


@pytest.mark.parametrize("kind", DESCRIPTORS)
@pytest.mark.parametrize("text", ["0f 00 e0", "0f 00 e8"])
def test_verify_by_type(kind: str, text: str) -> None:
    """VERR wants a readable segment, VERW a writable one."""
    bits, writable = DESCRIPTORS[kind]
    cpu = vcpu(rax=8)
    cpu.sregs.gdt.base, cpu.sregs.gdt.limit = MEMORY, 15
    cpu.windows[0][1][13] = 0x80 | bits
    assert handle(cpu, text) == ("verr" if text == "0f 00 e0" else "verw")
    expected = writable is not None if text == "0f 00 e0" else bool(writable)
    assert bool(cpu.regs.rflags & ZF) is expected


@pytest.mark.parametrize(
    ("selector", "privilege", "accepted"),
    [
        (0, 0, False),
        (3, 0, False),
        (8, 0, True),
        (0xB, 0, False),
        (0x10, 0, False),
        (0xC, 0, True),
        (8, 3, False),
    ],
)
def test_verify_by_selector(selector: int, privilege: int, accepted: bool) -> None:
    """Null selectors, those behind the table's limit and those with too little privilege are refused."""
    cpu = vcpu(rax=selector)
    cpu.sregs.cs.dpl = privilege
    cpu.sregs.gdt.base, cpu.sregs.gdt.limit = MEMORY, 15
    cpu.sregs.ldt = segment(base=MEMORY, limit=15)
    cpu.windows[0][1][13] = 0x92
    assert handle(cpu, "0f 00 e8") == "verw"
    assert bool(cpu.regs.rflags & ZF) is accepted


def test_verw_of_memory() -> None:
    """The form that kernels use to clear buffers: the selector in memory."""
    cpu = vcpu()
    cpu.regs.rflags |= ZF
    assert handle(cpu, "0f 00 2b") == "verw"
    assert not cpu.regs.rflags & ZF


def test_xgetbv() -> None:
    """XCR0, and with ECX 1 those of its components that are in use."""
    cpu = vcpu(rcx=0)
    assert handle(cpu, "0f 01 d0") == "xgetbv"
    assert (cpu.regs.rdx, cpu.regs.rax) == (0, 0x207)
    image = initial_image()
    image[512] = 4
    cpu.image = bytes(image)
    cpu.regs.rcx = 1
    assert handle(cpu, "0f 01 d0") == "xgetbv"
    assert cpu.regs.rax == 5
    cpu.regs.rcx = 2
    assert handle(cpu, "0f 01 d0") == "exception-13"


@pytest.mark.parametrize(
    ("index", "value", "result"),
    [(0, 7, "xsetbv"), (0, 6, "exception-13"), (1, 7, "exception-13"), (0, 0xFF, "exception-13")],
)
def test_xsetbv(index: int, value: int, result: str) -> None:
    """XCR0 takes what KVM takes; x87 cannot be switched off, and there is no other register."""
    cpu = vcpu(rcx=index, rax=value)
    assert handle(cpu, "0f 01 d1") == result
    assert cpu.xcr0 == (7 if result == "xsetbv" else 0x207)


@pytest.mark.parametrize("text", ["0f 01 d0", "0f 01 d1", "0f ae 23", "0f ae 2b", "0f c7 23", "c5 f9 ef c1"])
def test_xsave_must_be_on(text: str) -> None:
    """Without CR4.OSXSAVE these are #UD."""
    cpu = vcpu()
    cpu.sregs.cr4 &= ~(1 << 18)
    assert handle(cpu, text) == "exception-6"


@pytest.mark.parametrize("text", ["0f ae 23", "0f ae 2b", "66 0f ef c1", "c5 f9 ef c1", "db e3", "0f 77"])
def test_task_switched(text: str) -> None:
    """With CR0.TS set whatever needs the FPU raises #NM."""
    cpu = vcpu()
    cpu.sregs.cr0 |= 8
    assert handle(cpu, text) == "exception-7"


@pytest.mark.parametrize("text", ["0f ae 23", "0f ae 2b", "0f c7 23", "66 0f ef 03", "66 0f 7f 03", "48 0f c7 0b"])
def test_alignment(text: str) -> None:
    """XSAVE areas, aligned vector operands and CMPXCHG16B's operand raise #GP when misaligned."""
    cpu = vcpu(rbx=MEMORY + 8, rax=7)
    assert handle(cpu, text) == "exception-13"


def test_fldcw_raises_what_was_pending() -> None:
    """Unmasking an exception that is flagged sets the summary, and the next x87 instruction raises #MF."""
    cpu = vcpu()
    cpu.windows[0][1][:2] = (0x37E).to_bytes(2, "little")
    cpu.image = cpu.image[:2] + b"\x01\x00" + cpu.image[4:]
    assert handle(cpu, "d9 2b") == "fldcw"
    assert int.from_bytes(cpu.image[2:4], "little") == 0x8081
    assert handle(cpu, "9b") == "exception-16"
    assert handle(cpu, "db e2") == "fnclex"
    assert handle(cpu, "9b") == "fwait"


def test_ldmxcsr_reserved_bits() -> None:
    """Bits that MXCSR does not have raise #GP."""
    cpu = vcpu()
    cpu.windows[0][1][:4] = (0x1_1F80 | 1 << 18).to_bytes(4, "little")
    assert handle(cpu, "0f ae 13") == "exception-13"


def test_xsaves_and_xrstors() -> None:
    """XSAVES writes the compacted format; XRSTORS takes it back, and only that."""
    cpu = vcpu(rax=0x207)
    image = bytearray(cpu.image)
    image[160:176], image[576:592], image[2432:2440] = b"x" * 16, b"y" * 16, b"p" * 8
    image[512:514] = (0x206).to_bytes(2, "little")
    cpu.image = bytes(image)
    assert handle(cpu, "48 0f c7 2b") == "xsaves"
    area = cpu.windows[0][1]
    assert area[512:528] == (0x206).to_bytes(8, "little") + (1 << 63 | 0x207).to_bytes(8, "little")
    assert [bytes(area[at : at + 8]) for at in (160, 576, 832)] == [b"x" * 8, b"y" * 8, b"p" * 8]
    cpu.image = bytes(initial_image())
    assert handle(cpu, "48 0f c7 1b") == "xrstors"
    assert cpu.image[:528] == bytes(image[:528])
    assert cpu.image[576:832] == image[576:832]
    assert cpu.image[2432:2440] == b"p" * 8
    area[527] = 0
    assert handle(cpu, "48 0f c7 1b") == "exception-13"


@pytest.mark.parametrize(
    ("at", "data"),
    [(512, b"\x08"), (520, b"\x01"), (520, b"\x08" + bytes(6) + b"\x80"), (530, b"\x01"), (24, b"\0\0\0\1")],
)
def test_xrstor_refuses(at: int, data: bytes) -> None:
    """Components that are not enabled, an unclean header and a wrong MXCSR raise #GP; nothing is loaded."""
    cpu = vcpu(rax=7)
    cpu.windows[0][1][: at + len(data)] = bytes(at) + data
    before = cpu.image
    assert handle(cpu, "0f ae 2b") == "exception-13"
    assert cpu.image == before


def test_xrstor_of_mxcsr() -> None:
    """An MXCSR that is not the default survives although SSE is in its initial state."""
    cpu = vcpu(rax=4)
    cpu.windows[0][1][24:28] = (0x1FA0).to_bytes(4, "little")
    assert handle(cpu, "0f ae 2b") == "xrstor"
    assert cpu.image[24:28] == (0x1FA0).to_bytes(4, "little")
    assert cpu.image[512] & 2


def test_layout_from_cpuid() -> None:
    """Sizes, offsets and alignment come from leaf 0xD; the compacted format closes the gaps."""
    layout = xsave_layout(
        [
            CpuidEntry(0xD, 0, 1, 0x207, 0x988, 0x988, 0),
            CpuidEntry(0xD, 1, 1, 15, 0x350, 0, 0),
            CpuidEntry(0xD, 2, 1, 256, 576, 0, 0),
            CpuidEntry(0xD, 9, 1, 8, 2432, 0, 0),
            CpuidEntry(0xD, 11, 1, 16, 0, 1, 0),
            CpuidEntry(0xD, 18, 1, 8192, 2816, 2, 0),
            CpuidEntry(7, 2, 1, 1, 1, 1, 1),
        ]
    )
    assert layout == {
        2: XsaveComponent(576, 256),
        9: XsaveComponent(2432, 8),
        11: XsaveComponent(0, 16),
        18: XsaveComponent(2816, 8192, True),
    }
    assert compacted_offsets(layout, 1 << 2 | 1 << 9 | 1 << 18) == {2: 576, 9: 832, 18: 896}


def test_component_that_nobody_described() -> None:
    """A component without a layout cannot be placed: the assist gives up instead of guessing."""
    cpu = vcpu(rax=0xFF)
    cpu.xcr0 = 0x27
    assert handle(cpu, "48 0f c7 23") is None


def test_registers_of_32_bit_code() -> None:
    """32-bit code has eight vector registers, uses segment bases and wraps addresses at 4 GiB."""
    cpu = vcpu(rax=0xFFFF_FFF0, rip=0x1000)
    cpu.sregs.cs.l, cpu.sregs.cs.db = 0, 1
    cpu.sregs.ds.base = MEMORY + 0x20
    cpu.windows[0][1][0x10:0x14] = b"\x07\0\0\0"
    assert handle(cpu, "f3 0f b8 08") == "popcnt"
    assert (cpu.regs.rcx, cpu.regs.rip) == (3, 0x1004)
    image = bytearray(cpu.image)
    image[576:832] = b"z" * 256
    cpu.image = bytes(image)
    assert handle(cpu, "c5 f8 77") == "vzeroupper"
    assert cpu.image[576:832] == bytes(128) + b"z" * 128


def test_16_bit_code_is_refused() -> None:
    """Nothing is guessed about 16-bit code."""
    cpu = vcpu()
    cpu.sregs.cs.l = 0
    assert handle(cpu, "f3 0f b8 c1") is None
