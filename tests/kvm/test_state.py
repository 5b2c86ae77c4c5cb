"""Saved from one VM of KVM, loaded into another: the guest goes on and finds all that it left."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.statevm import (
    BASES,
    CLOCK_PAGE,
    COUNTER,
    FS_AREA,
    GENERAL,
    GS_AREA,
    LEGACY,
    NAMES,
    TICKS,
    USER_STACK,
    VECTORS,
    StateVm,
    initial_image,
)
from tvmm.errors import HostError
from tvmm.vcpu.chips import load_chips, load_clock, save_chips, save_clock
from tvmm.vcpu.state import VcpuState, load_vcpu, save_vcpu

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kvm

REGISTERS = {name: (number + 1) * 0x1111_0000_0000_0101 & (1 << 64) - 1 for number, name in enumerate(NAMES)}
REGISTERS["rsp"] = USER_STACK
ONCE, PERIODIC, DEADLINE = 0, 1, 2
MILLISECOND = 1_000_000
NEVER = 0xFFFF_FFFF
MSR_TSC, MSR_DEADLINE, MSR_CLOCK = 0x10, 0x6E0, 0x4B56_4D01
MSRS = {
    0x174: 0x08,
    0x175: 0x3_1100,
    0x176: 0x2_1100,
    0x277: 0x0007_0106_0007_0106,
    0x2FF: 0xC06,
    0xC000_0081: 0x0013_0008_0000_0000,
    0xC000_0082: 0x2_1200,
    0xC000_0083: 0x2_1300,
    0xC000_0084: 0x4_7700,
    0xC000_0102: 0xFFFF_8000_1234_5000,
    0xC000_0103: 0x77,
}
TIME_DEPENDENT = {MSR_TSC}
CURRENT_COUNT = slice(0x390, 0x394)


@contextmanager
def two_vms() -> Iterator[tuple[StateVm, StateVm]]:
    """One to save from and one to load into."""
    with ExitStack() as stack:
        yield StateVm(stack), StateVm(stack)


def begin(vm: StateVm, timer: int = PERIODIC, count: int = MILLISECOND) -> None:
    """The guest with something of its own everywhere."""
    vm.start(REGISTERS, timer, count)
    vm.ram.write(FS_AREA, b"fs here.")
    vm.ram.write(GS_AREA, b"gs here.")
    vm.vcpu.set_xcr0(7)
    vm.vcpu.set_xsave_image(initial_image(vm.vcpu.xsave_size))
    for pair in MSRS.items():
        assert vm.vcpu.set_msrs([pair]) == 1
    debug = bytearray(vm.vcpu.get_structure("debugregs"))
    debug[0:8] = (0x4_2000).to_bytes(8, "little")
    vm.vcpu.set_structure("debugregs", bytes(debug))


def run_for_a_while(vm: StateVm) -> None:
    """Let the loop run, and kick it out wherever it is. Ticks on the way are passed over."""
    start = vm.number(COUNTER)
    done = threading.Event()

    def watch() -> None:
        while vm.number(COUNTER) < start + 1000 and not done.is_set():
            os.sched_yield()
        vm.vcpu.kick()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        while vm.run():
            pass
    finally:
        done.set()
        watcher.join()
    vm.settle()
    assert vm.number(COUNTER) >= start + 1000


def move(source: StateVm, target: StateVm) -> VcpuState:
    """All that a migration would carry."""
    state, chips, clock = save_vcpu(source.vcpu, source.msrs), save_chips(source.vm), save_clock(source.vm)
    target.copy_ram(source)
    load_chips(target.vm, chips)
    load_vcpu(target.vcpu, state, target.msrs)
    load_clock(target.vm, clock, 10**9, time.time_ns())
    return state


def forget_findings(vm: StateVm) -> None:
    """Zero where the loop stores its registers."""
    vm.ram.write(GENERAL, bytes(BASES + 16 - GENERAL))


def check_findings(vm: StateVm) -> None:
    """The loop has stored what `begin` put into the registers."""
    for number, name in enumerate(NAMES):
        assert vm.number(GENERAL + 8 * number) == REGISTERS[name], name
    image = initial_image(4096)
    legacy = vm.ram.read(LEGACY, 512)
    for start, end in ((0, 5), (24, 28), (32, 160), (160, 416)):
        assert legacy[start:end] == image[start:end], start
    for number in range(16):
        low, high = 160 + 16 * number, 576 + 16 * number
        assert vm.ram.read(VECTORS + 32 * number, 32) == image[low : low + 16] + image[high : high + 16], number
    assert vm.ram.read(BASES, 16) == b"fs here.gs here."


def timeless(state: VcpuState) -> VcpuState:
    """Without what differs from one save to the next by the time between them."""
    msrs = tuple((index, value) for index, value in state.msrs if index not in TIME_DEPENDENT)
    lapic = bytearray(state.lapic)
    lapic[CURRENT_COUNT] = bytes(4)
    return state._replace(msrs=msrs, lapic=bytes(lapic))


def test_user_mode_goes_on_elsewhere() -> None:
    """Kicked out of the middle of the loop, the guest has all registers at the other VM, and its timer ticks there."""
    with two_vms() as (source, target):
        begin(source)
        run_for_a_while(source)
        move(source, target)
        forget_findings(target)
        ticks = target.number(TICKS)
        run_for_a_while(target)
        check_findings(target)
        for _ in range(3):
            target.run_to_tick()
        assert target.number(TICKS) >= ticks + 3


def test_kernel_mode_goes_on_elsewhere() -> None:
    """Saved in the interrupt handler, behind its port access, the guest returns from it at the other VM."""
    with two_vms() as (source, target):
        begin(source)
        source.run_to_tick()
        state = move(source, target)
        assert state.sregs[10] != 0
        assert int.from_bytes(state.sregs[12:14], "little") & 3 == 0
        ticks = target.number(TICKS)
        assert ticks == 1
        forget_findings(target)
        run_for_a_while(target)
        check_findings(target)
        target.run_to_tick()
        assert target.number(TICKS) > ticks


def test_back_and_forth() -> None:
    """Twenty moves in turns between new VMs."""
    with ExitStack() as stack:
        here = StateVm(stack)
        begin(here)
        for _ in range(20):
            run_for_a_while(here)
            there = StateVm(stack)
            move(here, there)
            forget_findings(there)
            here = there
        run_for_a_while(here)
        check_findings(here)
        here.run_to_tick()


def test_save_of_load_is_the_same() -> None:
    """Every field but the counter and the timer's current count; what the test put there is in it."""
    with two_vms() as (source, target):
        begin(source)
        run_for_a_while(source)
        first = move(source, target)
        second = save_vcpu(target.vcpu, target.msrs)
        for field in VcpuState._fields:
            assert getattr(timeless(second), field) == getattr(timeless(first), field), field
        assert MSRS.items() <= dict(second.msrs).items()
        assert second.debug[0:8] == (0x4_2000).to_bytes(8, "little")
        assert save_chips(target.vm) == save_chips(source.vm)
        assert dict(second.msrs)[MSR_TSC] >= dict(first.msrs)[MSR_TSC]


