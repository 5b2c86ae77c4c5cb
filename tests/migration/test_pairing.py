"""Pairing codes: how they are written and read, and whom they let in. Without a connection."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tvmm.errors import ConfigError, ProtocolError
from tvmm.migration import authority
from tvmm.migration.pairing import (
    ALPHABET,
    CODE_LIMIT,
    CODE_SECONDS,
    SECRET_BYTES,
    TRIES,
    Credentials,
    Gate,
    credentials,
    format_code,
    new_secret,
    parse_code,
)

SECRET = bytes(range(SECRET_BYTES))
PUBLIC = "094eeaefa8ce7c3d664679131b9e31992a7f88e5e112f4f6e8c3d4c8431b4cbb"
"""Key of the authority that comes from it."""


class Clock:
    """Seconds that pass when told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES))
def test_codes_round_trip(secret: bytes) -> None:
    """Each secret has a code of seven groups that stands for it."""
    code = format_code(secret)
    assert [len(group) for group in code.split("-")] == [4] * 7
    assert parse_code(code) == secret


def test_the_code_of_a_secret() -> None:
    """Both ends may be of different versions: how a code is written does not change."""
    assert format_code(SECRET) == "000G-40R4-0M30-E209-185G-R38E-1ZRE"


def test_how_people_write() -> None:
    """Lower case, blanks, no groups, and letters for the digits that look like them."""
    code = format_code(SECRET)
    assert parse_code(code.lower()) == SECRET
    assert parse_code(code.replace("-", "")) == SECRET
    assert parse_code(f" {code.replace('-', ' ')} ") == SECRET
    assert parse_code(code.replace("0", "O").replace("1", "l")) == SECRET


def test_secrets_are_new() -> None:
    """128 bits that do not repeat."""
    assert len({new_secret() for _ in range(100)}) == 100
    assert len(new_secret()) == 16


def is_noticed(text: str) -> bool:
    """Whether the check digits of a code do not fit."""
    try:
        parse_code(text)
    except ConfigError as error:
        return "check digits" in str(error)
    return False


def test_each_wrong_symbol_and_each_exchange_is_noticed() -> None:
    """The usual mistakes, in this code, do not get as far as a connection."""
    symbols = format_code(SECRET).replace("-", "")
    wrong = {symbols[:at] + other + symbols[at + 1 :] for at in range(len(symbols)) for other in ALPHABET}
    wrong |= {
        symbols[:at] + symbols[at + 1] + symbols[at] + symbols[at + 2 :] for at in range(len(symbols) - 1)
    }
    wrong.discard(symbols)
    missed = sum(not is_noticed(text) for text in wrong)
    # 12 check bits leave one of 4096.
    assert missed <= 2


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("", "has 0 letters and digits instead of 28"),
        ("0000-0000", "has 8 letters and digits instead of 28"),
        (format_code(SECRET)[:-1], "has 27 letters"),
        (format_code(SECRET) + "0", "has 29 letters"),
        (format_code(SECRET)[:-1] + "U", "'U' cannot be in a pairing code"),
        ("é" * 28, "'É' cannot be in a pairing code"),
        ("0" * (CODE_LIMIT + 1), "too long"),
    ],
)
def test_what_is_no_code(code: str, complaint: str) -> None:
    """One line says what is wrong, and what a code looks like."""
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_code(code)
    assert "7 groups of 4" in str(caught.value)


def test_wrong_secrets_are_no_secrets() -> None:
    """The length is part of the interface."""
    for secret in (b"", b"x" * 15, b"x" * 17):
        with pytest.raises(ValueError, match="instead of 16"):
            format_code(secret)
        with pytest.raises(ValueError, match="instead of 16"):
            credentials(secret, destination=True)


def certificate(own: Credentials) -> x509.Certificate:
    """The certificate of one end."""
    return authority.load_certificate(own.own)


def ca(own: Credentials) -> x509.Certificate:
    """The authority that one end believes."""
    return authority.load_certificate(own.authority)


def test_both_ends_believe_each_other() -> None:
    """Made apart from the same code, each one's certificate is of the other's authority, with one usage alone."""
    near, far = credentials(SECRET, destination=False), credentials(SECRET, destination=True)
    assert authority.is_issued_by(certificate(near), ca(far))
    assert authority.is_issued_by(certificate(far), ca(near))
    assert authority.usages(certificate(near)) == (frozenset({"1.3.6.1.5.5.7.3.2"}), 1)
    assert authority.usages(certificate(far)) == (frozenset({"1.3.6.1.5.5.7.3.1"}), 1)


def test_the_authority_is_that_of_version_1() -> None:
    """Both ends may be of different versions: how the key comes from the code does not change."""
    public = ca(credentials(SECRET, destination=True)).public_key()
    assert public.public_bytes_raw().hex() == PUBLIC  # type: ignore[union-attr]


def test_another_code_is_another_authority() -> None:
    """One bit of the secret is enough."""
    near, far = credentials(SECRET, destination=False), credentials(SECRET[:-1] + b"\x0e", destination=True)
    assert not authority.is_issued_by(certificate(near), ca(far))
    assert not authority.is_issued_by(certificate(far), ca(near))


def test_each_time_the_own_key_is_new() -> None:
    """Only the authority comes from the code: who has it cannot read what others with it send."""
    first, second = credentials(SECRET, destination=False), credentials(SECRET, destination=False)
    assert certificate(first).public_key() != certificate(second).public_key()


def test_the_code_is_in_nothing_that_is_sent() -> None:
    """Neither as bytes nor as text is it in the certificates."""
    own = credentials(SECRET, destination=True)
    sent = authority.load_certificate(own.own).public_bytes(Encoding.DER)
    assert SECRET not in sent
    assert format_code(SECRET).encode() not in sent


def test_the_first_source_is_the_only_one() -> None:
    """Its further connections come in, others with the same code do not."""
    gate = Gate(Clock())
    gate.admit(b"first")
    gate.admit(b"first")
    with pytest.raises(ProtocolError, match="has been used by another source"):
        gate.admit(b"second")
    gate.admit(b"first")
    assert not gate.is_void


def test_the_code_expires() -> None:
    """After ten minutes nobody comes in; whoever is in stays."""
    clock = Clock()
    gate, used = Gate(clock), Gate(clock)
    clock.now += CODE_SECONDS - 1
    assert not gate.is_void
    used.admit(b"first")
    clock.now += 1
    assert gate.is_void
    with pytest.raises(ProtocolError, match="has expired"):
        gate.admit(b"first")
    used.admit(b"first")
    assert not used.is_void


def test_wrong_codes_make_it_void() -> None:
    """A few tries of others are forgiven; whoever is in stays."""
    gate, used = Gate(Clock()), Gate(Clock())
    used.admit(b"first")
    for _ in range(TRIES - 1):
        gate.count_wrong()
        used.count_wrong()
    assert not gate.is_void
    gate.count_wrong()
    used.count_wrong()
    assert gate.is_void
    with pytest.raises(ProtocolError, match="somebody tried wrong ones"):
        gate.admit(b"first")
    used.admit(b"first")
