"""Which hosts a guest can go to, why not, and what to start it with instead."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vcpu.test_cpuid import AMD, INTEL, host
from tvmm.config.cpu import CpuConfig
from tvmm.vcpu.compat import (
    CpuDescription,
    HostCpu,
    describe,
    describe_host,
    incompatibilities,
    moved,
    processor_words,
    suggest,
)
from tvmm.vcpu.compat_check import check_description, check_host
from tvmm.vcpu.cpu_features import FEATURES
from tvmm.vcpu.cpuid import CpuidEntry, policy
from tvmm.vcpu.msrs import saved

MSRS = saved([0x174, 0x175, 0x176, 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0102])
XSAVE_BITS = {"avx": 4, "avx512f": 0xE0, "pku": 0x200}


def without(entries: list[CpuidEntry], *names: str) -> list[CpuidEntry]:
    """The leaves of a processor that lacks some features, and the state that comes with them."""
    found = []
    for entry in entries:
        values = list(entry)
        for name in names:
            for bit in FEATURES[name]:
                if (bit.leaf, bit.subleaf) == entry[:2]:
                    values[3 + bit.register] &= ~(1 << bit.bit)
            if entry[:2] == (0xD, 0):
                values[3] &= ~XSAVE_BITS.get(name, 0)
        found.append(CpuidEntry(*values))
    return found


def changed(entries: list[CpuidEntry], function: int, index: int = 0, **values: int) -> list[CpuidEntry]:
    """The leaves with one of them changed."""
    return [entry._replace(**values) if entry[:2] == (function, index) else entry for entry in entries]


def host_cpu(supported: list[CpuidEntry], **fields: Any) -> HostCpu:
    """A host with hardware virtualization."""
    made = describe_host(
        supported,
        (),
        max_count=8,
        msrs=MSRS,
        tsc_khz=2_000_000,
        tsc_control=False,
        processor=(),
        host_id="here",
    )
    return made._replace(**fields)


def guest(supported: list[CpuidEntry], option: str = "host", cpus: int = 2, **fields: Any) -> CpuDescription:
    """A guest that was started with this `--cpu` on a host with these leaves."""
    cpu = CpuConfig.parse(cpus, option)
    leaves = policy(cpu.model, cpu.adjustments, supported, cpu_count=cpus)
    return describe(leaves, cpu, MSRS, host_cpu(supported, **fields))


def option_of(text: str) -> str:
    """The value of the `--cpu` in a suggestion."""
    prefix, _, option = text.partition(" ")
    assert prefix == "--cpu"
    return option


@pytest.mark.parametrize("vendor", [AMD, INTEL])
@pytest.mark.parametrize("option", ["host", "max", "minimal", "host,-avx512f,+rdrand"])
@pytest.mark.parametrize("cpus", [1, 2])
def test_the_same_host_is_compatible(vendor: tuple[int, int, int], option: str, cpus: int) -> None:
    """A guest of any model can go to a host like its own."""
    source = guest(host(vendor), option, cpus)
    assert incompatibilities(source, host_cpu(host(vendor))) == []
    assert suggest(source, host_cpu(host(vendor))) == ""


def test_a_host_that_has_more_is_compatible() -> None:
    """Features that the guest was not shown do no harm."""
    source = guest(without(host(INTEL), "avx512f", "rdseed", "kvm-pv-ipi"))
    assert incompatibilities(source, host_cpu(host(INTEL))) == []


def test_missing_features_are_named() -> None:
    """By name, in one sentence, with the option that hides them and what they carry."""
    there = host_cpu(without(host(INTEL), "avx512f", "avx512dq", "avx512bw", "rdseed"))
    (sentence,) = incompatibilities(guest(host(INTEL)), there)
    for name in ("avx512f", "avx512dq", "avx512bw", "rdseed"):
        assert name in sentence
    assert suggest(guest(host(INTEL)), there) == "--cpu host,-avx512f,-rdseed"


def test_a_missing_feature_of_kvm_is_named() -> None:
    """Paravirtual features count too: an older kernel may lack one."""
    there = host_cpu(without(host(INTEL), "kvm-pv-ipi"))
    assert "kvm-pv-ipi" in incompatibilities(guest(host(INTEL)), there)[0]
    assert suggest(guest(host(INTEL)), there) == "--cpu host,-kvm-pv-ipi"


def test_a_feature_without_a_name() -> None:
    """It is told by its place; no option can hide it."""
    here = changed(host(INTEL), 7, edx=0xA4000010 | 1 << 12)
    (sentence,) = incompatibilities(guest(here), host_cpu(host(INTEL)))
    assert "bit 12 of CPUID 0x7.0 EDX" in sentence
    assert suggest(guest(here), host_cpu(host(INTEL))) == ""


def test_adjustments_are_kept() -> None:
    """What the user asked for stays, except what the destination lacks and what needs that."""
    there = host_cpu(without(host(INTEL), "avx", "avx2", "fma"))
    source = guest(host(INTEL), "host,-erms,+fma,+rdrand,-sse3")
    assert suggest(source, there) == "--cpu host,-erms,+rdrand,-pni,-avx"
    check_description(source)


def test_very_different_hosts() -> None:
    """Where a long list would be needed, the smallest model is suggested, less what the destination lacks of it."""
    names = [name for name, bits in FEATURES.items() if bits[0].leaf == 7][:40]
    there = host_cpu(without(host(INTEL), *names, "kvm-pv-unhalt"))
    assert suggest(guest(host(INTEL)), there) == "--cpu minimal,-kvm-pv-unhalt"


@settings(deadline=None, max_examples=60)
@given(
    st.sets(st.sampled_from(sorted(set(FEATURES) - {"x2apic", "tsc-deadline", "hypervisor", "lm", "xsave"}))),
    st.sampled_from(["host", "minimal", "max", "host,-erms", "host,-avx2,-smep"]),
    st.sampled_from([AMD, INTEL]),
)
def test_suggestions_work(lacking: set[str], option: str, vendor: tuple[int, int, int]) -> None:
    """A machine started as suggested is compatible, and the option is accepted on both sides."""
    supported = without(host(vendor), *lacking)
    there = host_cpu(supported)
    source = guest(host(vendor), option)
    suggestion = suggest(source, there)
    assert bool(suggestion) == bool(incompatibilities(source, there))
    if suggestion:
        again = option_of(suggestion)
        assert incompatibilities(guest(host(vendor), again), there) == []
        assert incompatibilities(guest(supported, again), there) == []


def test_vendors_do_not_mix() -> None:
    """One sentence, and no option that pretends to help."""
    for option in ("host", "minimal"):
        source = guest(host(AMD), option)
        (sentence,) = incompatibilities(source, host_cpu(host(INTEL)))
        assert "AuthenticAMD" in sentence
        assert "GenuineIntel" in sentence
        assert suggest(source, host_cpu(host(INTEL))) == ""


def test_state_components() -> None:
    """A component that is not there, or that lies elsewhere, is a reason."""
    (sentence,) = incompatibilities(guest(host(INTEL)), host_cpu(changed(host(INTEL), 0xD, eax=0x2C7)))
    assert "0x20" in sentence
    (sentence,) = incompatibilities(guest(host(INTEL)), host_cpu(changed(host(INTEL), 0xD, 9, ebx=2700)))
    assert "differently: 9" in sentence


def test_physical_addresses() -> None:
    """Fewer bits than the guest was shown are too few; more are not."""
    fewer, more = (host_cpu(changed(host(INTEL), 0x8000_0008, eax=0x3000 | bits)) for bits in (40, 52))
    (sentence,) = incompatibilities(guest(host(INTEL)), fewer)
    assert "48 bits" in sentence
    assert "40" in sentence
    assert incompatibilities(guest(host(INTEL)), more) == []


def test_time_stamp_counter() -> None:
    """Another frequency needs TSC scaling; 250 parts in a million do not."""
    source = guest(host(INTEL))
    there = host_cpu(host(INTEL), tsc_khz=2_400_000)
    (sentence,) = incompatibilities(source, there)
    assert "2000000 kHz" in sentence
    assert "2400000 kHz" in sentence
    assert incompatibilities(source, there._replace(tsc_control=True)) == []
    assert incompatibilities(source, there._replace(tsc_khz=2_000_400)) == []


def test_number_of_vcpus() -> None:
    """More than KVM makes there."""
    (sentence,) = incompatibilities(guest(host(INTEL)), host_cpu(host(INTEL), max_count=1))
    assert "2 vCPUs" in sentence


def test_registers_that_every_kernel_uses() -> None:
    """One of these missing is told; one that few use is left to the moment it is loaded."""
    source = guest(host(INTEL))
    (sentence,) = incompatibilities(source, host_cpu(host(INTEL), msrs=tuple(i for i in MSRS if i != 0xC000_0082)))
    assert "lstar" in sentence
    assert incompatibilities(source._replace(msrs=(*MSRS, 0x1234)), host_cpu(host(INTEL))) == []


PROCESSOR = processor_words(lambda leaf, subleaf: (0xFF0, 0xFF1, 0xFF2, 0xFF3) if leaf == 7 else (7, 0, 0, 0))


def test_processor_words() -> None:
    """Every feature word of the processor, its state components, and none of KVM's."""
    assert (7, 0, 1, 0xFF1) in PROCESSOR
    assert (0xD, 0, 0, 7) in PROCESSOR
    assert not [word for word in PROCESSOR if word[0] >> 16 == 0x4000]


