"""A socket device's queues and their server in C (vsock.h)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import HostError, UserError
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.serve import CALL_PYTHON, Waker
from tvmm.kvm.vring import Batch

if TYPE_CHECKING:
    from tvmm.kvm.vring import Vring

__all__ = [
    "BUDGET",
    "BUFFER",
    "BUFFER_SMALL",
    "CONNECTIONS",
    "EVENT",
    "HEADER",
    "REPLIES",
    "RX",
    "TURN",
    "TX",
    "VsockCounters",
    "VsockEngine",
]

RX, TX, EVENT = int(lib.TVMM_VSOCK_RX), int(lib.TVMM_VSOCK_TX), int(lib.TVMM_VSOCK_EVENT)
"""Queues, by the device's own numbers."""

HEADER = int(lib.TVMM_VSOCK_HEADER)
"""Bytes in front of each packet."""
CONNECTIONS = int(lib.TVMM_VSOCK_CONNECTIONS)
"""How many there can be at once."""
BUFFER, BUFFER_SMALL = int(lib.TVMM_VSOCK_BUFFER), int(lib.TVMM_VSOCK_BUFFER_SMALL)
"""A guest's credit in a connection in bytes: the large one until `BUDGET` is used up."""
BUDGET = int(lib.TVMM_VSOCK_BUDGET)
REPLIES = int(lib.TVMM_VSOCK_REPLIES)
"""Resets for packets of no connection that may wait for receive buffers."""
TURN = int(lib.TVMM_VSOCK_TURN)
"""Chains of one direction before the other one has its turn."""

RX_CHAINS = 256


class VsockCounters(NamedTuple):
    """What a device did since it was made. Packets and bytes (without headers) are `tx` from the guest, `rx` to it.

    `by_guest` and `by_host`: connections that were asked for. `refused`: the guest's, without a listener on the host;
    `declined`: the host's, that the guest refused; `crowded`: either's, with too many others there. `no_credit`:
    connections reset because the guest sent more than it had credit for. `malformed` packets were dropped, `strays`, of
    no connection, answered by a reset. `buffered`: bytes that waited for a slow reader on the host, `discarded`: those
    that nobody wanted any more, `starved`: how often the host's data waited for the guest's credit. `replies_full`: how
    often the guest was not listened to because it does not take resets.
    """

    rx_packets: int
    rx_bytes: int
    rx_turns: int
    tx_packets: int
    tx_bytes: int
    tx_turns: int
    by_guest: int
    by_host: int
    refused: int
    declined: int
    crowded: int
    ended: int
    no_credit: int
    malformed: int
    strays: int
    resets_sent: int
    resets_received: int
    buffered: int
    discarded: int
    starved: int
    credit_updates: int
    replies_full: int


class VsockEngine:
    """The server of one device. By its thread, but for `set_call`, `counters`, `connections` and the spin counters."""

    def __init__(self, guest_cid: int, path: str, poll_ns: int) -> None:
        """`path` is the host's listening socket: the guest's connections to port N go to ``path_N``.

        `poll_ns`: how long to look for work before sleeping, 0 for not at all. Raises `UserError` for a path that is
        too long, `HostError` without memory or descriptors.
        """
        error = ffi.new("int *")
        raw = lib.tvmm_vsock_new(guest_cid, os.fsencode(path), error)
        if not raw:
            if error[0] == -errno.ENAMETOOLONG:
                raise UserError(f"the path {path} is too long for sockets called {path}_PORT", "use a shorter one")
            reason = os.strerror(-error[0])
            raise HostError(f"a socket device cannot be made: {reason}", "free some memory or descriptors")
        self.waker = Waker()
        self.raw = ffi.gc(raw, lib.tvmm_vsock_free)
        self._batches = Batch(RX_CHAINS), Batch(TURN), Batch(1)
        self._rings: dict[int, Vring] = {}
        self.raw.waker = self.waker.raw
        self.raw.rx_batch, self.raw.tx_batch, self.raw.event_batch = (batch.raw for batch in self._batches)
        self.raw.spin.max_ns = poll_ns
        for index in (RX, TX, EVENT):
            self.raw.queues[index].call_fd = CALL_PYTHON

    def close(self) -> None:
        """All connections, and what the server has of the host. The thread has ended, and nothing is asked any more."""
        ffi.release(self.raw)
        self.raw = None
        self.waker.close()

    def active(self) -> bool:
        """Whether a queue is served."""
        return bool(self._rings)

    @property
    def queue(self) -> int:
        """RX, TX or EVENT: which one the last word of `serve` is about."""
        return int(self.raw.queue)

    @property
    def bad_chain(self) -> bool:
        """What stopped RX was no rule of the ring, but a chain that is no receive buffer."""
        return bool(self.raw.bad_chain)

    @property
    def reset_due(self) -> bool:
        """The guest is still to be told that all connections are gone (5.10.6.7)."""
        return bool(self.raw.reset_due)

    @reset_due.setter
    def reset_due(self, due: bool) -> None:
        self.raw.reset_due = due

    @property
    def stopped(self) -> int:
        """A bit for each queue whose driver broke the rules, and was told."""
        return int(self.raw.stopped)

    @stopped.setter
    def stopped(self, bits: int) -> None:
        self.raw.stopped = bits

    def start(self, index: int, ring: Vring, kick_fd: int, call_fd: int) -> None:
        """Serve a ring that is configured. Raises `HostError` without descriptors or memory."""
        error = lib.tvmm_vsock_start(self.raw, index, ring.raw, kick_fd, call_fd)
        if error:
            raise HostError(f"a queue of a socket device cannot be waited for: {os.strerror(-error)}")
        self._rings[index] = ring

    def stop(self, index: int) -> None:
        """Have nothing in flight in the ring any more, and let go of it."""
        lib.tvmm_vsock_stop(self.raw, index)
        self._rings.pop(index, None)

    def ring(self, index: int) -> Vring | None:
        """The one that is served."""
        return self._rings.get(index)

    def serve(self) -> int:
        """Until Python is needed: a word of `tvmm.kvm.serve`."""
        return int(lib.tvmm_vsock_serve(self.raw, 1))

    def step(self) -> int:
        """As `serve`, but comes back with `SERVE_CONTROL` when there is nothing to do. For tests without a thread."""
        return int(lib.tvmm_vsock_serve(self.raw, 0))

    def drain(self) -> None:
        """Put what is in flight back, as if it had not been taken. Connections stay."""
        lib.tvmm_vsock_drain(self.raw)

    def call(self, fd: int, port: int) -> bool:
        """Connect the guest's `port` with `fd`, which is not blocking and the server's if this is true."""
        return not lib.tvmm_vsock_call(self.raw, fd, port)

    def close_all(self) -> None:
        """End every connection without a word to the guest."""
        lib.tvmm_vsock_close_all(self.raw)

    # -- by any thread -----------------------------------------------------------------------------------------

    def set_call(self, index: int, fd: int) -> None:
        """Where the interrupts of a queue go."""
        lib.tvmm_set_call(ffi.addressof(self.raw.queues, index), fd)

    @property
    def connections(self) -> int:
        """How many there are, those that are about to end included."""
        return int(self.raw.connections)

    @property
    def counters(self) -> VsockCounters:
        """As they are."""
        return VsockCounters(*(int(getattr(self.raw.counters, name)) for name in VsockCounters._fields))

    @property
    def sleeps(self) -> int:
        """How often the thread went to sleep."""
        return int(self.raw.spin.sleeps)
