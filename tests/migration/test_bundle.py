"""Bundles that somebody prepared: they are right, or the user's error, and nothing else happens."""

from __future__ import annotations

import base64
import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.migration.rig import DAY, now
from tvmm.errors import ConfigError
from tvmm.migration import authority
from tvmm.migration.bundle import Bundle

CA = authority.make_authority("alpha", now())
KEY, CERTIFICATE = authority.issue(CA, "beta", ["10.0.0.2"], now())
CRL = authority.make_crl(CA, {5: now(), 7: now()}, 3, now())
GOOD = (
    authority.key_pem(KEY)
    + authority.certificate_pem(CERTIFICATE)
    + authority.certificate_pem(CA.certificate)
    + CRL
)
BLOCKS = [
    (kind, base64.b64decode(body))
    for kind, body in re.findall(rb"-----BEGIN ([A-Z0-9 ]+)-----\n(.*?)-----END", GOOD, re.DOTALL)
]

Change = tuple[int, int, bytes]


def pem(kind: bytes, data: bytes) -> bytes:
    """A block."""
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (kind, base64.encodebytes(data), kind)


def test_the_blocks_make_the_bundle() -> None:
    """What is changed below is a bundle that is right."""
    assert len(BLOCKS) == 4
    ca, host = Bundle.parse(b"".join(pem(*block) for block in BLOCKS)).checked(now())
    assert (ca, host) == (CA.certificate, CERTIFICATE)
    assert Bundle.parse(CRL).is_crl
    assert not Bundle.parse(GOOD).is_crl


@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=4),
    st.booleans(),
)
def test_changed_bundles(which: int, changes: list[Change], alone: bool) -> None:
    """Bytes of a block are exchanged, cut out or put in: no other exception, no warning, and no changed certificate."""
    blocks = list(BLOCKS)
    kind, data = blocks[which]
    for start, length, new in changes:
        start %= len(data) + 1
        data = data[:start] + new + data[start + length :]
    blocks[which] = kind, data
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            bundle = Bundle.parse(b"".join(pem(*block) for block in ([blocks[which]] if alone else blocks)))
            if bundle.is_crl:
                return
            ca, host = bundle.checked(now())
        except ConfigError:
            return
    assert host == CERTIFICATE
    assert authority.is_issued_by(host, ca)


@given(st.binary(max_size=2000))
def test_anything(data: bytes) -> None:
    """Bytes that are no bundle."""
    with pytest.raises(ConfigError, match="neither a bundle of keys nor a revocation list"):
        Bundle.parse(data)


def test_time() -> None:
    """A certificate that has ended is not worth importing."""
    with pytest.raises(ConfigError, match="has expired on"):
        Bundle.parse(GOOD).checked(now() + 366 * DAY)
