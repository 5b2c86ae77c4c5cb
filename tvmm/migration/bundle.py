"""What one host gets from the authority on another: bundles and revocation lists, parsed and checked. No IO.

They come from outside (a file that somebody sent), so each part is checked against the others before any is used.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID

from tvmm.errors import ConfigError
from tvmm.migration import authority

if TYPE_CHECKING:
    import datetime

__all__ = ["BLOCKS_LIMIT", "BUNDLE_LIMIT", "Bundle", "common_name"]

BUNDLE_LIMIT = 1 << 20
"""Bytes of a bundle: it has about 3 KiB, its revocation list 100 bytes for each entry. What is imported is what
somebody sent, and may be a device or a disk image."""
BLOCKS_LIMIT = 16
"""PEM blocks of a bundle that are looked at; tvmm writes four."""

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\r?\n[A-Za-z0-9+/=\r\n]*-----END \1-----")


class Bundle(NamedTuple):
    """The blocks of a bundle by their kind."""

    key_pem: bytes
    certificates: list[x509.Certificate]
    crls: list[x509.CertificateRevocationList]
    crl_pems: list[bytes]

    @property
    def is_crl(self) -> bool:
        return len(self.crls) == 1 and not self.key_pem and not self.certificates

    @staticmethod
    def parse(data: bytes) -> Bundle:
        """Raises `ConfigError` for what tvmm does not write."""
        found = [(match[1], match[0] + b"\n") for match in _BLOCK.finditer(data[:BUNDLE_LIMIT])]
        if len(found) > BLOCKS_LIMIT or len(data) > BUNDLE_LIMIT:
            raise _no_bundle("it is too large")
        keys = [pem for kind, pem in found if kind == b"PRIVATE KEY"]
        crl_pems = [pem for kind, pem in found if kind == b"X509 CRL"]
        try:
            certificates = [authority.load_certificate(pem) for kind, pem in found if kind == b"CERTIFICATE"]
            crls = [authority.load_crl(pem) for pem in crl_pems]
        except ValueError as error:
            raise _no_bundle(str(error)) from error
        parts = Bundle(b"".join(keys), certificates, crls, crl_pems)
        if not parts.is_crl and (len(keys), len(certificates), len(crls)) != (1, 2, 1):
            raise _no_bundle("it lacks parts, or has too many" if found else "it has no PEM blocks")
        return parts

    def checked(self, now: datetime.datetime) -> tuple[x509.Certificate, x509.Certificate]:
        """The authority's certificate and the host's, which belong together and to the key and the list."""
        host, ca = self.certificates
        if not authority.is_issued_by(ca, ca):
            raise _no_bundle("its second certificate is not that of a CA")
        if not authority.is_issued_by(host, ca) or not authority.is_issued_by(self.crls[0], ca):
            raise _no_bundle("its CA has not signed its other parts")
        try:
            key = authority.load_key(self.key_pem)
        except ValueError as error:
            raise _no_bundle(str(error)) from error
        if key.public_key() != host.public_key():
            raise _no_bundle("its key is not that of its certificate")
        if host.not_valid_after_utc <= now:
            raise ConfigError(
                f"the certificate in the bundle has expired on {host.not_valid_after_utc:%Y-%m-%d}",
                "issue a new one with 'tvmm keys issue' on the CA's host",
            )
        return ca, host


def _no_bundle(reason: str) -> ConfigError:
    return ConfigError(
        f"this is neither a bundle of keys nor a revocation list: {reason}",
        "make one on the CA's host with 'tvmm keys issue HOST' or 'tvmm keys export-crl'",
    )


def common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()
