"""What KVM holds of a machine outside of its vCPUs: the interrupt chips, the timer and the paravirtual clock.

Images are KVM's structures (part of the kernel's ABI on x86-64), cut to what each chip has:

=========  ======  ===============================================================================================
field      bytes   layout
=========  ======  ===============================================================================================
`master`   16      `struct kvm_pic_state`, ports 0x20 and 0x21
`slave`    16      the same, ports 0xA0 and 0xA1
`ioapic`   216     `struct kvm_ioapic_state`: base address, selected register, id, requests, 24 entries of 8 bytes
`pit`      76      what `struct kvm_pit_state2` begins with: three channels of 24 bytes, flags
=========  ======  ===============================================================================================

A channel's `count_load_time` is a reading of the host's clock, which means nothing elsewhere: it is 0 in a record, and
KVM starts the count anew when it is loaded, so that the next tick comes up to one period late.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Protocol

from tvmm.memory.layout import IOAPIC_BASE
from tvmm.records import check_bytes, check_record, check_uint

__all__ = [
    "ChipsOfVm",
    "ChipsState",
    "ClockOfVm",
    "ClockState",
    "check_chips",
    "check_clock",
    "load_chips",
    "load_clock",
    "save_chips",
    "save_clock",
    "time_passed",
]

IRQCHIP_HEADER, IRQCHIP_BYTES = 8, 520
PIC_BYTES, IOAPIC_BYTES, PIT_BYTES, PIT_IMAGE_BYTES = 16, 216, 76, 112
CHANNEL = struct.Struct("<I12sq")
"""`struct kvm_pit_channel_state`: count, latches and modes, time of loading."""
CHANNELS = 3
MAX_COUNT = 0x1_0000
IOAPIC_HEAD = struct.Struct("<QII")
IOAPIC_REQUESTS, IOAPIC_ENTRIES = struct.Struct("<I"), struct.Struct("<24Q")
REQUESTS_AT, ENTRIES_AT = 16, 24
LEVEL_TRIGGERED = 1 << 15
"""In a redirection entry."""
MAX_IOAPIC_ID, MAX_SELECTED = 15, 0xFF

MAX_CLOCK_NS = (1 << 62) - 1
"""146 years: a sum of two such numbers is still one that KVM takes."""


class ChipsState(NamedTuple):
    """PICs, IOAPIC and PIT of one machine. Untrusted until `check_chips`."""

    master: bytes
    slave: bytes
    ioapic: bytes
    pit: bytes


class ClockState(NamedTuple):
    """KVM's paravirtual clock, and what the host's real-time clock said at that moment. Untrusted."""

    clock_ns: int
    realtime_ns: int


class ChipsOfVm(Protocol):
    """What is asked of a VM for its chips; `Vm` is one."""

    def get_chips(self) -> list[bytes]: ...
    def set_chips(self, images: list[bytes]) -> None: ...


class ClockOfVm(Protocol):
    """What is asked of a VM for its clock; `Vm` is one."""

    def get_clock(self) -> tuple[int, int]: ...
    def set_clock(self, clock_ns: int, realtime_ns: int | None = None) -> None: ...


def save_chips(vm: ChipsOfVm) -> ChipsState:
    """The chips; no vCPU runs."""
    master, slave, ioapic, pit = vm.get_chips()
    channels = b""
    for count, modes, _ in CHANNEL.iter_unpack(pit[: CHANNELS * CHANNEL.size]):
        channels += CHANNEL.pack(count, modes, 0)
    return ChipsState(
        master[IRQCHIP_HEADER:][:PIC_BYTES],
        slave[IRQCHIP_HEADER:][:PIC_BYTES],
        ioapic[IRQCHIP_HEADER:][:IOAPIC_BYTES],
        channels + pit[len(channels) : PIT_BYTES],
    )


def check_chips(state: ChipsState) -> None:
    """Raise `ValueError` naming the first field that is not what KVM's chips can have."""
    check_record(state, ChipsState)
    check_bytes("master", state.master, PIC_BYTES, PIC_BYTES)
    check_bytes("slave", state.slave, PIC_BYTES, PIC_BYTES)
    check_bytes("ioapic", state.ioapic, IOAPIC_BYTES, IOAPIC_BYTES)
    base, selected, identity = IOAPIC_HEAD.unpack_from(state.ioapic)
    if base != IOAPIC_BASE:
        raise ValueError(f"ioapic is not at {IOAPIC_BASE:#x}")
    check_uint("ioapic register", selected, MAX_SELECTED)
    check_uint("ioapic id", identity, MAX_IOAPIC_ID)
    check_bytes("pit", state.pit, PIT_BYTES, PIT_BYTES)
    for count, _, loaded in CHANNEL.iter_unpack(state.pit[: CHANNELS * CHANNEL.size]):
        check_uint("pit count", count, MAX_COUNT)
        if loaded:
            raise ValueError("pit has a time of the host")


