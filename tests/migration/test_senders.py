"""A lane that goes through a buffer, under a bandwidth limit."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator

import pytest

from tvmm.kvm.lanes import LaneGroup
from tvmm.kvm.pages import PAGE, PageBitmap, RamPages
from tvmm.kvm.serve import Waker
from tvmm.migration.senders import BufferedSender


class Stream:
    """A `ThreadStream` that keeps what is sent, and how often the group had been asked by then."""

    def __init__(self, group: Group) -> None:
        self.sent: list[tuple[int, int]] = []
        self._group = group

    def send_all(self, data: memoryview) -> None:
        """See `ThreadStream`."""
        self.sent.append((len(data), len(self._group.asked)))

    def recv_into(self, buffer: memoryview) -> int:
        """See `ThreadStream`."""
        return 0

    def close(self) -> None:
        """See `ThreadStream`."""


class Group(LaneGroup):
    """Its limit lets bytes go when they are asked for the third time, or never."""

    never = False

    def __init__(self, pages: RamPages, bitmap: PageBitmap) -> None:
        super().__init__(pages, bitmap, skip_unchanged=False)
        self.asked: list[int] = []
        self.on_asked: Callable[[], object] = lambda: None

    def delay(self, count: int) -> float:
        """See `LaneGroup`."""
        self.asked.append(count)
        self.on_asked()
        return 0.0 if len(self.asked) == 3 and not self.never else 1e-6


@pytest.fixture
def group() -> Iterator[Group]:
    """For three pages, all of them to be sent."""
    memory = mmap.mmap(-1, 3 * PAGE)
    memory.write(b"x" * 3 * PAGE)
    pages = RamPages([("pc.ram", memoryview(memory))])
    bitmap = PageBitmap.of(pages)
    bitmap.fill()
    yield Group(pages, bitmap)
    pages.close()


@pytest.fixture
def waker() -> Iterator[Waker]:
    """Of the lane."""
    made = Waker()
    yield made
    made.close()


def test_a_piece_waits_until_the_limit_has_accounted_for_it(group: Group, waker: Waker) -> None:
    """It is asked for again after each wait, and sent once it may."""
    stream = Stream(group)
    group.begin_round()
    BufferedSender(stream, group, waker).send_round(1)
    ((length, asked),) = stream.sent
    assert length > 3 * PAGE
    assert asked == 3
    assert group.asked == [length] * 3


def test_a_lane_that_waits_for_its_turn_can_be_woken(group: Group, waker: Waker) -> None:
    """Nothing is sent then."""
    stream = Stream(group)
    group.never = True
    group.on_asked = waker.wake
    group.begin_round()
    BufferedSender(stream, group, waker).send_round(1)
    assert stream.sent == []
    assert len(group.asked) == 1
