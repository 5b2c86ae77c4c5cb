"""A vCPU's record: what is looked at, in which order it is written, what a host may refuse."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_vcpu import FakeVcpu
from tvmm.errors import HostError
from tvmm.vcpu.msrs import MAY_BE_REFUSED, restore_order
from tvmm.vcpu.state import VcpuState, check_vcpu, frequency_fits, load_vcpu, save_vcpu

MSRS = [0x10, 0x3B, 0x174, 0x175, 0x277, 0x6E0, 0x4B564D01, 0xC0000082]
TSC, TSC_ADJUST, DEADLINE, LSTAR = 0x10, 0x3B, 0x6E0, 0xC000_0082
SMI_COUNT, UNKNOWN = 0x34, 0x1234_5678
CR4, EFER = 248, 264


def filled(**options: Any) -> FakeVcpu:
    """A vCPU with a different value everywhere."""
    cpu = FakeVcpu(**options)
    for number, name in enumerate(("regs", "sregs", "sregs2", "debugregs", "lapic")):
        length = len(cpu.structures[name])
        cpu.structures[name] = bytes((number + 1,)) * length
    sregs = bytes((2,)) * CR4 + bytes(8) + bytes((3,)) * 8 + bytes(8) + bytes((4,)) * 8
    cpu.structures["sregs"] = sregs + bytes(32)
    cpu.structures["sregs2"] = sregs + b"\1" + bytes(7) + bytes((5,)) * 32
    cpu.structures["debugregs"] = bytes((6,)) * 48 + bytes(80)
    cpu.xsave = bytes((7,)) * 512 + b"\7" + bytes(7) + bytes(56) + bytes((8,)) * 256 + bytes(cpu.xsave_size - 832)
    cpu.cpuid = bytes(range(120))
    cpu.xcr0, cpu.mp_state = 7, 3
    cpu.msrs = {index: index << 8 for index in MSRS}
    return cpu


def blank(**options: Any) -> FakeVcpu:
    """A new vCPU with the same MSRs."""
    cpu = FakeVcpu(**options)
    cpu.msrs = dict.fromkeys(MSRS, 0)
    return cpu


STATE = save_vcpu(filled(), MSRS)


def with_msr(index: int, value: int) -> VcpuState:
    """The record with one MSR more."""
    return STATE._replace(msrs=tuple(sorted({**dict(STATE.msrs), index: value}.items())))


def test_round_trip() -> None:
    """What was saved is what is saved from the vCPU that it was loaded into."""
    target = blank()
    load_vcpu(target, STATE, MSRS)
    assert save_vcpu(target, MSRS) == STATE


@pytest.mark.parametrize(("source", "target"), [(True, False), (False, True), (False, False)])
def test_round_trip_without_sregs2(source: bool, target: bool) -> None:
    """A kernel without KVM_GET_SREGS2 on either side: everything but the page directory pointers gets across."""
    state = save_vcpu(filled(sregs2=source), MSRS)
    cpu = blank(sregs2=target)
    load_vcpu(cpu, state, MSRS)
    assert save_vcpu(cpu, MSRS)._replace(pdptrs=b"") == state._replace(pdptrs=b"")


def test_order_of_loading() -> None:
    """As documented: CPUID first, the APIC after its base and before the TSC deadline, events and MP state last."""
    target = blank()
    load_vcpu(target, STATE, MSRS)
    rest = [f"msr {index:#x}" for index in restore_order(MSRS) if index != DEADLINE]
    assert target.log == [
        "cpuid",
        "sregs2",
        "regs",
        "xcr0",
        "xsave",
        "debugregs",
        *rest,
        "lapic",
        f"msr {DEADLINE:#x}",
        "events",
        "mp_state",
    ]
    assert rest[:2] == [f"msr {TSC:#x}", f"msr {TSC_ADJUST:#x}"]


def test_order_of_saving() -> None:
    """MP state and events before the registers that reading them may change."""
    cpu = filled()
    save_vcpu(cpu, MSRS)
    assert cpu.reads[:2] == ["mp_state", "events"]
    assert {"sregs2", "regs", "debugregs", "lapic"} == set(cpu.reads[2:])


def test_equal_cpuid_is_left_alone() -> None:
    """CPUID that is in force already is not set again."""
    target = blank()
    target.cpuid = STATE.cpuid
    load_vcpu(target, STATE, MSRS)
    assert "cpuid" not in target.log


BAD: dict[str, list[Any]] = {
    "index": [1, -1, "0", True],
    "tsc_khz": [0, -1, 1 << 40, 1.5],
    "mp_state": [5, -1, None],
    "xcr0": [0, 6, 1 << 64, "7"],
    "regs": [b"", bytes(143), bytes(145), bytearray(144), "x" * 144],
    "sregs": [bytes(279), bytes(312), 0],
    "pdptrs": [bytes(39), bytes(41), None],
    "debug": [bytes(47), bytes(128)],
    "lapic": [bytes(1023), bytes(4096)],
    "events": [
        bytes(63),
        bytes(65),
        bytes(20) + (0x40).to_bytes(4, "little") + bytes(40),
        bytes(29) + b"\1" + bytes(34),
        bytes(54) + b"\1" + bytes(9),
    ],
    "xsave": [
        bytes(4095),
        bytes(16385),
        bytes(4096) + b"\1",
        bytes(520) + b"\1" + bytes(4096 - 521),
        bytes(575) + b"\1" + bytes(4096 - 576),
    ],
    "cpuid": [bytes(39), bytes(40 * 257), 0],
    "msrs": [
        [(1, 1)],
        ((1, 1), (1, 2)),
        ((2, 1), (1, 2)),
        ((1, 1, 1),),
        ((1 << 32, 1),),
        ((1, 1 << 64),),
        ((1, -1),),
        (5,),
        (("1", 1),),
        tuple((index, 0) for index in range(1025)),
    ],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_bad_records_change_nothing(field: str, value: Any) -> None:
    """A field out of range is named, and the vCPU was not touched."""
    target = blank()
    with pytest.raises(ValueError, match=field):
        load_vcpu(target, STATE._replace(**{field: value}), MSRS)
    assert target.log == []


def test_every_field_is_checked() -> None:
    """The table above has each field of the record."""
    assert set(BAD) == set(VcpuState._fields)


def test_not_a_record() -> None:
    """A plain tuple is none."""
    with pytest.raises(ValueError, match="VcpuState"):
        check_vcpu(tuple(STATE), 0, 4096)  # type: ignore[arg-type]


def test_xsave_of_another_size() -> None:
    """A longer image fits if only zeros are cut off; a shorter one is filled up with zeros."""
    large = save_vcpu(filled(xsave_size=11008), MSRS)
    small = blank()
    load_vcpu(small, large, MSRS)
    assert small.xsave == large.xsave[:4096]
    wide = blank(xsave_size=11008)
    load_vcpu(wide, STATE, MSRS)
    assert wide.xsave == STATE.xsave + bytes(11008 - 4096)


def test_msrs_that_cannot_be_read_are_left_out() -> None:
    """KVM stops at each that it refuses; all others are saved."""
    cpu = filled()
    state = save_vcpu(cpu, [1, 0x10, 2, 3, 0x3B, 0xC0000082, UNKNOWN])
    assert [index for index, _ in state.msrs] == [0x10, 0x3B, 0xC0000082]


def test_many_msrs_go_in_several_calls() -> None:
    """More than KVM takes at once are all saved and all loaded."""
    indices = list(range(0x1000, 0x1000 + 700))
    source, target = FakeVcpu(), FakeVcpu()
    source.msrs = {index: index for index in indices}
    target.msrs = dict.fromkeys(indices, 0)
    load_vcpu(target, save_vcpu(source, indices), indices)
    assert target.msrs == source.msrs


@pytest.mark.parametrize("listed", [True, False])
def test_a_refused_msr_is_named(listed: bool) -> None:
    """A value that the destination does not take is an error, whether KVM refuses it or does not list it."""
    target = blank()
    if listed:
        target.read_only.add(LSTAR)
    else:
        del target.msrs[LSTAR]
    here = MSRS if listed else [index for index in MSRS if index != LSTAR]
    with pytest.raises(HostError, match="lstar"):
        load_vcpu(target, STATE, here)


@pytest.mark.parametrize(("index", "value"), [(SMI_COUNT, 5), (UNKNOWN, 0), *((index, 1) for index in MAY_BE_REFUSED)])
def test_msrs_that_a_guest_can_do_without(index: int, value: int) -> None:
    """Zero, and those with a reason in the table, may be refused; those behind them are written all the same."""
    for here in (MSRS, [*MSRS, index]):
        target = blank()
        load_vcpu(target, with_msr(index, value), here)
        assert {key: target.msrs[key] for key in MSRS} == dict(STATE.msrs)


def test_msrs_that_are_not_saved_here_are_not_written() -> None:
    """A record cannot reach an MSR that this host would not save, even if KVM would take it."""
    target = blank()
    target.msrs[SMI_COUNT] = 0
    load_vcpu(target, with_msr(SMI_COUNT, 5), MSRS)
    assert target.msrs[SMI_COUNT] == 0


def test_reasons_are_given() -> None:
    """Each entry of the table says why."""
    assert all(len(reason) > 20 for reason in MAY_BE_REFUSED.values())


def test_time_goes_on() -> None:
    """The counter is put forward by the pause, in its own frequency, and wraps."""
    target = blank()
    load_vcpu(target, STATE, MSRS, advance_ns=1_000_000)
    assert target.msrs[TSC] == dict(STATE.msrs)[TSC] + 2_000_000
    load_vcpu(target, with_msr(TSC, (1 << 64) - 1), MSRS, advance_ns=1000)
    assert target.msrs[TSC] == 1999


def test_frequencies() -> None:
    """250 parts in a million are near enough, more are not."""
    assert frequency_fits(2_000_000, 2_000_500)
    assert frequency_fits(2_000_000, 1_999_500)
    assert not frequency_fits(2_000_000, 2_000_501)
    assert not frequency_fits(2_000_000, 1_999_499)


def test_another_frequency() -> None:
    """It is refused without TSC scaling, with nothing changed, and set before everything else with it."""
    state = STATE._replace(tsc_khz=2_400_000)
    target = blank()
    with pytest.raises(HostError, match="2400000 kHz"):
        load_vcpu(target, state, MSRS)
    assert target.log == []
    load_vcpu(target, state, MSRS, tsc_control=True)
    assert target.log[0] == "tsc_khz"
    assert target.tsc_khz == 2_400_000


def test_a_frequency_that_is_near_enough_is_never_set() -> None:
    """Even with TSC scaling."""
    target = blank()
    load_vcpu(target, STATE._replace(tsc_khz=2_000_100), MSRS, tsc_control=True)
    assert "tsc_khz" not in target.log


@pytest.mark.parametrize("name", ["cpuid", "sregs2", "regs", "xcr0", "xsave", "debugregs", "lapic", "events"])
def test_what_kvm_refuses_is_named(name: str) -> None:
    """The error says which call it was."""
    target = blank()
    target.refuses = name
    with pytest.raises(HostError, match=f"vCPU 0: KVM_SET_{name.upper()}"):
        load_vcpu(target, STATE, MSRS)


@pytest.mark.parametrize(("offset", "bit"), [(CR4, 13), (EFER, 12)])
def test_nested_virtualization_is_not_saved(offset: int, bit: int) -> None:
    """A guest that has turned on VMX or SVM stays where it is, and the user is told what to do."""
    cpu = filled()
    sregs = bytearray(cpu.structures["sregs2"])
    sregs[offset : offset + 8] = (1 << bit).to_bytes(8, "little")
    cpu.structures["sregs2"] = bytes(sregs)
    with pytest.raises(HostError, match="-vmx,-svm"):
        save_vcpu(cpu, MSRS)


def events(flags: int, triple_fault: int) -> bytes:
    """Events with nothing but these."""
    return bytes(20) + flags.to_bytes(4, "little") + bytes(4) + bytes((triple_fault,)) + bytes(35)


def test_validity_of_events() -> None:
    """Only the flags that this KVM reports itself are set; a triple fault that would be lost is an error."""
    target = blank()
    target.structures["events"] = events(0xD, 0)
    load_vcpu(target, STATE._replace(events=events(0x2F, 0)), MSRS)
    assert target.structures["events"] == events(0xD, 0)
    with pytest.raises(HostError, match="triple fault"):
        load_vcpu(target, STATE._replace(events=events(0x2F, 1)), MSRS)
    target.structures["events"] = events(0x2D, 0)
    load_vcpu(target, STATE._replace(events=events(0x2F, 1)), MSRS)
    assert target.structures["events"] == events(0x2D, 1)
