"""What a vCPU's CPUID says: a model, changes to it by feature, and the topology of the machine.

Pure: the leaves that KVM supports come in as records, the leaves for one vCPU go out. Where KVM has no
hardware virtualization, user code sees the host's own CPUID whatever is set here.

Models: `host` is all that KVM supports, `max` adds what KVM emulates although the processor lacks it
(slow), and `minimal` is the x86-64 baseline with the paravirtual features that Linux boots fastest
with; it is the same on every host of one vendor, so a guest of this model can migrate between all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ConfigError, HostError
from tvmm.vcpu.cpu_features import ALIASES, FEATURES, REQUIRES, closest, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tvmm.vcpu.cpu_features import FeatureBit

__all__ = ["MODELS", "CpuidEntry", "brand", "describe", "feature_named", "policy", "vendor_of"]


class CpuidEntry(NamedTuple):
    """One leaf, in the order of fields of `struct kvm_cpuid_entry2`."""

    function: int
    index: int  # type: ignore[assignment]  # hides the method of tuple, which has no use here
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


SIGNIFICANT_INDEX = 1
"""Flag: the answer depends on ECX."""

MODELS = ("host", "max", "minimal")

_BASELINE = (
    "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ht "
    "syscall nx lm hypervisor x2apic tsc-deadline arat kvmclock kvmclock-stable-bit kvm-nopiodelay "
    "kvm-pv-eoi kvm-pv-unhalt kvm-msi-ext-dest-id"
)
BASELINE = frozenset(_BASELINE.split())
"""Features of `minimal`: what every x86-64 processor has, and what makes a guest know and use KVM."""

IN_KVM = frozenset(("hypervisor", "x2apic", "tsc-deadline"))
"""Features of the local APIC and of being a guest: KVM has them on any processor, but does not list
them all."""

SET_BY_GUEST = ((0x1, 0, 2, 1 << 27), (0x7, 0, 2, 1 << 4))
"""OSXSAVE and OSPKE mirror CR4: KVM keeps them, a policy has no say."""

SHARED_FEATURES = 0x0183_F3FF
"""Bits of 0x80000001 EDX that AMD repeats from leaf 1."""

XSAVE_STATES = {"avx": 1 << 2, "mpx": 3 << 3, "avx512f": 7 << 5, "pku": 1 << 9, "amx-tile": 3 << 17}

KVM_SIGNATURE_LEAF, KVM_FEATURES_LEAF, KVM_TIMING_LEAF = 0x4000_0000, 0x4000_0001, 0x4000_0010
APIC_BUS_KHZ = 1_000_000
"""KVM's local APIC timer counts nanoseconds."""


def feature_named(name: str) -> str:
    """A feature's own name from one that a user typed. Raises `ConfigError` with the nearest match."""
    plain = name.lower().replace("_", "-")
    plain = ALIASES.get(plain, plain)
    if plain not in FEATURES:
        raise ConfigError(f"no cpu feature is called {name!r}", closest(plain, [*FEATURES, *ALIASES]))
    return plain


