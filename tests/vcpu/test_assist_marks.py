"""What instruction assist writes into guest memory in the CPU's place is marked for migration."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.watch import Page, Watch
from tvmm.config.memory import MemoryConfig
from tvmm.kvm.device_log import PAGE_SIZE, DeviceLog
from tvmm.memory.ram import MAIN_BLOCK, GuestRam
from tvmm.vcpu.assist_kvm import KvmAssistCpu

TABLES = (0x1000, 0x2000, 0x3000, 0x4000)


class StandingCpu:
    """What the adapter asks of KVM before memory is touched: a vCPU in 64-bit kernel mode."""

    def get_regs(self) -> Any:
        """RFLAGS is all that paging wants."""
        return SimpleNamespace(rflags=2, rip=0)

    def get_sregs(self) -> Any:
        """Control registers."""
        return SimpleNamespace(cr0=0x80050033, cr3=TABLES[0], cr4=0x20, efer=0xD01)


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    """4 MiB, with tables that map the second MiB of the linear addresses to the second of RAM, nothing accessed yet."""
    made = GuestRam(MemoryConfig(4 << 20))
    for table, following in pairwise(TABLES):
        made.write(table, (following | 3).to_bytes(8, "little"))
    for page in range(256, 512):
        made.write(TABLES[-1] + 8 * page, (page * PAGE_SIZE | 3).to_bytes(8, "little"))
    yield made
    made.close()


@pytest.fixture
def watch(ram: GuestRam) -> Iterator[Watch]:
    """The log is on, and hears of what assist does."""
    log = DeviceLog(ram)
    ram.dirty_log = log
    yield Watch(ram, log, driver=False)
    log.close()


def pages(*gpas: int) -> set[Page]:
    """Where addresses are."""
    return {(MAIN_BLOCK, gpa // PAGE_SIZE) for gpa in gpas}


def make_cpu(ram: GuestRam) -> KvmAssistCpu:
    """Before an instruction."""
    return KvmAssistCpu(StandingCpu(), ram)  # type: ignore[arg-type]


def test_write_over_two_pages(ram: GuestRam, watch: Watch) -> None:
    """Both pages, and the tables whose accessed and dirty bits are set; the second time the pages alone."""
    cpu = make_cpu(ram)
    cpu.write_linear(0x10_0FFC, b"eight by")
    assert watch.check() == (pages(0x10_0000, 0x10_1000, *TABLES),) * 2
    cpu.write_linear(0x10_0FFC, b"another!")
    assert watch.check() == (pages(0x10_0000, 0x10_1000),) * 2


def test_read_sets_accessed_bits(ram: GuestRam, watch: Watch) -> None:
    """Which is a write into the tables, once."""
    cpu = make_cpu(ram)
    cpu.read_linear(0x12_0000, 16)
    assert watch.check() == (pages(*TABLES),) * 2
    cpu.read_linear(0x12_0008, 16)
    assert watch.check() == (set(), set())


def test_compare_exchange(ram: GuestRam, watch: Watch) -> None:
    """Marked if something was exchanged, and not if the comparison failed."""
    cpu = make_cpu(ram)
    assert cpu.compare_exchange(0x10_5010, bytes(16), b"x" * 16) == bytes(16)
    assert watch.check() == (pages(0x10_5000, *TABLES),) * 2
    assert cpu.compare_exchange(0x10_5010, bytes(16), b"y" * 16) == b"x" * 16
    assert watch.check() == (set(), set())
