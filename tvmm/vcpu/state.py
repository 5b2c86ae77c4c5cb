"""Everything that KVM holds of one vCPU, as a record: saved from a paused vCPU, put into one that never ran.

Large parts are images of KVM's own structures, whose layouts are part of the kernel's ABI on x86-64 and little-endian:
copying them is fast, and KVM checks what is in them as it does for any program that calls it. What is looked at here
is what KVM does not look at: lengths, since a call reads a whole structure whatever it is given, and counts.

============  ==============  ===================================================================================
field         bytes           layout
============  ==============  ===================================================================================
`regs`        144             `struct kvm_regs`: RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 to R15, RIP, RFLAGS
`sregs`       280             what `struct kvm_sregs` and `kvm_sregs2` begin with: CS, DS, ES, FS, GS, SS, TR, LDT
                              of 24 bytes, GDT, IDT of 16; CR0, CR2, CR3, CR4, CR8, EFER, APIC base
`pdptrs`      40, or none     the rest of `kvm_sregs2`: flags, four page directory pointers
`xsave`       4096 or more    `struct kvm_xsave`: all components in the standard format, as CPUID leaf 0xD says
`debug`       48              DR0 to DR3, DR6, DR7
`lapic`       1024            `struct kvm_lapic_state`: the APIC page, the timer's current count in it
`events`      64              `struct kvm_vcpu_events`
`cpuid`       40 a leaf       `struct kvm_cpuid_entry2`
============  ==============  ===================================================================================

Left out, since it says nothing new: the interrupt bitmap of `kvm_sregs`, which is the injected interrupt of `events`.
Left out, since it is not supported: the state of nested virtualization (KVM_GET_NESTED_STATE). It is up to 12 KiB per
vCPU whose meaning depends on the host's processor and that points into guest memory; a guest with its own guests
running is told apart by CR4.VMXE or EFER.SVME and is not saved.

Order. Saved: the MP state first, because KVM may do a waiting INIT or SIPI then and change registers; then events,
because KVM may put a waiting exception's address into CR2 then. Restored: CPUID before what it allows; the APIC base
in the special registers before the APIC; the TSC deadline after it, because KVM ignores it while the APIC's timer is
in another mode.

Time. The time stamp counter and what counts with it differ from one save to the next of the same vCPU: MSRs `tsc`
and, where they run, `core_perf_*`; in the APIC page the current count (offset 0x390).

The APIC's timer goes on with its current count. One that was set for one time and has expired has a count of 0, and KVM
makes it expire once more when it is loaded. That is left so: KVM does not tell whether the interrupt was delivered
before the pause, and one too many is better for a guest than one that never comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from tvmm.errors import HostError
from tvmm.records import check_bytes, check_record, check_uint
from tvmm.vcpu.msrs import MAY_BE_REFUSED, name_of, restore_order

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

__all__ = ["StateOfVcpu", "VcpuState", "check_vcpu", "frequency_fits", "load_vcpu", "save_vcpu"]

REGS_BYTES, SREGS_BYTES, PDPTRS_BYTES, DEBUG_BYTES = 144, 280, 40, 48
SREGS_TAIL_BYTES = 32
"""The interrupt bitmap of `struct kvm_sregs`."""
DEBUG_TAIL_BYTES = 80
"""Flags and reserved words of `struct kvm_debugregs`, all 0."""
LAPIC_BYTES, EVENTS_BYTES, CPUID_ENTRY_BYTES = 1024, 64, 40

MIN_XSAVE_BYTES, MAX_XSAVE_BYTES = 4096, 16384
"""KVM's least, and more than all components that processors have (AMX ends at 11,008). Bounds what a peer's record
makes us allocate."""
XSAVE_HEADER = slice(520, 576)
"""Behind the bits of what is there: format and reserved words, 0 in the standard format."""

MAX_MSRS = 1024
"""KVM lists some hundred. A peer's record cannot make us try more than this."""
MSRS_PER_CALL = 128
MAX_CPUID_ENTRIES = 256
"""KVM's own limit."""
MAX_TSC_KHZ = 100_000_000
MAX_MP_STATE = 4
"""Runnable, uninitialized, INIT received, halted, SIPI received; those above belong to other architectures."""

