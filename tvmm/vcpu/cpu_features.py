"""CPU features by name: where each has its bit in CPUID.

Names are QEMU's, so that `--cpu host,-erms` means the same in both. One row is one register of one leaf,
its 32 bits named from bit 0 up; `-` has no name. Sources: Intel SDM volume 2 (CPUID), AMD APM volume 3
appendix E, and for 0x40000001 the kernel's Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ALIASES", "FEATURES", "REQUIRES", "FeatureBit", "closest", "words"]


class FeatureBit(NamedTuple):
    """One bit of CPUID: leaf, subleaf, register (0 to 3 for EAX to EDX) and bit number."""

    leaf: int
    subleaf: int
    register: int
    bit: int


EAX, EBX, ECX, EDX = range(4)

_WORDS: tuple[tuple[int, int, int, str], ...] = (
    (
        0x1,
        0,
        EDX,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov "
        "pat pse36 pn clflush - ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    (
        0x1,
        0,
        ECX,
        "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm "
        "- pcid dca sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave - avx f16c rdrand hypervisor",
    ),
    (0x6, 0, EAX, "- - arat"),
    (
        0x7,
        0,
        EBX,
        "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep "
        "bmi2 erms invpcid rtm - zero-fcs-fds mpx - "
        "avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt "
        "avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
    ),
    (
        0x7,
        0,
        ECX,
        "- avx512vbmi umip pku - waitpkg avx512vbmi2 shstk gfni vaes vpclmulqdq avx512vnni avx512bitalg - "
        "avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote - movdiri movdir64b - sgxlc pks",
    ),
    (
        0x7,
        0,
        EDX,
        "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize - "
        "tsx-ldtrk - - arch-lbr ibt - amx-bf16 avx512-fp16 amx-tile amx-int8 "
        "spec-ctrl stibp flush-l1d arch-capabilities core-capability ssbd",
    ),
    (
        0x7,
        1,
        EAX,
        "sha512 sm3 sm4 - avx-vnni avx512-bf16 lass cmpccxadd - - fzrm fsrs fsrc - - - "
        "- fred lkgs wrmsrns - amx-fp16 - avx-ifma - - lam",
    ),
    (0x7, 1, EDX, "- - - - avx-vnni-int8 avx-ne-convert - - amx-complex - avx-vnni-int16 - - - prefetchiti"),
    (0x7, 2, EDX, "psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no"),
    (0xD, 1, EAX, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    (
        0x8000_0001,
        0,
        EDX,
        "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    (
        0x8000_0001,
        0,
        ECX,
        "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse "
        "3dnowprefetch osvw ibs xop skinit wdt - lwp "
        "fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb",
    ),
    (0x8000_0007, 0, EDX, "- - - - - - - - invtsc"),
    (
        0x8000_0008,
        0,
        EBX,
        "clzero - xsaveerptr - - - - - - wbnoinvd - - ibpb - ibrs amd-stibp "
        "- stibp-always-on - - - - - - amd-ssbd virt-ssbd amd-no-ssb - amd-psfd btc-no",
    ),
    (
        0x8000_0021,
        0,
        EAX,
        "no-nested-data-bp - lfence-always-serializing - - - null-sel-clr-base - auto-ibrs "
        "- - - - - - - - - - - - - - - - - prefetchi - - eraps sbpb ibpb-brtype srso-no",
    ),
    (
        0x4000_0001,
        0,
        EAX,
        "kvmclock kvm-nopiodelay kvm-mmu kvmclock kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt "
        "- kvm-pv-tlb-flush - kvm-pv-ipi "
        "kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int kvm-msi-ext-dest-id "
        "kvm-hc-map-gpa-range kvm-migration-control - - - - - - kvmclock-stable-bit",
    ),
)


def _index() -> dict[str, tuple[FeatureBit, ...]]:
    found: dict[str, tuple[FeatureBit, ...]] = {}
    for leaf, subleaf, register, names in _WORDS:
        for bit, name in enumerate(names.split()):
            if name != "-":
                found[name] = (*found.get(name, ()), FeatureBit(leaf, subleaf, register, bit))
    return found


FEATURES: dict[str, tuple[FeatureBit, ...]] = _index()
"""Name to bits. Only kvmclock has two: the MSRs it began with, and those it moved to."""

ALIASES = {
    "sse3": "pni",
    "sse4-1": "sse4.1",
    "sse4-2": "sse4.2",
    "xd": "nx",
    "i64": "lm",
    "ffxsr": "fxsr-opt",
    "lzcnt": "abm",
    "tsc-deadline-timer": "tsc-deadline",
    "sha": "sha-ni",
}

_NEEDS_XSAVE = "xsaveopt xsavec xgetbv1 xsaves xfd avx mpx pku amx-tile"
_NEEDS_AVX = (
    "avx2 fma f16c vaes vpclmulqdq avx-vnni avx-ifma avx-vnni-int8 avx-vnni-int16 avx-ne-convert "
    "fma4 xop sha512 sm3 sm4"
)
_NEEDS_AVX512 = (
    "avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512vl avx512vbmi avx512vbmi2 avx512vnni "
    "avx512bitalg avx512-vpopcntdq avx512-4vnniw avx512-4fmaps avx512-vp2intersect avx512-bf16 avx512-fp16"
)
_NEEDS_AMX = "amx-bf16 amx-int8 amx-fp16 amx-complex"

REQUIRES: dict[str, str] = {
    **dict.fromkeys(_NEEDS_XSAVE.split(), "xsave"),
    **dict.fromkeys(_NEEDS_AVX.split(), "avx"),
    **dict.fromkeys(_NEEDS_AVX512.split(), "avx512f"),
    **dict.fromkeys(_NEEDS_AMX.split(), "amx-tile"),
    "avx512f": "avx2",
    "kvmclock-stable-bit": "kvmclock",
    "kvm-asyncpf-int": "kvm-asyncpf",
}
"""A feature to the one that it makes no sense without. Taking that one away takes it away too."""


def words() -> list[tuple[int, int, int]]:
    """The (leaf, subleaf, register) that hold feature bits."""
    return [row[:3] for row in _WORDS]


def closest(name: str, known: list[str]) -> str:
    """A hint with the known name that looks most like `name`."""
    from difflib import get_close_matches

    found = get_close_matches(name, known, 1)
    return f"did you mean {found[0]!r}?" if found else ""