def test_a_halted_vcpu_stays_halted() -> None:
    """The MP state is carried, for all that a local APIC can have."""
    with two_vms() as (source, target):
        begin(source)
        for mp_state in (0, 1, 3):
            source.vcpu.set_mp_state(mp_state)
            load_vcpu(target.vcpu, save_vcpu(source.vcpu, source.msrs), target.msrs)
            assert target.vcpu.get_mp_state() == mp_state


def test_a_timer_for_a_moment_is_carried() -> None:
    """A TSC deadline that is still to come at the move comes at the other VM, once."""
    with two_vms() as (source, target):
        begin(source, DEADLINE, 0)
        now = source.vcpu.get_msrs([MSR_TSC])[MSR_TSC]
        moment = now + source.vcpu.get_tsc_khz() * 500
        assert source.vcpu.set_msrs([(MSR_DEADLINE, moment)]) == 1
        assert source.vcpu.get_msrs([MSR_DEADLINE]) == {MSR_DEADLINE: moment}
        run_for_a_while(source)
        assert source.number(TICKS) == 0
        state = move(source, target)
        assert dict(state.msrs)[MSR_DEADLINE] == moment
        assert target.vcpu.get_msrs([MSR_DEADLINE]) == {MSR_DEADLINE: moment}
        target.run_to_tick()
        assert target.number(TICKS) == 1
        assert target.vcpu.get_msrs([MSR_DEADLINE]) == {MSR_DEADLINE: 0}


