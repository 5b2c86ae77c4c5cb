"""Contexts for viewers: certificates that can be checked, and versions that are not spoken."""

from __future__ import annotations

import datetime
import hashlib
import ssl
import warnings
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from tests.vnc.viewer_ends import Wire, choose_subtype
from tvmm.errors import HostError
from tvmm.migration import authority
from tvmm.vnc.passwords import Passwords
from tvmm.vnc.tls_context import keys_context, throw_away_context
from tvmm.vnc.vencrypt import X509_NONE, VeNCrypt

NOW = datetime.datetime.now(datetime.UTC)


def connect(server: ssl.SSLContext, viewer: ssl.SSLContext) -> Wire:
    """TLS between the two, as far as it comes."""
    wire = Wire(VeNCrypt(Passwords(lambda: 0.0), [X509_NONE], certificate=server).begin(""), viewer)
    choose_subtype(wire, X509_NONE)
    return wire


def trusting_in(pem: str) -> ssl.SSLContext:
    """A viewer that believes the certificate `pem`, and looks for the name of the host."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem)
    return context


def test_a_throw_away_certificate() -> None:
    """A viewer that has been given it, or compares the fingerprint, knows the server again."""
    made = throw_away_context(["192.0.2.1", "localhost", "bücher.example"], NOW)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    wire = connect(made.context, context)
    assert wire.viewer is not None
    der = wire.viewer.getpeercert(binary_form=True)
    assert der is not None
    assert hashlib.sha256(der).hexdigest() == made.fingerprint
    assert made.certificate.decode() == ssl.DER_cert_to_PEM_cert(der)
    assert connect(made.context, trusting_in(made.certificate.decode())).viewer is not None
    assert throw_away_context([], NOW).fingerprint != made.fingerprint


def test_the_certificates_of_migrations(tmp_path: Path) -> None:
    """`host.pem` is key and certificate, and a viewer that believes the authority checks both."""
    ca = authority.make_authority("test", NOW)
    key, certificate = authority.issue(ca, "localhost", [], NOW)
    path = tmp_path / "host.pem"
    path.write_bytes(authority.key_pem(key) + authority.certificate_pem(certificate))
    path.chmod(0o600)
    made = keys_context(path)
    assert made.fingerprint == authority.describe(certificate).sha256
    assert connect(made.context, trusting_in(authority.certificate_pem(ca.certificate).decode())).viewer is not None
    other = authority.make_authority("other", NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(made.context, trusting_in(authority.certificate_pem(other.certificate).decode()))


def test_files_that_are_no_keys(tmp_path: Path) -> None:
    """Each is refused in one line, and no passphrase is asked for at the terminal."""
    ca = authority.make_authority("test", NOW)
    key, certificate = authority.issue(ca, "localhost", [], NOW)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"phrase"))
    pem = authority.certificate_pem(certificate)
    path = tmp_path / "host.pem"
    for data in (b"", b"nonsense", pem, authority.key_pem(key), authority.key_pem(ca.key) + pem, locked + pem):
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(HostError, match="is no private key with its certificate") as caught:
            keys_context(path)
        assert "\n" not in str(caught.value)
    path.chmod(0o644)
    with pytest.raises(HostError, match="others can read"):
        keys_context(path)


def test_old_versions_are_not_spoken() -> None:
    """TLS 1.2 is the least."""
    made = throw_away_context([], NOW)
    assert made.context.minimum_version is ssl.TLSVersion.TLSv1_2
    viewer = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    viewer.check_hostname = False
    viewer.verify_mode = ssl.CERT_NONE
    viewer.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        viewer.minimum_version = ssl.TLSVersion.TLSv1
        viewer.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        connect(made.context, viewer)
