"""A virtio device as a PCI function on a real VM: addresses, doorbells, vectors, pins."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio

from tests.support.pci_driver import COMMAND, Allocator, capabilities
from tests.wiring.slots import RecordingRunner, Stand, make_stand
from tvmm.kvm.irq import take_events
from tvmm.kvm.serve import CALL_NONE, CALL_PYTHON
from tvmm.memory.layout import PCI_ECAM, PCI_MMIO32, Range
from tvmm.virtio.queues import NO_VECTOR
from tvmm.virtio.rng import Rng
from tvmm.wiring.pci_slot import PciSlot

pytestmark = pytest.mark.kvm

MEMORY_AND_MASTER = 6
COMMON_CONFIG_VECTOR, COMMON_QUEUE_VECTOR, COMMON_STATUS, ISR, NOTIFY = 0x10, 0x1A, 0x14, 0x1000, 0x3000
MSIX = 0x11
MESSAGE = (0xFEE0_0000, 0x41)


class Card:
    """A device with one queue in slot 1, with its BARs where the machine puts them, decoding."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.slot = PciSlot("rng0", Rng(), stand.host, stand.bus)
        self.runner = RecordingRunner(stand.memory, 1)
        self.slot.connect(self.runner)
        stand.bus.place_bars()
        (self.function,) = stand.functions()
        self.write_config(COMMAND, 2, MEMORY_AND_MASTER)
        windows = self.slot.function.bars.windows
        self.table, self.bar = (window.address or 0 for window in windows)
        self.control = dict(capabilities(stand.access, (1, 0)))[MSIX] + 2

    def write_config(self, register: int, size: int, value: int) -> None:
        """To the configuration space."""
        self.stand.access.write((1, 0), register, size, value)

    def set_vector(self, number: int, masked: bool) -> None:
        """Fill an entry of the table and mask it or not."""
        entry = self.table + 16 * number
        for offset, value in ((0, MESSAGE[0]), (4, 0), (8, MESSAGE[1]), (12, int(masked))):
            self.stand.mmio.write(entry + offset, 4, value)

    def go_live(self) -> None:
        """Without a queue: what matters here is around it."""
        for offset in (0x08, 0x0C):
            self.stand.mmio.write(self.bar + offset, 4, 1)
        for status in (1, 3, 11, 15):
            self.stand.mmio.write(self.bar + COMMON_STATUS, 1, status)
        assert self.slot.transport.live


@pytest.fixture
def card() -> Iterator[Card]:
    """One device."""
    with make_stand() as stand:
        yield Card(stand)


def test_identity_and_places(card: Card) -> None:
    """A guest finds a modern entropy device in slot 1, with its BARs in the window, one after the other."""
    assert (card.function.where, card.function.vendor_id, card.function.device_id) == ((1, 0), 0x1AF4, 0x1044)
    assert [bar.kind for bar in card.function.bars] == ["memory32", "memory64"]
    assert (card.table, card.bar) == (PCI_MMIO32.start, PCI_MMIO32.start + 0x4000)
    assert [claimed.name for claimed in card.stand.mmio] == ["rng0 msix", "rng0", "pci ecam"]
    assert card.stand.mmio.read(PCI_ECAM.start + (1 << 15), 4) == 0x1044_1AF4


def test_doorbells_follow_the_bar(card: Card) -> None:
    """KVM listens where the BAR is, there no longer once it has moved, and nowhere while decoding is off."""
    assert card.stand.doorbell_is_taken(card.bar + NOTIFY)
    table, registers = (Range(PCI_MMIO32.start + offset, 0x10_0000) for offset in (0x10_0000, 0x20_0000))
    placed = Allocator(table, table, registers).place(card.stand.access, card.function)
    assert not card.stand.doorbell_is_taken(card.bar + NOTIFY)
    assert card.stand.doorbell_is_taken(placed[4] + NOTIFY)
    card.write_config(COMMAND, 2, 0)
    assert not card.stand.doorbell_is_taken(placed[4] + NOTIFY)


def test_masked_vector_keeps_its_interrupt(card: Card) -> None:
    """Written while masked it shows as a pending bit; unmasked it goes to KVM, and so does every later one."""
    card.write_config(card.control, 2, 0x8000)
    card.set_vector(0, masked=True)
    card.stand.mmio.write(card.bar + COMMON_QUEUE_VECTOR, 2, 0)
    fd = card.slot.call_of(0)
    pending = card.table + card.slot.msix.pba_offset
    assert card.stand.mmio.read(pending, 8) == 0
    os.eventfd_write(fd, 1)
    assert card.stand.mmio.read(pending, 8) == 1
    card.set_vector(0, masked=False)
    assert card.stand.mmio.read(pending, 8) == 0
    os.eventfd_write(fd, 1)
    assert take_events(fd) == 0


