"""When the guest is stopped: by simulated guests on simulated networks."""

from __future__ import annotations

import pytest

from tvmm.migration.policy import Decision, Policy, Round

PAGE = 4096
MS = 1_000_000


def simulate(
    policy: Policy, *, speed: float, total: int, rate: float, working_set: int, rounds: int = 1000
) -> tuple[Decision, int, int]:
    """Rounds of a guest of `total` pages that writes `rate` pages/s out of `working_set`, at `speed` bytes/ns.

    The last decision, the pages dirty then and the rounds. A throttled guest writes less.
    """
    dirty = total
    for number in range(1, rounds + 1):
        nanoseconds = int(dirty * PAGE / speed) + 200_000
        left = (100 - policy.throttle) / 100
        dirtied = min(working_set, int(rate * left * nanoseconds / 1e9))
        advice = policy.after(Round(dirty, dirty * PAGE, nanoseconds, dirtied))
        dirty = dirtied
        if advice.decision is Decision.SWITCH:
            return advice.decision, dirty, number
    return advice.decision, dirty, rounds


@pytest.mark.parametrize("rate", [0, 1000, 20_000, 100_000])
def test_an_ordinary_guest_feels_little(rate: int) -> None:
    """1.5 GB/s, 1 GiB with 64 MiB in use: a few rounds, and next to nothing is left, though 300 ms are allowed."""
    decision, dirty, rounds = simulate(Policy(300 * MS), speed=1.5, total=1 << 18, rate=rate, working_set=1 << 14)
    assert decision is Decision.SWITCH
    assert dirty * PAGE / 1.5 <= 2 * MS
    assert rounds < 20


def test_a_guest_that_keeps_pace_is_stopped_within_the_limit() -> None:
    """Rounds that do not shrink are given up once the pause is allowed: more of them would cost and not help."""
    decision, dirty, rounds = simulate(Policy(300 * MS), speed=0.5, total=1 << 18, rate=1e9, working_set=20_000)
    assert decision is Decision.SWITCH
    assert dirty == 20_000
    assert rounds < 10


def test_above_the_limit_the_guest_is_slowed_and_then_stopped() -> None:
    """64 MiB at 0.1 bytes/ns are 670 ms: with less time to write it comes below 300 ms."""
    policy = Policy(300 * MS)
    decision, dirty, _ = simulate(policy, speed=0.1, total=1 << 16, rate=200_000, working_set=1 << 14)
    assert decision is Decision.SWITCH
    assert policy.throttle >= 20
    assert policy.expected_ns(dirty) <= 300 * MS


def test_the_cap_of_the_throttle_holds() -> None:
    """0: the guest is never slowed, and never stopped above the limit either."""
    policy = Policy(50 * MS, max_throttle=0)
    decision, _, rounds = simulate(policy, speed=0.1, total=1 << 16, rate=1e9, working_set=1 << 14)
    assert (decision, rounds, policy.throttle) == (Decision.AGAIN, 1000, 0)


def test_a_paused_guest_is_moved_after_one_round() -> None:
    """Nothing is dirty after it."""
    assert simulate(Policy(MS * 300), speed=1.0, total=1 << 16, rate=0, working_set=0)[2] == 1


def test_a_first_pass_over_zeros_measures_no_speed() -> None:
    """It takes time and moves no bytes; what is dirty then is not predicted to take for ever."""
    policy = Policy(300 * MS)
    advice = policy.after(Round(1 << 18, 2 << 20, 80 * MS, 100))
    assert advice.decision is Decision.SWITCH or advice.expected_ns < 10 * MS
    assert policy.bytes_per_second == 0