def policy(
    model: str,
    adjustments: Iterable[tuple[str, bool]],
    supported: Sequence[CpuidEntry],
    *,
    cpu_index: int = 0,
    cpu_count: int = 1,
    emulated: Sequence[CpuidEntry] = (),
    tsc_khz: int = 0,
) -> list[CpuidEntry]:
    """The leaves for vCPU `cpu_index` of `cpu_count`, whose APIC id is its index.

    `adjustments` are features and whether they are wanted; `supported` and `emulated` are
    KVM_GET_SUPPORTED_CPUID and KVM_GET_EMULATED_CPUID; `tsc_khz` tells the guest the frequencies of its
    clocks where it is not 0. Raises `ConfigError` for names that do not exist or contradict each other,
    `HostError` for features that this KVM does not have.
    """
    leaves = {(entry.function, entry.index): list(entry) for entry in supported}
    vendor = _vendor(leaves)
    for entry in emulated:
        if model == "max" and (entry.function, entry.index) in leaves:
            for leaf, subleaf, register in words():
                if (leaf, subleaf) == (entry.function, entry.index):
                    leaves[leaf, subleaf][3 + register] |= entry[3 + register]
    available = {name for name, bits in FEATURES.items() if all(_has(leaves, bit) for bit in bits[-1:])} | IN_KVM
    wanted = _choose(model, adjustments, available)
    for name, bits in FEATURES.items():
        for bit in bits:
            _put(leaves, bit, name in wanted and (name in IN_KVM or _has(leaves, bit)))
    for leaf, subleaf, register, mask in SET_BY_GUEST:
        if (leaf, subleaf) in leaves:
            leaves[leaf, subleaf][3 + register] &= ~mask
    if vendor in _AMD and (0x8000_0001, 0) in leaves:
        extended = leaves[0x8000_0001, 0]
        extended[6] = extended[6] & ~SHARED_FEATURES | leaves[1, 0][6] & SHARED_FEATURES
    _limit_xsave(leaves, available - wanted)
    _topology(leaves, vendor, cpu_index, cpu_count)
    _hypervisor(leaves, tsc_khz)
    return [CpuidEntry(*leaf) for _, leaf in sorted(leaves.items())]


def describe(entries: Sequence[CpuidEntry]) -> list[str]:
    """The names of the features that the leaves contain, in the order of their bits."""
    leaves = {(entry.function, entry.index): list(entry) for entry in entries}
    return [name for name, bits in FEATURES.items() if _has(leaves, bits[-1])]


def brand(entries: Sequence[CpuidEntry]) -> str:
    """The processor's name in leaves 0x80000002 to 0x80000004; empty if there is none."""
    data = b""
    for entry in sorted(entries):
        if 0x8000_0002 <= entry.function <= 0x8000_0004:
            data += b"".join(value.to_bytes(4, "little") for value in entry[3:])
    return data.split(b"\0")[0].decode("ascii", "replace").strip()


def vendor_of(entries: Sequence[CpuidEntry]) -> str:
    """The vendor's name in leaf 0; empty if there is none."""
    leaves = {(entry.function, entry.index): list(entry) for entry in entries if entry.function == 0}
    return _vendor(leaves).strip(b"\0").decode("ascii", "replace")


_AMD = (b"AuthenticAMD", b"HygonGenuine")


def _vendor(leaves: dict[tuple[int, int], list[int]]) -> bytes:
    _, _, _, _, ebx, ecx, edx = leaves.get((0, 0), [0] * 7)
    return b"".join(value.to_bytes(4, "little") for value in (ebx, edx, ecx))


def _has(leaves: dict[tuple[int, int], list[int]], bit: FeatureBit) -> bool:
    leaf = leaves.get((bit.leaf, bit.subleaf))
    return leaf is not None and bool(leaf[3 + bit.register] >> bit.bit & 1)


def _put(leaves: dict[tuple[int, int], list[int]], bit: FeatureBit, state: bool) -> None:
    leaf = leaves.get((bit.leaf, bit.subleaf))
    if leaf is not None:
        leaf[3 + bit.register] = leaf[3 + bit.register] & ~(1 << bit.bit) | state << bit.bit


def _choose(model: str, adjustments: Iterable[tuple[str, bool]], available: set[str]) -> set[str]:
    """The features of a model after all adjustments, with nothing that lacks what it needs."""
    if model not in MODELS:
        raise ConfigError(f"no cpu model is called {model!r}", closest(model, list(MODELS)))
    wanted = available & BASELINE if model == "minimal" else set(available)
    asked: dict[str, bool] = {}
    for text, state in adjustments:
        name = feature_named(text)
        if asked.setdefault(name, state) != state:
            raise ConfigError(f"cpu feature {name!r} is both on and off")
        if state and name not in available:
            raise HostError(f"KVM on this host has no cpu feature {name!r}", f"leave +{name} out of --cpu")
        if state:
            wanted.add(name)
        else:
            wanted.discard(name)
    lacking = True
    while lacking:
        lacking = False
        for name, needed in REQUIRES.items():
            # What KVM itself reports without its prerequisite is left as KVM says.
            if name in wanted and needed not in wanted and needed in available:
                if asked.get(name):
                    raise ConfigError(f"cpu feature {name!r} needs {needed!r}", f"add +{needed} to --cpu")
                wanted.discard(name)
                lacking = True
    return wanted