def test_emulated_hosts() -> None:
    """The same host is fine; what another processor lacks is named, and no option hides it."""
    fields: dict[str, Any] = {"emulated_kernel": True, "processor": PROCESSOR}
    source = guest(host(AMD), **fields)
    assert incompatibilities(source, host_cpu(host(AMD), **fields)) == []
    fewer = tuple((*word[:3], word[3] & ~(1 << 4)) if word[:3] == (7, 0, 2) else word for word in PROCESSOR)
    there = host_cpu(host(AMD), emulated_kernel=True, processor=fewer)
    (sentence,) = incompatibilities(source, there)
    assert "ospke" not in sentence
    assert "bit 4 of CPUID 0x7.0 ECX" in sentence
    assert suggest(source, there) == ""


def test_emulated_hosts_do_not_share_a_counter() -> None:
    """Where the counter is the host's, another host is a reason of its own."""
    fields: dict[str, Any] = {"emulated_kernel": True, "processor": PROCESSOR}
    (sentence,) = incompatibilities(guest(host(AMD), **fields), host_cpu(host(AMD), host_id="there", **fields))
    assert "time stamp counter" in sentence


@pytest.mark.parametrize("emulated", [True, False])
def test_kinds_of_kvm_do_not_mix(emulated: bool) -> None:
    """Neither from emulated kernel mode to hardware nor back, each with its own reason."""
    fields: dict[str, Any] = {"emulated_kernel": True, "processor": PROCESSOR}
    source = guest(host(AMD), **(fields if emulated else {}))
    there = host_cpu(host(AMD), **({} if emulated else fields))
    (sentence,) = incompatibilities(source, there)
    assert ("system call" in sentence) == emulated
    assert suggest(source, there) == ""


