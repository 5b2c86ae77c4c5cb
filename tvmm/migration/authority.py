"""Certificates of a private authority: made, issued, revoked and described. Bytes in, bytes out; no files.

One authority vouches for a group of hosts; each host has one certificate for both directions of a migration. Keys are
Ed25519: no parameters to choose, deterministic signatures, and both ends are tvmm. `cryptography` does all of the
work; this module decides what stands in a certificate (RFC 5280):

* authority: basicConstraints CA with path length 0, keyCertSign and cRLSign alone; its name has random digits, so that
  two authorities never share one and a chain cannot be looked up in the wrong one
* host: subjectAltName with host names and addresses (the common name is for people, nobody checks it),
  digitalSignature, extended usages serverAuth and clientAuth
* revocation list: numbered, so that an old one cannot take the place of a newer one. It is valid as long as the
  authority: nothing fetches it, people carry it (see docs/migration-security.md), and a list that runs out would stop
  all migrations at a time that nobody chose.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import secrets
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = [
    "AUTHORITY_DAYS",
    "CLOCK_SKEW",
    "HOST_DAYS",
    "NAMES_LIMIT",
    "Authority",
    "CertificateFacts",
    "certificate_pem",
    "crl_number",
    "describe",
    "general_name",
    "is_issued_by",
    "issue",
    "key_pem",
    "load_certificate",
    "load_crl",
    "load_key",
    "make_authority",
    "make_crl",
    "revoked_serials",
    "self_signed",
    "usages",
]

AUTHORITY_DAYS = 3650
HOST_DAYS = 365
CLOCK_SKEW = datetime.timedelta(hours=1)
"""How far in the past a certificate becomes valid: the other host's clock may be behind."""
NAMES_LIMIT = 64
"""Names in one certificate."""
NAME_LIMIT = 253
"""Characters of a host name (RFC 1123)."""
COMMON_NAME_LIMIT = 64
"""Characters of a common name (RFC 5280, ub-common-name)."""

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


class Authority(NamedTuple):
    """What signs certificates and revocation lists."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey


class CertificateFacts(NamedTuple):
    """What people want to know of a certificate. `serial` and `sha256` are hexadecimal; `names` are its host names and
    addresses."""

    subject: str
    names: tuple[str, ...]
    serial: str
    sha256: str
    not_before: datetime.datetime
    not_after: datetime.datetime


def general_name(text: str) -> x509.GeneralName:
    """`text`, an IP address or a host name, as it stands in a certificate. Raises `ConfigError`."""
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    # No wildcards: one certificate is one host. Names beyond ASCII are written in their xn-- form.
    if not text or len(text) > NAME_LIMIT or not all(_LABEL.fullmatch(label) for label in text.split(".")):
        raise ConfigError(
            f"{text!r} is neither a host name nor an IP address", "write a name such as alpha.example.org, or 10.0.0.1"
        )
    return x509.DNSName(text.lower())


def make_authority(label: str, now: datetime.datetime) -> Authority:
    """A new authority that people tell by `label`, valid from `now` for `AUTHORITY_DAYS`."""
    key = Ed25519PrivateKey.generate()
    name = f"tvmm CA {label}"[: COMMON_NAME_LIMIT - 9] + f" {secrets.token_hex(4)}"
    return Authority(self_signed(key, name, now), key)


def self_signed(
    key: Ed25519PrivateKey, name: str, now: datetime.datetime, until: datetime.datetime | None = None
) -> x509.Certificate:
    """The certificate of an authority whose key and name are given; `until` is `AUTHORITY_DAYS` later if left out."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until or now + datetime.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )


BOTH_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def issue(
    authority: Authority,
    host: str,
    names: Iterable[str],
    now: datetime.datetime,
    *,
    until: datetime.datetime | None = None,
    extended: Sequence[x509.ObjectIdentifier] = BOTH_USAGES,
) -> tuple[Ed25519PrivateKey, x509.Certificate]:
    """A key and a certificate for `host`, which can be reached as `names` too.

    It ends after `HOST_DAYS` unless `until` says otherwise, and never later than the authority. Raises `ConfigError`
    for a name that is none, for too many, and once the authority itself has ended.
    """
    alternatives = list(dict.fromkeys(general_name(name) for name in (host, *names)))
    if len(alternatives) > NAMES_LIMIT:
        raise ConfigError(f"{len(alternatives)} names are too many for a certificate", f"it takes {NAMES_LIMIT}")
    end = min(until or now + datetime.timedelta(days=HOST_DAYS), authority.certificate.not_valid_after_utc)
    if end <= now:
        raise ConfigError(
            f"the CA has expired on {end:%Y-%m-%d}",
            "make a new one with 'tvmm keys init --force' and issue to all hosts",
        )
    key = Ed25519PrivateKey.generate()
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:COMMON_NAME_LIMIT])]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - CLOCK_SKEW, authority.certificate.not_valid_before_utc))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(extended), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_identifier(authority), critical=False)
        .sign(authority.key, None)
    )
    return key, certificate


