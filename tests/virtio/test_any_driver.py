"""Random drivers in front of both transports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.virtio_driver import make_driver
from tests.virtio.devices import ALL_RING, make_blk, make_console

if TYPE_CHECKING:
    from tests.support.virtio_driver import Driver

OPERATIONS = (
    *("status", "queue_select", "queue_size", "queue_ready", "queue_reset", "device_feature_select"),
    *("driver_feature_select", "driver_feature", "desc_low", "driver_low", "device_high"),
    *("negotiate", "setup", "live", "notify", "used", "change", "needs_reset", "done", "queue_done", "interrupt"),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 255)), max_size=60), st.booleans())
def test_any_driver(operations: list[tuple[str, int]], prompt: bool) -> None:
    """Random drivers and random events on both transports: what must never happen does not, and both agree."""
    statuses: list[list[int]] = []
    for transport in ("mmio", "pci"):
        driver = make_driver(transport, make_console if len(operations) % 2 else make_blk, prompt)
        statuses.append([_play(driver, *operation) for operation in operations])
    assert statuses[0] == statuses[1]


def _play(driver: Driver, name: str, value: int) -> int:
    transport, shell = driver.transport, driver.shell
    was_live = transport.live
    index = value % len(driver.device.queue_sizes)
    shell.log.clear()
    match name:
        case "negotiate":
            driver.negotiate()
        case "setup":
            driver.setup_queue(index)
        case "live":
            driver.add_status(0xF)
        case "notify":
            driver.notify(index)
        case "used":
            transport.used(index)
        case "change":
            driver.device.change_config(0, bytes([value]))
        case "needs_reset":
            transport.needs_reset("a test")
        case "done":
            transport.reset_done()
        case "queue_done":
            transport.queue_reset_done(index)
        case "interrupt":
            driver.take_interrupt()
        case "queue_ready" | "queue_reset":
            driver.write(name, 1)
        case "device_feature_select" | "driver_feature_select":
            driver.write(name, value % 3)
        case _:
            driver.write(name, value)
    if not was_live and not transport.live and name != "interrupt":
        assert [entry for entry in shell.log if entry != ("interrupt", None, 0)] == []
    if not transport.status:
        assert transport.isr == 0
        assert not any(queue.ready or queue.resetting for queue in transport.queues)
        assert driver.device.accepted == 0
    for queue in transport.queues:
        assert transport.packed or not queue.size & (queue.size - 1)
        assert queue.ready or not queue.resetting
    assert transport.isr & ~3 == 0
    assert driver.device.features == driver.device.features & (ALL_RING | 0xFF_FFFF)
    return driver.status