def test_a_second_move() -> None:
    """A guest keeps what it was shown, and sees the processor that it came to."""
    source = guest(without(host(INTEL), "rdseed"))
    there = host_cpu(host(INTEL), host_id="there")
    arrived = moved(source, there)
    assert arrived.features == source.features
    assert arrived.host_id == "there"
    assert incompatibilities(arrived, host_cpu(without(host(INTEL), "rdseed"))) == []


GUEST, HOST = guest(host(INTEL)), host_cpu(host(INTEL))
COMMON: dict[str, list[Any]] = {
    "vendor": [5, "x" * 65, "\x1b[31m"],
    "features": [[], ((1, 2, 3),), ((1, 0, 4, 0),), ((1, 0, 0, -1),), ((1, 0, 0, 1 << 32),), ((1, 0, 0, 0),) * 257],
    "xcr0": [-1, 1 << 64, None],
    "components": [None, ((1, 0, 5, 1 << 32),), ((1, 0, 5, 0),) * 65],
    "physical_bits": [-1, 65],
    "msrs": [[], (-1,), (1 << 32,), (0,) * 4097],
    "tsc_khz": [-1, 1 << 32],
    "emulated_kernel": [2, None],
    "processor": [7, ((1,),), ((1, 0, 9, 0),)],
    "host_id": [None, "x" * 65, "a\nb"],
}
GUEST_ONLY: dict[str, list[Any]] = {
    "model": ["", "Skylake", 3],
    "adjustments": [[], ((1, True),), (("erms", 2),), (("no-such", True),), (("erms", True),) * 513, ("erms",)],
    "count": [-1, 1 << 16],
}
HOST_ONLY: dict[str, list[Any]] = {"max_count": [-1, 1 << 16], "tsc_control": [7]}


def cases(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    """Field and bad value."""
    return [(field, value) for field, values in table.items() for value in values]


@pytest.mark.parametrize(("field", "value"), cases({**COMMON, **GUEST_ONLY}))
def test_bad_descriptions(field: str, value: Any) -> None:
    """A peer's record is refused with the field's name."""
    check_description(GUEST)
    with pytest.raises(ValueError, match=field):
        check_description(GUEST._replace(**{field: value}))


@pytest.mark.parametrize(("field", "value"), cases({**COMMON, **HOST_ONLY}))
def test_bad_hosts(field: str, value: Any) -> None:
    """A peer's record is refused with the field's name."""
    check_host(HOST)
    with pytest.raises(ValueError, match=field):
        check_host(HOST._replace(**{field: value}))


def test_every_field_is_checked() -> None:
    """The tables above have each field of both records."""
    assert set(COMMON) | set(GUEST_ONLY) == set(CpuDescription._fields)
    assert set(COMMON) | set(HOST_ONLY) == set(HostCpu._fields)


WORD = st.integers(0, 0xFFFF_FFFF)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(WORD, WORD, st.integers(0, 3), WORD), max_size=9))
def test_any_checked_record_can_be_compared(rows: list[tuple[int, int, int, int]]) -> None:
    """Words of leaves that nobody knows lead to sentences and to no other error."""
    source = GUEST._replace(features=tuple(rows), processor=tuple(rows), emulated_kernel=True)
    check_description(source)
    for there in (HOST, HOST._replace(emulated_kernel=True, features=tuple(rows[:1]))):
        assert all(sentence.endswith(".") for sentence in incompatibilities(source, there))
        assert suggest(source, there) == "" or suggest(source, there).startswith("--cpu ")
