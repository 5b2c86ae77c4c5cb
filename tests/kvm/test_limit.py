"""Token buckets in C: against their twin in Python, and by themselves with a clock that the test has."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.plain_limit import GRACE_NS, TURN_NS, PlainLimit
from tvmm.config.limits import Rate
from tvmm.kvm.limit import BUCKETS, IN, OUT, RATES, Limiter, Member

SECOND, MS = 10**9, 10**6
NONE = Rate()


def limiter(*rates: Rate, size: int = 0) -> Limiter:
    """With these rates in front, at time 0."""
    limit = Limiter()
    assert limit.set((*rates, *[NONE] * (RATES - len(rates))), size, 0)
    return limit


def rates() -> st.SearchStrategy[Rate]:
    """As `tvmm.config.limits` lets them be, and often none."""
    some = st.builds(
        lambda rate, more, seconds: Rate(rate, (rate + more) if more else 0, seconds if more else 1),
        st.sampled_from((1, 3, 100, 10**6, 10**13)) | st.integers(1, 10**14),
        st.just(0) | st.integers(1, 10**12),
        st.sampled_from((1, 2, 7)),
    )
    return st.just(NONE) | some


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 2), st.sampled_from((IN, OUT))),
        st.tuples(
            st.just("charge"),
            st.sampled_from((IN, OUT)),
            st.integers(0, 70),
            st.sampled_from((0, 1, 512, 4096)) | st.integers(0, 1 << 40),
        ),
        st.tuples(st.just("forget"), st.integers(0, 2)),
        st.tuples(st.just("set"), st.lists(rates(), min_size=RATES, max_size=RATES), st.sampled_from((0, 1, 4096))),
        st.tuples(st.just("time"), st.sampled_from((1, 999, MS, 2 * MS, 10 * MS, SECOND)) | st.integers(0, 1 << 62)),
        st.tuples(st.just("back"), st.integers(0, 5 * MS)),
    ),
    max_size=60,
)


@given(st.lists(rates(), min_size=RATES, max_size=RATES), STEPS)
@settings(max_examples=400, deadline=None)
def test_twin(first: list[Rate], steps: list[tuple[object, ...]]) -> None:
    """Exactly the tokens, waits and turns of the twin, whatever the order of asking, charging, changing and time."""
    limit, plain = Limiter(), PlainLimit()
    members = [Member() for _ in range(3)]
    now = 10**15
    limit.set(first, 0, now)
    plain.set(first, 0, now)
    for step in steps:
        match step:
            case ["ask", int(index), int(direction)]:
                assert limit.ask(members[index], direction, now) == plain.ask(members[index], direction, now)
            case ["charge", int(direction), int(operations), int(size)]:
                limit.charge(direction, operations, size, now)
                plain.charge(direction, operations, size, now)
            case ["forget", int(index)]:
                limit.forget(members[index])
                plain.forget(members[index])
            case ["set", list(changed), int(size)]:
                limit.set(changed, size, now)
                plain.set(changed, size, now)
            case ["time", int(passed)]:
                now = min(now + passed, (1 << 63) - 1)
            case ["back", int(passed)]:
                # Another thread has looked at the clock earlier, and comes later.
                now -= passed
        assert limit.levels(now) == plain.levels(now)
        assert limit.waits == tuple(plain.waits)


def test_a_bucket_of_100_ms_is_full_at_first() -> None:
    """1000 bytes a second: 100 bytes at once, then the rate."""
    limit, one = limiter(Rate(1000)), Member()
    assert limit.ask(one, IN, 0) == 0
    limit.charge(IN, 1, 100, 0)
    assert limit.ask(one, IN, 0) == 0  # nothing is left, and nothing is owed
    limit.charge(IN, 1, 10, 0)
    assert limit.ask(one, IN, 0) == 10 * MS
    assert limit.ask(one, IN, 9 * MS) == MS
    assert limit.ask(one, IN, 10 * MS) == 0


def test_a_request_larger_than_the_bucket_passes() -> None:
    """It goes into debt, and the next one waits for as long as it takes; never longer than a second at once."""
    limit, one = limiter(Rate(1000)), Member()
    assert limit.ask(one, OUT, 0) == 0
    limit.charge(OUT, 1, 5100, 0)
    assert limit.ask(one, OUT, 0) == SECOND
    assert limit.ask(one, OUT, 5 * SECOND - 1) == 1
    assert limit.ask(one, OUT, 5 * SECOND) == 0


def test_one_operation_a_second() -> None:
    """Exactly one, however often it is asked, and at first a tenth of one more."""
    limit, one, begun = limiter(NONE, Rate(1)), Member(), []
    now = 0
    while now < 20 * SECOND:
        wait = limit.ask(one, IN, now)
        if not wait:
            limit.charge(IN, 1, 1 << 30, now)
            begun.append(now)
        now += max(wait, 1)
    assert begun == [0, *(900 * MS + SECOND * number for number in range(20))]


def test_tokens_do_not_pile_up() -> None:
    """After an hour of nothing there is one bucket, no more."""
    limit = limiter(Rate(1000, 3000))
    limit.charge(IN, 1, 3000, 0)
    assert limit.levels(3600 * SECOND)[0] == 3000 * SECOND


def test_a_long_burst_has_a_rate_of_its_own() -> None:
    """10 a second, and 100 a second for 5 s: the bucket has 500, and 10 of them at once."""
    limit, one = limiter(NONE, Rate(10, 100, 5)), Member()
    passed, now = 0, 0
    while now < 5 * SECOND:
        wait = limit.ask(one, IN, now)
        if wait:
            now += wait
        else:
            limit.charge(IN, 1, 0, now)
            passed += 1
    assert 505 <= passed <= 515
    assert limit.levels(now)[2] // SECOND in range(30, 50)  # of 500, 10 a second came in


def test_directions() -> None:
    """A limit of one direction is none of the other's; one of both is everybody's."""
    limit, one = limiter(NONE, NONE, Rate(1000), NONE, Rate(500)), Member()
    limit.charge(IN, 1, 1100, 0)
    assert limit.ask(one, IN, 0) == SECOND
    assert limit.ask(one, OUT, 0) == 0
    limit.charge(OUT, 1, 300, 0)
    assert limit.ask(one, OUT, 0) == SECOND // 2
    limit.set((Rate(1000), *[NONE] * 5), 0, 0)
    limit.charge(OUT, 1, 600, 0)
    assert limit.ask(one, IN, 0) == limit.ask(one, OUT, 0) == SECOND // 2


def test_larger_operations_count_as_more() -> None:
    """With a size: 6 KiB of 4 KiB are one and a half, 512 bytes are one."""
    limit = limiter(NONE, Rate(100), size=4096)
    limit.charge(IN, 1, 6144, 0)
    assert limit.levels(0)[2] == 10 * SECOND - 3 * SECOND // 2
    limit.charge(OUT, 1, 512, 0)
    assert limit.levels(0)[2] == 10 * SECOND - 5 * SECOND // 2


def test_what_changes_begins_full_and_the_rest_goes_on() -> None:
    """Debt of an old rate does not outlive it; the operations' bucket has what it had."""
    limit, one = limiter(Rate(1000), Rate(100)), Member()
    limit.charge(IN, 4, 50_000, 0)
    assert limit.ask(one, IN, 0) == SECOND
    limit.set((Rate(2000), Rate(100), *[NONE] * 4), 0, 0)
    assert limit.ask(one, IN, 0) == 0
    assert [level // SECOND for level in limit.levels(0)[:3:2]] == [200, 6]
    assert not limit.set([NONE] * RATES, 0, 0)
    assert limit.levels(0) == (0,) * BUCKETS


def test_members_take_turns() -> None:
    """Three that always want something get the same; one that came first and asks all the time has no more."""
    limit = limiter(NONE, Rate(1000))
    members = [Member() for _ in range(3)]
    passed, due, now = [0] * 3, [0] * 3, 0
    while now < 10 * SECOND:
        now = min(due)
        for index, member in enumerate(members):
            # The first one is always awake a little sooner than the others.
            while due[index] <= now:
                wait = limit.ask(member, IN, now)
                if wait:
                    due[index] = now + wait + 1000 * index
                    break
                limit.charge(IN, 1, 0, now)
                passed[index] += 1
    assert 10_000 <= sum(passed) <= 10_110
    assert min(passed) > 0.8 * max(passed)


def test_nobody_waits_for_who_does_not_come() -> None:
    """A member that stood in line and is gone costs the others 2 ms, once; one that was forgotten, nothing."""
    limit, gone, here = limiter(NONE, Rate(1000)), Member(), Member()
    limit.charge(IN, 101, 0, 0)
    assert limit.ask(gone, IN, 0) == limit.ask(here, IN, 0) == MS
    assert limit.ask(here, IN, MS) == GRACE_NS
    assert limit.ask(here, IN, MS + GRACE_NS) == 0
    limit.charge(IN, 4, 0, MS + GRACE_NS)
    now = MS + GRACE_NS + TURN_NS
    limit.charge(IN, 200, 0, now)
    assert limit.ask(gone, IN, now) == limit.ask(here, IN, now) > 0
    limit.forget(gone)
    assert limit.ask(here, IN, now + SECOND) == 0


def test_an_idle_member_takes_nobodys_turn() -> None:
    """Who has its turn and wants nothing is not waited for."""
    limit, idle, busy = limiter(NONE, Rate(1000)), Member(), Member()
    assert limit.ask(idle, IN, 0) == 0
    limit.charge(IN, 101, 0, 0)
    assert limit.ask(busy, IN, 0) == MS
    assert limit.ask(busy, IN, MS) == 0


def test_counted_waits() -> None:
    """Each time that somebody begins to wait, by lane."""
    limit, one = limiter(NONE, Rate(1000), NONE, Rate(1000)), Member()
    limit.charge(OUT, 101, 0, 0)
    for _ in range(3):
        assert limit.ask(one, IN, 0)
    assert limit.waits == (1, 0, 0)
