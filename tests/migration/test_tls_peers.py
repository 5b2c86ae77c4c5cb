"""Peers that do not take part in a handshake, ends that know each other by a code, and streams in use."""

from __future__ import annotations

import datetime
import socket
import ssl

import pytest
import trio

from tests.migration.handshakes import Met, is_in, refused
from tests.migration.rig import Group, both, connected
from tvmm.errors import ProtocolError, UserError
from tvmm.migration import authority, tls
from tvmm.migration.pairing import CODE_SECONDS, TRIES, Gate, Refusal, Refused, credentials, new_secret
from tvmm.migration.tls import Endpoint, destination, paired_destination, paired_source, source


def answer(end: socket.socket, data: bytes, *, stay: bool = False) -> None:
    """Send `data`, wait for the other end's first bytes and go away, or wait until the other end does."""
    with end:
        end.sendall(data)
        try:
            while end.recv(65536) and stay:
                pass
        except OSError:
            return


@pytest.mark.parametrize("data", [b"TVMM migration\n" * 4, b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(100)])
@pytest.mark.parametrize("is_server", [False, True])
def test_a_plain_peer(group: Group, data: bytes, is_server: bool) -> None:
    """Either end says that the other one speaks no TLS."""
    here, there = connected()
    end = destination(group.alpha) if is_server else source(group.alpha)
    _, error = both(lambda: answer(there, data), lambda: end.lane(here, "beta", "alpha"))
    assert isinstance(error, ProtocolError if is_server else UserError)
    assert "beta does not speak TLS" in str(error)

    here, there = connected()

    async def secure() -> None:
        await end.secure(trio.SocketStream(trio.socket.from_stdlib_socket(here)), "beta", "alpha")

    _, error = both(lambda: answer(there, data), lambda: trio.run(secure))
    assert "beta does not speak TLS" in str(error)


@pytest.mark.parametrize("is_server", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, 6, 60])
def test_a_handshake_that_is_cut_off(group: Group, count: int, is_server: bool) -> None:
    """After any number of bytes: the peer has closed the connection."""
    first = client_hello(group) if is_server else server_hello(group)
    assert len(first) > count
    end = destination(group.alpha) if is_server else source(group.alpha)
    here, there = connected()

    def cut() -> None:
        there.sendall(first[:count])
        there.shutdown(socket.SHUT_WR)

    _, error = both(cut, lambda: end.lane(here, "beta", "alpha"))
    there.close()
    assert isinstance(error, ProtocolError)
    assert "beta closed the connection in the middle of TLS" in str(error)


def client_hello(group: Group) -> bytes:
    """What a client says first."""
    outgoing = ssl.MemoryBIO()
    client = tls.client_context(group.alpha).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="alpha")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def server_hello(group: Group) -> bytes:
    """What a server answers, to another client: whoever gets it cannot go on either."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(client_hello(group))
    server = tls.server_context(group.alpha).wrap_bio(incoming, outgoing, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    return outgoing.read()


def test_a_silent_peer(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who only connects keeps a thread or a task for the handshake's time limit."""
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.05)
    here, there = connected()
    with there, pytest.raises(ProtocolError, match="the handshake with alpha has stalled"):
        destination(group.alpha).lane(here, "alpha")
    here, there = connected()

    async def secure() -> None:
        await destination(group.alpha).secure(trio.SocketStream(trio.socket.from_stdlib_socket(here)), "alpha")

    with there, pytest.raises(ProtocolError, match=r"the handshake with alpha has stalled for 0\.05 s"):
        trio.run(secure)


def test_a_destination_that_says_nothing_sensible(group: Group, met: Met) -> None:
    """A number that is no reason is the destination's error."""

    class Odd(Endpoint):
        def _admit(self, certificate: bytes) -> None:
            refusal = Refused(Refusal.USED)
            refusal.reason = 200  # type: ignore[assignment]
            raise refusal

    error, _ = met(source(group.alpha), Odd(tls.server_context(group.alpha), server=True))
    assert isinstance(error, ProtocolError)
    assert "beta answers with 200" in str(error)


