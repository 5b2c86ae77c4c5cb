"""Slots whose registers come from a record: what follows from them in KVM and in the runner, and what is waited for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from tests.support.pci_driver import COMMAND
from tests.wiring.slots import RecordingRunner, Stand, make_stand
from tests.wiring.test_pci_slot import COMMON_QUEUE_VECTOR, ISR, MEMORY_AND_MASTER, NOTIFY, Card
from tvmm.kvm.irq import take_events
from tvmm.kvm.serve import CALL_PYTHON
from tvmm.memory.layout import VIRTIO_MMIO
from tvmm.virtio.rng import Rng
from tvmm.wiring.mmio_slot import MmioSlot
from tvmm.wiring.pci_slot import PciSlot
from tvmm.wiring.slot import Slot, SlotState

pytestmark = pytest.mark.kvm

STATUS, QUEUE_READY = 0x70, 0x44
MSIX_ON = 0x8000


class SavingRunner(RecordingRunner):
    """Its record is empty; resets end when `finish` says so."""

    def __init__(self, slot: Slot, stand: Stand) -> None:
        super().__init__(stand.memory, len(slot.device.queue_sizes))
        self.waiting: list[Callable[[], None]] = []

    def reset(self, done: Callable[[], None]) -> None:
        """Takes its time."""
        self.waiting.append(done)

    def finish(self) -> None:
        """What was asked for is done."""
        for done in self.waiting:
            done()


class Place:
    """An empty slot on a machine of its own."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.slot = PciSlot("rng0", Rng(), stand.host, stand.bus)
        self.runner = SavingRunner(self.slot, stand)
        self.slot.connect(self.runner)

    async def take(self, card: Card) -> None:
        """What `card` is, as a machine that is loaded does it."""
        with self.stand.lock:
            self.slot.restore_function(card.slot.function.state())
            self.stand.bus.restore(card.stand.bus.host.state())
        await self.slot.restore(SlotState(card.slot.virtio.state(), ()))

    def redeliver(self) -> None:
        """The last step of it."""
        with self.stand.lock:
            self.slot.redeliver()
            self.stand.bus.redeliver()


@pytest.fixture
def card() -> Iterator[Card]:
    """A device that was used."""
    with make_stand() as stand:
        yield Card(stand)


@pytest.fixture
def place() -> Iterator[Place]:
    """Where it goes."""
    with make_stand() as stand:
        yield Place(stand)


async def test_addresses_doorbells_and_bus_mastering(card: Card, place: Place) -> None:
    """BARs are where they were with KVM listening there, and the runner is let go if the function is a bus master."""
    assert place.runner.suspended == 1
    await place.take(card)
    assert place.stand.doorbell_is_taken(card.bar + NOTIFY)
    assert place.stand.mmio.read(card.bar + ISR, 1) == 0
    assert place.runner.suspended == 0
    assert place.slot.function.state() == card.slot.function.state()


async def test_a_function_that_is_off(card: Card, place: Place) -> None:
    """Nothing is mapped or listened at, and the runner rests."""
    card.write_config(COMMAND, 2, 0)
    await place.take(card)
    assert not place.stand.doorbell_is_taken(card.bar + NOTIFY)
    assert place.runner.suspended == 1
    place.stand.access.write((1, 0), COMMAND, 2, MEMORY_AND_MASTER)
    assert place.stand.doorbell_is_taken(card.bar + NOTIFY)
    assert place.runner.suspended == 0


async def test_an_open_vector_is_kvms(card: Card, place: Place) -> None:
    """What the runner writes into its eventfd KVM takes at once, and turning MSI-X off is noticed."""
    card.write_config(card.control, 2, MSIX_ON)
    card.set_vector(1, masked=False)
    card.stand.mmio.write(card.bar + COMMON_QUEUE_VECTOR, 2, 1)
    await place.take(card)
    fd = place.runner.calls[0]
    os.eventfd_write(fd, 1)
    assert take_events(fd) == 0
    place.stand.access.write((1, 0), card.control, 2, 0)
    assert place.runner.calls[0] == CALL_PYTHON


async def test_a_masked_vector_keeps_its_interrupt(card: Card, place: Place) -> None:
    """What came while it was masked is pending on the other side, and is sent once it is unmasked there."""
    card.write_config(card.control, 2, MSIX_ON)
    card.set_vector(0, masked=True)
    card.stand.mmio.write(card.bar + COMMON_QUEUE_VECTOR, 2, 0)
    os.eventfd_write(card.slot.call_of(0), 1)
    await place.take(card)
    place.redeliver()
    sent: list[int] = []
    place.slot.msix._on_message = sent.append
    pending = card.table + card.slot.msix.pba_offset
    assert place.stand.mmio.read(pending, 8) == 1
    place.stand.mmio.write(card.table + 12, 4, 0)
    assert sent == [0]
    assert place.stand.mmio.read(pending, 8) == 0


