"""The source's lanes: connections that share the pages of a round, each with a thread."""

from __future__ import annotations

import select
from functools import partial
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, Self, TypeVar

import trio

from tvmm.kvm.lanes import LaneCounters, LaneGroup, LanePacker, LaneSender, LaneStop, set_lane_buffers
from tvmm.kvm.pages import PAGE, PageBitmap, RamPages
from tvmm.kvm.serve import Waker
from tvmm.migration.link import LinkLost
from tvmm.migration.threads import run_together, yielding

if TYPE_CHECKING:
    from types import TracebackType

    from tvmm.memory.ram import GuestRam

__all__ = ["BUFFER_BYTES", "STALL_MS", "Codec", "Sender", "SenderLanes", "ThreadStream"]

STALL_MS = 10_000
"""How long a lane may move nothing while it has something to move."""
AT_ONCE_PAGES, AT_ONCE_MS = 512, 5
"""As much as the event loop sends by itself, and for how long it lets the socket be full: two buffers' worth."""
BUFFER_BYTES = 1 << 20
"""One packed piece where bytes go through Python. Smaller ones, which stay in a processor's cache, cost as much."""
TURN_SECONDS = 0.1
"""Between two looks at the bandwidth that is allowed."""


class ThreadStream(Protocol):
    """A connection that is used by one thread and not by Trio, such as one with TLS."""

    def send_all(self, data: memoryview) -> None:
        """Raises `OSError` when it broke, `TimeoutError` after a stall, `InterruptedError` when it was woken."""

    def recv_into(self, buffer: memoryview) -> int:
        """How many bytes came, 0 at the end. Raises as `send_all`."""

    def close(self) -> None:
        """At once."""


class Codec(Protocol):
    """Makes pieces smaller."""

    def pack(self, data: memoryview) -> memoryview:
        """What goes over the wire for `data`."""


class Sender(Protocol):
    """One lane."""

    @property
    def counters(self) -> LaneCounters:
        """So far."""

    def send_round(self, number: int) -> None:
        """On its thread: this lane's share of a round. Raises `LinkLost`."""

    def send_at_once(self, number: int) -> bool:
        """As `send_round`, on the event loop's thread: False if that would wait; `send_round` then goes on with it."""

    def close(self) -> None:
        """Close the connection."""


class PlainSender:
    """From guest memory into a socket, all in C."""

    def __init__(self, stream: trio.SocketStream, group: LaneGroup, waker: Waker) -> None:
        self._stream = stream
        set_lane_buffers(stream.socket)  # type: ignore[arg-type]  # Trio's has the methods of a plain one
        self._sender = LaneSender(stream.socket.fileno(), group, waker)

    @property
    def counters(self) -> LaneCounters:
        """See `Sender`."""
        return self._sender.counters

    def send_at_once(self, number: int) -> bool:
        """See `Sender`."""
        try:
            return self._sender.send_round(number, AT_ONCE_MS) is LaneStop.ROUND_END
        except OSError as error:
            raise LinkLost(f"a connection for pages broke: {error.strerror}") from error

    def send_round(self, number: int) -> None:
        """See `Sender`."""
        try:
            stop = self._sender.send_round(number, STALL_MS)
        except OSError as error:
            raise LinkLost(f"a connection for pages broke: {error.strerror}") from error
        if stop is LaneStop.STALLED:
            raise LinkLost(f"the destination has taken no pages for {STALL_MS // 1000} s")

    def close(self) -> None:
        """See `Sender`."""
        self._stream.socket.close()


class BufferedSender:
    """Through a buffer, for bytes that are encrypted or made smaller on the way."""

    def __init__(self, stream: ThreadStream, group: LaneGroup, waker: Waker, codec: Codec | None = None) -> None:
        self._stream = stream
        self._group = group
        self._woken = select.poll()
        self._woken.register(waker, select.POLLIN)
        self._codec = codec
        self._packer = LanePacker(group)
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._sent = 0

    @property
    def counters(self) -> LaneCounters:
        """See `Sender`; `bytes` are those of the wire."""
        return self._packer.counters._replace(bytes=self._sent)

    def send_at_once(self, number: int) -> bool:
        """See `Sender`. Never: what encrypts or compresses may wait anywhere."""
        return False

    def send_round(self, number: int) -> None:
        """See `Sender`."""
        try:
            while True:
                length = self._packer.pack(self._buffer, number)
                ended = self._packer.round_ended
                data = self._buffer[:length]
                if self._codec is not None:
                    data = self._codec.pack(data)
                self._await_turn(len(data))
                self._stream.send_all(data)
                self._sent += len(data)
                if ended:
                    return
        except TimeoutError:
            raise LinkLost(f"the destination has taken no pages for {STALL_MS // 1000} s") from None
        except InterruptedError:
            return
        except OSError as error:
            raise LinkLost(f"a connection for pages broke: {error.strerror or error}") from error

    def _await_turn(self, count: int) -> None:
        """Until the bandwidth limit lets that many bytes go, which may change meanwhile."""
        while (wait := self._group.delay(count)) > 0:
            if self._woken.poll(min(wait, TURN_SECONDS) * 1000):
                raise InterruptedError

    def close(self) -> None:
        """See `Sender`."""
        self._stream.close()


