"""What the pager does with frames: against its twin, in any order on both ways, and with those of a hostile source."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kvm.lane_rig import Ram
from tests.kvm.pager_rig import needs_userfaultfd
from tests.support.plain_lanes import PAGE, PAGES, ROUND_END, ZEROS, Frame, encode
from tests.support.plain_pager import PlainPager
from tvmm.errors import HostError, ProtocolError
from tvmm.kvm.lanes import LaneUnpacker
from tvmm.kvm.pager import NO_CONNECTION, Pager, PagerStop
from tvmm.kvm.pages import PageBitmap, RamPages
from tvmm.kvm.serve import Waker
from tvmm.memory.ram import RamBlock

pytestmark = needs_userfaultfd
SIZES = (("a", 70), ("b", 3))
FILL = b"\xa5" * PAGE


class Destination:
    """Memory in which everything is stale, with a pager for block a."""

    def __init__(self, stack: ExitStack, absent: set[int]) -> None:
        self.ram = Ram(stack, SIZES)
        for block in self.ram.blocks:
            block.view[:] = FILL * (block.size // PAGE)
        self.waker = Waker()
        stack.callback(self.waker.close)
        self.pager = Pager(self.ram.pages, self.ram.blocks[:1])
        stack.callback(self.pager.close)
        self.lane = LaneUnpacker(self.ram.pages)
        self.lane.pager = self.pager
        self.expect(absent)

    def expect(self, absent: set[int]) -> None:
        """These pages of block a."""
        bitmap = PageBitmap.of(self.ram.pages)
        for page in absent:
            bitmap.mark("a", page)
        self.pager.expect(bitmap)

    def push(self, data: bytes, cut: int = 0) -> None:
        """Over a lane, in two pieces."""
        for piece in (data[:cut], data[cut:]):
            assert self.lane.unpack(piece, len(piece)) == len(piece)

    def urgent(self, data: bytes) -> PagerStop:
        """On an urgent connection that has this and ends. Raises `ProtocolError`."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_RDWR)
            return self.pager.serve(ours.fileno(), self.waker)


def frames() -> st.SearchStrategy[Frame]:
    """Good ones for either block."""

    def frame(block: int, pages: set[int], seed: int, zeros: bool) -> Frame:
        numbers = tuple(sorted(page for page in pages if page < SIZES[block][1])) or (0,)
        data = b"" if zeros else random.Random(seed).randbytes(PAGE * len(numbers))
        return Frame(ZEROS if zeros else PAGES, block, numbers, data)

    pages = st.sets(st.integers(0, 69), max_size=70)
    return st.builds(frame, st.sampled_from([0, 0, 0, 1]), pages, st.integers(0, 999), st.booleans())


@settings(max_examples=80, deadline=None)
@given(
    st.sets(st.integers(0, 69)),
    st.lists(st.tuples(frames(), st.booleans(), st.integers(0, 100_000))),
    st.sets(st.integers(0, 69), max_size=20),
)
def test_pages_are_put_there_as_the_twin_does(
    absent: set[int], stream: list[tuple[Frame, bool, int]], again: set[int]
) -> None:
    """Frames on both ways in any order, whatever is absent; then more is expected, and they come once more."""
    with ExitStack() as stack:
        there = Destination(stack, absent)
        twin = PlainPager([bytearray(FILL * count) for _, count in SIZES], {(0, page) for page in absent})
        for _ in range(2):
            for frame, urgent, cut in stream:
                data = encode(frame)
                if frame.block == 1:
                    # Of what is never absent, everything that comes is newer; whoever serves waits for none of it.
                    there.push(data, min(cut, len(data)))
                    for index, page in enumerate(frame.pages):
                        new = frame.data[index * PAGE : (index + 1) * PAGE] or bytes(PAGE)
                        twin.blocks[1][page * PAGE : (page + 1) * PAGE] = new
                    continue
                if urgent and there.pager.remaining:
                    there.urgent(data)
                else:
                    there.push(data, min(cut, len(data)))
                twin.take(frame)
                assert there.pager.remaining == len(twin.absent)
                here = {page for page in range(70) if there.pager.received.test("a", page)}
                assert here == {page for page in range(70) if (0, page) not in twin.absent}
            there.expect(again)
            twin.absent |= {(0, page) for page in again}
            assert there.pager.remaining == len(twin.absent)
        counters = there.pager.counters
        assert counters.faults == counters.requests == 0
        there.pager.release()
        for block, page in twin.absent:
            twin.blocks[block][page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
        assert there.ram.contents() == [bytes(block) for block in twin.blocks]


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (b"\0" * 24, "starts with"),
        (encode(Frame(7)), "no frames of kind 7"),
        (encode(Frame(PAGES, 2, (0,), FILL)), "block 2, of 2"),
        (encode(Frame(PAGES, 0, (70,), FILL)), "page 70 of a block of 70"),
        (encode(Frame(PAGES, 0, (5, 4), FILL * 2)), "page 4 comes behind page 5"),
        (encode(Frame(ROUND_END, number=1)), "no frames of kind 3"),
    ],
)
def test_a_hostile_source_is_refused(bad: bytes, what: str) -> None:
    """What came before is there, nothing of the bad frame is, and another connection works."""
    with ExitStack() as stack:
        there = Destination(stack, set(range(70)))
        good = encode(Frame(PAGES, 0, (1, 2), b"x" * 2 * PAGE))
        with pytest.raises(ProtocolError, match=what):
            there.urgent(good + bad + good)
        assert there.pager.remaining == 68
        assert there.urgent(encode(Frame(ZEROS, 0, (3,)))) is PagerStop.LOST
        assert there.pager.remaining == 67
        # A frame that is cut leaves nothing behind for the next connection.
        assert there.urgent(encode(Frame(PAGES, 0, (4, 5), FILL * 2))[:5000]) is PagerStop.LOST
        assert there.urgent(encode(Frame(ZEROS, 0, (6,)))) is PagerStop.LOST


