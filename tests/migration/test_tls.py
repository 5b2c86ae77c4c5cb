"""Handshakes over real sockets: who gets in, and what both sides say if somebody does not.

Each case is tried on a Trio stream and on a thread's lane: `met` has both ends make the same connection.
"""

from __future__ import annotations

import datetime
import functools
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.migration.rig import DAY, Group, both, connected, now
from tvmm.errors import ConfigError, HostError, ProtocolError, UserError
from tvmm.migration import authority, tls
from tvmm.migration.key_files import write_atomically
from tvmm.migration.keys import KeyDirectory
from tvmm.migration.pairing import CODE_SECONDS, TRIES, Gate, Refusal, Refused, credentials, new_secret
from tvmm.migration.tls import Endpoint, SecureLane, destination, paired_destination, paired_source, source
from tvmm.migration.tls_handshake import TlsHandshake

Met = Callable[..., tuple[Any, Any]]


def met_on_lanes(near: Endpoint, far: Endpoint, host: str = "127.0.0.1") -> tuple[Any, Any]:
    """What source and destination return or raise; lanes are closed."""
    here, there = connected()
    results = both(lambda: near.lane(here, "beta", host), lambda: far.lane(there, "alpha"))
    for lane in results:
        if isinstance(lane, SecureLane):
            lane.stream.close()
    return results


def met_on_streams(near: Endpoint, far: Endpoint, host: str = "127.0.0.1") -> tuple[Any, Any]:
    """The same on Trio streams."""
    here, there = connected()
    results: list[Any] = [None, None]

    async def one(index: int, make: Callable[[], Any]) -> None:
        try:
            results[index] = await make()
        except Exception as error:
            results[index] = error
        else:
            await trio.aclose_forcefully(results[index])

    async def main() -> None:
        ends = [trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (here, there)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 0, functools.partial(near.secure, ends[0], "beta", host))
            nursery.start_soon(one, 1, functools.partial(far.secure, ends[1], "alpha"))

    trio.run(main)
    return results[0], results[1]


@pytest.fixture(params=[met_on_streams, met_on_lanes], ids=["stream", "lane"])
def met(request: pytest.FixtureRequest) -> Met:
    """Both kinds of connections."""
    kind: Met = request.param
    return kind


@pytest.fixture
def group(tmp_path: Path) -> Group:
    return Group(tmp_path)


def is_in(result: tuple[Any, Any]) -> bool:
    """Whether both ends have the connection."""
    return all(isinstance(end, SecureLane | trio.SSLStream) for end in result)


def refused(result: tuple[Any, Any], near: str, far: str) -> None:
    """Both ends have raised, the source what its user can mend, the destination what outlives it."""
    error, other = result
    assert near in str(error), error
    assert far in str(other), other
    assert isinstance(other, ProtocolError)
    assert isinstance(error, UserError)
    assert error.hint
    assert "\n" not in str(error) + str(other)


# --- keys ---


def test_both_ways(group: Group, met: Met) -> None:
    """Two hosts of one CA, in either role, by address and by name."""
    beta = group.join("beta", "127.0.0.1")
    assert is_in(met(source(group.alpha), destination(beta)))
    assert is_in(met(source(beta), destination(group.alpha)))
    assert is_in(met(source(group.alpha), destination(beta), "BETA"))


