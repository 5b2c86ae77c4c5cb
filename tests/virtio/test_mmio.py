"""virtio-mmio: the requirements of its own, and what else its registers do."""

from __future__ import annotations

from tests.virtio.conformance_rules import mmio, must
from tests.virtio.devices import make_blk
from tvmm.virtio.features import DEFAULT_RING, Ring


@must("4.2.2.1 magic", "4.2.2.1 version")
def test_mmio_identity() -> None:
    """``virt``, 2, and the device."""
    driver = mmio()
    assert driver.read("magic").to_bytes(4, "little") == b"virt"
    assert (driver.read("version"), driver.read("device_id")) == (2, 2)


@must("4.2.2.1 interrupt")
def test_mmio_interrupt_status() -> None:
    """Bits stay until they are acknowledged, one by one; an acknowledgement that leaves one is told again."""
    driver = mmio()
    driver.initialise()
    driver.shell.log.clear()
    assert driver.mmio.read(0x60, 4) == 0
    driver.transport.used(0)
    driver.device.change_config(0, b"\7")
    assert driver.mmio.read(0x60, 4) == 3
    assert driver.mmio.read(0x60, 4) == 3
    driver.mmio.write(0x64, 4, 1)
    assert driver.mmio.read(0x60, 4) == 2
    driver.mmio.write(0x64, 4, 2)
    assert driver.shell.interrupts() == [(None, 1), (None, 3), (None, 2), (None, 0)]


@must("4.2.2.1 not ready")
def test_mmio_queue_ready() -> None:
    """A queue is served from its ready bit on; taking the bit away stops it, and the bit says when."""
    driver = mmio(prompt=False)
    driver.initialise(queues=1)
    activation = driver.shell.log[0]
    assert isinstance(activation, tuple)
    assert [setup.ready for setup in activation[1].queues] == [True, False]
    driver.notify(1)
    driver.transport.used(1)
    assert len(driver.shell.log) == 1
    driver.write("queue_select", 0)
    driver.write("queue_ready", 0)
    assert driver.held is not None
    assert driver.read("queue_ready") == 1
    driver.transport.used(0)
    driver.transport.queue_reset_done(0)
    assert driver.read("queue_ready") == 0
    driver.notify(0)
    assert driver.shell.log[1:] == [("queue reset", 0)]


def test_access_sizes() -> None:
    """Control registers are 32 bits wide and aligned; everything else reads zero, changes nothing and is counted."""
    driver = mmio()
    for offset, size in ((0, 1), (0, 2), (0, 8), (2, 4), (0x70, 1), (0xFC, 2)):
        assert driver.mmio.read(offset, size) == 0
    driver.mmio.write(0x70, 1, 1)
    driver.mmio.write(0x6E, 4, 1 << 16)
    driver.mmio.write(0x70, 8, 1)
    assert driver.status == 0
    assert driver.transport.mistakes == {"access-size": 9}


def test_directions() -> None:
    """Reading what is for writing gives zero, writing what is for reading changes nothing."""
    driver = mmio()
    for offset in (0x14, 0x20, 0x24, 0x30, 0x38, 0x50, 0x64, 0x80, 0xA4, 0xAC, 0x18, 0xF0):
        assert driver.mmio.read(offset, 4) == 0
    for offset in (0x00, 0x04, 0x08, 0x10, 0x34, 0x60, 0xB0, 0xFC):
        before = driver.mmio.read(offset, 4)
        driver.mmio.write(offset, 4, 0xFFFF_FFFF)
        assert driver.mmio.read(offset, 4) == before
    assert driver.transport.mistakes == {"register-write-only": 12, "register-read-only": 8}


def test_legacy_drivers_get_nowhere() -> None:
    """A driver of version 1 does not accept VERSION_1, and its queue registers are not there."""
    driver = mmio()
    for offset in (0x28, 0x3C, 0x40):
        driver.mmio.write(offset, 4, 4096)
        assert driver.mmio.read(offset, 4) == 0
    driver.write("status", 1)
    driver.write("status", 3)
    driver.write("driver_feature_select", 0)
    driver.write("driver_feature", 0)
    driver.write("status", 7)
    assert driver.status == 3
    assert driver.transport.mistakes == {"legacy": 6, "status-order": 1}


def test_there_is_no_shared_memory() -> None:
    """Whatever region is selected, its length and base are -1."""
    driver = mmio()
    for region in (0, 1, 255):
        driver.mmio.write(0xAC, 4, region)
        assert [driver.mmio.read(offset, 4) for offset in (0xB0, 0xB4, 0xB8, 0xBC)] == [0xFFFF_FFFF] * 4
    assert driver.transport.mistakes == {}


def test_kicks() -> None:
    """One register, told apart by what is written, unless notifications carry data."""
    assert [tuple(kick) for kick in mmio().mmio.kicks()] == [(0, 0x50, 4, 0), (1, 0x50, 4, 1)]
    assert mmio(lambda: make_blk(DEFAULT_RING | Ring.NOTIFICATION_DATA)).mmio.kicks() == ()


def test_notification_data() -> None:
    """The upper half of a kick is the driver's position, the lower the queue."""
    driver = mmio(lambda: make_blk(DEFAULT_RING | Ring.NOTIFICATION_DATA))
    driver.initialise()
    driver.notify(1, 0x8005_0001)
    assert driver.shell.log[-1] == ("notify", 1, 0x8005)
    driver.notify(1, 0x8005_0002)
    assert driver.transport.mistakes == {"notify-queue": 1}


def test_rings_that_cannot_be() -> None:
    """A misaligned or wrapping ring is not enabled, and the driver sees that the device needs a reset."""
    good = mmio().areas(0)
    top = (1 << 64) - 16
    for packed in (False, True):
        for ring, fits in (
            (good, True),
            (good._replace(desc=good.desc + 8), False),
            (good._replace(driver=good.driver + 1), False),
            (good._replace(driver=good.driver + 2), not packed),
            (good._replace(device=good.device + 2), False),
            (good._replace(desc=top), False),
            (good._replace(device=top), packed),
        ):
            driver = mmio()
            driver.negotiate(driver.offered() if packed else driver.offered() & ~Ring.RING_PACKED)
            driver.setup_queue(0, 64, ring)
            assert driver.queue_ready(0) == fits
            assert bool(driver.status & 0x40) != fits
            assert bool(driver.transport.last_error) != fits


def test_registers_of_a_queue_in_use_stand() -> None:
    """Size and addresses of a ready queue do not change, and one cannot be enabled too early."""
    driver = mmio()
    driver.setup_queue(0)
    assert not driver.queue_ready(0)
    driver.negotiate()
    driver.setup_queue(0, 16)
    before = driver.transport.queues[0].state()
    driver.setup_queue(0, 32, driver.areas(1))
    assert driver.transport.queues[0].state() == before
    assert driver.transport.mistakes == {"queue-early": 1, "queue-busy": 8}


def test_a_change_before_driver_ok_is_told_after_it() -> None:
    """A driver that has read the configuration early hears of what came before it could be told."""
    driver = mmio()
    driver.negotiate()
    driver.stable_config(8)
    driver.device.change_config(0, b"\7")
    assert driver.shell.log == []
    driver.add_status(4)
    assert driver.shell.interrupts() == [(None, 2)]
