"""A handshake in a thread: what a peer that stalls can keep, and the connection that comes out of it."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.migration.rig import Group, PipeWaker, both, connected
from tvmm.errors import ProtocolError
from tvmm.kvm.serve import Waker
from tvmm.migration import tls
from tvmm.migration.plain_thread import Wakeable
from tvmm.migration.sealed import KEY_BYTES, SealedStream
from tvmm.migration.tls import Endpoint, destination, source
from tvmm.migration.tls_handshake import TlsHandshake

MIB = 1 << 20

Pair = Callable[..., tuple[SealedStream, SealedStream]]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[Endpoint, Endpoint]:
    """Source and destination of one CA."""
    group = Group(tmp_path_factory.mktemp("keys"))
    return source(group.alpha), destination(group.join("beta", "127.0.0.1"))


@pytest.fixture
def pair(ends: tuple[Endpoint, Endpoint]) -> Iterator[Pair]:
    """Makes a lane's two ends, each with its waker."""
    made: list[SealedStream] = []

    def make(near: Wakeable | None = None, far: Wakeable | None = None) -> tuple[SealedStream, SealedStream]:
        here, there = connected()
        lanes = both(
            lambda: ends[0].lane(here, "beta", "127.0.0.1", waker=near),
            lambda: ends[1].lane(there, "alpha", waker=far),
        )
        made.extend(lane.stream for lane in lanes)
        return made[-2], made[-1]

    yield make
    for stream in made:
        stream.close()


@pytest.fixture(params=[PipeWaker, Waker])
def waker(request: pytest.FixtureRequest) -> Iterator[PipeWaker | Waker]:
    """What gets a thread out: the servers' waker, and anything with a descriptor."""
    made = request.param()
    yield made
    made.close()


def receive(stream: SealedStream, size: int) -> bytes:
    """Exactly that much."""
    data, done = memoryview(bytearray(size)), 0
    while done < size:
        got = stream.recv_into(data[done:])
        assert got
        done += got
    return bytes(data)


@pytest.mark.parametrize("size", [1, 16385, 3 * MIB + 5])
def test_pages_follow_the_handshake(pair: Pair, size: int) -> None:
    """Over real sockets, with a key that both ends have."""
    data = os.urandom(size)
    near, far = pair()
    _, got = both(lambda: near.send_all(memoryview(data)), lambda: receive(far, size))
    assert got == data


def test_each_connection_has_its_own_key(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is what makes counted nonces safe."""
    keys: list[bytes] = []
    real = os.urandom

    def remembered(count: int) -> bytes:
        keys.append(real(count))
        return keys[-1]

    monkeypatch.setattr("tvmm.migration.tls.os.urandom", remembered)
    for _ in range(3):
        pair()
    assert [len(key) for key in keys] == [KEY_BYTES] * 3
    assert len(set(keys)) == 3


@pytest.mark.parametrize("given", [b"", b"k" * (KEY_BYTES - 1)])
def test_a_source_that_gives_no_key(
    given: bytes, ends: tuple[Endpoint, Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has shaken hands and goes away, or stops in the middle of the key."""

    def give(self: Endpoint, handshake: TlsHandshake, side: object) -> bytes:
        handshake.receive(1)
        if given:
            handshake.send(given)
        handshake.socket.shutdown(socket.SHUT_RDWR)
        raise ssl.SSLEOFError

    monkeypatch.setattr(Endpoint, "_give_key", give)
    here, there = connected()
    _, error = both(lambda: ends[0].lane(here, "beta", "127.0.0.1"), lambda: ends[1].lane(there, "alpha"))
    assert isinstance(error, ProtocolError)
    assert "alpha closed the connection in the middle of TLS" in str(error)


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
    _, far = pair(None, waker)
    buffer = memoryview(bytearray(10))
    assert isinstance(stuck(lambda: far.recv_into(buffer), waker), InterruptedError)
    with pytest.raises(InterruptedError):
        far.recv_into(buffer)


def test_a_sender_is_got_out(pair: Pair, waker: PipeWaker | Waker) -> None:
    """With all buffers full and a peer that reads nothing, and also if it never has to wait."""
    near, _ = pair(waker)
    data = memoryview(bytes(64 * MIB))
    assert isinstance(stuck(lambda: near.send_all(data), waker), InterruptedError)
    with pytest.raises(InterruptedError):
        near.send_all(memoryview(b"abc"))


def test_a_handshake_is_got_out_of(ends: tuple[Endpoint, Endpoint], waker: PipeWaker | Waker) -> None:
    """In front of a peer that only connects."""
    here, there = connected()
    with there:
        assert isinstance(stuck(lambda: ends[1].lane(here, "alpha", waker=waker), waker), InterruptedError)
    assert here.fileno() == -1


def test_a_drop_at_a_time_does_not_stretch_the_handshake(
    ends: tuple[Endpoint, Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is for all of it, and not for each wait."""
    clock = iter(range(100))
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 4.0)
    monkeypatch.setattr("tvmm.migration.tls_handshake.time.monotonic", lambda: float(next(clock)))
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

        monkeypatch.setattr("tvmm.migration.tls_handshake.select.poll", Dripping)
        with pytest.raises(ProtocolError, match="the handshake with alpha has stalled for 4 s"):
            ends[1].lane(here, "alpha")