CR4, EFER = slice(248, 256), slice(264, 272)
CR4_VMXE, EFER_SVME = 1 << 13, 1 << 12

EVENT_FLAGS, TRIPLE_FAULT, EVENTS_RESERVED = slice(20, 24), 28, slice(29, 55)
KNOWN_EVENT_FLAGS, FLAG_TRIPLE_FAULT = 0x3F, 0x20

MSR_TSC, MSR_TSC_DEADLINE = 0x10, 0x6E0
TSC_TOLERANCE_PPM = 250
"""What KVM itself takes for the same frequency; a clock that is disciplined over the network makes up for it."""
ALL_ONES = (1 << 64) - 1


class VcpuState(NamedTuple):
    """One vCPU; see the module's text for the layouts. Untrusted until `check_vcpu`."""

    index: int  # type: ignore[assignment]  # hides the method of tuple, which has no use here
    tsc_khz: int
    mp_state: int
    xcr0: int
    regs: bytes
    sregs: bytes
    pdptrs: bytes
    xsave: bytes
    debug: bytes
    lapic: bytes
    events: bytes
    msrs: tuple[tuple[int, int], ...]
    """(index, value), index ascending."""
    cpuid: bytes


class StateOfVcpu(Protocol):
    """What is asked of a vCPU here; `KvmVcpu` is one."""

    index: int
    has_sregs2: bool

    @property
    def xsave_size(self) -> int: ...
    def get_structure(self, name: str) -> bytes: ...
    def set_structure(self, name: str, image: bytes) -> None: ...
    def get_xsave_image(self) -> bytes: ...
    def set_xsave_image(self, image: bytes) -> None: ...
    def get_cpuid_image(self) -> bytes: ...
    def set_cpuid_image(self, image: bytes) -> None: ...
    def get_xcr0(self) -> int: ...
    def set_xcr0(self, value: int) -> None: ...
    def get_mp_state(self) -> int: ...
    def set_mp_state(self, state: int) -> None: ...
    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]: ...
    def set_msrs(self, values: Iterable[tuple[int, int]]) -> int: ...
    def get_tsc_khz(self) -> int: ...
    def set_tsc_khz(self, khz: int) -> None: ...


def save_vcpu(kvm: StateOfVcpu, msr_indices: Sequence[int]) -> VcpuState:
    """The state of a paused vCPU, with those of `msr_indices` (see `msrs.saved`) that KVM lets us read.

    Raises `HostError` if the guest uses nested virtualization.
    """
    mp_state = kvm.get_mp_state()
    events = kvm.get_structure("events")
    sregs = kvm.get_structure("sregs2" if kvm.has_sregs2 else "sregs")
    if _number(sregs[CR4]) & CR4_VMXE or _number(sregs[EFER]) & EFER_SVME:
        raise HostError(
            "the guest runs virtual machines of its own, whose state cannot be moved",
            "end them and unload its KVM, or start the machine with --cpu host,-vmx,-svm",
        )
    return VcpuState(
        index=kvm.index,
        tsc_khz=kvm.get_tsc_khz(),
        mp_state=mp_state,
        xcr0=kvm.get_xcr0(),
        regs=kvm.get_structure("regs"),
        sregs=sregs[:SREGS_BYTES],
        pdptrs=sregs[SREGS_BYTES:] if kvm.has_sregs2 else b"",
        xsave=kvm.get_xsave_image(),
        debug=kvm.get_structure("debugregs")[:DEBUG_BYTES],
        lapic=kvm.get_structure("lapic"),
        events=events,
        msrs=_read_msrs(kvm, msr_indices),
        cpuid=kvm.get_cpuid_image(),
    )


