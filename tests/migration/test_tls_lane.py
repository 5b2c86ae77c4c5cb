"""A lane in use: buffers of all sizes, the end and a cut, a thread that is wanted elsewhere, a peer that stops."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.migration.rig import Group, PipeWaker, both, connected
from tvmm.errors import ProtocolError
from tvmm.kvm.serve import Waker
from tvmm.migration import tls
from tvmm.migration.tls import Endpoint, destination, source
from tvmm.migration.tls_lane import LaneCancelled, TlsLane, Wakeable

MIB = 1 << 20

Pair = Callable[..., tuple[TlsLane, TlsLane]]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[Endpoint, Endpoint]:
    """Source and destination of one CA."""
    group = Group(tmp_path_factory.mktemp("keys"))
    return source(group.alpha), destination(group.join("beta", "127.0.0.1"))


@pytest.fixture
def pair(ends: tuple[Endpoint, Endpoint]) -> Iterator[Pair]:
    """Makes a lane's two ends: the source's has `waker` and a stall limit."""
    made: list[TlsLane] = []

    def make(waker: Wakeable | None = None, stall_seconds: float = 20.0) -> tuple[TlsLane, TlsLane]:
        here, there = connected()
        near, far = both(
            lambda: ends[0].lane(here, "beta", "127.0.0.1", waker=waker, stall_seconds=stall_seconds),
            lambda: ends[1].lane(there, "alpha"),
        )
        made.extend((near, far))
        return near, far

    yield make
    for lane in made:
        lane.close()


@pytest.fixture(params=[PipeWaker, Waker])
def waker(request: pytest.FixtureRequest) -> Iterator[PipeWaker | Waker]:
    """What gets a thread out: the servers' waker, and anything with a descriptor."""
    made = request.param()
    yield made
    made.close()


@pytest.mark.parametrize("size", [1, 100, 16384, 16385, 3 * MIB + 5])
def test_buffers_of_all_sizes(pair: Pair, size: int) -> None:
    """What is sent arrives, in both directions, whatever the records."""
    data = os.urandom(size)
    near, far = pair()
    for sender, receiver in ((near, far), (far, near)):
        buffer = bytearray(size)
        _, error = both(
            lambda sender=sender: sender.send_all(memoryview(data)),  # type: ignore[misc]
            lambda receiver=receiver, buffer=buffer: receiver.recv_exactly(memoryview(buffer)),  # type: ignore[misc]
        )
        assert error is None
        assert buffer == data


def test_what_is_there_is_enough(pair: Pair) -> None:
    """A large buffer does not wait to be full."""
    near, far = pair()
    near.send_all(b"abc")
    buffer = bytearray(MIB)
    assert far.recv_into(memoryview(buffer)) == 3
    assert buffer[:4] == b"abc\0"


def test_other_items_than_bytes(pair: Pair) -> None:
    """A view of words is sent as its bytes."""
    near, far = pair()
    words, buffer = memoryview(bytes(range(16))).cast("Q"), bytearray(16)
    near.send_all(words)
    far.recv_exactly(memoryview(buffer).cast("Q"))
    assert buffer == words.tobytes()


def test_the_end_in_order(pair: Pair) -> None:
    """Whoever has finished is at the end for the other, who may still send."""
    near, far = pair()
    near.send_all(b"abc")
    near.finish()
    buffer = memoryview(bytearray(10))
    assert far.recv_into(buffer) == 3
    assert far.recv_into(buffer) == 0
    with pytest.raises(ProtocolError, match="alpha ended the connection 10 bytes too early"):
        far.recv_exactly(buffer)
    far.finish()


def test_a_cut_is_no_end(pair: Pair) -> None:
    """Somebody on the way who closes the connection is found out."""
    near, far = pair()
    near.send_all(b"abc")
    near.socket.shutdown(socket.SHUT_RDWR)
    buffer = memoryview(bytearray(10))
    assert far.recv_into(buffer) == 3
    with pytest.raises(ProtocolError, match="alpha closed the connection in the middle of TLS"):
        far.recv_into(buffer)