def test_masked_vector_unseen(card: Card) -> None:
    """An interrupt that nobody looked for while the vector was masked is KVM's once it is open."""
    card.write_config(card.control, 2, 0x8000)
    card.set_vector(1, masked=True)
    card.stand.mmio.write(card.bar + COMMON_QUEUE_VECTOR, 2, 1)
    fd = card.slot.call_of(0)
    os.eventfd_write(fd, 1)
    card.set_vector(1, masked=False)
    assert take_events(fd) == 0


def test_where_a_queue_interrupts(card: Card) -> None:
    """Through Python without MSI-X, by the vector's eventfd with it, not at all without a vector; changes are told."""
    assert card.slot.call_of(0) == CALL_PYTHON
    card.write_config(card.control, 2, 0x8000)
    assert card.runner.calls[0] == CALL_NONE
    for vector in (0, 1):
        card.stand.mmio.write(card.bar + COMMON_QUEUE_VECTOR, 2, vector)
        assert card.runner.calls[0] == card.slot.call_of(0) >= 0
    card.stand.mmio.write(card.bar + COMMON_QUEUE_VECTOR, 2, NO_VECTOR)
    assert card.runner.calls[0] == CALL_NONE
    card.write_config(card.control, 2, 0)
    assert card.runner.calls[0] == CALL_PYTHON


def test_pin_follows_the_interrupt_status(card: Card) -> None:
    """Up with a cause, raised once; reading the ISR lowers it; the guest's end of interrupt with a cause raises it."""
    card.go_live()
    gsi = card.stand.bus.host.gsi(1, 1)
    line = card.stand.bus.line(gsi)
    card.slot.transport.needs_reset("a test")
    assert (card.slot.function.intx, line.raised) == (True, 1)
    card.stand.bus.host.resample(gsi)
    assert line.raised == 2
    assert card.stand.mmio.read(card.bar + ISR, 1) == 2
    assert not card.slot.function.intx
    card.stand.bus.host.resample(gsi)
    assert line.raised == 2


async def test_end_of_interrupt_is_watched(card: Card) -> None:
    """The task raises the line again when the guest has ended the interrupt, as long as it has a cause."""
    card.go_live()
    line = card.stand.bus.line(card.stand.bus.host.gsi(1, 1))
    card.slot.transport.needs_reset("a test")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(card.stand.bus.watch_pins)
            os.eventfd_write(line.resample_fd, 1)
            while line.raised < 2:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


def test_kick_by_access_is_counted(card: Card) -> None:
    """An access to the doorbell that KVM let through reaches the runner, if the queue is in use."""
    card.slot.on_notify(0, 0)
    assert card.slot.exits == [1]
    assert ("notify", 0) in card.runner.log


def test_bus_master(card: Card) -> None:
    """The runner rests while the guest has not let the function be a bus master."""
    assert card.runner.suspended == 0
    card.write_config(COMMAND, 2, 2)
    assert card.runner.suspended == 1
    card.write_config(COMMAND, 2, MEMORY_AND_MASTER)
    assert card.runner.suspended == 0


def test_reset_puts_everything_back(card: Card) -> None:
    """After a reset of the bus nothing is mapped or listened at, vectors are closed, and BARs can be placed anew."""
    card.write_config(card.control, 2, 0x8000)
    card.set_vector(0, masked=False)
    with card.stand.lock:
        card.slot.reset()
        card.stand.bus.reset()
    assert not card.stand.doorbell_is_taken(card.bar + NOTIFY)
    assert [claimed.name for claimed in card.stand.mmio] == ["pci ecam"]
    assert card.runner.calls[0] == CALL_PYTHON
    assert card.runner.suspended == 1
    card.stand.bus.place_bars()
    card.write_config(COMMAND, 2, MEMORY_AND_MASTER)
    assert card.stand.doorbell_is_taken(card.bar + NOTIFY)


def test_reset_control_lies_in_the_middle(card: Card) -> None:
    """The chip set's reset register at 0xcf9 still works between PCI's ports."""
    card.stand.ports.write(0xCF9, 1, 6)
    assert card.stand.resets == ["reset"]
