"""CPU compatibility with the records of real boards on this host."""

from __future__ import annotations

from contextlib import closing

import pytest

from tvmm.board import Board
from tvmm.config.cpu import CpuConfig
from tvmm.config.machine import MachineConfig
from tvmm.kvm.system import Kvm, host_cpuid, kernel_mode_is_emulated
from tvmm.vcpu.chips import load_chips, save_chips
from tvmm.vcpu.compat import incompatibilities, moved, suggest
from tvmm.vcpu.compat_check import check_description, check_host
from tvmm.vcpu.compat_kvm import guest_on, host_under
from tvmm.vcpu.msrs import saved
from tvmm.vcpu.state import VcpuState, load_vcpu, save_vcpu

pytestmark = pytest.mark.kvm


def board(option: str = "host", cpus: int = 2) -> Board:
    """A board that is ready to run the built-in guest."""
    return Board(MachineConfig(cpu=CpuConfig.parse(cpus, option)))


@pytest.mark.parametrize("option", ["host", "max", "minimal", "host,-rdrand"])
def test_a_guest_can_stay_on_its_host(option: str) -> None:
    """The records of a board pass their checks, and nothing is in the way of a move to a board like it."""
    with closing(board(option)) as here, closing(board(option)) as there:
        guest, host = guest_on(here), host_under(there)
        check_description(guest)
        check_host(host)
        assert incompatibilities(guest, host) == []
        assert suggest(guest, host) == ""
        assert guest.emulated_kernel == kernel_mode_is_emulated()
        assert bool(guest.processor) == kernel_mode_is_emulated()


def test_a_guest_that_came_is_described_as_it_was() -> None:
    """For its next move, what it was shown at its first host counts."""
    with closing(board()) as here, closing(board("minimal")) as there:
        there.came_as = moved(guest_on(here), host_under(there))
        assert guest_on(there).features == guest_on(here).features
        assert incompatibilities(guest_on(there), host_under(here)) == []


def test_all_vcpus_of_a_board_move() -> None:
    """States of a board's vCPUs and chips load into another board; the second save is the first."""
    with closing(board()) as here, closing(board()) as there:
        msrs = saved(here.cpu.listed_msrs)
        load_chips(there.vm, save_chips(here.vm))
        for source, target in zip(here.vcpus, there.vcpus, strict=True):
            state = save_vcpu(source, msrs)
            load_vcpu(target, state, msrs)
            again = save_vcpu(target, msrs)
            for field in set(VcpuState._fields) - {"msrs", "lapic"}:
                assert getattr(again, field) == getattr(state, field), field


def test_cpuid_moves() -> None:
    """A guest of a smaller model keeps its leaves on a board that was made for a larger one."""
    with closing(board("minimal")) as here, closing(board("host")) as there:
        msrs = saved(here.cpu.listed_msrs)
        state = save_vcpu(here.vcpus[0], msrs)
        load_vcpu(there.vcpus[0], state, msrs)
        assert there.vcpus[0].get_cpuid_image() == state.cpuid
        assert there.vcpus[0].get_cpuid() == here.vcpus[0].get_cpuid()


def test_the_processors_own_cpuid() -> None:
    """Leaf 0 names the vendor that KVM names; a leaf far out is empty."""
    with Kvm() as kvm:
        (first,) = [entry for entry in kvm.supported_cpuid() if entry.function == 0]
    assert host_cpuid(0)[1:] == first[4:]
    assert host_cpuid(0x7000_0000) == (0, 0, 0, 0)


def test_an_emulated_kernel_has_no_tsc_control() -> None:
    """There the frequency is never set, whatever the capability says."""
    with Kvm() as kvm:
        assert not (kernel_mode_is_emulated() and kvm.has_tsc_control)
