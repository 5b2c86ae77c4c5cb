"""When disks are close enough to their copies: by simulated guests on simulated networks."""

from __future__ import annotations

import pytest

from tvmm.migration.disk_policy import SLOWEST, DiskPolicy, DiskRound

MS = 1_000_000
GIB = 1 << 30


def simulate(
    policy: DiskPolicy, *, speed: float, total: int, rate: float, sync_ns: int = 5 * MS, rounds: int = 100
) -> tuple[bool, int, int]:
    """Rounds of a guest that writes `rate` bytes/s to `total`, at `speed` bytes/ns: ready, bytes left, rounds."""
    dirty = total
    for number in range(1, rounds + 1):
        nanoseconds = int(dirty / speed) + sync_ns
        writes = min(rate, policy.slow) if policy.slow else rate
        left = min(total, int(writes * nanoseconds / 1e9))
        advice = policy.after(DiskRound(dirty, nanoseconds, sync_ns, left))
        assert advice.expected_ns == policy.expected_ns(left)
        dirty = left
        if advice.ready:
            return True, dirty, number
    return False, dirty, rounds


@pytest.mark.parametrize("rate", [0, 1e6, 100e6])
def test_an_ordinary_guest_is_not_slowed(rate: float) -> None:
    """1 GB/s, 10 GiB: some rounds, and what is left takes less than half of the pause."""
    policy = DiskPolicy(300 * MS)
    ready, left, rounds = simulate(policy, speed=1.0, total=10 * GIB, rate=rate)
    assert ready
    assert policy.slow == 0
    assert left / 1.0 <= 150 * MS
    assert rounds < 6


def test_one_that_writes_faster_than_the_network_is_slowed_until_it_is_ready() -> None:
    """To half of what the network takes, and further where that is not enough."""
    policy = DiskPolicy(300 * MS)
    ready, _, rounds = simulate(policy, speed=0.1, total=GIB, rate=500e6)
    assert ready
    assert SLOWEST <= policy.slow <= 0.05e9
    assert rounds < 20


def test_a_limit_that_nobody_can_keep_is_never_ready() -> None:
    """A sync alone takes longer: the timeout ends it, and a guest may always write a little."""
    policy = DiskPolicy(5 * MS)
    ready, _, _ = simulate(policy, speed=0.1, total=GIB, rate=500e6, sync_ns=20 * MS)
    assert not ready
    assert policy.slow == SLOWEST


def test_small_rounds_measure_no_speed() -> None:
    """Nor does the sync of the first pass count, which has all that the host had kept."""
    policy = DiskPolicy(300 * MS)
    policy.after(DiskRound(GIB, 2_000 * MS, 900 * MS, 1 << 20))
    speed = policy.bytes_per_second
    assert speed == pytest.approx(GIB / 2)
    policy.after(DiskRound(4096, 5 * MS, 4 * MS, 0))
    assert policy.bytes_per_second == speed
    assert policy.expected_ns(0) == 4 * MS
