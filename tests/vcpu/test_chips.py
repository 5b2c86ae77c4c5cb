"""Interrupt chips and the paravirtual clock as records."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tvmm.memory.layout import IOAPIC_BASE
from tvmm.vcpu.chips import (
    ChipsState,
    ClockState,
    load_chips,
    load_clock,
    save_chips,
    save_clock,
    time_passed,
)

LOADED_AT = 12345


def channel(count: int, loaded: int = 0) -> bytes:
    """A `struct kvm_pit_channel_state`."""
    return count.to_bytes(4, "little") + bytes(range(12)) + loaded.to_bytes(8, "little")


def ioapic(base: int = IOAPIC_BASE, selected: int = 0x10, identity: int = 2) -> bytes:
    """A `struct kvm_ioapic_state` without a request."""
    head = base.to_bytes(8, "little") + selected.to_bytes(4, "little") + identity.to_bytes(4, "little")
    return head + bytes(8) + bytes(range(192))


class FakeVm:
    """A VM that has chips and a clock and nothing else."""

    def __init__(self) -> None:
        self.images = [
            bytes(8) + bytes(range(16)) + bytes(496),
            b"\1" + bytes(7) + bytes(range(16, 32)) + bytes(496),
            b"\2" + bytes(7) + ioapic() + bytes(296),
            channel(100, LOADED_AT) + channel(0x10000) + channel(7) + b"\1\0\0\0" + bytes(36),
        ]
        self.clock: tuple[int, int | None] = (0, 0)

    def get_chips(self) -> list[bytes]:
        """As `Vm`."""
        return self.images

    def set_chips(self, images: list[bytes]) -> None:
        """As `Vm`."""
        assert [len(image) for image in images] == [520, 520, 520, 112]
        self.images = images

    def get_clock(self) -> tuple[int, int]:
        """As `Vm`."""
        return 5_000, 1_000_000

    def set_clock(self, clock_ns: int, realtime_ns: int | None = None) -> None:
        """As `Vm`."""
        self.clock = (clock_ns, realtime_ns)


STATE = save_chips(FakeVm())


def test_round_trip() -> None:
    """Loaded and saved again it is the same record, and without the host's time the same images."""
    target = FakeVm()
    target.images = []
    load_chips(target, STATE)
    assert save_chips(target) == STATE
    assert target.images[:3] == FakeVm().images[:3]
    assert target.images[3] == FakeVm().images[3].replace(LOADED_AT.to_bytes(8, "little"), bytes(8))


BAD: dict[str, list[Any]] = {
    "master": [bytes(15), bytes(17), None],
    "slave": [bytes(15), bytes(520), "x" * 16],
    "ioapic": [bytes(215), bytes(217), ioapic(base=0), ioapic(selected=0x100), ioapic(identity=16)],
    "pit": [
        bytes(75),
        bytes(112),
        channel(0x10001) + channel(0) + channel(0) + bytes(4),
        channel(0) + channel(0) + channel(0, 1) + bytes(4),
    ],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_bad_chips_change_nothing(field: str, value: Any) -> None:
    """A field out of range is named, and the VM was not touched."""
    target = FakeVm()
    before = target.images
    with pytest.raises(ValueError, match=field):
        load_chips(target, STATE._replace(**{field: value}))
    assert target.images is before
    assert set(BAD) == set(ChipsState._fields)


def test_lines_with_edges_are_low() -> None:
    """A request of a level-triggered pin stays, one of an edge-triggered pin would have KVM miss the next edge."""
    entries = [pin | (1 << 15 if pin % 2 else 0) for pin in range(24)]
    image = ioapic()[:16] + (0xFF00FF).to_bytes(4, "little") + bytes(4) + struct.pack("<24Q", *entries)
    target = FakeVm()
    load_chips(target, STATE._replace(ioapic=image))
    loaded = target.images[2][8:][:216]
    assert loaded[16:20] == (0xAA00AA).to_bytes(4, "little")
    assert loaded[:16] + loaded[20:] == image[:16] + image[20:]


def test_the_clock_goes_on_by_the_pause() -> None:
    """KVM adds what has passed since the moment that the record names."""
    state, target = save_clock(FakeVm()), FakeVm()
    assert state == ClockState(5_000, 1_000_000)
    assert load_clock(target, state, pause_limit_ns=10_000, realtime_ns=1_004_000) == 4_000
    assert target.clock == (5_000, 1_000_000)


def test_the_clock_does_not_go_back() -> None:
    """A destination whose real-time clock is behind adds nothing: KVM does not either for a moment to come."""
    target = FakeVm()
    assert load_clock(target, ClockState(5_000, 1_000_000), pause_limit_ns=10_000, realtime_ns=900_000) == 0
    assert target.clock == (5_000, 1_000_000)


def test_the_clock_does_not_jump() -> None:
    """Real-time clocks that differ by more than the pause can have been move the guest by the limit only."""
    target = FakeVm()
    assert load_clock(target, ClockState(5_000, 0), pause_limit_ns=10_000, realtime_ns=1 << 60) == 10_000
    assert target.clock == (15_000, None)


@pytest.mark.parametrize("field", ClockState._fields)
@pytest.mark.parametrize("value", [-1, 1 << 62, 1.0, None, True])
def test_bad_clocks_change_nothing(field: str, value: Any) -> None:
    """A field out of range is named."""
    target = FakeVm()
    bad = ClockState(1, 1)._replace(**{field: value})
    with pytest.raises(ValueError, match=field):
        load_clock(target, bad, 10, 10)
    with pytest.raises(ValueError, match=field):
        time_passed(bad, 10, 10)
    assert target.clock == (0, 0)
