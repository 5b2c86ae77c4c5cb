"""Post-copy's engines, joined by socket pairs: every page arrives once, whichever way it comes, and nobody hangs."""

from __future__ import annotations

import socket

import pytest

from tests.kvm.pager_rig import SIZES, PostCopy, needs_userfaultfd
from tvmm.kvm.lanes import LaneStop
from tvmm.kvm.page_server import PageServerStop
from tvmm.kvm.pager import PagerStop

pytestmark = needs_userfaultfd
PAGES = SIZES[0][1]
TIMEOUT = 20


@pytest.mark.parametrize("shared", [False, True])
def test_touched_pages_come(shared: bool) -> None:
    """Each page that is touched is there with the source's bytes when the touch returns; without lanes."""
    with PostCopy(1, shared=shared, prefetch=0) as both:
        both.pager.expect(both.absent)
        assert both.pager.remaining == PAGES
        pager, _ = both.connect()
        pages = both.random.sample(range(PAGES), 200)
        for page in pages:
            both.touch(page).result(TIMEOUT)
        assert both.pager.counters.faults == both.pager.counters.requests == both.pager.counters.urgent == 200
        assert both.pager.service_times.count == 200
        assert both.pager.remaining == PAGES - 200
        for page in range(PAGES):
            both.touch(page).result(TIMEOUT)
        assert pager.result(TIMEOUT) is PagerStop.COMPLETE
        both.pager.release()
        assert both.differing() == []


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("lanes", [1, 2])
def test_lanes_and_faults_together(shared: bool, lanes: int) -> None:
    """Lanes push all of it while threads touch at random: all is there, and each page was put there once."""
    with PostCopy(lanes, shared=shared) as both:
        both.pager.expect(both.absent)
        pager, _ = both.connect()
        touches = [both.touch(both.random.randrange(PAGES)) for _ in range(50)]
        pushes = both.push(lanes)
        touches += [both.touch(both.random.randrange(PAGES)) for _ in range(200)]
        for touch in touches:
            touch.result(TIMEOUT)
        assert {push.result(TIMEOUT) for push in pushes} == {LaneStop.ROUND_END}
        assert pager.result(TIMEOUT) is PagerStop.COMPLETE
        counters = both.pager.counters
        assert counters.urgent + counters.pushed == PAGES
        both.pager.release()
        assert both.differing() == []


def test_a_cut_is_gone_on_from() -> None:
    """Who waits at the cut waits on, and has the page soon after there is another connection."""
    with PostCopy(3) as both:
        both.pager.expect(both.absent)
        # Nobody answers on this one.
        ours, theirs = both.pair()
        waiting = [both.touch(page) for page in (7, 700)]
        pager = both._threads.submit(both.pager.serve, ours.fileno(), both.waker)
        while both.pager.counters.requests < 2:
            pass
        theirs.shutdown(socket.SHUT_RDWR)
        assert pager.result(TIMEOUT) is PagerStop.LOST
        assert not any(touch.done() for touch in waiting)
        both.cut()
        assert both.recover() == PAGES
        pager, server = both.connect()
        for touch in waiting:
            touch.result(TIMEOUT)
        both.push()
        assert pager.result(TIMEOUT) is PagerStop.COMPLETE
        both.their_waker.wake()
        assert server.result(TIMEOUT) is PageServerStop.WOKEN
        both.pager.release()
        assert both.differing() == []


def test_release_lets_all_go() -> None:
    """Who waits without a connection goes on, and finds zeros; so does who comes later."""
    with PostCopy(4) as both:
        both.pager.expect(both.absent)
        waiting = [both.touch(page) for page in (1, 2)]
        both.pager.release()
        for touch in waiting:
            touch.result(TIMEOUT)
        assert not any(both.blocks[0].view)
        assert both.pager.serve(-1, both.waker) is PagerStop.RELEASED