def _limit_xsave(leaves: dict[tuple[int, int], list[int]], removed: set[str]) -> None:
    """Leaf 0xD without the state components of features that were taken away."""
    if (0xD, 0) not in leaves:
        return
    if "xsave" in removed:
        for key in [key for key in leaves if key[0] == 0xD]:
            del leaves[key]
        return
    root = leaves[0xD, 0]
    for name, mask in XSAVE_STATES.items():
        if name in removed:
            root[3] &= ~mask
    size = 576
    for leaf, subleaf in [key for key in leaves if key[0] == 0xD and key[1] > 1]:
        component = leaves[leaf, subleaf]
        user = not component[5] & 1
        if user and not root[3] >> subleaf & 1:
            del leaves[leaf, subleaf]
        elif user:
            size = max(size, component[3] + component[4])
    root[5] = size
    supervisor = leaves.get((0xD, 1))
    if supervisor is not None and "xsaves" in removed:
        supervisor[5] = supervisor[6] = 0


def _topology(leaves: dict[tuple[int, int], list[int]], vendor: bytes, index: int, count: int) -> None:
    """One package with `count` cores of one thread."""
    shift = (count - 1).bit_length()
    first = leaves.setdefault((1, 0), [1, 0, 0, 0, 0, 0, 0])
    first[4] = first[4] & 0xFF00 | (min(1 << shift, 255) << 16 if count > 1 else 0) | index << 24
    first[6] = first[6] & ~(1 << 28) | (count > 1) << 28
    for (function, _), leaf in leaves.items():
        if function == 4 and leaf[3] & 31:
            level = leaf[3] >> 5 & 7
            sharing = (1 << shift) - 1 if level >= 3 else 0
            leaf[3] = leaf[3] & 0x3FFF | sharing << 14 | min((1 << shift) - 1, 63) << 26
        elif function == 0x8000_001D and leaf[3] & 31:
            level = leaf[3] >> 5 & 7
            leaf[3] = leaf[3] & 0x3FFF | (count - 1 if level >= 3 else 0) << 14
    maximum = leaves.get((0, 0), [0] * 7)[3]
    for function in (0xB, 0x1F):
        if function > maximum or not (function == 0xB or any(key[0] == function for key in leaves)):
            continue
        for key in [key for key in leaves if key[0] == function]:
            del leaves[key]
        # Level types: 1 is threads of a core, 2 is cores of a package, 0 ends the list.
        for subleaf, (width, number, kind) in enumerate(((0, 1, 1), (shift, count, 2), (0, 0, 0))):
            entry = [function, subleaf, SIGNIFICANT_INDEX, width, number, kind << 8 | subleaf, index]
            leaves[function, subleaf] = entry
    if vendor in _AMD:
        sizes = leaves.get((0x8000_0008, 0))
        if sizes is not None:
            sizes[5] = shift << 12 | count - 1
        cores = leaves.get((0x8000_001E, 0))
        if cores is not None:
            cores[3:] = [index, index & 0xFF, 0, 0]
        extended = leaves.get((0x8000_0001, 0))
        if extended is not None:  # CmpLegacy: all logical processors are cores.
            extended[5] = extended[5] & ~2 | (count > 1) << 1


def _hypervisor(leaves: dict[tuple[int, int], list[int]], tsc_khz: int) -> None:
    """KVM's own leaves: the signature names the last one."""
    signature = leaves.get((KVM_SIGNATURE_LEAF, 0))
    if signature is None:
        return
    signature[3] = KVM_FEATURES_LEAF
    if tsc_khz:
        signature[3] = KVM_TIMING_LEAF
        leaves[KVM_TIMING_LEAF, 0] = [KVM_TIMING_LEAF, 0, 0, tsc_khz, APIC_BUS_KHZ, 0, 0]