async def test_a_pin_that_is_up_is_raised(card: Card, place: Place) -> None:
    """Once, when interrupts get through, and again at the guest's end of interrupt as long as it has a cause."""
    card.go_live()
    card.slot.transport.needs_reset("a test")
    line = place.stand.bus.line(place.stand.bus.host.gsi(1, 1))
    await place.take(card)
    assert line.raised == 0
    place.redeliver()
    assert line.raised == 1
    assert place.stand.mmio.read(card.bar + ISR, 1) == 2
    place.stand.bus.host.resample(line.gsi)
    assert line.raised == 1


async def test_levels_have_to_be_what_the_pins_say(card: Card, place: Place) -> None:
    """A record with a level of nobody's is refused: it would interrupt the guest for ever."""
    with pytest.raises(ValueError, match="levels"):
        place.stand.bus.restore(card.stand.bus.host.state()._replace(levels=2))


async def test_a_live_device_is_told_to_the_runner(card: Card, place: Place) -> None:
    """With its features; one that is not live comes without."""
    await place.take(card)
    assert ("restore", 0) in place.runner.log
    card.go_live()
    await place.take(card)
    assert ("restore", 1 << 32) in place.runner.log
    place.redeliver()
    assert place.runner.log[-1] == "arrived"


async def test_mmio_pulses_again_for_what_is_pending() -> None:
    """Without a queue, an edge for an interrupt status that is not zero, none for one that is."""
    with make_stand() as stand, make_stand() as other:
        slots = []
        for where in (stand, other):
            slot = MmioSlot("rng0", Rng(), where.host, where.mmio, 0)
            slot.connect(SavingRunner(slot, where))
            slots.append(slot)
        base = VIRTIO_MMIO.start
        for offset, value in ((0x24, 1), (0x20, 1), *((STATUS, status) for status in (1, 3, 11, 15))):
            stand.mmio.write(base + offset, 4, value)
        await slots[1].restore(slots[0].save())
        slots[1].redeliver()
        assert slots[1].line.edges == 0
        slots[0].transport.needs_reset("a test")
        await slots[1].restore(slots[0].save())
        slots[1].redeliver()
        assert slots[1].line.edges == 1


async def test_mmio_pulses_for_what_was_acknowledged_too_soon() -> None:
    """The edge of an interrupt may be in a queue of the kernel when the driver acknowledges it with one before."""
    with make_stand() as stand, make_stand() as other:
        slots = []
        for where in (stand, other):
            slot = MmioSlot("rng0", Rng(), where.host, where.mmio, 0)
            slot.connect(SavingRunner(slot, where))
            slots.append(slot)
        base = VIRTIO_MMIO.start
        for offset, value in ((0x24, 1), (0x20, 1), *((STATUS, status) for status in (1, 3, 11))):
            stand.mmio.write(base + offset, 4, value)
        for offset, value in ((0x38, 8), (0x80, 0x1000), (0x90, 0x2000), (0xA0, 0x3000), (0x44, 1), (STATUS, 15)):
            stand.mmio.write(base + offset, 4, value)
        slots[0].transport.used(0)
        stand.mmio.write(base + 0x64, 4, 1)
        assert slots[0].transport.isr == 0
        await slots[1].restore(slots[0].save())
        slots[1].redeliver()
        assert slots[1].line.edges == 1
        assert slots[1].transport.isr == 1


async def test_a_reset_under_way_is_waited_for() -> None:
    """A device is saved when its driver has it back; a record of one in between is refused."""
    with make_stand() as stand, make_stand() as other:
        slots = []
        for where in (stand, other):
            slot = MmioSlot("rng0", Rng(), where.host, where.mmio, 0)
            slot.connect(SavingRunner(slot, where))
            slots.append(slot)
        slot, runner = slots[0], slots[0].runner
        assert isinstance(runner, SavingRunner)
        base = VIRTIO_MMIO.start
        for offset, value in ((0x24, 1), (0x20, 1), *((STATUS, status) for status in (1, 3, 11, 15, 0))):
            stand.mmio.write(base + offset, 4, value)
        between = slot.save()
        async with trio.open_nursery() as nursery:
            settled = trio.Event()

            async def settle() -> None:
                await slot.settle_resets()
                settled.set()

            nursery.start_soon(settle)
            await trio.testing.wait_all_tasks_blocked()
            assert not settled.is_set()
            with stand.lock:
                runner.finish()
        assert slot.save().registers.status == 0
        await slot.settle_resets()
        with pytest.raises(ValueError, match="resetting"):
            await slots[1].restore(between)
