"""CPU models, adjustments by feature, topology leaves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.config.cpu import CPU_MODELS, CpuConfig
from tvmm.errors import ConfigError, HostError
from tvmm.vcpu.cpu_features import FEATURES, REQUIRES
from tvmm.vcpu.cpuid import MODELS, CpuidEntry, brand, describe, feature_named, policy

AMD = (0x68747541, 0x444D4163, 0x69746E65)
INTEL = (0x756E6547, 0x6C65746E, 0x49656E69)
NAME = b"Example Processor 9000\0"


def host(vendor: tuple[int, int, int]) -> list[CpuidEntry]:
    """What KVM supports on a processor with AVX-512 and x2APIC topology."""
    ebx, ecx, edx = vendor
    text = NAME.ljust(48, b"\0")
    words = [int.from_bytes(text[4 * n : 4 * n + 4], "little") for n in range(12)]
    return [
        CpuidEntry(0, 0, 0, 0x1F, ebx, ecx, edx),
        CpuidEntry(1, 0, 0, 0xA00F11, 0x800, 0xF7FA3203, 0x078BFBFF),
        CpuidEntry(4, 0, 1, 0x1C004121, 0x1C0003F, 63, 0),
        CpuidEntry(4, 1, 1, 0x1C004163, 0x1C0003F, 63, 0),
        CpuidEntry(4, 2, 1, 0, 0, 0, 0),
        CpuidEntry(6, 0, 0, 4, 0, 0, 0),
        CpuidEntry(7, 0, 1, 1, 0xD19F07AB, 0x40069E, 0xA4000010),
        CpuidEntry(0xB, 0, 1, 1, 2, 0x100, 0),
        CpuidEntry(0xD, 0, 1, 0x2E7, 0xA88, 0xA88, 0),
        CpuidEntry(0xD, 1, 1, 0xF, 0x988, 0x800, 0),
        CpuidEntry(0xD, 2, 1, 256, 576, 0, 0),
        CpuidEntry(0xD, 5, 1, 64, 1088, 0, 0),
        CpuidEntry(0xD, 6, 1, 512, 1152, 0, 0),
        CpuidEntry(0xD, 7, 1, 1024, 1664, 0, 0),
        CpuidEntry(0xD, 9, 1, 8, 2688, 0, 0),
        CpuidEntry(0xD, 11, 1, 16, 0, 1, 0),
        CpuidEntry(0x1F, 0, 1, 1, 2, 0x100, 0),
        CpuidEntry(0x40000000, 0, 0, 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D),
        CpuidEntry(0x40000001, 0, 0, 0x1007EFB, 0, 0, 0),
        CpuidEntry(0x80000000, 0, 0, 0x80000022, ebx, ecx, edx),
        CpuidEntry(0x80000001, 0, 0, 0xA00F11, 0x40000000, 0x75C237FD, 0x2FD3FBFF),
        CpuidEntry(0x80000002, 0, 0, *words[0:4]),
        CpuidEntry(0x80000003, 0, 0, *words[4:8]),
        CpuidEntry(0x80000004, 0, 0, *words[8:12]),
        CpuidEntry(0x80000007, 0, 0, 0, 0, 0, 0x100),
        CpuidEntry(0x80000008, 0, 0, 0x3030, 0x110AD205, 0x7001, 0),
        CpuidEntry(0x8000001D, 3, 1, 0x4163, 0x3C0003F, 0x7FFF, 1),
        CpuidEntry(0x8000001E, 0, 0, 0, 0, 0, 0),
    ]


def leaf(entries: list[CpuidEntry], function: int, index: int = 0) -> CpuidEntry:
    """One leaf of a policy."""
    return next(entry for entry in entries if (entry.function, entry.index) == (function, index))


def test_models_are_those_of_the_configuration() -> None:
    """Every model that the command line takes exists here."""
    assert MODELS == CPU_MODELS


@pytest.mark.parametrize("vendor", [AMD, INTEL])
def test_host_has_all_that_kvm_supports(vendor: tuple[int, int, int]) -> None:
    """Model `host` has every feature that KVM lists, the brand, and no bit that the guest sets itself."""
    entries = policy("host", (), host(vendor))
    assert set(describe(entries)) >= set(describe(host(vendor)))
    assert brand(entries) == "Example Processor 9000"
    assert not leaf(entries, 1).ecx & 1 << 27
    assert not leaf(entries, 7).ecx & 1 << 4


def test_in_kernel_apic_features_need_no_list() -> None:
    """x2APIC, the deadline timer and the hypervisor bit are there even where KVM does not list them."""
    bare = [CpuidEntry(0, 0, 0, 1, *AMD), CpuidEntry(1, 0, 0, 0, 0, 0, 0)]
    assert {"x2apic", "tsc-deadline", "hypervisor"} <= set(describe(policy("minimal", (), bare)))


def test_max_adds_what_kvm_emulates() -> None:
    """Model `max` takes features from KVM's other list, `host` does not."""
    lacking = [entry._replace(ecx=entry.ecx & ~(1 << 22)) if entry.function == 1 else entry for entry in host(AMD)]
    emulated = [CpuidEntry(1, 0, 0, 0, 0, 1 << 22, 0)]
    assert "movbe" not in describe(policy("host", (), lacking, emulated=emulated))
    assert "movbe" in describe(policy("max", (), lacking, emulated=emulated))


