"""Blocking calls side by side: waited for, woken, and their errors told apart."""

from __future__ import annotations

import gc
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest
import trio

from tvmm.errors import ProtocolError, TvmmError, UserError
from tvmm.kvm.serve import Waker
from tvmm.migration.link import LinkLost
from tvmm.migration.threads import SWITCH_SECONDS, YIELDING_NICE, attentive, run_together, the_cause, yielding


@pytest.fixture
def waker() -> Iterator[Waker]:
    """What gets a call out."""
    made = Waker()
    yield made
    made.close()


def until_woken(waker: Waker, begun: Callable[[], object] = lambda: None) -> None:
    """A call that only the waker ends."""
    poll = select.poll()
    poll.register(waker.fileno(), select.POLLIN)
    begun()
    assert poll.poll(20_000)


def fail(error: BaseException) -> None:
    """A call that raises."""
    raise error


async def test_all_are_waited_for(waker: Waker) -> None:
    """Each on a thread of its own: all of them have to be there before one can end. Nobody is woken."""
    barrier = threading.Barrier(5)
    seen: list[int] = []

    def meet(number: int) -> None:
        barrier.wait(20)
        seen.append(number)

    await run_together([partial(meet, number) for number in range(5)], waker)
    assert sorted(seen) == list(range(5))
    assert not select.select([waker.fileno()], [], [], 0)[0]


async def test_no_calls(waker: Waker) -> None:
    """Are over when somebody cancels it: it never had a last one."""
    with trio.move_on_after(0.01) as scope:
        await run_together([], waker)
    assert scope.cancelled_caught


@pytest.mark.parametrize("error", [LinkLost("broke"), ProtocolError("wrong"), UserError("cannot")])
async def test_one_that_fails_gets_the_others_out(waker: Waker, error: TvmmError) -> None:
    """And is raised as itself, not in a group."""
    barrier = threading.Barrier(3)

    def fail_when_all_wait() -> None:
        barrier.wait(20)
        raise error

    waiting = partial(until_woken, waker, partial(barrier.wait, 20))
    with pytest.raises(type(error)) as raised:
        await run_together([waiting, fail_when_all_wait, waiting], waker)
    assert raised.value is error


async def test_a_bug_is_not_hidden(waker: Waker) -> None:
    """By an error that was expected beside it."""
    calls = [partial(fail, LinkLost("broke")), partial(fail, ZeroDivisionError())]
    barrier = threading.Barrier(2)

    def at_once(call: Callable[[], None]) -> None:
        barrier.wait(20)
        call()

    with pytest.raises(BaseExceptionGroup) as raised:
        await run_together([partial(at_once, call) for call in calls], waker)
    assert raised.group_contains(ZeroDivisionError)


async def test_cancelled_it_is_over(waker: Waker) -> None:
    """The threads are out when it comes back."""
    left: list[int] = []
    async with trio.open_nursery() as nursery:
        token = trio.lowlevel.current_trio_token()

        def call() -> None:
            until_woken(waker, lambda: token.run_sync_soon(nursery.cancel_scope.cancel))
            left.append(1)

        nursery.start_soon(run_together, [call], waker)
    assert left == [1]


def test_the_cause() -> None:
    """The first kind wins, however deep it is; what was not expected keeps the group."""
    lost, wrong = LinkLost("lost"), ProtocolError("wrong")
    group = BaseExceptionGroup("", [lost, BaseExceptionGroup("", [wrong])])
    assert the_cause(group, (ProtocolError, TvmmError)) is wrong
    assert the_cause(group, (TvmmError,)) is lost
    assert the_cause(group, (ProtocolError,)) is group
    other = BaseExceptionGroup("", [lost, KeyError()])
    assert the_cause(other, (TvmmError,)) is other


def test_attentive() -> None:
    """No garbage collection, and threads change soon; blocks in one another and blocks that fail undo both."""
    interval = sys.getswitchinterval()
    assert gc.isenabled()
    with suppress(KeyError), attentive():
        assert not gc.isenabled()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
        with attentive():
            pass
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    assert sys.getswitchinterval() == interval


def test_yielding() -> None:
    """On a thread that ends, with a lower priority, which nobody else gets; its error is the caller's."""
    seen: list[tuple[int, int]] = []

    def look() -> None:
        here = threading.get_native_id()
        seen.append((here, os.getpriority(os.PRIO_PROCESS, here)))

    yielding(look)
    look()
    (other, lower), (own, usual) = seen
    assert other != own
    assert lower == max(YIELDING_NICE, usual)
    with pytest.raises(LinkLost):
        yielding(partial(fail, LinkLost("broke")))
    assert not [thread for thread in threading.enumerate() if thread.name == "tvmm pages"]