def test_a_client_must_say_where_it_connected_to(group: Group) -> None:
    """Without a name nothing would be checked."""
    here, there = connected()
    with here, there, pytest.raises(ValueError, match="which host it connected to"):
        source(group.alpha).lane(here, "beta")


def test_a_stream_in_use(group: Group) -> None:
    """Bytes go both ways, an end in order is no data, and a cut is told in a sentence."""
    near, far = source(group.alpha), destination(group.alpha)
    here, there = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in connected())

    async def main() -> None:
        streams: list[trio.SSLStream[trio.abc.Stream]] = []

        async def secure(end: Endpoint, transport: trio.SocketStream) -> None:
            streams.append(await end.secure(transport, "beta", "alpha"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(secure, near, here)
            nursery.start_soon(secure, far, there)
        first, second = streams
        await first.send_all(b"abc")
        assert await second.receive_some() == b"abc"
        await second.send_all(b"def")
        assert await first.receive_some() == b"def"
        await trio.aclose_forcefully(first)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await second.receive_some()
        assert "beta closed the connection in the middle of TLS" in str(far.explain(caught.value, "beta"))
        await trio.aclose_forcefully(second)

    trio.run(main)


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_code_lets_both_in(met: Met) -> None:
    """Whatever the address: it is the code that they know each other by. All connections of the source come in."""
    secret = new_secret()
    near, far = paired_source(secret), paired_destination(secret, Gate(Clock()))
    for _ in range(3):
        assert is_in(met(near, far, "203.0.113.7"))


def test_a_wrong_code(met: Met) -> None:
    """Both say so; after a few of them the right one does not help any more."""
    secret, gate = new_secret(), Gate(Clock())
    far = paired_destination(secret, gate)
    for _ in range(TRIES):
        assert not gate.is_void
        refused(met(paired_source(new_secret()), far), "beta has another pairing", "alpha has another pairing")
    assert gate.is_void
    refused(met(paired_source(secret), far), "because somebody tried wrong ones", "because somebody tried wrong ones")


def test_a_code_that_is_used_again(met: Met) -> None:
    """A second source with the right code stays out."""
    secret = new_secret()
    near, far = paired_source(secret), paired_destination(secret, Gate(Clock()))
    assert is_in(met(near, far))
    refused(met(paired_source(secret), far), "has been used by another source", "has been used by another source")
    assert is_in(met(near, far))


def test_a_code_that_has_expired(met: Met) -> None:
    """The source is told, by the destination's clock."""
    secret, clock = new_secret(), Clock()
    far = paired_destination(secret, Gate(clock))
    clock.now += CODE_SECONDS
    refused(met(paired_source(secret), far), "the pairing code has expired", "the pairing code has expired")


def test_certificates_of_the_wrong_end(met: Met) -> None:
    """An attacker who gets one end's certificate and key can be that end and not the other one."""
    secret = new_secret()
    server = tls._context(ssl.PROTOCOL_TLS_SERVER)
    tls._with_credentials(server, credentials(secret, destination=False))
    error, _ = met(paired_source(secret), Endpoint(server, server=True, paired=True))
    assert "beta is not the other end of this pairing code" in str(error)
    client = tls._context(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    tls._with_credentials(client, credentials(secret, destination=True))
    gate = Gate(Clock())
    _, other = met(Endpoint(client, server=False, paired=True), paired_destination(secret, gate))
    assert "alpha is not the other end of this pairing code" in str(other)


def test_a_code_and_keys(group: Group, met: Met) -> None:
    """An end with keys and one with a code do not know each other."""
    secret = new_secret()
    error, other = met(source(group.alpha), paired_destination(secret, Gate(Clock())))
    assert "of beta is not of this host's CA" in str(error)
    assert "alpha has another pairing code" in str(other)


def test_certificates_without_dates_of_meaning() -> None:
    """Hosts that share nothing may not share a clock."""
    certificate = authority.load_certificate(credentials(new_secret(), destination=True).own)
    facts = authority.describe(certificate)
    assert facts.not_before < datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
    assert facts.not_after > datetime.datetime(2090, 1, 1, tzinfo=datetime.UTC)
