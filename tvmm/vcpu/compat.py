"""Whether a guest that runs on one host's processor can go on on another's, and which `--cpu` would let it.

Pure: two records, one of the guest as its source made it and one of the host that is to take it. Both may travel, so
that either side can say it; a peer's is untrusted until it is checked (`tvmm.vcpu.compat_check`).

A feature that the guest was shown and the host lacks is an illegal instruction sooner or later; so is everything below
a reason to refuse, before a byte of RAM moves. What the host has and the guest was not shown does no harm, because a
guest takes the CPUID that it was shown along.

Two kinds of KVM. Where guest kernel mode is emulated (`emulated_kernel`), user mode executes CPUID and RDTSC on the
processor itself, so a guest knows the features and the time stamp counter of the host whatever it was shown. Between
two such hosts the processors themselves have to match, and only one host has the same counter from one process to the
next. Between such a host and one with hardware virtualization nothing goes: a system call of such a guest leaves KVM
half-way, with the page fault that tvmm recognizes and takes back only at the guest's next instructions; a real
processor would deliver that fault. The other way round, a guest has seen features and a counter that are not there any
more, and what its kernel was in the midst of may be what the emulator does not have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.config.cpu import CpuConfig
from tvmm.vcpu.cpu_features import FEATURES, REQUIRES, FeatureBit, words
from tvmm.vcpu.cpuid import (
    BASELINE,
    IN_KVM,
    SET_BY_GUEST,
    SHARED_FEATURES,
    XSAVE_STATES,
    feature_named,
    vendor_of,
)
from tvmm.vcpu.msrs import name_of
from tvmm.vcpu.state import frequency_fits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tvmm.vcpu.cpuid import CpuidEntry

__all__ = [
    "CpuDescription",
    "HostCpu",
    "describe",
    "describe_host",
    "incompatibilities",
    "moved",
    "processor_words",
    "suggest",
]

Words = tuple[tuple[int, int, int, int], ...]
"""(leaf, subleaf, register, value): register 0 to 3 for EAX to EDX."""

SET_BY_TOPOLOGY = ("ht", "cmp-legacy")
"""Features that follow from the number of vCPUs."""

NEEDED_MSRS = (0x174, 0x175, 0x176, 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0102)
"""What every 64-bit kernel writes. Others come with features, or are 0, or are refused when they are loaded."""

XSAVE_LEAF, SIZES_LEAF, EXTENDED_LEAF = 0xD, 0x8000_0008, 0x8000_0001
DEFAULT_PHYSICAL_BITS = 36
REGISTER_NAMES = ("EAX", "EBX", "ECX", "EDX")
MANY = 16
"""From so many features on, the smallest model is the better advice."""

_NAMES = {bit: name for name, bits in FEATURES.items() for bit in bits}


class CpuDescription(NamedTuple):
    """The vCPUs of a guest and what it may have learned of the host that it runs on. Plain values."""

    vendor: str
    model: str
    adjustments: tuple[tuple[str, bool], ...]
    """These two as in `CpuConfig`; features by their own names, no aliases."""
    count: int  # type: ignore[assignment]  # hides the method of tuple, which has no use here
    features: Words
    """Feature words that the guest was shown."""
    xcr0: int
    """State components that it may switch on."""
    components: Words
    """(number, 0, size, offset) of those above SSE in the standard format."""
    physical_bits: int
    msrs: tuple[int, ...]
    tsc_khz: int
    emulated_kernel: bool
    processor: Words
    """The processor's own feature words, where the guest sees them; else none."""
    host_id: str
    """The same for all machines between two starts of one host."""


class HostCpu(NamedTuple):
    """What a host's KVM can give a guest. Plain values."""

    vendor: str
    max_count: int
    features: Words
    xcr0: int
    components: Words
    physical_bits: int
    msrs: tuple[int, ...]
    tsc_khz: int
    tsc_control: bool
    """Whether a guest's counter can have another frequency."""
    emulated_kernel: bool
    processor: Words
    host_id: str


def describe(leaves: Sequence[CpuidEntry], cpu: CpuConfig, msrs: Iterable[int], host: HostCpu) -> CpuDescription:
    """A guest on `host` with vCPUs of `cpu`, which were shown `leaves` (see `cpuid.policy`)."""
    return CpuDescription(
        vendor=vendor_of(leaves),
        model=cpu.model,
        adjustments=tuple((feature_named(name), state) for name, state in cpu.adjustments),
        count=cpu.count,
        features=_feature_words(leaves, {feature for name in SET_BY_TOPOLOGY for feature in FEATURES[name]}),
        xcr0=_xcr0(leaves),
        components=_components(leaves),
        physical_bits=_physical_bits(leaves),
        msrs=tuple(msrs),
        tsc_khz=host.tsc_khz,
        emulated_kernel=host.emulated_kernel,
        processor=host.processor,
        host_id=host.host_id,
    )


