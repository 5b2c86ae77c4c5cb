"""What stands in certificates and revocation lists, as OpenSSL and people read them."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509

from tvmm.errors import ConfigError
from tvmm.migration import authority

NOW = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


def test_authority() -> None:
    """It may sign certificates and lists, of hosts alone, for ten years."""
    ca = authority.make_authority("alpha", NOW).certificate
    basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert basic.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    assert ca.not_valid_after_utc == NOW + 3650 * DAY
    assert ca.not_valid_before_utc < NOW
    assert authority.is_issued_by(ca, ca)


def test_two_authorities_of_one_host_have_different_names() -> None:
    """A chain is looked up by name: it must not be found in the wrong place."""
    first, second = (authority.make_authority("alpha", NOW).certificate for _ in range(2))
    assert first.subject != second.subject


def test_host() -> None:
    """A host's certificate has all names once, both usages, a year, and no power to sign."""
    ca = authority.make_authority("alpha", NOW)
    key, certificate = authority.issue(ca, "Beta", ["10.0.0.2", "beta", "fd00::2"], NOW)
    facts = authority.describe(certificate)
    assert facts.subject == "Beta"
    assert facts.names == ("beta", "10.0.0.2", "fd00::2")
    assert facts.not_after == NOW + 365 * DAY
    assert int(facts.serial, 16) == certificate.serial_number
    assert authority.usages(certificate) == (frozenset({"1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"}), 3)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.is_issued_by(certificate, ca.certificate)
    assert not authority.is_issued_by(certificate, certificate)
    assert authority.load_key(authority.key_pem(key)).public_key() == certificate.public_key()


def test_no_host_outlives_the_authority() -> None:
    """The end is the authority's at the latest, and behind it nothing is issued."""
    ca = authority.make_authority("alpha", NOW)
    _, late = authority.issue(ca, "beta", [], NOW + 3600 * DAY)
    assert late.not_valid_after_utc == ca.certificate.not_valid_after_utc
    with pytest.raises(ConfigError, match="the CA has expired on"):
        authority.issue(ca, "beta", [], NOW + 3650 * DAY)


@pytest.mark.parametrize("name", ["", "a b", "*.example.org", "a..b", "-a", "a-", "x" * 64, "ä", "a\n", "10.0.0.0/8"])
def test_names_that_are_none(name: str) -> None:
    """Wildcards, networks and what no resolver takes are refused."""
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        authority.general_name(name)


def test_too_many_names() -> None:
    """There is a limit, and it is told."""
    ca = authority.make_authority("alpha", NOW)
    with pytest.raises(ConfigError, match="65 names are too many"):
        authority.issue(ca, "beta", [f"10.0.0.{number}" for number in range(authority.NAMES_LIMIT)], NOW)


def test_another_authority_of_the_same_name_has_issued_nothing() -> None:
    """It is the signature that counts."""
    ca, other = (authority.make_authority("alpha", NOW) for _ in range(2))
    fake = authority.self_signed(other.key, authority.describe(ca.certificate).subject, NOW)
    _, certificate = authority.issue(ca, "beta", [], NOW)
    assert fake.subject == ca.certificate.subject
    assert not authority.is_issued_by(certificate, fake)


def test_revocation_list() -> None:
    """It has numbers, times, and the authority's signature, and lasts as long as that."""
    ca = authority.make_authority("alpha", NOW)
    crl = authority.load_crl(authority.make_crl(ca, {7: NOW, 5: NOW + DAY}, 3, NOW))
    assert authority.crl_number(crl) == 3
    assert authority.revoked_serials(crl) == {7: NOW, 5: NOW + DAY}
    assert crl.next_update_utc == ca.certificate.not_valid_after_utc
    assert authority.is_issued_by(crl, ca.certificate)
    assert not authority.is_issued_by(crl, authority.make_authority("alpha", NOW).certificate)
