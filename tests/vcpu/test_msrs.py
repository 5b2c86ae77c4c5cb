"""The table of MSRs: what is saved, in which order it is restored, what a reset writes."""

from __future__ import annotations

from tvmm.vcpu.msrs import MSRS, name_of, reset_values, restore_order, saved

LISTED = [
    0x174,
    0x175,
    0x176,
    0xC0000081,
    0xC0000082,
    0x10,
    0x277,
    0x4B564D01,
    0x3B,
    0x6E0,
    0x10A,
    0x1A0,
    0x8B,
    0xC0000080,
]
UNKNOWN = 0x1234_5678


def test_names() -> None:
    """Known MSRs have names, all different; an unknown one is its number."""
    assert name_of(0xC000_0082) == "lstar"
    assert name_of(0x1A0) == "misc_enable"
    assert name_of(UNKNOWN) == "0x12345678"
    names = [known.name for known in MSRS.values()]
    assert len(names) == len(set(names))


def test_saved() -> None:
    """What KVM lists and what older kernels forget; not what is the host's, read-only or saved elsewhere."""
    indices = saved([*LISTED, UNKNOWN])
    assert {0x174, 0x10, 0x277, 0x2FF, 0xDA0, 0x200, 0x26F, UNKNOWN} <= set(indices)
    assert not {0x8B, 0x10A, 0xC000_0080, 0xFE, 0x1B} & set(indices)
    assert indices == sorted(set(indices))


def test_restore_order() -> None:
    """Time first, then the rest, then the clock and the timer that are set by it; nothing is lost."""
    order = restore_order(saved(LISTED))
    assert sorted(order) == saved(LISTED)
    assert order[0] == 0x10
    assert set(order[-2:]) == {0x6E0, 0x4B564D01}


def test_reset_values() -> None:
    """A reset clears system call entries and clocks, sets PAT, and leaves time and unknown MSRs alone."""
    values = dict(reset_values([*LISTED, 0x2FF, UNKNOWN]))
    assert values[0xC000_0082] == 0
    assert values[0x4B56_4D01] == 0
    assert values[0x277] == 0x0007_0406_0007_0406
    assert values[0x1A0] == 1
    assert not {0x10, UNKNOWN, 0x8B, 0xC000_0080} & set(values)


def test_reset_leaves_out_what_is_not_there() -> None:
    """Only MSRs of this KVM are written."""
    assert reset_values([]) == []
    assert {index for index, _ in reset_values(LISTED)} <= set(LISTED)