def test_minimal_is_the_same_everywhere() -> None:
    """Model `minimal` has neither XSAVE nor anything of leaf 7, and the same features on both vendors."""
    features = describe(policy("minimal", (), host(AMD)))
    assert features == describe(policy("minimal", (), host(INTEL)))
    assert {"lm", "sse2", "kvmclock", "x2apic", "nx"} <= set(features)
    assert not {"xsave", "avx", "smap", "rdtscp", "sse4.2"} & set(features)
    assert not [entry for entry in policy("minimal", (), host(AMD)) if entry.function == 0xD]


def test_adjustments() -> None:
    """Features are taken from and added to a model; QEMU's aliases and underscores are understood."""
    entries = policy("host", (("erms", False), ("sse4_2", False), ("kvmclock", False)), host(AMD))
    removed = set(describe(host(AMD))) - set(describe(entries))
    assert removed == {"erms", "sse4.2", "kvmclock", "kvmclock-stable-bit"}
    assert leaf(entries, 0x40000001).eax & 0b1001 == 0
    assert "smep" in describe(policy("minimal", CpuConfig.parse(1, "minimal,+smep").adjustments, host(AMD)))


def test_what_depends_goes_too() -> None:
    """Without AVX there is no AVX2 or AVX-512, their state components are gone and the area is smaller."""
    entries = policy("host", (("avx", False),), host(INTEL))
    assert not {"avx2", "fma", "f16c", "avx512f", "avx512vl"} & set(describe(entries))
    assert leaf(entries, 0xD).eax == 0x203
    assert leaf(entries, 0xD).ecx == 2696
    assert [entry.index for entry in entries if entry.function == 0xD] == [0, 1, 9, 11]
    entries = policy("host", (("pku", False), ("avx512f", False)), host(INTEL))
    assert leaf(entries, 0xD).ecx == 832


def test_without_xsave_there_is_no_leaf() -> None:
    """Taking XSAVE away takes leaf 0xD and all vector extensions away."""
    entries = policy("host", (("xsave", False),), host(INTEL))
    assert not [entry for entry in entries if entry.function == 0xD]
    assert not {"avx", "xsaveopt", "pku"} & set(describe(entries))


def test_kvm_that_lists_no_xsave_keeps_its_leaf() -> None:
    """Where KVM lists states but not the feature, both stay as KVM says."""
    partial = [entry._replace(ecx=0x81202000) if entry.function == 1 else entry for entry in host(AMD)]
    entries = policy("host", (), partial)
    assert leaf(entries, 0xD).eax == 0x2E7
    assert "xsaveopt" in describe(entries)


