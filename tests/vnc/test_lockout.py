"""Limits on strangers and their guesses, with a clock that is set by hand."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tvmm.vnc.lockout import ADDRESSES_LIMIT, Limits, Lockout, address_key


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("", "unix"),
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::1", "::1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("not an address", "not an address"),
        ("x" * 100, "x" * 64),
    ],
)
def test_addresses(host: str, key: str) -> None:
    """Who has a network of IPv6 has one address here."""
    assert address_key(host) == key


def guess(lockout: Lockout, key: str, now: float) -> float:
    """One connection with one wrong guess; the delay of its answer."""
    assert lockout.arrive(key, now) == ""
    delay = lockout.failed(key, now)
    lockout.leave(key, was_viewer=False)
    return delay


def test_guesses_are_slower_each_time() -> None:
    """The first ones cost a delay, later ones twice the time of the one before, up to a limit."""
    lockout = Lockout()
    now = 0.0
    assert [guess(lockout, "a", now) for _ in range(3)] == [1.0, 2.0, 4.0]
    for wait in (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0):
        assert "too many wrong passwords" in lockout.arrive("a", now + wait - 0.5)
        assert lockout.arrive("b", now) == "", "others are not concerned"
        lockout.leave("b", was_viewer=False)
        now += wait
        guess(lockout, "a", now)
    assert guess(lockout, "a", now + 300) == 10.0


def test_a_right_guess_makes_up_for_wrong_ones() -> None:
    """Nothing is left of them."""
    lockout = Lockout()
    guess(lockout, "a", 0.0)
    guess(lockout, "a", 0.0)
    lockout.arrive("a", 0.0)
    assert lockout.passed("a", view_only=False)
    assert guess(lockout, "a", 1.0) == 1.0


def test_who_may_only_look_cannot_guess_in_between() -> None:
    """Its own password does not make up for wrong ones."""
    lockout = Lockout()
    for _ in range(3):
        lockout.arrive("a", 0.0)
        assert lockout.passed("a", view_only=True)
        guess(lockout, "a", 0.0)
    assert "too many wrong passwords" in lockout.arrive("a", 1.0)


def test_wrong_guesses_are_forgotten() -> None:
    """After an hour."""
    lockout = Lockout()
    for _ in range(3):
        guess(lockout, "a", 0.0)
    assert guess(lockout, "a", 3601.0) == 1.0


def test_guesses_from_everywhere_are_slow_and_keep_nobody_out() -> None:
    """Many addresses with one guess each get their answers late; who knows the password waits for nothing."""
    lockout = Lockout()
    delays = [guess(lockout, f"a{number}", 0.0) for number in range(40)]
    assert delays[:20] == [1.0] * 20
    assert delays[25] == 7.0
    assert max(delays) == 10.0
    assert lockout.arrive("b", 0.0) == ""
    assert lockout.passed("b", view_only=False)
    assert guess(lockout, "c", 600.0) == 1.0, "a crowd is forgotten"


def test_a_guess_while_a_clock_goes_backwards_is_harmless() -> None:
    """Nothing leaks in."""
    lockout = Lockout()
    guess(lockout, "a", 100.0)
    guess(lockout, "b", 0.0)
    assert guess(lockout, "c", 100.0) == 1.0


def test_strangers_have_few_places() -> None:
    """One address cannot take all of them, and all addresses cannot take more than there are."""
    lockout = Lockout(Limits(strangers=6, strangers_per_address=4))
    assert [lockout.arrive("a", 0.0) for _ in range(4)] == [""] * 4
    assert "too many connections" in lockout.arrive("a", 0.0)
    assert [lockout.arrive("b", 0.0) for _ in range(2)] == [""] * 2
    assert "too many connections" in lockout.arrive("c", 0.0)
    lockout.leave("a", was_viewer=False)
    assert lockout.arrive("c", 0.0) == ""
    assert lockout.strangers == 6


def test_viewers_have_places_of_their_own() -> None:
    """A viewer that is in is no stranger any more; beyond the limit none comes in."""
    lockout = Lockout(Limits(viewers=2, strangers_per_address=1))
    for _ in range(2):
        assert lockout.arrive("a", 0.0) == ""
        assert lockout.passed("a", view_only=False)
    assert lockout.arrive("a", 0.0) == "there are too many viewers"
    lockout.leave("a", was_viewer=True)
    assert lockout.arrive("a", 0.0) == ""
    assert lockout.arrive("b", 0.0) == ""
    assert lockout.passed("a", view_only=True)
    assert not lockout.passed("b", view_only=True), "somebody was faster"
    lockout.leave("b", was_viewer=False)
    assert (lockout.viewers, lockout.strangers) == (2, 0)


def test_addresses_are_bounded() -> None:
    """Whoever has many addresses makes the quietest forgotten, not memory full."""
    lockout = Lockout()
    for number in range(ADDRESSES_LIMIT + 10):
        guess(lockout, str(number), 0.0)
    assert lockout.addresses == ADDRESSES_LIMIT
    assert guess(lockout, "0", 0.0) == 10.0, "only the crowd slows it"


class Anybody(RuleBasedStateMachine):
    """Any sequence of what can happen."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(viewers=3, strangers=4, strangers_per_address=2)
        self.lockout = Lockout(self.limits)
        self.now = 0.0
        self.here: list[tuple[str, bool]] = []

    @rule(key=st.sampled_from("abc"), wait=st.floats(0, 400))
    def arrive(self, key: str, wait: float) -> None:
        self.now += wait
        if not self.lockout.arrive(key, self.now):
            self.here.append((key, False))

    @rule(index=st.integers(0, 20), right=st.booleans())
    def prove(self, index: int, right: bool) -> None:
        strangers = [one for one in self.here if not one[1]]
        if strangers:
            one = strangers[index % len(strangers)]
            if right and self.lockout.passed(one[0], view_only=len(self.here) % 2 == 0):
                self.here[self.here.index(one)] = (one[0], True)
            elif not right:
                delay = self.lockout.failed(one[0], self.now)
                assert 0 < delay <= self.limits.longest_delay

    @rule(index=st.integers(0, 20))
    def leave(self, index: int) -> None:
        if self.here:
            key, was_viewer = self.here.pop(index % len(self.here))
            self.lockout.leave(key, was_viewer=was_viewer)

    @invariant()
    def counts_are_right(self) -> None:
        viewers = sum(viewer for _, viewer in self.here)
        assert (self.lockout.viewers, self.lockout.strangers) == (viewers, len(self.here) - viewers)
        assert viewers <= self.limits.viewers
        assert self.lockout.strangers <= self.limits.strangers


TestAnybody = Anybody.TestCase
TestAnybody.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
