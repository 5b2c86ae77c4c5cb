"""Clocks and interrupts of a machine that goes on in another one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tests.wiring.guests import guest
from tests.wiring.moves import copy_ram, destination
from tvmm.board_state import load_board, save_board
from tvmm.state import Section, decode, encode
from tvmm.vcpu.chips import ClockState, load_chips, save_chips
from tvmm.wiring.cpu_parts import KvmParts
from tvmm.wiring.mmio_slot import MmioSlot

pytestmark = pytest.mark.guest

MILLISECOND_NS = 1_000_000


def section(sections: Sequence[Section]) -> Section:
    """The clock's."""
    return next(each for each in sections if each.name == "clock")


async def test_loading_is_part_of_the_pause() -> None:
    """kvmclock goes on by all the time since the guest was stopped, what loading took included."""
    async with guest() as shell, destination(shell.vm.config) as other:
        await shell.vm.pause()
        sections = await save_board(shell.vm.board, KvmParts())
        clock = decode(section(sections).data, (ClockState,))
        ran_at = time.perf_counter_ns() - (time.time_ns() - clock.realtime_ns)
        copy_ram(shell.vm, other.vm)
        await load_board(other.vm.board, sections, KvmParts(ran_at - MILLISECOND_NS))
        clock_ns, realtime_ns = other.vm.board.vm.get_clock()
    assert abs((clock_ns - clock.clock_ns) - (realtime_ns - clock.realtime_ns)) < MILLISECOND_NS


async def test_no_longer_than_the_pause() -> None:
    """A source whose real-time clock is an hour behind has the guest's go on by what has passed here."""
    async with guest() as shell, destination(shell.vm.config) as other:
        await shell.vm.pause()
        ran_at = time.perf_counter_ns()
        sections = await save_board(shell.vm.board, KvmParts())
        clock = decode((was := section(sections)).data, (ClockState,))
        late = clock._replace(realtime_ns=clock.realtime_ns - 3600 * 1_000_000_000)
        sections = [each for each in sections if each.name != "clock"]
        sections.append(was._replace(data=encode(late)))
        copy_ram(shell.vm, other.vm)
        begun = time.perf_counter_ns()
        await load_board(other.vm.board, sections, KvmParts(ran_at))
        clock_ns, _ = other.vm.board.vm.get_clock()
    assert begun - ran_at <= clock_ns - clock.clock_ns <= time.perf_counter_ns() - ran_at


async def test_an_edge_that_was_half_made(tmp_path: Path) -> None:
    """Saved between the rise and the fall of a device's line, which the kernel makes when it comes to it: the device's
    next edge arrives all the same.
    """
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    async with guest(disk=[f"{image},transport=mmio"]) as shell:
        await shell.ask("blkbench 0 read 4096 1 1 irq")
        await shell.vm.pause()
        board = shell.vm.board
        assert board.devices is not None
        slot = board.devices.slots[0]
        assert isinstance(slot, MmioSlot)
        vcpu, pin = board.vcpus[0], slot.line.gsi
        chips, lapic = save_chips(board.vm), vcpu.get_structure("lapic")
        risen = chips.ioapic[:16] + (1 << pin).to_bytes(4, "little") + chips.ioapic[20:]
        vector = chips.ioapic[24 + 8 * pin]
        load_chips(board.vm, chips._replace(ioapic=risen))
        vcpu.set_structure("lapic", lapic)
        slot.line()
        with trio.fail_after(20):
            while not is_requested(vcpu.get_structure("lapic"), vector):
                await trio.sleep(0.001)


def is_requested(lapic: bytes, vector: int) -> bool:
    """Whether the local APIC has it in its interrupt request register."""
    return bool(lapic[0x200 + vector // 32 * 16 + vector % 32 // 8] >> vector % 8 & 1)
