"""TLS for viewers: a context with a certificate, named or thrown away at the end, and one without.

TLS 1.2 at least: viewers are old, and linked to libraries that are older. Viewers have no certificates.

The anonymous context is TLS 1.2 with ephemeral keys and no certificate at all (RFC 4346, A.5), which TLS 1.3 does not
have; libraries leave it out unless it is asked for, so that it is never taken by accident. Its group for the exchange
over numbers is ffdhe2048 of RFC 7919, computed here from the formula in the appendix there: nobody can have chosen it
badly.
"""

from __future__ import annotations

import base64
import datetime
import os
import ssl
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tvmm.errors import HostError
from tvmm.vnc.private_files import read_private

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["CertificateContext", "anonymous_context", "ffdhe2048", "keys_context", "throw_away_context"]

ANONYMOUS_CIPHERS = "ADH-AES256-GCM-SHA384:ADH-AES128-GCM-SHA256:AECDH-AES256-SHA:AECDH-AES128-SHA:@SECLEVEL=0"
"""What there is without a certificate and with encryption. At a higher level there would be none."""
THROW_AWAY_DAYS = 3650
"""A machine may run for long, and its certificate ends with it."""
NAMES_LIMIT = 64


class CertificateContext(NamedTuple):
    """A context, the SHA-256 of its certificate (hexadecimal) for people to compare, and the certificate (PEM)."""

    context: ssl.SSLContext
    fingerprint: str
    certificate: bytes


def keys_context(path: Path) -> CertificateContext:
    """With the private key and the certificate in the PEM file at `path`, as ``tvmm keys`` keeps them in ``host.pem``.

    Raises `HostError`, also if others can read the file.
    """
    data = read_private(path)
    try:
        certificate = x509.load_pem_x509_certificate(data)
        context = _context(data)
    except (ValueError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or str(error) or "it is malformed"
        raise HostError(f"{path} is no private key with its certificate: {reason}", "see 'tvmm keys show'") from error
    return _described(context, certificate)


def throw_away_context(names: Sequence[str], now: datetime.datetime) -> CertificateContext:
    """With a new certificate, signed by itself, for the host names and addresses `names`, valid from `now` on."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tvmm VNC")])
    alternatives = [_general_name(name) for name in dict.fromkeys(("localhost", *names))][:NAMES_LIMIT]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=THROW_AWAY_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return _described(_context(data + certificate.public_bytes(serialization.Encoding.PEM)), certificate)


def anonymous_context() -> ssl.SSLContext | None:
    """Without a certificate; None if this OpenSSL was built without."""
    context = _bare()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.set_ciphers(ANONYMOUS_CIPHERS)
    except ssl.SSLError:
        return None
    _from_memory(_dh_parameters(ffdhe2048(), 2), context.load_dh_params)
    return context


def ffdhe2048() -> int:
    """The prime of RFC 7919, A.1: 2^2048 - 2^1984 + (floor(2^1918 * e) + 560316) * 2^64 - 1."""
    spare = 64
    scaled, term, divisor = 0, 1 << (1918 + spare), 0
    while term:
        scaled += term
        divisor += 1
        term //= divisor
    return (1 << 2048) - (1 << 1984) + (((scaled >> spare) + 560316) << 64) - 1


def _described(context: ssl.SSLContext, certificate: x509.Certificate) -> CertificateContext:
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return CertificateContext(context, certificate.fingerprint(hashes.SHA256()).hex(), pem)


def _dh_parameters(prime: int, generator: int) -> bytes:
    """PKCS #3's DHParameter as PEM; `cryptography` is about to give it up."""

    def tlv(tag: int, value: bytes) -> bytes:
        return bytes([tag, 0x82]) + len(value).to_bytes(2, "big") + value

    # A leading zero: integers have a sign.
    numbers = [tlv(2, number.to_bytes(number.bit_length() // 8 + 1, "big")) for number in (prime, generator)]
    text = base64.encodebytes(tlv(0x30, b"".join(numbers)))
    return b"-----BEGIN DH PARAMETERS-----\n" + text + b"-----END DH PARAMETERS-----\n"


def _bare() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A viewer that is connected could have the server compute for nothing.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    return context


def _context(pem: bytes) -> ssl.SSLContext:
    context = _bare()

    def load(path: str) -> None:
        # Without a function for the passphrase OpenSSL asks at the terminal.
        context.load_cert_chain(path, password=lambda: "")

    _from_memory(pem, load)
    return context


def _from_memory(pem: bytes, load: Callable[[str], None]) -> None:
    """Call `load` with the path of a file that has `pem` and is in memory alone."""
    descriptor = os.memfd_create("tvmm-vnc", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(pem)
        load(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name.encode("idna").decode("ascii") if not name.isascii() else name)
