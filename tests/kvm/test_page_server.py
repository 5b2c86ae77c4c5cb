"""The page server against its twin, and what a hostile destination can get wrong."""

from __future__ import annotations

import random
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kvm.lane_rig import Ram
from tests.support.plain_lanes import PAGE, Frame, decode, encode
from tests.support.plain_pager import PlainServer, Refused, request
from tvmm.errors import ProtocolError
from tvmm.kvm.lanes import LaneGroup
from tvmm.kvm.page_server import PageServer, PageServerStop
from tvmm.kvm.pages import PageBitmap
from tvmm.kvm.serve import Waker

SIZES = (("a", 150), ("b", 3))
COUNTS = [150, 3]


TIMEOUT = 20


class Served:
    """A server with the two ends of its connection."""

    def __init__(self, stack: ExitStack, prefetch: int, left: set[tuple[int, int]]) -> None:
        dice = random.Random(1)
        self.ram = Ram(stack, SIZES)
        for block, pages in enumerate(COUNTS):
            for page in range(pages):
                if dice.random() < 0.7:
                    self.ram.write(block, page, dice.randbytes(PAGE))
        bitmap = PageBitmap.of(self.ram.pages)
        for block, page in left:
            bitmap.mark(SIZES[block][0], page)
        self.group = LaneGroup(self.ram.pages, bitmap, chunk_pages=64)
        self.server = PageServer(self.group, prefetch=prefetch)
        self.waker = Waker()
        stack.callback(self.waker.close)
        self.ours, self.theirs = (stack.enter_context(end) for end in socket.socketpair())
        for end in (self.ours, self.theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)

    def answers(self, stream: bytes, expected: list[Frame]) -> list[Frame]:
        """What the server sends for a stream, which should be as long as the frames that are expected."""
        length = sum(len(encode(frame)) for frame in expected)
        with ThreadPoolExecutor(1) as pool:
            serving = pool.submit(self.server.serve, self.theirs.fileno(), self.waker)
            self.ours.settimeout(TIMEOUT)
            self.ours.sendall(stream)
            data = b""
            while len(data) < length:
                data += self.ours.recv(1 << 20)
            # Behind what it has read, the server sees the end.
            self.ours.shutdown(socket.SHUT_WR)
            assert serving.result(TIMEOUT) is PageServerStop.LOST
        assert not self.server.failure
        self.theirs.close()
        assert not self.ours.recv(1)
        frames, rest = decode(data, COUNTS)
        assert not rest
        return frames

    def left(self) -> set[tuple[int, int]]:
        """Pages that nobody has taken."""
        return {
            (block, page)
            for block, (name, pages) in enumerate(SIZES)
            for page in range(pages)
            if self.group.bitmap.test(name, page)
        }


pages = st.one_of(st.tuples(st.just(0), st.integers(0, 149)), st.tuples(st.just(1), st.integers(0, 2)))


@settings(max_examples=100, deadline=None)
@given(st.sets(pages), pages, st.integers(1, 40), st.sampled_from([0, 1, 2, 16, 64]))
def test_one_request_is_answered_as_the_twin_does(
    left: set[tuple[int, int]], asked: tuple[int, int], count: int, prefetch: int
) -> None:
    """The pages that are asked for, also those that were taken, and then those around them that were not."""
    with ExitStack() as stack:
        served = Served(stack, prefetch, left)
        twin = PlainServer(served.ram.contents(), set(left), prefetch)
        data = request(asked[0], asked[1], min(count, COUNTS[asked[0]] - asked[1]))
        expected = twin.answer(data)
        assert served.answers(data, expected) == expected
        assert served.left() == twin.left
        counters = served.server.counters
        assert counters.prefetched == len(left - twin.left) - (counters.pages - counters.taken)


def test_many_requests_are_answered_in_order() -> None:
    """More than fit into the server's buffer."""
    with ExitStack() as stack:
        served = Served(stack, 0, {(0, page) for page in range(150)})
        twin = PlainServer(served.ram.contents(), set(), 0)
        asked = [request(0, page % 150) for page in range(0, 150 * 7, 7)]
        expected = [frame for one in asked for frame in twin.answer(one)]
        assert served.answers(b"".join(asked), expected) == expected
        assert served.server.counters.requests == 150
        assert served.left() == set()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_is_no_request_is_refused(data: st.DataObject) -> None:
    """Just where the twin refuses; what was asked for before is answered."""
    good = [request(0, data.draw(st.integers(0, 149))) for _ in range(data.draw(st.integers(0, 3)))]
    last = request(
        data.draw(st.sampled_from([0, 1, 2, 65535])),
        data.draw(st.sampled_from([0, 1, 2, 3, 149, 150, 2**32 - 1])),
        data.draw(st.sampled_from([0, 1, 2, 256, 257, 2**32 - 1])),
        magic=data.draw(st.sampled_from([b"TVPQ", b"TVPL"])),
        zero=data.draw(st.sampled_from([0, 0, 1])),
    )
    with ExitStack() as stack:
        served = Served(stack, 0, set())
        twin = PlainServer(served.ram.contents(), set(), 0)
        expected = [frame for one in good for frame in twin.answer(one)]
        try:
            expected += twin.answer(last)
        except Refused:
            served.ours.sendall(b"".join([*good, last]))
            with pytest.raises(ProtocolError, match="request"):
                served.server.serve(served.theirs.fileno(), served.waker)
            assert served.server.counters.requests == len(good)
        else:
            assert served.answers(b"".join([*good, last]), expected) == expected


def test_a_wake_up_in_the_middle_of_a_frame() -> None:
    """Nobody reads: the server can be woken and goes on where it was, and begins anew on another connection."""
    with ExitStack() as stack:
        served = Served(stack, 0, set())
        small, theirs = (stack.enter_context(end) for end in socket.socketpair())
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        small.sendall(request(0, 0, 150))
        twin = PlainServer(served.ram.contents(), set(), 0)
        with ThreadPoolExecutor(1) as pool:
            for _ in range(3):
                blocked = pool.submit(served.server.serve, theirs.fileno(), served.waker)
                while not served.server.counters.requests:
                    pass
                served.waker.wake()
                assert blocked.result(TIMEOUT) is PageServerStop.WOKEN
                served.waker.clear()
        one = request(0, 7)
        assert served.answers(one, twin.answer(one)) == twin.answer(one)


def test_windows_are_powers_of_two() -> None:
    """And not larger than a word of the bitmap."""
    with ExitStack() as stack:
        served = Served(stack, 0, set())
        for window in (-1, 3, 128):
            with pytest.raises(ValueError, match="no window"):
                PageServer(served.group, prefetch=window)


def test_recover_is_what_the_peer_lacks() -> None:
    """Whatever was taken meanwhile, and only what was wanted at first."""
    with ExitStack() as stack:
        served = Served(stack, 0, {(0, 1), (0, 70), (1, 2)})
        served.group.bitmap.clear()
        received = PageBitmap.of(served.ram.pages)
        received.mark("a", 70)
        assert served.server.recover(received) == 2
        assert served.left() == {(0, 1), (1, 2)}
        with pytest.raises(ValueError, match="other blocks"):
            served.server.recover(PageBitmap(["a"], [150]))