def test_what_was_agreed(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS 1.3, authenticated encryption, no ticket for later; both see the other's certificate."""
    here, there = connected()
    agreed: list[ssl.SSLSocket] = []
    detach = TlsHandshake.detach

    def look(handshake: TlsHandshake) -> socket.socket:
        assert handshake.socket.version() == "TLSv1.3"
        agreed.append(handshake.socket)
        return detach(handshake)

    monkeypatch.setattr(TlsHandshake, "detach", look)
    near, far = both(
        lambda: source(group.alpha).lane(here, "x", "alpha"), lambda: destination(group.alpha).lane(there, "x")
    )
    assert len(agreed) == 2
    for each in agreed:
        cipher, session = each.cipher(), each.session
        assert cipher is not None
        assert cipher[0] in ("TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
        assert session is not None
        assert not session.has_ticket
    assert near.peer_certificate == far.peer_certificate == ssl.PEM_cert_to_DER_cert(
        authority.certificate_pem(group.alpha.own()).decode()
    )
    near.stream.close()
    far.stream.close()


def test_contexts(group: Group) -> None:
    """What is not to be weakened."""
    for context in (tls.server_context(group.alpha), tls.client_context(group.alpha)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF
        assert context.verify_flags & ssl.VERIFY_X509_STRICT
        (believed,) = context.get_ca_certs()
        assert int(str(believed["serialNumber"]), 16) == authority_of(group).certificate.serial_number
    assert tls.client_context(group.alpha).check_hostname


def test_wrong_name(group: Group, met: Met) -> None:
    """An address, or a name, that is not in the certificate; --tls-hostname names another one."""
    beta = group.join("beta")
    refused(met(source(group.alpha), destination(beta)), "is not for '127.0.0.1'", "does not accept")
    refused(met(source(group.alpha), destination(beta), "gamma"), "is not for 'gamma'", "does not accept")
    assert is_in(met(source(group.alpha, "beta"), destination(beta)))
    refused(met(source(group.alpha, "gamma"), destination(beta), "beta"), "is not for 'gamma'", "does not accept")


def test_common_names_are_for_people(group: Group, met: Met) -> None:
    """A certificate that has the host in its common name alone is for nobody."""
    beta = group.join("beta")
    ca = authority_of(group)
    replace_host(beta, ca, "10.0.0.2", common="beta")
    refused(met(source(group.alpha), destination(beta), "beta"), "is not for 'beta'", "does not accept")


def replace_host(keys: KeyDirectory, ca: authority.Authority, name: str, **settings: Any) -> None:
    """Give a host a certificate that `tvmm keys` would not."""
    common = settings.pop("common", name)
    key, certificate = (
        authority.issue(ca, name, [], now(), **settings) if common == name else issue_with_common(ca, name, common)
    )
    write_atomically(keys.host, authority.key_pem(key) + authority.certificate_pem(certificate))


def issue_with_common(ca: authority.Authority, name: str, common: str) -> tuple[Any, Any]:
    """A certificate for `name` that calls itself `common`."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    key, plain = authority.issue(ca, name, [], now())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)]))
        .issuer_name(plain.issuer)
        .public_key(key.public_key())
        .serial_number(plain.serial_number)
        .not_valid_before(plain.not_valid_before_utc)
        .not_valid_after(plain.not_valid_after_utc)
    )
    for extension in plain.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return key, builder.sign(ca.key, None)


def authority_of(group: Group) -> authority.Authority:
    """The CA with its key."""
    return authority.Authority(
        authority.load_certificate(group.alpha.authority.read_bytes()),
        authority.load_key((group.alpha.path / "ca.key").read_bytes()),
    )


def test_expired(tmp_path: Path, met: Met) -> None:
    """Either end's certificate may have ended; both say whose it is."""
    group = Group(tmp_path, now() - 500 * DAY)
    old = group.join("old", "127.0.0.1", when=now() - 400 * DAY)
    new = group.join("new", "127.0.0.1")
    refused(met(source(new), destination(old)), "of beta has expired", "this host's certificate has expired")
    refused(met(source(old), destination(new)), "this host's certificate has expired", "of alpha has expired")


def test_not_valid_yet(group: Group, met: Met) -> None:
    """A certificate of tomorrow: a clock is wrong."""
    late = KeyDirectory(group.base / "late")
    late.import_bundle(group.alpha.issue("late", ["127.0.0.1"], now() + DAY), now())
    error, _ = met(source(group.alpha), destination(late))
    assert "is not valid yet; compare the clocks" in str(error)
    error, other = met(source(late), destination(group.alpha))
    assert isinstance(error, UserError)
    assert "of alpha is not valid yet" in str(other)


def test_another_ca(group: Group, tmp_path: Path, met: Met) -> None:
    """Each end tells that the other is a stranger."""
    other = Group(tmp_path / "other").join("other", "127.0.0.1")
    refused(met(source(group.alpha), destination(other)), "of beta is not of this host's CA", "does not know the CA")


def test_a_server_that_believes_anybody_gets_no_client_in(group: Group, tmp_path: Path, met: Met) -> None:
    """A client of another CA fails at the destination, even if it does not look at its certificate."""
    other = Group(tmp_path / "other").join("other", "127.0.0.1")
    context = tls.client_context(other)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    refused(
        met(Endpoint(context, server=False), destination(group.alpha)),
        "does not know the CA of this host's",
        "of alpha is not of this host's CA",
    )


def test_revoked(group: Group, met: Met) -> None:
    """From the list's arrival on a host is refused in both roles, and by that host alone."""
    beta, gamma = group.join("beta", "127.0.0.1"), group.join("gamma", "127.0.0.1")
    group.alpha.revoke("beta", now())
    refused(met(source(group.alpha), destination(beta)), "of beta has been revoked", "certificate has been revoked")
    refused(met(source(beta), destination(group.alpha)), "certificate has been revoked", "of alpha has been revoked")
    assert is_in(met(source(beta), destination(gamma)))
    gamma.import_bundle(group.alpha.crl_pem(), now())
    refused(met(source(beta), destination(gamma)), "certificate has been revoked", "of alpha has been revoked")


def test_no_certificate(group: Group, met: Met) -> None:
    """A client that knows the CA and has nothing of it."""
    context = tls._context(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=group.alpha.authority)
    near = Endpoint(context, server=False)
    refused(met(near, destination(group.alpha)), "wants a certificate", "alpha has no certificate")


def test_wrong_usage(group: Group, met: Met) -> None:
    """A certificate for servers is no client, one for clients no server."""
    ca, beta = authority_of(group), group.join("beta")
    replace_host(beta, ca, "127.0.0.1", extended=(ExtendedKeyUsageOID.SERVER_AUTH,))
    assert is_in(met(source(group.alpha), destination(beta)))
    error, other = met(source(beta), destination(group.alpha))
    assert isinstance(error, UserError)
    assert "of alpha is for another use" in str(other)
    replace_host(beta, ca, "127.0.0.1", extended=(ExtendedKeyUsageOID.CLIENT_AUTH,))
    error, _ = met(source(group.alpha), destination(beta))
    assert "of beta is for another use" in str(error)


def test_usage_and_names_must_be_there(group: Group, met: Met, monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenSSL takes, a client whose certificate says nothing of its use or its name, the destination refuses."""
    monkeypatch.setattr("tvmm.migration.authority.usages", lambda certificate: (frozenset(), 1))
    refused(met(source(group.alpha), destination(group.alpha)), "is not for clients", "is not for clients")
    monkeypatch.setattr("tvmm.migration.authority.usages", lambda certificate: (frozenset({tls.CLIENT_AUTH}), 0))
    refused(met(source(group.alpha), destination(group.alpha)), "has no host name", "has no host name")


def test_old_tls(group: Group, met: Met) -> None:
    """A peer that has TLS 1.2 at most."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=group.alpha.authority)
    context.load_cert_chain(group.alpha.host)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    near = Endpoint(context, server=False)
    refused(met(near, destination(group.alpha)), "does not speak TLS 1.3", "does not speak TLS 1.3")


def test_keys_that_openssl_does_not_take(group: Group) -> None:
    """A list that is no list, a key of another certificate: one line."""
    beta = group.join("beta")
    group.alpha.host.write_bytes(beta.host.read_bytes()[:200] + group.alpha.host.read_bytes()[200:])
    with pytest.raises(HostError, match="cannot be used"):
        tls.server_context(group.alpha)
    beta.crl.write_bytes(b"")
    with pytest.raises(HostError, match="cannot be used"):
        tls.client_context(beta)
    with pytest.raises(ConfigError, match="there is no key directory"):
        tls.client_context(KeyDirectory(group.base / "none"))


def test_a_list_of_another_ca(group: Group, tmp_path: Path, met: Met) -> None:
    """Without the list of its CA a host lets nobody in."""
    beta = group.join("beta", "127.0.0.1")
    beta.crl.write_bytes(Group(tmp_path / "other").alpha.crl_pem())
    _, other = met(source(group.alpha), destination(beta))
    assert "this host's revocation list is not of its CA" in str(other)


# --- peers that do not take part ---


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


# --- pairing ---


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
