"""The assists that a boot needs most, and the repair of SYSCALL."""

from __future__ import annotations

import pytest

from tests.support.assist_cpu import FakeCpu, FlatMemory, PagedCpu, TableBuilder
from tvmm.errors import MemoryAccessError
from tvmm.vcpu.assist import Assist

RIP = 0xFFFF_FFFF_8100_0000
AC, RF = 1 << 18, 1 << 16
LSTAR = 0xFFFF_FFFF_8180_0000
STACK = 0xFFFF_FE00_0000_0F00
USER_CODE = 0x40_1000
USER_STACK = 0x7FFF_FFFF_E000
CLAC, STAC, INT3, FWAIT = b"\x0f\x01\xca", b"\x0f\x01\xcb", b"\xcc", b"\x9b"


def ready(cpu: FakeCpu, code: bytes) -> FakeCpu:
    """A vCPU in kernel mode that stands before `code`."""
    cpu.regs.rip = RIP
    cpu.windows.append((RIP, bytearray(code.ljust(32, b"\x90"))))
    return cpu


@pytest.mark.parametrize(
    ("code", "name", "before", "after"),
    [(CLAC, "clac", AC | RF | 0x202, 0x202), (STAC, "stac", RF | 0x246, AC | 0x246)],
)
def test_smap_switches(code: bytes, name: str, before: int, after: int) -> None:
    """CLAC clears and STAC sets AC; RF goes as after any instruction; nothing else changes."""
    cpu = ready(FakeCpu(), code)
    cpu.regs.rflags = before
    assert Assist().handle(cpu, code + b"\x90\x90") == name
    assert (cpu.regs.rflags, cpu.regs.rip) == (after, RIP + 3)
    assert not cpu.injected
    assert not cpu.sregs_written


@pytest.mark.parametrize("code", [CLAC, STAC])
def test_smap_switches_are_for_the_kernel(code: bytes) -> None:
    """User code that executes them gets #UD with RIP at the instruction."""
    cpu = ready(FakeCpu(), code)
    cpu.sregs.cs.dpl = 3
    assert Assist().handle(cpu, code) == "exception-6"
    assert cpu.injected == [(6, None)]
    assert cpu.regs.rip == RIP


def test_int3() -> None:
    """#BP is delivered with RIP behind the instruction."""
    cpu = ready(FakeCpu(), INT3)
    assert Assist().handle(cpu, INT3) == "int3"
    assert cpu.injected == [(3, None)]
    assert cpu.regs.rip == RIP + 1


def test_rip_wraps_in_32_bit_code() -> None:
    """Outside of long mode RIP has 32 bits."""
    cpu = FakeCpu()
    cpu.sregs.efer = 0
    cpu.regs.rip = 0xFFFF_FFFD
    assert Assist().handle(cpu, STAC) == "stac"
    assert cpu.regs.rip == 0


@pytest.mark.parametrize(
    ("cr0", "status", "name", "injected"),
    [
        (0x80050033, 0, "fwait", []),
        (0x80050033 | 8, 0, "exception-7", [(7, None)]),
        (0x80050031 | 8, 0, "fwait", []),
        (0x80050033, 0x81, "exception-16", [(16, None)]),
        (0x80050013, 0x81, "fwait", []),
    ],
)
def test_fwait(cr0: int, status: int, name: str, injected: list[tuple[int, None]]) -> None:
    """FWAIT waits for nothing, but raises #NM when TS and MP are set and #MF for a pending exception."""
    cpu = ready(FakeCpu(), FWAIT)
    cpu.sregs.cr0 = cr0
    cpu.image = cpu.image[:2] + status.to_bytes(2, "little") + cpu.image[4:]
    assert Assist().handle(cpu, FWAIT) == name
    assert cpu.injected == injected
    assert cpu.regs.rip == RIP + (0 if injected else 1)


def in_page_fault(entry: bytes = CLAC, skipped: int = 0) -> tuple[PagedCpu, list[int]]:
    """A vCPU in the page-fault handler because SYSCALL reached its own handler with user privileges.

    Returns it with the frame's words: error code, RIP, CS, RFLAGS, RSP, SS.
    """
    memory = FlatMemory()
    tables = TableBuilder(memory)
    tables.map(STACK & ~0xFFF, 0x40000)
    tables.map(USER_CODE, 0x41000, flags=5)
    memory.write(0x41010, b"\x0f\x05")
    cpu = PagedCpu(memory)
    frame = [0x15, LSTAR, 0x33, 0x10082, USER_STACK, 0x2B]
    cpu.regs.rip = RIP + skipped
    cpu.regs.rsp = STACK - 48
    cpu.regs.rcx = USER_CODE + 0x12
    cpu.regs.r11 = 0x282
    cpu.regs.rflags = 0x10082
    cpu.sregs.cr2 = LSTAR
    cpu.msrs[0xC0000082] = LSTAR
    put_frame(cpu, frame)
    return cpu, frame