def _read_msrs(kvm: StateOfVcpu, indices: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """KVM stops at the first that it refuses; that one is left out."""
    values: dict[int, int] = {}
    position = 0
    while position < len(indices):
        some = indices[position : position + MSRS_PER_CALL]
        got = kvm.get_msrs(some)
        values.update(got)
        position += len(got) + (len(got) < len(some))
    return tuple(sorted(values.items()))


def check_vcpu(state: VcpuState, index: int, xsave_size: int) -> None:
    """Raise `ValueError` naming the first field that vCPU `index` cannot take.

    `xsave_size` is what its KVM reads: an image may be longer only by zeros.
    """
    check_record(state, VcpuState)
    if check_uint("index", state.index, 0xFFFF) != index:
        raise ValueError(f"index is not {index}")
    if not check_uint("tsc_khz", state.tsc_khz, MAX_TSC_KHZ):
        raise ValueError("tsc_khz is 0")
    check_uint("mp_state", state.mp_state, MAX_MP_STATE)
    if not check_uint("xcr0", state.xcr0, ALL_ONES) & 1:
        raise ValueError("xcr0 does not enable the x87 state")
    for field, length in (
        ("regs", REGS_BYTES),
        ("sregs", SREGS_BYTES),
        ("debug", DEBUG_BYTES),
        ("lapic", LAPIC_BYTES),
        ("events", EVENTS_BYTES),
    ):
        check_bytes(field, getattr(state, field), length, length)
    if check_bytes("pdptrs", state.pdptrs, 0, PDPTRS_BYTES) and len(state.pdptrs) != PDPTRS_BYTES:
        raise ValueError(f"pdptrs has neither 0 nor {PDPTRS_BYTES} bytes")
    check_bytes("xsave", state.xsave, MIN_XSAVE_BYTES, MAX_XSAVE_BYTES)
    if any(state.xsave[XSAVE_HEADER]):
        raise ValueError("xsave is not in the standard format")
    if any(state.xsave[xsave_size:]):
        raise ValueError(f"xsave has state beyond the {xsave_size} bytes of this host")
    if _number(state.events[EVENT_FLAGS]) & ~KNOWN_EVENT_FLAGS or any(state.events[EVENTS_RESERVED]):
        raise ValueError("events has fields that are not known here")
    check_bytes("cpuid", state.cpuid, 0, MAX_CPUID_ENTRIES * CPUID_ENTRY_BYTES)
    if len(state.cpuid) % CPUID_ENTRY_BYTES:
        raise ValueError("cpuid is not whole leaves")
    _check_msrs(state.msrs)


def _check_msrs(msrs: object) -> None:
    if type(msrs) is not tuple or len(msrs) > MAX_MSRS:
        raise ValueError(f"msrs is not a tuple of up to {MAX_MSRS} pairs")
    last = -1
    for pair in msrs:
        if type(pair) is not tuple or len(pair) != 2:
            raise ValueError("msrs has an entry that is no pair")
        index = check_uint("msrs index", pair[0], 0xFFFF_FFFF)
        check_uint("msrs value", pair[1], ALL_ONES)
        if index <= last:
            raise ValueError("msrs is not in ascending order")
        last = index


def frequency_fits(wanted_khz: int, khz: int) -> bool:
    """Whether a guest that counts on `wanted_khz` can run with a time stamp counter of `khz`."""
    return abs(wanted_khz - khz) * 1_000_000 <= wanted_khz * TSC_TOLERANCE_PPM


def load_vcpu(
    kvm: StateOfVcpu,
    state: VcpuState,
    msr_indices: Collection[int],
    *,
    advance_ns: int = 0,
    tsc_control: bool = False,
) -> None:
    """Put a saved state into a vCPU that has not run; interrupt chips are loaded before.

    `msr_indices` are those that this host saves itself: no others are written. The time stamp counter goes on
    `advance_ns` later than it was saved (0 or more; a KVM that gives guests the host's counter ignores it). With
    `tsc_control` (see `Kvm.has_tsc_control`) the vCPU gets the frequency that it had.

    Raises `ValueError` for a bad record, with nothing changed, and `HostError` for what this host's KVM does not take:
    then the vCPU is half loaded and must not run.
    """
    check_vcpu(state, kvm.index, kvm.xsave_size)
    if not frequency_fits(state.tsc_khz, khz := kvm.get_tsc_khz()) and not tsc_control:
        raise HostError(f"the guest's time stamp counter runs at {state.tsc_khz} kHz, this host's at {khz} kHz")
    try:
        if not frequency_fits(state.tsc_khz, khz):
            kvm.set_tsc_khz(state.tsc_khz)
        _load(kvm, state, frozenset(msr_indices), advance_ns)
    except OSError as error:
        raise HostError(f"KVM on this host does not take the state of vCPU {state.index}: {error.strerror}") from error


def _load(kvm: StateOfVcpu, state: VcpuState, msr_indices: Collection[int], advance_ns: int) -> None:
    if state.cpuid != kvm.get_cpuid_image():
        kvm.set_cpuid_image(state.cpuid)
    if kvm.has_sregs2:
        kvm.set_structure("sregs2", state.sregs + (state.pdptrs or bytes(PDPTRS_BYTES)))
    else:
        kvm.set_structure("sregs", state.sregs + bytes(SREGS_TAIL_BYTES))
    kvm.set_structure("regs", state.regs)
    kvm.set_xcr0(state.xcr0)
    kvm.set_xsave_image(state.xsave[: kvm.xsave_size].ljust(kvm.xsave_size, b"\0"))
    kvm.set_structure("debugregs", state.debug + bytes(DEBUG_TAIL_BYTES))
    values = dict(state.msrs)
    if MSR_TSC in values:
        values[MSR_TSC] = (values[MSR_TSC] + advance_ns * state.tsc_khz // 1_000_000) & ALL_ONES
    deadline = values.pop(MSR_TSC_DEADLINE, 0)
    _write_msrs(kvm, [(index, values[index]) for index in restore_order(values)], msr_indices)
    kvm.set_structure("lapic", state.lapic)
    _write_msrs(kvm, [(MSR_TSC_DEADLINE, deadline)], msr_indices)
    kvm.set_structure("events", _events_here(state.events, kvm.get_structure("events")))
    kvm.set_mp_state(state.mp_state)


def _write_msrs(kvm: StateOfVcpu, values: Sequence[tuple[int, int]], here: Collection[int]) -> None:
    """Write all, and go on after one that is refused if the guest can do without. Raises `HostError` naming it if not.

    One that this host would not save is not offered to KVM: a peer's record has no say in what else there is.
    """
    known = [pair for pair in values if pair[0] in here]
    for pair in values:
        if pair[0] not in here:
            _do_without(*pair)
    position = 0
    while position < len(known):
        some = known[position : position + MSRS_PER_CALL]
        done = kvm.set_msrs(some)
        if done < len(some):
            _do_without(*some[done])
        position += done + (done < len(some))


def _do_without(index: int, value: int) -> None:
    if value and index not in MAY_BE_REFUSED:
        raise HostError(
            f"KVM on this host does not take msr {name_of(index)} ({index:#x}) of the guest",
            "its processor or its kernel lacks what the guest uses",
        )


def _events_here(events: bytes, here: bytes) -> bytes:
    """The events with those validity flags only that this KVM has. Raises `HostError` if one that is lost matters."""
    flags, known = _number(events[EVENT_FLAGS]), _number(here[EVENT_FLAGS])
    if flags & ~known & FLAG_TRIPLE_FAULT and events[TRIPLE_FAULT]:
        raise HostError("the guest is about to crash (triple fault), which KVM on this host cannot be told")
    kept = (flags & known).to_bytes(4, "little")
    return events[: EVENT_FLAGS.start] + kept + events[EVENT_FLAGS.stop :]


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
