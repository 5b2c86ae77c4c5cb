"""One writer, any number of followers, each at its own pace.

The guest's output goes into a `Feed`. A follower is a position in its history. One that *holds* makes the
writer wait until it has taken everything, which is how a slow terminal slows the guest; one that does not
hold loses the oldest bytes when it falls behind and is told how many. Holding is a property of the follower
that may change at any time: a terminal lets go while its user is at the control prompt, a pty while nobody
has it open, a server hands it to the next viewer when the first one leaves.

A queue per follower was rejected: it needs a bound and a policy of its own for each, and copies every byte
once more. Here the history is the queue of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tvmm.chardev.history import HISTORY_BYTES, History, Piece

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Feed", "Follower"]


class Feed:
    """The history of one port and those who read it. One task writes; followers belong to any task."""

    def __init__(self, capacity: int = HISTORY_BYTES) -> None:
        self.history = History(capacity)
        self.finished = trio.Event()
        """Set once no more bytes will come."""
        self.held = False
        """Whether there is a follower that holds."""
        self.on_held: Callable[[bool], None] = lambda held: None
        """Told when `held` has changed."""
        self._followers: list[Follower] = []
        self._news = trio.lowlevel.ParkingLot()
        self._progress = trio.lowlevel.ParkingLot()

    def follow(self, *, holding: bool, start: int | None = None) -> Follower:
        """A follower that begins at position `start`; use it in a `with` block, which ends it.

        Without `start` it begins at the oldest byte that is kept. Positions that are no longer kept count as
        missed. Raises `ValueError` for one that has not come yet.
        """
        position = self.history.start if start is None else start
        if not 0 <= position <= self.history.end:
            raise ValueError(f"position {position} is not within 0..{self.history.end}")
        return Follower(self, holding, position)

    async def put(self, data: bytes) -> None:
        """Append `data` and wait until each holding follower has taken it; with none, return at once.

        Nothing that a holding follower has yet to take is ever dropped, however small the history is.
        """
        capacity = self.history.capacity
        for start in range(0, len(data), capacity):
            chunk = data[start : start + capacity]
            while self._slowest() + capacity < self.history.end + len(chunk):
                await self._progress.park()
            self.history.append(chunk)
            self._news.unpark_all()
        while self._slowest() < self.history.end:
            await self._progress.park()

    def finish(self) -> None:
        """No more bytes will come: followers take what is left, and then get None."""
        self.finished.set()
        self._news.unpark_all()

    def _followers_changed(self) -> None:
        """Who follows or who holds has changed."""
        self._progress.unpark_all()
        held = any(each.holding for each in self._followers)
        if held != self.held:
            self.held = held
            self.on_held(held)

    def _slowest(self) -> int:
        """Position of the holding follower that is furthest behind; the end if none holds."""
        return min((each.position for each in self._followers if each.holding), default=self.history.end)


class Follower:
    """One reader of a feed. `position` is that of the next byte it will take."""

    def __init__(self, feed: Feed, holding: bool, position: int) -> None:
        self.position = position
        self._feed = feed
        self._holding = holding
        self._paused = False

    def __enter__(self) -> Follower:
        self._feed._followers.append(self)
        self._feed._followers_changed()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._feed._followers.remove(self)
        self._feed._followers_changed()

    @property
    def holding(self) -> bool:
        """Whether the writer waits for this follower. Never while it is paused."""
        return self._holding and not self._paused

    @holding.setter
    def holding(self, value: bool) -> None:
        self._holding = value
        self._wake()

    @property
    def paused(self) -> bool:
        """While paused, `wait` waits and the writer does not; the end of the feed overrides it."""
        return self._paused

    @paused.setter
    def paused(self, value: bool) -> None:
        self._paused = value
        self._wake()

    def _wake(self) -> None:
        self._feed._followers_changed()
        self._feed._news.unpark_all()

    async def wait(self, limit: int = HISTORY_BYTES) -> Piece | None:
        """Wait for bytes behind `position` and return up to `limit` of them, or None at the feed's end.

        The position does not move: call `took` for what was really passed on. Always a checkpoint.
        """
        feed = self._feed
        if self.position == feed.history.end or self._paused:
            while not feed.finished.is_set() and (self._paused or self.position == feed.history.end):
                await feed._news.park()
        else:
            await trio.lowlevel.checkpoint()
        if self.position == feed.history.end:
            return None
        return feed.history.read(self.position, limit)

    def took(self, piece: Piece, count: int | None = None) -> None:
        """The first `count` bytes of `piece` (all, if not given) were passed on."""
        self.position = piece.position + (len(piece.data) if count is None else count)
        self._feed._progress.unpark_all()