def describe_host(
    supported: Sequence[CpuidEntry],
    emulated: Sequence[CpuidEntry],
    *,
    max_count: int,
    msrs: Iterable[int],
    tsc_khz: int,
    tsc_control: bool,
    processor: Words,
    host_id: str,
) -> HostCpu:
    """A host from KVM_GET_SUPPORTED_CPUID, KVM_GET_EMULATED_CPUID where that is wanted, and what else there is to know.

    `processor` is `processor_words` of a host that emulates kernel mode, else empty.
    """
    found = {word[:3]: word[3] for word in _feature_words(supported, set())}
    for *place, value in _feature_words(emulated, set()):
        leaf, subleaf, register = place
        if (leaf, subleaf, register) in found:
            found[leaf, subleaf, register] |= value
    for bit in [bit for name in IN_KVM for bit in FEATURES[name]]:
        found[bit[:3]] = found.get(bit[:3], 0) | 1 << bit.bit
    return HostCpu(
        vendor=vendor_of(supported),
        max_count=max_count,
        features=tuple((*place, value) for place, value in found.items()),
        xcr0=_xcr0(supported),
        components=_components(supported),
        physical_bits=_physical_bits(supported),
        msrs=tuple(msrs),
        tsc_khz=tsc_khz,
        tsc_control=tsc_control,
        emulated_kernel=bool(processor),
        processor=processor,
        host_id=host_id,
    )


def processor_words(cpuid: Callable[[int, int], tuple[int, int, int, int]]) -> Words:
    """The feature words, and the state components, that the instruction itself gives. KVM's own are no part of them."""
    places = [place for place in words() if place[0] >> 16 != 0x4000]
    return tuple((*place, cpuid(place[0], place[1])[place[2]]) for place in [*places, (XSAVE_LEAF, 0, 0)])


def incompatibilities(source: CpuDescription, host: HostCpu) -> list[str]:
    """Why the guest cannot go on on `host`, a sentence each; empty if it can."""
    if source.vendor != host.vendor:
        return [
            f"The guest's processor is of {source.vendor or 'no vendor'} and the destination's of {host.vendor}: they "
            "differ in system calls, errata and state, which no CPU model hides."
        ]
    if source.emulated_kernel != host.emulated_kernel:
        return [_kinds_differ(source.emulated_kernel)]
    found = []
    missing = _missing(source.features, host.features)
    if missing:
        found.append(f"The destination lacks CPU features of the guest: {', '.join(map(_name, missing))}.")
    elif lacking := source.xcr0 & ~host.xcr0:
        found.append(f"The destination lacks state components of the guest: bits {lacking:#x} of XCR0.")
    elif moved := set(source.components) - set(host.components):
        numbers = ", ".join(str(number) for number, *_ in sorted(moved))
        found.append(f"The processors lay out state components of the guest differently: {numbers}.")
    if source.emulated_kernel:
        found += _processors(source, host, missing)
    if source.physical_bits > host.physical_bits:
        found.append(
            f"The guest uses {source.physical_bits} bits of physical addresses and the destination has "
            f"{host.physical_bits}."
        )
    lost = [index for index in NEEDED_MSRS if index in source.msrs and index not in host.msrs]
    if lost:
        found.append(f"The destination's KVM lacks model-specific registers: {', '.join(map(name_of, lost))}.")
    if not frequency_fits(source.tsc_khz, host.tsc_khz) and not host.tsc_control:
        found.append(
            f"The guest's time stamp counter runs at {source.tsc_khz} kHz and the destination's at {host.tsc_khz} kHz, "
            "which has no TSC scaling."
        )
    if source.count > host.max_count:
        found.append(f"The guest has {source.count} vCPUs and the destination's KVM makes at most {host.max_count}.")
    return found


def moved(source: CpuDescription, host: HostCpu) -> CpuDescription:
    """The guest's description after it has come to `host`, for its next move.

    It keeps the features and the frequency that it was shown, and sees another processor from now on.
    """
    return source._replace(processor=host.processor, host_id=host.host_id)


def _kinds_differ(from_emulated: bool) -> str:
    if from_emulated:
        return (
            "The guest's kernel is emulated here and would run on the processor at the destination: it may be in the "
            "midst of a system call that only the emulation can end, and counts on a time stamp counter of this host."
        )
    return (
        "The guest's kernel runs on the processor here and would be emulated at the destination, where its programs "
        "would see other CPU features and another time stamp counter, and some of its instructions do not exist."
    )


