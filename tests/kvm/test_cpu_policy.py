"""CPU policy against real KVM: what was asked for is what KVM accepted.

A KVM that emulates kernel mode puts the host's feature bits in place of those it is given, because guest user mode
runs CPUID on the processor itself; there, feature words are only looked at for being accepted, and all other leaves
are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tvmm.errors import ConfigError, HostError
from tvmm.kvm.system import Kvm, kernel_mode_is_emulated
from tvmm.kvm.vcpu import KvmVcpu
from tvmm.vcpu.cpuid import CpuidEntry, brand, describe, policy

pytestmark = pytest.mark.kvm


@pytest.fixture
def supported() -> list[CpuidEntry]:
    """What this KVM supports."""
    with Kvm() as kvm:
        return kvm.supported_cpuid()


@pytest.fixture
def vcpus() -> Iterator[list[KvmVcpu]]:
    """Two vCPUs of a VM with interrupt chips."""
    with ExitStack() as stack, Kvm() as kvm:
        vm = kvm.create_vm()
        stack.callback(vm.close)
        vm.create_irqchip()
        made = [vm.create_vcpu(index) for index in range(2)]
        for vcpu in made:
            stack.callback(vcpu.close)
        yield made


OWN = {"osxsave", "ospke", "apic", "x2apic", "tsc-deadline", "monitor"}
"""Bits that KVM sets or clears by the vCPU's state, whatever the table says."""


def leaf(entries: list[CpuidEntry], function: int) -> list[CpuidEntry]:
    """All subleaves of a leaf."""
    return [entry for entry in entries if entry.function == function]


@pytest.mark.parametrize("model", ["host", "max", "minimal"])
def test_kvm_takes_each_model(model: str, supported: list[CpuidEntry], vcpus: list[KvmVcpu]) -> None:
    """Features read back from KVM are those of the policy."""
    for vcpu in vcpus:
        wanted = policy(model, (), supported, cpu_index=vcpu.index, cpu_count=2)
        vcpu.set_cpuid(wanted)
        accepted = vcpu.get_cpuid()
        assert {entry[:2] for entry in accepted} == {entry[:2] for entry in wanted}
        assert brand(accepted) == brand(wanted)
        for function in (0x4000_0000, 0x4000_0010):
            assert leaf(accepted, function) == leaf(wanted, function)
        if not kernel_mode_is_emulated():
            assert set(describe(accepted)) ^ set(describe(wanted)) <= OWN


def test_a_feature_can_be_taken_away(supported: list[CpuidEntry], vcpus: list[KvmVcpu]) -> None:
    """`-feature` is gone in what KVM accepted, for each that the host model has."""
    have = describe(policy("host", (), supported))
    for name in [name for name in ("rdrand", "rdseed", "fsgsbase", "smep", "cx8") if name in have][:3]:
        wanted = policy("host", ((name, False),), supported)
        assert set(have) - set(describe(wanted)) == {name}
        vcpus[0].set_cpuid(wanted)
        if not kernel_mode_is_emulated():
            assert name not in describe(vcpus[0].get_cpuid())


def test_apic_ids_differ(supported: list[CpuidEntry], vcpus: list[KvmVcpu]) -> None:
    """Each vCPU's leaf 1 holds its own APIC id."""
    for vcpu in vcpus:
        vcpu.set_cpuid(policy("host", (), supported, cpu_index=vcpu.index, cpu_count=2))
        (found,) = leaf(vcpu.get_cpuid(), 1)
        assert found.ebx >> 24 == vcpu.index


def test_unknown_and_missing_features_are_refused(supported: list[CpuidEntry]) -> None:
    """A typo names the nearest feature; what KVM lacks is named too."""
    with pytest.raises(ConfigError, match="rdrand"):
        policy("host", (("rdrnd", True),), supported)
    missing = next(name for name in ("3dnow", "amx-tile", "avx512f", "la57") if name not in describe(supported))
    with pytest.raises(HostError, match=missing):
        policy("host", ((missing, True),), supported)