def test_a_waiting_interrupt_is_carried() -> None:
    """An interrupt that is requested in the APIC and not yet taken is taken at the other VM."""
    with two_vms() as (source, target):
        begin(source, ONCE, NEVER)
        run_for_a_while(source)
        lapic = bytearray(source.vcpu.get_lapic())
        lapic[0x220] |= 1  # Vector 0x40 in the interrupt request register.
        source.vcpu.set_lapic(lapic)
        move(source, target)
        target.run_to_tick()
        assert target.number(TICKS) == 1


def test_the_clock_does_not_go_back() -> None:
    """Neither with the real time of the move, nor when the destination's real-time clock is behind."""
    with two_vms() as (source, target):
        clock = save_clock(source.vm)
        passed = load_clock(target.vm, clock, 10**9, time.time_ns())
        assert 0 <= passed <= 10**9
        assert save_clock(target.vm).clock_ns >= clock.clock_ns + passed
        ahead = clock._replace(realtime_ns=clock.realtime_ns + 3600 * 10**9)
        assert load_clock(target.vm, ahead, 10**9, time.time_ns()) == 0
        assert clock.clock_ns <= save_clock(target.vm).clock_ns < clock.clock_ns + 3600 * 10**9


def test_the_clock_does_not_jump() -> None:
    """A record that claims to be fifty years old moves the guest by no more than the limit."""
    with two_vms() as (source, target):
        clock = save_clock(source.vm)._replace(realtime_ns=1)
        assert load_clock(target.vm, clock, 10**9, time.time_ns()) == 10**9
        assert clock.clock_ns + 10**9 <= save_clock(target.vm).clock_ns < clock.clock_ns + 3600 * 10**9


def test_the_guests_clock_page_goes_on() -> None:
    """The page of the paravirtual clock is written by the other VM, with a later time; the watchdogs are told."""
    with two_vms() as (source, target):
        begin(source)
        assert not source.vcpu.tell_clock_was_stopped()
        assert source.vcpu.set_msrs([(MSR_CLOCK, CLOCK_PAGE | 1)]) == 1
        run_for_a_while(source)
        before = source.number(CLOCK_PAGE + 16)
        assert before > 0
        move(source, target)
        assert target.vcpu.tell_clock_was_stopped()
        run_for_a_while(target)
        assert target.number(CLOCK_PAGE + 16) > before
        assert target.ram.read(CLOCK_PAGE + 29, 1)[0] & 2  # PVCLOCK_GUEST_STOPPED


def test_bad_lengths_do_not_reach_kvm() -> None:
    """KVM reads whole structures, so that a short one must not be given to it."""
    with two_vms() as (_, target):
        cpu = target.vcpu
        for name in ("regs", "sregs", "sregs2", "debugregs", "events", "lapic"):
            image = cpu.get_structure(name)
            for wrong in (image[:-1], image + b"\0", b""):
                with pytest.raises(ValueError, match=name):
                    cpu.set_structure(name, wrong)
        with pytest.raises(ValueError, match="xsave"):
            cpu.set_xsave_image(bytes(cpu.xsave_size - 1))
        with pytest.raises(ValueError, match="CPUID"):
            cpu.set_cpuid_image(bytes(39))
        images = target.vm.get_chips()
        for number in range(4):
            with pytest.raises(ValueError, match="chips"):
                target.vm.set_chips([*images[:number], images[number] + b"\0", *images[number + 1 :]])
        with pytest.raises(ValueError, match="chips"):
            target.vm.set_chips(images[:3])


def test_what_kvm_refuses_is_an_error() -> None:
    """A record that passes the check and that KVM does not take is the host's error, with the call in it."""
    with two_vms() as (source, target):
        begin(source)
        state = save_vcpu(source.vcpu, source.msrs)
        sregs = bytearray(state.sregs)
        sregs[224:232] = (0x8000_0000_0000_0001).to_bytes(8, "little")
        with pytest.raises(HostError, match="KVM_SET_SREGS"):
            load_vcpu(target.vcpu, state._replace(sregs=bytes(sregs)), target.msrs)
