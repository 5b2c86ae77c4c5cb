"""A virtio device in memory on a real VM."""

from __future__ import annotations

import errno
import os

import pytest

from tests.wiring.slots import RecordingRunner, Stand, make_stand
from tvmm.errors import ConfigError
from tvmm.kvm.irq import new_event
from tvmm.kvm.serve import CALL_PYTHON
from tvmm.memory.layout import VIRTIO_MMIO
from tvmm.virtio.rng import Rng
from tvmm.wiring.mmio_slot import MMIO_GSIS, MmioSlot

pytestmark = pytest.mark.kvm

NOTIFY, STATUS, INTERRUPT_STATUS, INTERRUPT_ACK = 0x50, 0x70, 0x60, 0x64


def plug(stand: Stand, number: int) -> MmioSlot:
    """Device `number`, with a runner that notes."""
    slot = MmioSlot(f"rng{number}", Rng(), stand.host, stand.mmio, number)
    slot.connect(RecordingRunner(stand.memory, 1))
    return slot


def test_registers_and_doorbell() -> None:
    """The page answers, and KVM listens for the number of the queue at QueueNotify."""
    with make_stand() as stand:
        slot = plug(stand, 0)
        assert stand.mmio.read(VIRTIO_MMIO.start, 4) == int.from_bytes(b"virt", "little")
        assert slot.call_of(0) == CALL_PYTHON
        fd = new_event()
        with pytest.raises(OSError, match="KVM_IOEVENTFD") as caught:
            stand.vm.set_ioeventfd(fd, VIRTIO_MMIO.start + NOTIFY, 4, 0)
        assert caught.value.errno == errno.EEXIST
        os.close(fd)


def test_pulse_for_each_event() -> None:
    """One edge for an event, one more for what an acknowledgement leaves."""
    with make_stand() as stand:
        slot = plug(stand, 0)
        base = VIRTIO_MMIO.start
        stand.mmio.write(base + 0x24, 4, 1)
        stand.mmio.write(base + 0x20, 4, 1)
        for status in (1, 3, 11, 15):
            stand.mmio.write(base + STATUS, 4, status)
        slot.transport.needs_reset("a test")
        assert (slot.line.edges, stand.mmio.read(base + INTERRUPT_STATUS, 4)) == (1, 2)
        stand.mmio.write(base + INTERRUPT_ACK, 4, 1)
        assert slot.line.edges == 2
        stand.mmio.write(base + INTERRUPT_ACK, 4, 2)
        assert (slot.line.edges, stand.mmio.read(base + INTERRUPT_STATUS, 4)) == (2, 0)


def test_as_many_as_there_are_pins() -> None:
    """Each has a page and a pin of its own; one more is refused with the way out."""
    with make_stand() as stand:
        slots = [plug(stand, number) for number in range(len(MMIO_GSIS))]
        assert len({slot.described.registers.start for slot in slots}) == len({slot.described.gsi for slot in slots})
        with pytest.raises(ConfigError, match="transport=pci"):
            plug(stand, len(MMIO_GSIS))
