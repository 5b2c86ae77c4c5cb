"""One pair of a network device's queues, and its server in C (net.h)."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.histogram import read_times
from tvmm.kvm.serve import CALL_PYTHON, Waker
from tvmm.kvm.vring import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tvmm.kvm.limit import Limiter
    from tvmm.kvm.vring import Vring
    from tvmm.metrics.histogram import Times

__all__ = [
    "CONTROL",
    "FRAME_MAX",
    "FRAME_MIN",
    "RX",
    "STREAM_FRAME_MAX",
    "TURN",
    "TX",
    "NetCounters",
    "NetPair",
    "PairFilter",
    "SpinCounters",
]

RX, TX, CONTROL = int(lib.TVMM_NET_RX), int(lib.TVMM_NET_TX), int(lib.TVMM_NET_CONTROL)
"""Queues of a server, by its own numbers."""

FRAME_MAX, FRAME_MIN = int(lib.TVMM_NET_FRAME_MAX), int(lib.TVMM_NET_FRAME_MIN)
"""Bytes, with the header of 12; what a driver sends outside of these bounds is dropped."""

STREAM_FRAME_MAX = int(lib.NET_STREAM_FRAME_MAX)
"""Bytes of a frame over a stream socket; a peer that sends more is given up."""

TURN = int(lib.TVMM_NET_TURN)
"""Frames of one direction before the other one has its turn."""

RX_CHAINS = 256
ADDRESS_LENGTH = 6


class NetCounters(NamedTuple):
    """What a pair did since it was made. Bytes do not count headers.

    Received frames: `rx_filtered` were not for this guest, `rx_no_room` fit no buffer, `rx_link_down` came with the
    cable out, `rx_stale` before there was a driver, `rx_held` waited for buffers. Sent frames: `tx_too_short` or
    `tx_too_long` to be one, `tx_refused` by the TAP, `tx_link_down` with the cable out or the TAP gone; `tx_waits`:
    how often the TAP was full. A turn is one batch.
    """

    rx_frames: int
    rx_bytes: int
    rx_turns: int
    rx_filtered: int
    rx_no_room: int
    rx_link_down: int
    rx_errors: int
    rx_stale: int
    rx_held: int
    tx_frames: int
    tx_bytes: int
    tx_turns: int
    tx_too_short: int
    tx_too_long: int
    tx_refused: int
    tx_link_down: int
    tx_waits: int


class SpinCounters(NamedTuple):
    """Waits for work that looking ended, and sleeps."""

    hits: int
    sleeps: int


class PairFilter:
    """A receive filter in C. `modes` as in `FilterState`; tables are addresses one after the other."""

    def __init__(
        self, own: bytes, modes: int, unicast: bytes = b"", multicast: bytes = b"", *, any_unicast: bool = False,
        any_multicast: bool = False,
    ) -> None:  # fmt: skip
        self.raw = ffi.new("struct tvmm_net_filter *")
        self.raw.modes, self.raw.any_unicast, self.raw.any_multicast = modes, any_unicast, any_multicast
        self.raw.own = own
        for name, table in (("unicast", unicast), ("multicast", multicast)):
            room = ffi.buffer(getattr(self.raw, name))
            room[: len(table)] = table
            setattr(self.raw, f"{name}_count", len(table) // ADDRESS_LENGTH)

    def passes(self, destination: bytes) -> bool:
        """Whether a frame to these six bytes is for the guest."""
        return bool(lib.tvmm_net_passes(self.raw, destination))


class NetPair:
    """A pair's queues between a TAP's descriptor `fd` and rings, not connected at first, with the cable in.

    By the server's thread, but for `set_link`, `set_call`, `set_filter`, `set_limit`, `inject`, `attachment`,
    `counters`.
    """

    def __init__(self, fd: int, poll_ns: int, *, stream: bool = False) -> None:
        """`poll_ns`: how long to look for work before sleeping, 0 for not at all.

        `stream`: `fd` is a stream socket, with each frame behind its length (see net_stream.h).
        """
        raw = lib.tvmm_net_new(fd)
        if raw:
            self.raw = ffi.gc(raw, lib.tvmm_net_free)
        if not raw or (stream and not lib.tvmm_net_make_stream(raw)):
            raise HostError("the host has no memory for a network device", "free some and start again")
        self._is_stream = stream
        self.waker = Waker()
        self._batches = Batch(RX_CHAINS), Batch(TURN)
        self._rings: dict[int, Vring] = {}
        self.raw.waker = self.waker.raw
        self.raw.rx_batch, self.raw.tx_batch = (batch.raw for batch in self._batches)
        self.raw.spin.max_ns = self.raw.hunger.max_ns = poll_ns
        for local in (RX, TX, CONTROL):
            self.raw.queues[local].call_fd = CALL_PYTHON
        self.set_link(True)

    def close(self) -> None:
        """The thread has ended."""
        self.waker.close()

    @property
    def queue(self) -> int:
        """RX, TX or CONTROL: which one the last word of `serve` is about."""
        return int(self.raw.queue)

    @property
    def bad_chain(self) -> bool:
        """What stopped RX was no rule of the ring, but a chain that is no receive buffer."""
        return bool(self.raw.bad_chain)

    @property
    def attached(self) -> bool:
        """Whether frames may move."""
        return bool(self.raw.attached)

    @property
    def failure(self) -> str:
        """Why the TAP, or the peer, cannot be used any more; empty if it can."""
        failure = self.raw.failure
        if self._is_stream and failure == errno.EMSGSIZE:
            return f"the peer sent a frame of {self.raw.bad_length} bytes, {STREAM_FRAME_MAX} are possible"
        if self._is_stream and failure in (errno.EPIPE, errno.ECONNRESET):
            return "the peer closed the connection"
        return os.strerror(failure) if failure else ""

    def active(self) -> bool:
        """Whether a queue is served."""
        return bool(self._rings)

    def start(self, local: int, ring: Vring, kick_fd: int, call_fd: int) -> None:
        """Serve a ring that is configured."""
        self._rings[local] = ring
        lib.tvmm_net_start(self.raw, local, ring.raw, kick_fd, call_fd)

    def stop(self, local: int) -> None:
        """Have nothing in flight in the ring any more, and let go of it."""
        lib.tvmm_net_stop(self.raw, local)
        self._rings.pop(local, None)

    def ring(self, local: int) -> Vring | None:
        """The one that is served."""
        return self._rings.get(local)

    def set_mergeable(self, on: bool) -> None:
        """Whether a received frame may take several buffers; before `start`."""
        self.raw.mergeable = on

    def serve(self) -> int:
        """Until Python is needed: a word of `tvmm.kvm.serve`."""
        return int(lib.tvmm_net_serve(self.raw))

    def drain(self) -> None:
        """Put what is in flight back, as if it had not been taken."""
        lib.tvmm_net_drain(self.raw)

    def flush(self) -> None:
        """Throw away what the TAP has for a driver that was not there."""
        lib.tvmm_net_flush(self.raw)

    def connect(self, fd: int) -> None:
        """Of a stream: go on with a new connection."""
        lib.tvmm_net_connect(self.raw, fd)

    def call(self, local: int) -> bool:
        """After a push by Python: tell the driver, if it wants to know. True: the caller has to."""
        return bool(lib.tvmm_served_call(ffi.addressof(self.raw.queues, local)))

    # -- by any thread -----------------------------------------------------------------------------------------

    def set_link(self, up: bool) -> None:
        """Without a link frames are lost, in both directions."""
        lib.tvmm_net_set_link(self.raw, up)

    def inject(self, frame: bytes) -> bool:
        """Send a frame, without header, that is not the driver's. False if it is lost."""
        return bool(lib.tvmm_net_inject(self.raw, frame, len(frame)))

    def set_call(self, local: int, fd: int) -> None:
        """Where a queue's interrupts go."""
        lib.tvmm_set_call(ffi.addressof(self.raw.queues, local), fd)

    def set_limit(self, limiter: Limiter, *, on: bool) -> None:
        """Whether frames keep to it, from now on; the same one each time."""
        self._limiter = limiter
        lib.tvmm_net_set_limit(self.raw, limiter.raw, on)
        self.waker.wake()

    def set_filter(self, pair_filter: PairFilter) -> None:
        """From the next frame on."""
        with self._paused():
            self.raw.filter = pair_filter.raw[0]

    @contextmanager
    def attachment(self, attached: bool) -> Iterator[None]:
        """In this block no frame moves; after it frames move, or do not. If the block raises, nothing has changed."""
        with self._paused():
            yield
            self.raw.attached = attached
        self.waker.wake()

    @contextmanager
    def _paused(self) -> Iterator[None]:
        # Woken first: a busy server takes the lock again right after it gave it back.
        self.waker.wake()
        lib.tvmm_net_lock(self.raw)
        try:
            yield
        finally:
            lib.tvmm_net_unlock(self.raw)

    @property
    def counters(self) -> NetCounters:
        """As they are."""
        return NetCounters(*self._read(self.raw.counters, NetCounters._fields))

    @property
    def turns(self) -> tuple[Times, Times]:
        """How long turns took that moved frames: those of RX, and of TX."""
        return read_times(self.raw.turns[RX]), read_times(self.raw.turns[TX])

    @property
    def spin(self) -> SpinCounters:
        """How waits went."""
        return SpinCounters(*self._read(self.raw.spin, SpinCounters._fields))

    @staticmethod
    def _read(record: Any, fields: tuple[str, ...]) -> Iterator[int]:
        return (int(getattr(record, field)) for field in fields)