def put_frame(cpu: PagedCpu, frame: list[int]) -> None:
    """Write the exception frame to where RSP points."""
    for number, word in enumerate(frame):
        cpu.memory.put_word(0x40F00 - 48 + 8 * number, word)


@pytest.mark.parametrize(("code", "skipped"), [(CLAC, 0), (CLAC, 4), (b"\xf3\x48\x0f\xb8\xc1", 0)])
def test_syscall_is_repaired(code: bytes, skipped: int) -> None:
    """The handler gets the user's stack and the flags, also after ENDBR64 or from another opcode."""
    cpu, _ = in_page_fault(code, skipped)
    assert Assist().handle(cpu, code) == "syscall"
    assert cpu.regs.rip == LSTAR
    assert cpu.regs.rsp == USER_STACK
    assert cpu.regs.rflags == 0x82
    assert not cpu.injected


@pytest.mark.parametrize(
    ("word", "value"),
    [(0, 0x14), (0, 0x11), (0, 0x15 | 1 << 32), (1, LSTAR + 1), (2, 0x10), (2, 0x11), (3, 0x10282), (3, 0x40082)],
)
def test_other_faults_are_left_alone(word: int, value: int) -> None:
    """Any difference in the frame makes it the guest's own fault, and CLAC is just CLAC."""
    cpu, frame = in_page_fault()
    frame[word] = value
    put_frame(cpu, frame)
    assert Assist().handle(cpu, CLAC) == "clac"
    assert cpu.regs.rip == RIP + 3


@pytest.mark.parametrize("change", ["lstar", "cr2", "r11", "code", "no code", "no stack"])
def test_syscall_needs_everything(change: str) -> None:
    """LSTAR, CR2, the instruction before RCX and a readable stack are all checked."""
    cpu, _ = in_page_fault()
    if change == "lstar":
        cpu.msrs[0xC0000082] = LSTAR + 0x40
    elif change == "cr2":
        cpu.sregs.cr2 = 0x7FFF_0000
    elif change == "r11":
        cpu.regs.r11 = 0xFFFF_8880_0000_0282
    elif change == "code":
        cpu.memory.write(0x41010, b"\xcd\x80")
    elif change == "no code":
        cpu.regs.rcx = 0x7000_0000
    else:
        cpu.regs.rsp = 0xFFFF_C900_0000_0000
    assert Assist().handle(cpu, CLAC) == "clac"
    assert cpu.regs.rip == RIP + 3


def test_page_fault_of_an_operand() -> None:
    """An instruction whose operand faults changes nothing but CR2; #PF is injected with its error code."""
    cpu = ready(FakeCpu(), b"")
    cpu.regs.rbx = 0xFFFF_C900_1234_5678
    cpu.regs.rax = 0x1122
    cpu.regs.rflags = 0x10246
    assert Assist().handle(cpu, bytes.fromhex("66 0f 38 f1 03")) == "exception-14"
    assert cpu.injected == [(14, 2)]
    assert cpu.sregs.cr2 == 0xFFFF_C900_1234_5678
    assert cpu.sregs_written == 1
    assert (cpu.regs.rip, cpu.regs.rflags) == (RIP, 0x10246)


def test_operand_outside_of_ram() -> None:
    """An operand in a hole of guest memory cannot be handled here: the machine's report tells of it."""

    class Hole(FakeCpu):
        def read_linear(self, address: int, length: int, user: bool = False) -> bytes:
            raise MemoryAccessError("no RAM")

    cpu = ready(Hole(), b"")
    assert Assist().handle(cpu, bytes.fromhex("f3 48 0f b8 03")) is None
    assert cpu.regs.rip == RIP


@pytest.mark.parametrize("code", [b"", b"\x0f", b"\xf3\x48\x0f\xb8"])
def test_bytes_that_kvm_did_not_fetch(code: bytes) -> None:
    """What is missing of the instruction is read from memory."""
    cpu = ready(FakeCpu(), b"\xf3\x48\x0f\xb8\xc1" if code[:1] != b"\x0f" else b"\x0f\x01\xf9")
    cpu.regs.rcx = 0xFF
    assert Assist().handle(cpu, code) in ("popcnt", "rdtscp")


@pytest.mark.parametrize("text", ["90", "0f 0b", "0f a2", "0f 01 c1", "62 f1 7c 48 10 03", "8f e9 78 e1 c0", "66 90"])
def test_unknown_instructions(text: str) -> None:
    """What KVM emulates itself, or nobody knows, gives None and leaves the vCPU alone."""
    cpu = ready(FakeCpu(), b"")
    assert Assist().handle(cpu, bytes.fromhex(text).ljust(15, b"\x90")) is None
    assert cpu.regs.rip == RIP
    assert not cpu.injected
