"""What is the same for both transports: each test is driven through the one and the other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.virtio_driver import NEEDS_RESET, make_driver
from tests.virtio import test_mmio, test_pci_transport
from tests.virtio.conformance_rules import MUSTS, SHOWN, both, each_device, must
from tests.virtio.devices import MAKERS, make_blk, make_rng
from tvmm.errors import ConfigError
from tvmm.virtio.features import BLK_ID, NET_ID, Blk, Net, Ring, check_offer, refusal


def test_every_must_has_a_test() -> None:
    """The list and the tests agree, those of the single transports among them."""
    assert test_mmio.__doc__
    assert test_pci_transport.__doc__
    assert set(MUSTS) == SHOWN


# -- 2.1, 2.2: status and features -----------------------------------------------------------------------


@must("2.1.2 quiet before DRIVER_OK")
@both
def test_nothing_happens_before_driver_ok(transport: str) -> None:
    """Kicks are counted and not passed on, used buffers are not reported."""
    driver = make_driver(transport, make_blk)
    driver.negotiate()
    driver.setup_queue(0)
    driver.notify(0)
    driver.transport.used(0)
    assert driver.shell.log == []
    assert driver.transport.mistakes == {"notify-early": 1}
    driver.add_status(4)
    driver.notify(0)
    driver.transport.used(0)
    assert [isinstance(entry, tuple) and entry[0] for entry in driver.shell.log] == ["activate", "notify", "interrupt"]


@must("2.1.2 needs reset is told")
@both
def test_needs_reset(transport: str) -> None:
    """A live driver gets the bit and a configuration interrupt, an earlier one the bit alone."""
    driver = make_driver(transport, make_blk)
    driver.transport.needs_reset("no disk")
    assert (driver.status, driver.shell.log) == (NEEDS_RESET, [])
    driver.initialise()
    driver.shell.log.clear()
    driver.transport.needs_reset("the ring loops")
    assert driver.status & NEEDS_RESET
    assert driver.shell.interrupts() == [(None, 2)]
    assert driver.take_interrupt() == 2
    driver.reset()
    assert driver.status == 0


@must("2.2.2 offer consistent", "2.2.2 offer only supported", "6.2 version", "6.2 sr-iov")
def test_offers() -> None:
    """A device cannot even be made with an offer that it may not make."""
    for device_id, features in (
        (NET_ID, Net.HOST_TSO4),
        (NET_ID, Net.MQ),
        (NET_ID, Net.CSUM | Net.HOST_ECN),
        (BLK_ID, Blk.CONFIG_WCE),
        (BLK_ID, 1 << 42),
        (BLK_ID, 1 << 23),
        (BLK_ID, Ring.SR_IOV),
        (BLK_ID, Ring.ADMIN_VQ),
        (BLK_ID, Ring.ACCESS_PLATFORM),
    ):
        with pytest.raises(ConfigError):
            check_offer(device_id, features | Ring.VERSION_1)
    with pytest.raises(ConfigError):
        check_offer(BLK_ID, Blk.FLUSH)
    for make in MAKERS.values():
        assert make().features & Ring.VERSION_1


@must("2.2.2 refuse")
@both
@each_device
def test_features_are_refused(transport: str, kind: str) -> None:
    """FEATURES_OK reads back unset, and another choice after that is taken."""
    driver = make_driver(transport, MAKERS[kind])
    offered = driver.offered()
    bad = [offered & ~Ring.VERSION_1, offered | Ring.SR_IOV, offered | 1 << 42, 0]
    if kind == "net":
        bad += [offered & ~Net.CSUM, offered & ~Net.CTRL_VQ, Ring.VERSION_1 | Net.GUEST_TSO4]
    for choice in bad:
        driver.negotiate(choice)
        assert driver.status == 3
        assert driver.transport.last_error
        driver.add_status(4)
        assert driver.status == 3
    driver.accept(offered)
    driver.add_status(8)
    assert driver.status == 0xB


@settings(max_examples=100, deadline=None)
@given(st.integers(0, (1 << 64) - 1), st.sampled_from(sorted(MAKERS)), st.sampled_from(["mmio", "pci"]))
def test_any_subset_is_judged_alike(choice: int, kind: str, transport: str) -> None:
    """Random parts of the offer: accepted if and only if the rules allow it."""
    driver = make_driver(transport, MAKERS[kind])
    choice &= driver.device.features
    driver.negotiate(choice | Ring.VERSION_1)
    fits = not refusal(driver.device.device_id, driver.device.features, choice | Ring.VERSION_1)
    assert (driver.status == 0xB) == fits
    assert driver.device.accepted == (choice | Ring.VERSION_1 if fits else 0)


# -- 2.4: reset ------------------------------------------------------------------------------------------


@must("2.4.1 status", "2.4.1 silent", "4.1.4.3.1 reset", "4.1.4.3.1 enable", "4.2.2.1 reset")
@both
def test_reset_takes_its_time(transport: str) -> None:
    """The status stays until the queues are let go; then everything is as at first, and silent."""
    driver = make_driver(transport, make_blk, prompt=False)
    driver.initialise()
    driver.transport.used(0)
    driver.shell.log.clear()
    driver.reset()
    assert driver.status == 0xF
    held = driver.held
    assert held is not None
    woken: list[int] = []
    assert held.call_when_ready(lambda: woken.append(1))
    driver.write("status", 1)
    driver.notify(0)
    driver.transport.used(0)
    assert driver.shell.log == ["reset"]
    driver.transport.reset_done()
    assert (driver.status, woken) == (0, [1])
    assert not held.call_when_ready(lambda: woken.append(2))
    assert driver.take_interrupt() == 0
    assert not any(driver.queue_ready(index) for index in range(2))
    driver.shell.log.clear()
    driver.transport.used(0)
    driver.transport.needs_reset("late")
    driver.device.change_config(0, b"\1")
    driver.notify(0)
    assert driver.shell.log == []


@both
def test_reset_of_an_idle_device_is_at_once(transport: str) -> None:
    """Nobody outside is asked before DRIVER_OK: there is nothing to let go."""
    driver = make_driver(transport, make_blk, prompt=False)
    driver.negotiate()
    driver.setup_queue(0)
    driver.reset()
    assert driver.held is None
    assert (driver.status, driver.shell.log) == (0, [])
    assert not driver.queue_ready(0)


@both
def test_many_lives(transport: str) -> None:
    """Each life is like the first."""
    driver = make_driver(transport, make_rng)
    for _ in range(1000):
        driver.initialise()
        driver.reset()
    assert driver.transport.mistakes == {}
    assert len(driver.shell.log) == 2000


# -- 2.5: configuration space ----------------------------------------------------------------------------


@must("2.5.2 readable early")
@both
@each_device
def test_config_is_readable_early(transport: str, kind: str) -> None:
    """Before ACKNOWLEDGE as after DRIVER_OK, in any width."""
    driver = make_driver(transport, MAKERS[kind])
    length = driver.device.config_length
    if not length:
        return
    early = driver.stable_config(length)
    assert early == driver.device.config_bytes()
    driver.initialise()
    assert driver.stable_config(length) == early
    assert driver.config(0, 4) == int.from_bytes(early[:4], "little")


@must("4.1.3.2 halves", "4.1.4.3.1 generation", "4.2.2.1 generation")
@both
def test_generation(transport: str) -> None:
    """A change between the reads of the two halves of the capacity shows in the generation."""
    driver = make_driver(transport, make_blk)
    before = driver.read("config_generation")
    low = driver.config(0, 4)
    driver.device.change_config(0, (1 << 33).to_bytes(8, "little"))
    high = driver.config(4, 4)
    assert (low, high) == (2048, 2)
    assert driver.read("config_generation") != before
    settled = driver.read("config_generation")
    assert driver.config(0, 4) == 0
    assert driver.read("config_generation") == settled


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["low", "high", "change"]), max_size=600), st.sampled_from(["mmio", "pci"]))
def test_no_torn_value_goes_unseen(steps: list[str], transport: str) -> None:
    """Whatever the order of reads and changes: halves of two versions come with two generations."""
    driver = make_driver(transport, make_blk)
    version, generation = 0, driver.read("config_generation")
    seen: dict[str, int] = {}
    for step in steps:
        if step == "change":
            version += 1
            driver.device.change_config(0, bytes([version & 0xFF, version >> 8, 0, 0] * 2))
            continue
        seen[step] = driver.config(0 if step == "low" else 4, 4)
        now = driver.read("config_generation")
        if now != generation:
            seen, generation = {}, now
        assert len(set(seen.values()) - {2048, 0}) <= 1


# -- 2.6.1: queue reset ----------------------------------------------------------------------------------


@must(
    "2.6.1.1.1 stop",
    "2.6.1.1.1 state",
    "2.6.1.2.1 reconfigure",
    "4.1.4.3.1 queue reset",
    "4.1.4.3.1 queue reset after enable",
    "4.1.4.3.1 queue reset on reset",
    "4.2.2.1 queue reset",
    "4.2.2.1 queue reset after enable",
    "4.2.2.1 queue reset on reset",
)
@both
def test_queue_reset(transport: str) -> None:
    """One while it lasts, then zero twice; the queue is silent, and comes back as it is then configured."""
    driver = make_driver(transport, make_blk, prompt=False)
    driver.initialise()
    driver.write("queue_select", 1)
    assert driver.read("queue_reset") == 0
    driver.shell.log.clear()
    driver.reset_queue(1)
    assert driver.held is not None
    assert (driver.read("queue_reset"), driver.shell.log) == (1, [("queue reset", 1)])
    driver.notify(1)
    driver.transport.used(1)
    assert driver.shell.log == [("queue reset", 1)]
    driver.transport.queue_reset_done(1)
    assert (driver.read("queue_reset"), driver.read("queue_ready")) == (0, 0)
    driver.notify(1)
    driver.transport.used(1)
    assert driver.shell.log == [("queue reset", 1)]
    setup = driver.transport.queues[1].setup()
    assert setup == (1, 128, 0, 0, 0, False)
    driver.setup_queue(1, 16, driver.areas(5))
    assert driver.read("queue_reset") == 0
    assert driver.shell.log[-1] == ("ready", (1, 16, *driver.areas(5), True))
    driver.transport.used(1)
    assert driver.shell.interrupts() == [(None, 1)]
    driver.reset_queue(1)
    driver.reset()
    driver.transport.reset_done()
    driver.write("queue_select", 1)
    assert driver.read("queue_reset") == 0


@both
def test_queue_reset_needs_the_feature(transport: str) -> None:
    """Without RING_RESET the register does nothing."""
    driver = make_driver(transport, make_blk)
    driver.initialise(driver.offered() & ~Ring.RING_RESET)
    driver.reset_queue(0)
    assert driver.queue_ready(0)
    assert driver.transport.mistakes == {"queue-reset": 1}


# -- 4.1.4.3 and 4.2.2: features and sizes -----------------------------------------------------------------


@must("4.1.4.3.1 device_feature", "4.1.4.3.1 driver_feature")
@both
def test_feature_words(transport: str) -> None:
    """Two words of features, zero beyond; what the driver wrote reads back where it can be read."""
    driver = make_driver(transport, make_blk)
    assert driver.offered() == driver.device.features
    for select in (2, 3, 0xFFFF_FFFF):
        driver.write("device_feature_select", select)
        assert driver.read("device_feature") == 0
        driver.write("driver_feature_select", select)
        driver.write("driver_feature", 0xFFFF_FFFF)
        if transport == "pci":
            assert driver.read("driver_feature") == 0
    driver.accept(driver.device.features)
    if transport == "pci":
        assert driver.read("driver_feature") == driver.device.features >> 32
    driver.initialise()
    driver.accept(0)
    assert driver.transport.features == driver.device.features


@must("4.1.4.3.1 unavailable", "4.1.4.3.1 power of two")
@both
@each_device
def test_queue_sizes(transport: str, kind: str) -> None:
    """Zero for what does not exist; without RING_PACKED no size but powers of two, with it any."""
    for packed in (False, True):
        driver = make_driver(transport, MAKERS[kind])
        driver.negotiate(driver.offered() if packed else driver.offered() & ~Ring.RING_PACKED)
        count = len(driver.device.queue_sizes)
        assert [driver.queue_max(index) for index in range(count)] == list(driver.device.queue_sizes)
        assert driver.queue_max(count) == driver.queue_max(0xFFFF) == 0
        driver.write("queue_select", 0)
        most = expected = driver.device.queue_sizes[0]
        for size in (0, 3, 5, 48, 16, 0x8000, 0xFFFF, 1):
            driver.write("queue_size", size)
            if 0 < size <= most and (packed or size in (16, 1)):
                expected = size
            assert driver.transport.queues[0].size == expected