def _identifier(authority: Authority) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())


def make_crl(
    authority: Authority, revoked: Mapping[int, datetime.datetime], number: int, now: datetime.datetime
) -> bytes:
    """The list number `number`, as PEM, of the serial numbers `revoked` with the times when they were."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - CLOCK_SKEW)
        .next_update(max(authority.certificate.not_valid_after_utc, now + datetime.timedelta(days=1)))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_identifier(authority), critical=False)
    )
    for serial, when in sorted(revoked.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, None).public_bytes(serialization.Encoding.PEM)


def key_pem(key: Ed25519PrivateKey) -> bytes:
    """PKCS#8, without a password: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """`certificate` as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


@contextmanager
def _parsing() -> Iterator[None]:
    """Turn all that `cryptography` raises for what is malformed into `ValueError`, and be silent about the rest."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (
        TypeError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise ValueError(str(error)) from error


def load_key(data: bytes) -> Ed25519PrivateKey:
    """The key in `data` (PEM). Raises `ValueError`."""
    with _parsing():
        key = serialization.load_pem_private_key(data, None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("the private key is not an Ed25519 key")
    return key


def load_certificate(data: bytes) -> x509.Certificate:
    """The first certificate in `data` (PEM), with all that is asked of it later. Raises `ValueError`."""
    with _parsing():
        certificate = x509.load_pem_x509_certificate(data)
        # Much is parsed when it is first looked at, which would be anywhere.
        describe(certificate)
        usages(certificate)
        if not isinstance(certificate.public_key(), Ed25519PublicKey):
            raise ValueError("the certificate's key is not an Ed25519 key")
        certificate.issuer.rfc4514_string()
        if certificate.serial_number <= 0:
            raise ValueError("the certificate's serial number is not positive")
        return certificate


def load_crl(data: bytes) -> x509.CertificateRevocationList:
    """The revocation list in `data` (PEM), with all that is asked of it later. Raises `ValueError`."""
    with _parsing():
        crl = x509.load_pem_x509_crl(data)
        crl_number(crl)
        revoked_serials(crl)
        crl.issuer.rfc4514_string()
        return crl


def crl_number(crl: x509.CertificateRevocationList) -> int:
    """Which list of its authority it is. Raises `ValueError` if it does not say."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        raise ValueError("the revocation list has no number") from None


def revoked_serials(crl: x509.CertificateRevocationList) -> dict[int, datetime.datetime]:
    """The serial numbers in `crl`, with the times when they were revoked."""
    return {entry.serial_number: entry.revocation_date_utc for entry in crl}


def is_issued_by(item: x509.Certificate | x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    """Whether `authority` has signed `item`. A certificate that is no authority has signed nothing."""
    try:
        basic = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    public = authority.public_key()
    if not basic.ca or not isinstance(public, Ed25519PublicKey) or item.issuer != authority.subject:
        return False
    signed = item.tbs_certificate_bytes if isinstance(item, x509.Certificate) else item.tbs_certlist_bytes
    try:
        public.verify(item.signature, signed)
    except InvalidSignature:
        return False
    return True


def usages(certificate: x509.Certificate) -> tuple[frozenset[str], int]:
    """The extended usages of `certificate`, dotted, and how many names it has."""
    extensions = certificate.extensions
    try:
        extended = frozenset(
            oid.dotted_string for oid in extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        )
    except x509.ExtensionNotFound:
        extended = frozenset()
    try:
        count = len(list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value))
    except x509.ExtensionNotFound:
        count = 0
    return extended, count


def describe(certificate: x509.Certificate) -> CertificateFacts:
    """What `certificate` says."""
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(name.value) for name in alternatives)
    except x509.ExtensionNotFound:
        names = ()
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return CertificateFacts(
        str(common[0].value) if common else certificate.subject.rfc4514_string(),
        names,
        f"{certificate.serial_number:x}",
        certificate.fingerprint(hashes.SHA256()).hex(),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )
