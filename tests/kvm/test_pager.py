"""Post-copy's engines, joined by socket pairs: every page arrives once, whichever way it comes, and nobody hangs."""

from __future__ import annotations

import random
import socket
import time
from concurrent.futures import Future

import pytest

from tests.kvm.pager_rig import SIZES, PostCopy, needs_userfaultfd
from tvmm.kvm.discard import discard
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


@pytest.mark.parametrize("seed", range(4))
def test_random_cuts(seed: int) -> None:
    """Cut at random moments again and again, with threads that wait across cuts: nothing is lost or put there twice.

    While it lasts, pages that are here are written and given back to the host, as a guest does.
    """
    dice = random.Random(seed)
    with PostCopy(seed, shared=bool(seed & 1)) as both:
        both.pager.expect(both.absent)
        memory = both.blocks[0].view
        changed: dict[int, bytes] = {}
        touches: list[Future[None]] = []
        cuts = 0
        while both.pager.remaining:
            both.group.bandwidth = dice.choice([0, 10 << 20]) if cuts > 5 else 10 << 20
            both.connect()
            both.push(dice.choice([1, 2]))
            touches = [touch for touch in touches if not touch.done()]
            touches += [both.touch(dice.randrange(PAGES)) for _ in range(8 - len(touches))]
            for _ in range(20):
                page = dice.randrange(PAGES)
                if both.pager.received.test("pc.ram", page):
                    changed[page] = dice.randbytes(4096) if dice.random() < 0.7 else bytes(4096)
                    if any(changed[page]):
                        # It may have been given back: as everybody does who holds the interpreter lock.
                        both.pager.touch("pc.ram", page * 4096, 4096)
                        memory[page * 4096 : (page + 1) * 4096] = changed[page]
                    else:
                        discard(both.blocks[0], [(page, 1)])
            time.sleep(dice.random() * 0.005)
            both.cut()
            both.recover()
            cuts += 1
        for touch in touches:
            touch.result(TIMEOUT)
        both.pager.release()
        for page in both.differing():
            assert bytes(memory[page * 4096 : (page + 1) * 4096]) == changed[page]
        for page, data in changed.items():
            assert bytes(memory[page * 4096 : (page + 1) * 4096]) == data


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
