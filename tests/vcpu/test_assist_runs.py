"""Runs of vector instructions, which are carried out without going back to KVM in between."""

from __future__ import annotations

import pytest

from tests.support.assist_cpu import FakeCpu, FlatMemory, PagedCpu, TableBuilder
from tvmm.vcpu.assist import Assist
from tvmm.vcpu.assist.emulate import RUN_LIMIT

CODE = 0x7000
PXOR = bytes.fromhex("66 0f ef c0")
PCMPEQD = bytes.fromhex("66 0f 76 c9")
LOAD = bytes.fromhex("f3 0f 6f 13")
NOP = b"\x90"
POPCNT = bytes.fromhex("f3 48 0f b8 c1")


class CountingCpu(FakeCpu):
    """Counts how often the extended state goes to and fro."""

    transfers = 0

    def get_xsave(self) -> bytes:
        self.transfers += 1
        return super().get_xsave()

    def set_xsave(self, image: bytes) -> None:
        self.transfers += 1
        super().set_xsave(image)


def vcpu(code: bytes) -> CountingCpu:
    """A vCPU before `code`, with other vectors than zero."""
    cpu = CountingCpu((CODE, bytearray(code.ljust(4096, NOP))))
    cpu.regs.rip = CODE
    cpu.image = cpu.image[:160] + b"x" * 48 + cpu.image[208:]
    return cpu


def vector(cpu: FakeCpu, number: int) -> bytes:
    """A vector register."""
    return cpu.image[160 + 16 * number : 176 + 16 * number]


@pytest.mark.parametrize("end", [NOP, POPCNT, b"\x0f\x01\xca"])
def test_run_ends_at_other_code(end: bytes) -> None:
    """Vector instructions are done up to the first of another kind; the state is moved once each way."""
    cpu = vcpu(PXOR + PCMPEQD + PXOR + end)
    assert Assist().handle(cpu, PXOR + PCMPEQD) == "pxor"
    assert cpu.regs.rip == CODE + 12
    assert (vector(cpu, 0), vector(cpu, 1), vector(cpu, 2)) == (bytes(16), b"\xff" * 16, b"x" * 16)
    assert cpu.transfers == 2


def test_run_ends_before_a_fault() -> None:
    """An instruction of the run that would fault is left for its own turn."""
    cpu = vcpu(PXOR + LOAD)
    cpu.regs.rbx = 0xDEAD_0000
    assert Assist().handle(cpu, PXOR) == "pxor"
    assert (cpu.regs.rip, cpu.injected) == (CODE + 4, [])
    assert vector(cpu, 0) == bytes(16)
    assert Assist().handle(cpu, LOAD) == "exception-14"
    assert cpu.regs.rip == CODE + 4


def test_run_is_limited() -> None:
    """A run has an end even if the code has none."""
    cpu = vcpu(PXOR * 1024)
    assert Assist().handle(cpu, PXOR) == "pxor"
    assert cpu.regs.rip == CODE + 4 * (RUN_LIMIT + 1)


def test_run_ends_with_the_page() -> None:
    """Code on the next page is another look-up; an instruction across the border is not begun."""
    cpu = vcpu(NOP * 4086 + PXOR + PXOR + PXOR[:2])
    cpu.regs.rip = CODE + 4086
    assert Assist().handle(cpu, PXOR) == "pxor"
    assert cpu.regs.rip == CODE + 4094


def test_single_step_is_respected() -> None:
    """With TF set each instruction is one step."""
    cpu = vcpu(PXOR + PXOR)
    cpu.regs.rflags |= 0x100
    assert Assist().handle(cpu, PXOR) == "pxor"
    assert cpu.regs.rip == CODE + 4


def test_integer_instructions_make_no_run() -> None:
    """Only vector code comes in runs."""
    cpu = vcpu(POPCNT + POPCNT)
    assert Assist().handle(cpu, POPCNT) == "popcnt"
    assert cpu.regs.rip == CODE + 5


@pytest.mark.parametrize(("code", "error"), [(LOAD, 5), (bytes.fromhex("f3 0f 7f 13"), 7)])
def test_user_code_has_no_kernel_rights(code: bytes, error: int) -> None:
    """Operands of user code are reached with the rights of user code."""
    memory = FlatMemory()
    tables = TableBuilder(memory)
    tables.map(CODE, CODE, flags=5)
    tables.map(0xFFFF_8000_0000_0000, 0x9000, flags=3)
    cpu = PagedCpu(memory)
    cpu.regs.rip, cpu.regs.rbx, cpu.sregs.cs.dpl = CODE, 0xFFFF_8000_0000_0000, 3
    assert Assist().handle(cpu, code) == "exception-14"
    assert cpu.injected == [(14, error)]