class RoundResult(NamedTuple):
    """What one round was."""

    pages: int
    bytes: int


class Lane(Protocol):
    """One connection for pages, of either side."""

    @property
    def counters(self) -> LaneCounters:
        """So far."""

    def close(self) -> None:
        """Close the connection."""


L = TypeVar("L", bound=Lane)


class Lanes(Generic[L]):
    """All lanes of one side, over `pages`, and what gets their threads out. A context manager."""

    def __init__(self, pages: RamPages) -> None:
        self.pages = pages
        self.waker = Waker()
        self.lanes: list[L] = []
        self.dropped = LaneCounters(0, 0, 0, 0, 0)
        """What lanes had moved that are gone."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """No lane may be in a round."""
        for lane in self.lanes:
            lane.close()
        self.waker.close()
        self.pages.close()

    def drop(self) -> None:
        """Close all lanes; others may be added. No lane may be in a round."""
        for lane in self.lanes:
            lane.close()
            pairs = zip(self.dropped, lane.counters, strict=True)
            self.dropped = LaneCounters(*(before + more for before, more in pairs))
        self.lanes.clear()
        self.waker.clear()

    @property
    def bytes_moved(self) -> int:
        """By all lanes, so far."""
        return self.dropped.bytes + sum(lane.counters.bytes for lane in self.lanes)


class SenderLanes(Lanes[Sender]):
    """Those of a source, with the bitmap that they take pages from."""

    def __init__(self, ram: GuestRam, bandwidth: int) -> None:
        files = {name: block.fd for name, block in ram.blocks.items()}
        super().__init__(RamPages(((name, block.view) for name, block in ram.blocks.items()), files=files))
        self.bitmap = PageBitmap.of(self.pages)
        self.group = LaneGroup(self.pages, self.bitmap, skip_unchanged=True)
        self.group.bandwidth = bandwidth
        self.spared = 0
        """Pages that were not sent because the guest does not use them."""

    def add_plain(self, stream: trio.SocketStream) -> None:
        """A lane over `stream`, which is its own from now on."""
        self.lanes.append(PlainSender(stream, self.group, self.waker))

    def add_buffered(self, stream: ThreadStream, codec: Codec | None) -> None:
        """A lane through a buffer."""
        self.lanes.append(BufferedSender(stream, self.group, self.waker, codec))

    @property
    def page_size(self) -> int:
        """In bytes."""
        return PAGE

    async def send_round(self, number: int) -> RoundResult:
        """Every page that is marked, once. Raises `LinkLost`. Cancelled, it is over within milliseconds.

        Little is sent at once, on this thread: a change of threads takes longer. The first pass leaves the processors
        to the guest; later ones have to be faster than it writes.
        """
        before = self._totals()
        self.group.begin_round()
        lanes = self.lanes
        # A limit of bandwidth is kept by waiting, which is not for the event loop.
        if not self.group.bandwidth and self.bitmap.count() <= AT_ONCE_PAGES:
            await trio.lowlevel.checkpoint()
            lanes = [lane for lane in lanes if not lane.send_at_once(number)]
        if lanes:
            calls = [partial(lane.send_round, number) for lane in lanes]
            if not number:
                calls = [partial(yielding, call) for call in calls]
            await run_together(calls, self.waker)
        after = self._totals()
        return RoundResult(after.pages - before.pages, after.bytes - before.bytes)

    def _totals(self) -> RoundResult:
        pages = sent = 0
        for lane in self.lanes:
            counted = lane.counters
            pages += counted.normal + counted.zero + counted.unchanged
            sent += counted.bytes
        return RoundResult(pages, sent)