def _processors(source: CpuDescription, host: HostCpu, named: list[FeatureBit]) -> list[str]:
    """What keeps a guest that sees the processor itself from another one."""
    found = []
    missing = [bit for bit in _missing(source.processor, host.processor) if bit not in named]
    if missing:
        found.append(
            "The guest's programs see the processor itself, and the destination's lacks "
            f"{', '.join(map(_name, missing))}."
        )
    if source.host_id != host.host_id:
        found.append(
            "The guest sees the time stamp counter of its host, which KVM does not virtualize here: on another host it "
            "would jump."
        )
    return found


def suggest(source: CpuDescription, host: HostCpu) -> str:
    """The `--cpu` option with which a machine started on the source's host could go to `host`, and on both sides.

    Empty if nothing is in the way that an option can hide.
    """
    missing = _missing(source.features, host.features)
    if source.vendor != host.vendor or source.emulated_kernel != host.emulated_kernel:
        return ""
    if source.emulated_kernel and _missing(source.processor, host.processor):
        return ""
    names = {_NAMES[bit] for bit in missing if bit in _NAMES}
    names |= {name for name, mask in XSAVE_STATES.items() if source.xcr0 & ~host.xcr0 & mask}
    if not names:
        return ""
    if len(names) > MANY:
        return _option("minimal", dict.fromkeys(sorted(names & BASELINE), False))
    wanted = dict(source.adjustments)
    wanted.update(dict.fromkeys(sorted(_roots(names)), False))
    # What was asked for by name and needs what is taken away would be a contradiction.
    kept = {name: state for name, state in wanted.items() if not (state and (name in names or _needs(name) & names))}
    return _option(source.model, kept)


def _option(model: str, changes: dict[str, bool]) -> str:
    return ",".join([f"--cpu {model}", *(f"{'+' if state else '-'}{name}" for name, state in changes.items())])


def _needs(name: str) -> set[str]:
    """All features that `name` makes no sense without."""
    found = set()
    while name in REQUIRES:
        name = REQUIRES[name]
        found.add(name)
    return found


def _roots(names: set[str]) -> set[str]:
    """Those that do not go by themselves when the others are taken away."""
    return {name for name in names if not _needs(name) & names}


# --- records ---


# --- leaves ---


def _leaf(leaves: Sequence[CpuidEntry], function: int, index: int = 0) -> CpuidEntry | None:
    return next((entry for entry in leaves if (entry.function, entry.index) == (function, index)), None)


def _feature_words(leaves: Sequence[CpuidEntry], hidden: set[FeatureBit]) -> Words:
    found = []
    for leaf, subleaf, register in words():
        entry = _leaf(leaves, leaf, subleaf)
        if entry is not None:
            value = entry[3 + register]
            for bit in hidden:
                if bit[:3] == (leaf, subleaf, register):
                    value &= ~(1 << bit.bit)
            for *place, mask in SET_BY_GUEST:
                if place == [leaf, subleaf, register]:
                    value &= ~mask
            found.append((leaf, subleaf, register, value))
    return tuple(found)


def _xcr0(leaves: Sequence[CpuidEntry]) -> int:
    root = _leaf(leaves, XSAVE_LEAF)
    return root.eax | root.edx << 32 if root is not None else 0


def _components(leaves: Sequence[CpuidEntry]) -> Words:
    enabled = _xcr0(leaves)
    return tuple(
        (entry.index, 0, entry.eax, entry.ebx)
        for entry in sorted(leaves)
        if entry.function == XSAVE_LEAF and entry.index > 1 and enabled >> entry.index & 1
    )


def _physical_bits(leaves: Sequence[CpuidEntry]) -> int:
    sizes = _leaf(leaves, SIZES_LEAF)
    return sizes.eax & 0xFF if sizes is not None else DEFAULT_PHYSICAL_BITS


def _missing(wanted: Words, there: Words) -> list[FeatureBit]:
    """The bits of `wanted` that are not in `there`, in order."""
    have = {word[:3]: word[3] for word in there}
    found = []
    for leaf, subleaf, register, value in wanted:
        lacking = value & ~have.get((leaf, subleaf, register), 0)
        if (leaf, register) == (EXTENDED_LEAF, 3):
            lacking &= ~SHARED_FEATURES  # Repeats leaf 1 on AMD.
        found += [FeatureBit(leaf, subleaf, register, bit) for bit in range(32) if lacking >> bit & 1]
    return found


def _name(bit: FeatureBit) -> str:
    known = _NAMES.get(bit)
    place = f"bit {bit.bit} of CPUID {bit.leaf:#x}.{bit.subleaf} {REGISTER_NAMES[bit.register]}"
    return known if known is not None else place
