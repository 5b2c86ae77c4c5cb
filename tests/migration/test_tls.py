"""Hosts with keys: who gets in, and what both sides say if somebody does not.

Each case is tried on a Trio stream and on a thread's lane: `met` has both ends make the same connection.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.migration.handshakes import Met, is_in, refused
from tests.migration.rig import DAY, Group, both, connected, now
from tvmm.errors import ConfigError, HostError, UserError
from tvmm.migration import authority, tls
from tvmm.migration.key_files import write_atomically
from tvmm.migration.keys import KeyDirectory
from tvmm.migration.tls import Endpoint, destination, source
from tvmm.migration.tls_handshake import TlsHandshake


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