@pytest.mark.parametrize(
    ("model", "adjustments", "error", "words"),
    [
        ("hots", (), ConfigError, "did you mean 'host'?"),
        ("host", (("avx22", False),), ConfigError, "did you mean 'avx2'?"),
        ("host", (("erms", True), ("erms", False)), ConfigError, "both on and off"),
        ("host", (("pni", True), ("sse3", False)), ConfigError, "both on and off"),
        ("host", (("xsave", False), ("avx2", True)), ConfigError, "add +avx"),
        ("host", (("vmx", True),), HostError, "no cpu feature 'vmx'"),
        ("minimal", (("avx", True),), ConfigError, "needs 'xsave'"),
    ],
)
def test_errors(model: str, adjustments: tuple[tuple[str, bool], ...], error: type[Exception], words: str) -> None:
    """Wrong names, contradictions and features that KVM lacks are told with what to do."""
    with pytest.raises(error) as caught:
        policy(model, adjustments, host(AMD))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("count", "index", "shift"), [(1, 0, 0), (2, 1, 1), (3, 2, 2), (4, 3, 2), (64, 63, 6), (255, 254, 8)]
)
@pytest.mark.parametrize("vendor", [AMD, INTEL])
def test_topology(vendor: tuple[int, int, int], count: int, index: int, shift: int) -> None:
    """APIC ids, core counts and cache sharing of one package of single-threaded cores."""
    entries = policy("host", (), host(vendor), cpu_index=index, cpu_count=count)
    first = leaf(entries, 1)
    assert first.ebx >> 24 == index
    assert first.ebx >> 16 & 0xFF == (0 if count == 1 else min(1 << shift, 255))
    assert first.ebx & 0xFFFF == 0x800
    assert bool(first.edx & 1 << 28) is (count > 1)
    for function in (0xB, 0x1F):
        assert leaf(entries, function, 0)[2:] == (1, 0, 1, 0x100, index)
        assert leaf(entries, function, 1)[2:] == (1, shift, count, 0x201, index)
        assert leaf(entries, function, 2)[2:] == (1, 0, 0, 2, index)
    assert leaf(entries, 4, 0).eax >> 14 & 0xFFF == 0
    assert leaf(entries, 4, 1).eax >> 14 & 0xFFF == (1 << shift) - 1
    assert leaf(entries, 4, 0).eax & 0x3FFF == 0x121
    if vendor == AMD:
        assert leaf(entries, 0x80000008).ecx == shift << 12 | count - 1
        assert leaf(entries, 0x8000001E)[3:] == (index, index & 0xFF, 0, 0)
        assert leaf(entries, 0x8000001D, 3).eax >> 14 & 0xFFF == count - 1
        assert leaf(entries, 0x80000001).edx & 1 << 23  # MMX is repeated from leaf 1.
    else:
        assert leaf(entries, 0x80000008).ecx == 0x7001


def test_amd_repeats_leaf_1() -> None:
    """A feature that is taken away is gone from AMD's copy of leaf 1 too."""
    assert not leaf(policy("host", (("pae", False),), host(AMD)), 0x80000001).edx & 1 << 6


def test_clock_frequencies() -> None:
    """With a TSC frequency the timing leaf is there and the signature leaf names it."""
    entries = policy("host", (), host(AMD), tsc_khz=2_450_000)
    assert leaf(entries, 0x40000000).eax == 0x40000010
    assert leaf(entries, 0x40000010)[3:5] == (2_450_000, 1_000_000)
    assert leaf(policy("host", (), host(AMD)), 0x40000000).eax == 0x40000001


def test_names_are_unique_and_requirements_exist() -> None:
    """No bit has two names, and the table of requirements speaks of features only."""
    bits = [bit for each in FEATURES.values() for bit in each]
    assert len(bits) == len(set(bits))
    assert set(REQUIRES) | set(REQUIRES.values()) <= set(FEATURES)
    assert feature_named("SSE4_1") == "sse4.1"


@settings(deadline=None, max_examples=100)
@given(
    model=st.sampled_from(MODELS),
    off=st.sets(st.sampled_from(sorted(FEATURES)), max_size=12),
    vendor=st.sampled_from((AMD, INTEL)),
)
def test_any_features_can_go(model: str, off: set[str], vendor: tuple[int, int, int]) -> None:
    """Whatever is taken away is not there, nothing appears that KVM lacks, and values fit their registers."""
    entries = policy(model, [(name, False) for name in off], host(vendor))
    found = set(describe(entries))
    assert not found & off
    assert found <= set(describe(host(vendor))) | {"x2apic", "tsc-deadline", "hypervisor"}
    for name in found & set(REQUIRES):
        assert REQUIRES[name] in found
    assert all(0 <= value < 1 << 32 for entry in entries for value in entry)
    assert entries == sorted(entries)
    assert len({entry[:2] for entry in entries}) == len(entries)