def load_chips(vm: ChipsOfVm, state: ChipsState) -> None:
    """Put saved chips into a VM whose vCPUs have not run, before theirs. Raises `ValueError`, with nothing changed."""
    check_chips(state)
    images = []
    for number, image in enumerate((state.master, state.slave, _with_edges_low(state.ioapic))):
        images.append((number.to_bytes(IRQCHIP_HEADER, "little") + image).ljust(IRQCHIP_BYTES, b"\0"))
    vm.set_chips([*images, state.pit.ljust(PIT_IMAGE_BYTES, b"\0")])


def _with_edges_low(ioapic: bytes) -> bytes:
    """The IOAPIC's image with the request bits of edge-triggered pins clear.

    KVM keeps that bit from the rise of a line to its fall, and takes no other edge meanwhile. A queue of the host's
    kernel makes both from one write to an eventfd; whoever saved in between would have the bit without the fall to
    come, and the next edge, by which the device repeats its interrupt here, would be lost.
    """
    (requests,) = IOAPIC_REQUESTS.unpack_from(ioapic, REQUESTS_AT)
    for pin, entry in enumerate(IOAPIC_ENTRIES.unpack_from(ioapic, ENTRIES_AT)):
        if not entry & LEVEL_TRIGGERED:
            requests &= ~(1 << pin)
    return ioapic[:REQUESTS_AT] + IOAPIC_REQUESTS.pack(requests) + ioapic[REQUESTS_AT + IOAPIC_REQUESTS.size :]


def save_clock(vm: ClockOfVm) -> ClockState:
    """The clock, right after the vCPUs were paused."""
    return ClockState(*vm.get_clock())


def check_clock(state: ClockState) -> None:
    """Raise `ValueError` naming a field that is no number of nanoseconds."""
    check_record(state, ClockState)
    check_uint("clock_ns", state.clock_ns, MAX_CLOCK_NS)
    check_uint("realtime_ns", state.realtime_ns, MAX_CLOCK_NS)


def time_passed(state: ClockState, pause_limit_ns: int, realtime_ns: int) -> int:
    """How long the pause has been by the real-time clocks of both hosts, of which this one's says `realtime_ns`.

    Never less than 0, and never more than `pause_limit_ns`, which the caller knows by its own clock, so that neither a
    clock that is wrong nor a peer that lies makes the guest's time jump. Raises `ValueError` for a bad record.
    """
    check_clock(state)
    return min(max(0, realtime_ns - state.realtime_ns), pause_limit_ns)


def load_clock(vm: ClockOfVm, state: ClockState, pause_limit_ns: int, realtime_ns: int) -> int:
    """Set the clock, as the last thing before the vCPUs run: by how many nanoseconds it was put forward.

    That is `time_passed`. Raises `ValueError` for a bad record, with nothing changed.
    """
    passed = time_passed(state, pause_limit_ns, realtime_ns)
    if passed < realtime_ns - state.realtime_ns:
        vm.set_clock(state.clock_ns + passed)
    else:
        vm.set_clock(state.clock_ns, state.realtime_ns)
    return passed