def test_a_connection_with_the_number_of_the_last_one() -> None:
    """Of the last one, at which all was there before its end, nothing is left."""
    with ExitStack() as stack:
        there = Destination(stack, {1})
        assert there.urgent(encode(Frame(PAGES, 0, tuple(range(40)), FILL * 40))) is PagerStop.COMPLETE
        there.expect({39})
        assert there.urgent(encode(Frame(PAGES, 0, (0,), FILL))) is PagerStop.LOST
        assert there.pager.remaining == 1


def test_what_cannot_be_expected() -> None:
    """Pages of blocks that always are here, and bitmaps of others."""
    with ExitStack() as stack:
        there = Destination(stack, set())
        bitmap = PageBitmap.of(there.ram.pages)
        bitmap.mark("b", 2)
        with pytest.raises(ValueError, match="no page of b"):
            there.pager.expect(bitmap)
        with pytest.raises(ValueError, match="other blocks"):
            there.pager.expect(PageBitmap(["a"], [70]))
        for span in ((-1, 1), (0, 70 * PAGE + 1)):
            with pytest.raises(ValueError, match="bytes from"):
                there.pager.touch("a", *span)
        assert there.pager.serve(NO_CONNECTION, there.waker) is PagerStop.COMPLETE


def test_huge_pages_are_refused() -> None:
    """Of a memfd of huge pages; where there are none, of none."""
    try:
        block = RamBlock("pc.ram", 2 << 20, huge_page=2 << 20)
    except HostError:
        pytest.skip("no huge pages on this host")
    ram = RamPages([("pc.ram", block.view)])
    with pytest.raises(HostError, match="huge pages"):
        Pager(ram, [block])
    ram.close()
    block.close()


def test_before_the_guest_runs_newer_pages_replace_older_ones() -> None:
    """While overwriting, in rounds between two calls of expect; afterwards what is here stays."""
    with ExitStack() as stack:
        there = Destination(stack, {1, 2})
        there.pager.overwriting = True
        there.push(encode(Frame(PAGES, 0, (0, 1), b"n" * 2 * PAGE)) + encode(Frame(ZEROS, 0, (3,))))
        there.push(encode(Frame(PAGES, 0, (1,), b"o" * PAGE)))
        there.pager.overwriting = False
        there.push(encode(Frame(PAGES, 0, (0, 1, 3), b"p" * 3 * PAGE)))
        assert there.pager.remaining == 1
        there.pager.release()
        data = there.ram.contents()[0]
        assert data[: 4 * PAGE] == b"n" * PAGE + b"o" * PAGE + bytes(2 * PAGE)


def test_bitmaps_as_bytes() -> None:
    """Packed and unpacked it is the same; other lengths and strange bits are refused."""
    bitmap = PageBitmap(["a", "b"], [70, 3])
    bitmap.mark("a", 69)
    bitmap.mark("b", 0, 2)
    data = bitmap.pack()
    assert data == bytes([0] * 8 + [1 << 5] + [0] * 7 + [3] + [0] * 7)
    same = PageBitmap.unpack(["a", "b"], [70, 3], data)
    assert same.pack() == data
    assert same.count() == 3
    with pytest.raises(ValueError, match="23 bytes"):
        PageBitmap.unpack(["a", "b"], [70, 3], data[:-1])
    with pytest.raises(ValueError, match="b has not"):
        PageBitmap.unpack(["a", "b"], [70, 3], data[:16] + b"\x08" + bytes(7))