def test_bytes_that_somebody_changed(pair: Pair) -> None:
    """What does not authenticate is not delivered."""
    near, far = pair()
    raw = socket.socket(fileno=os.dup(near.socket.fileno()))
    with raw:
        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    buffer = bytearray(10)
    with pytest.raises(ProtocolError, match="TLS with alpha failed: decryption failed or bad record mac"):
        far.recv_into(memoryview(buffer))
    assert buffer == bytes(10)


def test_a_peer_that_is_gone(pair: Pair) -> None:
    """Sending into a reset connection is the peer's error."""
    near, far = pair()
    near.send_all(b"abc")
    far.close()
    with pytest.raises(ProtocolError, match="beta"):
        near.send_all(memoryview(bytes(64 * MIB)))


def stuck(call: Callable[[], object], waker: PipeWaker | Waker) -> object:
    """What `call`, which waits for a peer that does nothing, comes out with once woken."""
    started = threading.Event()

    def run() -> object:
        started.set()
        return call()

    def wake() -> None:
        started.wait()
        waker.wake()

    return both(run, wake)[0]


def test_a_receiver_is_got_out(pair: Pair, waker: PipeWaker | Waker) -> None:
    """Without a byte from the peer, and again at once when it tries another time."""
    near, _ = pair(waker)
    assert isinstance(stuck(lambda: near.recv_into(memoryview(bytearray(10))), waker), LaneCancelled)
    with pytest.raises(LaneCancelled):
        near.recv_into(memoryview(bytearray(10)))


def test_a_sender_is_got_out(pair: Pair, waker: PipeWaker | Waker) -> None:
    """With all buffers full and a peer that reads nothing."""
    near, _ = pair(waker)
    data = memoryview(bytes(64 * MIB))
    assert isinstance(stuck(lambda: near.send_all(data), waker), LaneCancelled)


def test_a_busy_sender_notices(pair: Pair, waker: PipeWaker | Waker) -> None:
    """Also a thread that never has to wait."""
    near, _ = pair(waker)
    near.send_all(b"abc")
    waker.wake()
    with pytest.raises(LaneCancelled):
        near.send_all(b"abc")


def test_a_handshake_is_got_out_of(ends: tuple[Endpoint, Endpoint], waker: PipeWaker | Waker) -> None:
    """In front of a peer that only connects."""
    here, there = connected()
    with there:
        assert isinstance(stuck(lambda: ends[1].lane(here, "alpha", waker=waker), waker), LaneCancelled)
    assert here.fileno() == -1


def test_the_handshakes_limit_ends_with_it(
    pair: Pair, waker: PipeWaker | Waker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane may be silent for the stall limit, however long ago it was made."""
    near, _ = pair(waker)
    monkeypatch.setattr("tvmm.migration.tls_lane.time.monotonic", lambda: 1e9)
    assert isinstance(stuck(lambda: near.recv_into(memoryview(bytearray(10))), waker), LaneCancelled)


def test_a_peer_that_stops(pair: Pair) -> None:
    """Neither a sender nor a receiver waits longer than the limit."""
    near, _ = pair(stall_seconds=0.02)
    with pytest.raises(ProtocolError, match=r"the connection with beta has stalled for 0\.02 s"):
        near.recv_into(memoryview(bytearray(10)))
    with pytest.raises(ProtocolError, match=r"the connection with beta has stalled for 0\.02 s"):
        near.send_all(memoryview(bytes(64 * MIB)))


def test_a_drop_at_a_time_does_not_stretch_the_handshake(
    ends: tuple[Endpoint, Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is for all of it, and not for each wait."""
    clock = iter(range(100))
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 4.0)
    monkeypatch.setattr("tvmm.migration.tls_lane.time.monotonic", lambda: float(next(clock)))
    here, there = connected()
    with there:
        there.sendall(b"\x16\x03\x01\x01\x00")

        real = select.poll

        class Dripping:
            """poll, with a peer that sends a byte each time."""

            def __init__(self) -> None:
                self._poll = real()
                self.register = self._poll.register

            def poll(self, limit: int) -> object:
                if limit:
                    there.sendall(b"\x01")
                return self._poll.poll(limit)

        monkeypatch.setattr("tvmm.migration.tls_lane.select.poll", Dripping)
        with pytest.raises(ProtocolError, match="the handshake with alpha has stalled"):
            ends[1].lane(here, "alpha")
