"""The block device's features and configuration space, and the entropy device."""

from __future__ import annotations

from struct import unpack

import pytest

from tests.support.virtio_driver import make_driver
from tests.virtio.conformance_rules import both
from tests.virtio.devices import make_blk
from tvmm.errors import ConfigError
from tvmm.virtio.blk import Blk, BlkSettings
from tvmm.virtio.features import Blk as Feature
from tvmm.virtio.features import Ring, names
from tvmm.virtio.rng import MAX_FILL, Rng, fill_length

SECOND = 1_000_000_000


@both
def test_layout(transport: str) -> None:
    """The fields are where the specification has them."""
    settings = BlkSettings(
        1 << 33,
        queues=4,
        seg_max=126,
        size_max=65536,
        block=4096,
        physical_block=16384,
        min_io=8192,
        opt_io=1 << 20,
        max_discard=77,
        discard_alignment=8,
        max_zeroes=55,
        ranges=9,
    )
    driver = make_driver(transport, lambda: Blk(settings))
    space = driver.stable_config(60)
    assert unpack("<QII", space[:16]) == (1 << 33, 65536, 126)
    assert unpack("<IBBHI", space[20:32]) == (4096, 2, 0, 2, 256)
    assert unpack("<BBH", space[32:36]) == (1, 0, 4)
    assert unpack("<IIIIIB3s", space[36:60]) == (77, 9, 8, 55, 9, 1, bytes(3))
    assert driver.offered() & Feature.MQ


def test_features_follow_the_settings() -> None:
    """What a disk cannot do is not offered, and a read-only one does not discard."""
    bare = Blk(BlkSettings(8, read_only=True, flush=False, cache_control=False, max_discard=1, max_zeroes=1))
    assert set(names(2, bare.features)) - set(names(0, bare.features)) == {"SEG_MAX", "RO", "BLK_SIZE", "TOPOLOGY"}
    assert bare.config_bytes()[36:] == bytes(24)


@pytest.mark.parametrize(
    "changes",
    [
        {"capacity": -1},
        {"capacity": 1 << 60},
        {"block": 1000},
        {"block": 256},
        {"block": 4096},
        {"min_io": 100},
        {"queues": 0},
        {"queues": 65},
        {"queue_size": 100},
        {"queue_size": 1 << 16},
        {"seg_max": 0},
        {"serial": bytes(21)},
        {"serial": b"\xff"},
        {"ranges": 0},
        {"max_discard": 1 << 32},
        {"flush": False},
    ],
)
def test_impossible_disks(changes: dict[str, object]) -> None:
    """Settings that make no disk are refused."""
    with pytest.raises(ConfigError):
        Blk(BlkSettings(8)._replace(**changes))  # type: ignore[arg-type]


@both
def test_cache_mode(transport: str) -> None:
    """The driver switches it if it took CONFIG_WCE; without FLUSH it starts as write-through (5.2.5.2)."""
    driver = make_driver(transport, make_blk)
    disk = driver.device
    assert isinstance(disk, Blk)
    offered = driver.offered()
    driver.write_config(32, 1, 0)
    assert driver.config(32, 1) == 1
    driver.initialise(offered)
    assert not disk.write_through
    driver.write_config(32, 1, 0xFE)
    assert (driver.config(32, 1), disk.write_through) == (0, True)
    driver.write_config(32, 4, 0xFFFF_FFFF)
    assert driver.config(32, 4) == 0x0002_0001
    driver.write_config(0, 8, 1)
    assert disk.capacity == 2048
    for features, through, byte in (
        (offered & ~Feature.CONFIG_WCE, False, 1),
        (offered & ~Feature.FLUSH, True, 0),
        (offered & ~(Feature.FLUSH | Feature.CONFIG_WCE), True, 1),
    ):
        driver.initialise(features)
        assert (disk.write_through, driver.config(32, 1)) == (through, byte)
    assert driver.transport.mistakes == {"config-read-only": 2}


@both
def test_resize(transport: str) -> None:
    """The driver is told, requests are checked against the new size, and a reset does not undo it."""
    driver = make_driver(transport, make_blk)
    disk = driver.device
    assert isinstance(disk, Blk)
    driver.initialise()
    driver.shell.log.clear()
    disk.resize(4096)
    assert driver.shell.interrupts() == [(None, 2)]
    assert disk.limits().capacity == 4096
    disk.resize(4096)
    assert driver.shell.log == []
    driver.reset()
    assert driver.config(0, 8) == 4096
    with pytest.raises(ConfigError):
        disk.resize(1 << 60)


def test_limits_follow_the_negotiation() -> None:
    """Discard and write-zeroes are for drivers that took them."""
    disk = make_blk()
    disk.negotiated(disk.features)
    assert disk.limits()[3:7] == (1024, 4, 512, 4)
    disk.negotiated(Ring.VERSION_1)
    assert disk.limits()[3:7] == (0, 4, 0, 4)


def test_a_record_is_of_its_disk() -> None:
    """What a driver or the host may change is taken over; another block size is another disk's."""
    disk = make_blk()
    other = Blk(BlkSettings(2048, queues=2, queue_size=128, block=4096, physical_block=4096, min_io=0))
    disk.resize(99)
    same = make_blk()
    same.restore(disk.state(), 0)
    assert same.capacity == 99
    with pytest.raises(ValueError, match="space"):
        same.restore(other.state(), 0)
    broken = disk.state()._replace(space=b"\xff" * 8 + disk.state().space[8:])
    with pytest.raises(ValueError, match="space"):
        same.restore(broken, 0)


def test_rng_without_a_limit() -> None:
    """As much as is asked for, per buffer up to a cap; a buffer with bytes to read gets nothing."""
    rng = Rng()
    assert rng.grant(10**6, 0) == 10**6
    assert rng.next_grant_ns(5) == 5
    assert [fill_length(0, 100), fill_length(0, 1 << 30), fill_length(1, 100)] == [100, MAX_FILL, 0]


def test_rng_limit() -> None:
    """A bucket of one period's bytes: full at first, empty when it was taken, and filled as time passes."""
    rng = Rng(1000, SECOND)
    assert [rng.grant(600, 0), rng.grant(600, 0), rng.grant(600, 0)] == [600, 400, 0]
    assert rng.next_grant_ns(0) == SECOND // 1000
    assert rng.grant(10, SECOND // 1000 - 1) == 0
    assert rng.grant(10, SECOND // 1000) == 1
    assert rng.grant(10**6, SECOND // 2) == 499
    assert rng.grant(10**6, 100 * SECOND) == 1000
    assert rng.grant(1, 99 * SECOND) == 0


def test_rng_limit_is_kept_over_time() -> None:
    """Whatever the rhythm of asking: never more than the rate and one bucket, and not much less."""
    rng = Rng(997, SECOND)
    now = granted = 0
    for step in range(5000):
        now += 1_234_567 + step % 7 * 100_000
        granted += rng.grant(3, now)
    assert granted <= 997 + now * 997 // SECOND
    assert granted >= now * 997 // SECOND - 1


def test_rng_rates_that_are_none() -> None:
    """Refused."""
    for amount, period in ((-1, 1), (1, 0), (1 << 40, 1)):
        with pytest.raises(ConfigError):
            Rng(amount, period)
