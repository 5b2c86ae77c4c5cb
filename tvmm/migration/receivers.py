"""The destination's lanes: pages go from the sockets straight into guest RAM, round by round."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

from tvmm.errors import HostError, ProtocolError
from tvmm.kvm.lanes import LaneReceiver, LaneStop, LaneUnpacker, set_lane_buffers
from tvmm.kvm.pages import RamPages
from tvmm.kvm.serve import Waker
from tvmm.migration.link import LinkLost
from tvmm.migration.senders import BUFFER_BYTES, Lanes, ThreadStream
from tvmm.migration.threads import run_together, yielding

if TYPE_CHECKING:

    import trio

    from tvmm.kvm.lanes import LaneCounters
    from tvmm.kvm.pager import Pager
    from tvmm.memory.ram import GuestRam

__all__ = ["LAST_ROUND", "Decoder", "ReceiverLanes"]

LAST_ROUND = 1 << 63
"""In the number of a round: nothing follows it."""
ROUND_LIMIT = 1 << 32
"""Of rounds, without that bit: a source does not keep the destination going for ever."""


class Decoder(Protocol):
    """Undoes what the source's codec did."""

    def read(self, stream: ThreadStream) -> memoryview:
        """The next piece; empty at the end. Raises `ProtocolError`, and as the stream."""


class Receiver(Protocol):
    """One lane."""

    @property
    def counters(self) -> LaneCounters:
        """So far."""

    def receive_round(self) -> None:
        """On its thread: up to the end of a round. Raises `LinkLost` or `ProtocolError`."""

    def pass_through(self, pager: Pager | None) -> None:
        """Where pages of its blocks go, in place of RAM. Between rounds."""

    @property
    def round(self) -> int:
        """The number of the round that ended last."""

    def close(self) -> None:
        """Close the connection."""


class PlainReceiver:
    """From a socket into guest memory, all in C. A source that pauses between rounds is no stall."""

    def __init__(self, stream: trio.SocketStream, ram: RamPages, waker: Waker) -> None:
        self._stream = stream
        set_lane_buffers(stream.socket)  # type: ignore[arg-type]  # Trio's has the methods of a plain one
        self._receiver = LaneReceiver(stream.socket.fileno(), ram, waker)

    @property
    def counters(self) -> LaneCounters:
        """See `Receiver`."""
        return self._receiver.counters

    @property
    def round(self) -> int:
        """See `Receiver`."""
        return self._receiver.round

    def pass_through(self, pager: Pager | None) -> None:
        """See `Receiver`."""
        self._receiver.pager = pager

    def receive_round(self) -> None:
        """See `Receiver`."""
        try:
            stop = self._receiver.receive()
        except OSError as error:
            raise LinkLost(f"a connection for pages broke: {error.strerror}") from error
        if stop is LaneStop.CLOSED:
            raise LinkLost("the source has closed a connection for pages")

    def close(self) -> None:
        """See `Receiver`."""
        self._stream.socket.close()


class BufferedReceiver:
    """Through a buffer."""

    def __init__(self, stream: ThreadStream, ram: RamPages, decoder: Decoder | None = None) -> None:
        self._stream = stream
        self._decoder = decoder
        self._unpacker = LaneUnpacker(ram)
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._rest = self._buffer[:0]

    @property
    def counters(self) -> LaneCounters:
        """See `Receiver`."""
        return self._unpacker.counters

    @property
    def round(self) -> int:
        """See `Receiver`."""
        return self._unpacker.round

    def pass_through(self, pager: Pager | None) -> None:
        """See `Receiver`."""
        self._unpacker.pager = pager

    def receive_round(self) -> None:
        """See `Receiver`."""
        try:
            while True:
                if not self._rest:
                    self._rest = self._next()
                used = self._unpacker.unpack(self._rest, len(self._rest))
                self._rest = self._rest[used:]
                if self._unpacker.round_ended:
                    return
        except InterruptedError:
            return
        except OSError as error:
            raise LinkLost(f"a connection for pages broke: {error.strerror or error}") from error

    def _next(self) -> memoryview:
        if self._decoder is not None:
            data = self._decoder.read(self._stream)
        else:
            data = self._buffer[: self._stream.recv_into(self._buffer)]
        if not data:
            if not self._unpacker.between_frames:
                raise ProtocolError("a connection for pages ends within a frame")
            raise LinkLost("the source has closed a connection for pages")
        return data

    def close(self) -> None:
        """See `Receiver`."""
        self._stream.close()


class ReceiverLanes(Lanes[Receiver]):
    """Those of a destination."""

    def __init__(self, ram: GuestRam) -> None:
        super().__init__(RamPages(((name, block.view) for name, block in ram.blocks.items()), fresh=True))
        self._last = -1
        self._pager: Pager | None = None

    @property
    def pager(self) -> Pager | None:
        """Through which pages go, in place of straight into RAM. Set between rounds, for lanes to come too."""
        return self._pager

    @pager.setter
    def pager(self, pager: Pager | None) -> None:
        self._pager = pager
        for lane in self.lanes:
            lane.pass_through(pager)

    def add_plain(self, stream: trio.SocketStream) -> None:
        """A lane over `stream`, which is its own from now on."""
        self.lanes.append(PlainReceiver(stream, self.pages, self.waker))
        self.lanes[-1].pass_through(self._pager)

    def add_buffered(self, stream: ThreadStream, decoder: Decoder | None) -> None:
        """A lane through a buffer."""
        self.lanes.append(BufferedReceiver(stream, self.pages, decoder))
        self.lanes[-1].pass_through(self._pager)

    def populate(self) -> None:
        """On a thread: have the host allocate all RAM. If it does not, pages are allocated as they come."""
        with suppress(InterruptedError, HostError):
            self.pages.populate(self.waker)

    async def receive_round(self) -> tuple[int, bool]:
        """Number of the round that is now in place, and whether it was the last one.

        No lane reads on before all are there: a page's newer content never comes in before its older one. Raises
        `LinkLost` or `ProtocolError`.
        """
        calls = [lane.receive_round for lane in self.lanes]
        if self._last < 0:
            # As at the source: other guests of this host want their processors too.
            calls = [partial(yielding, call) for call in calls]
        await run_together(calls, self.waker)
        numbers = {lane.round for lane in self.lanes}
        if len(numbers) != 1:
            raise ProtocolError("the connections for pages are in different rounds")
        (marked,) = numbers
        number = marked & ~LAST_ROUND
        if not self._last < number < ROUND_LIMIT:
            raise ProtocolError(f"round {number} comes behind round {self._last}")
        self._last = number
        return number, marked != number
