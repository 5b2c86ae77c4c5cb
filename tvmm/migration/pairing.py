"""One-time pairing of two hosts that share nothing: a code that one prints and the other is told. No IO.

The code is 128 random bits. Both ends derive from it the key of the same throw-away authority, and each issues a
certificate to itself with a fresh key, for one usage only: *destination* is a server, *source* a client. What follows
is the same mutually authenticated TLS 1.3 as with certificates from files, on each connection.

* An active attacker without the code can sign neither certificate, so neither end talks to him; he cannot stand between
  them, since the handshake of each leg would need one.
* The code never crosses the wire, not even encrypted. What can be tested against a guess is a public certificate,
  offline and without anybody noticing; 2**128 guesses are out of reach. This is why no PAKE is needed: it would allow a
  code of 20 bits, but would have to be bound to the TLS session by an exporter, which Python's ssl does not have, and
  the package for it (spake2) is one unreviewed, not constant-time implementation in Python.
* The keys of the TLS session are ephemeral: who learns the code later cannot read what was recorded.
* A certificate cannot be sent back to where it came from: its usage is wrong there.
* The first source that is admitted is the only one (`Gate`): its key is fresh, so a second one with the same code is
  told apart by its certificate. The code is void after `CODE_SECONDS`, and after `TRIES` handshakes with a wrong one.
  The count is an alarm rather than a defence: guessing is hopeless anyway, and whoever reaches the port can use it up.

The certificates have no meaningful dates: hosts that share nothing may not share a clock either, and it is the
destination's monotonic clock that ends the code.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import secrets
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ConfigError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CODE_SECONDS",
    "DESTINATION_NAME",
    "REASONS",
    "SOURCE_NAME",
    "TRIES",
    "Credentials",
    "Gate",
    "Refusal",
    "Refused",
    "credentials",
    "format_code",
    "new_secret",
    "parse_code",
]

CODE_SECONDS = 600.0
TRIES = 3

DESTINATION_NAME, SOURCE_NAME = "destination.tvmm.invalid", "source.tvmm.invalid"
"""Names in the certificates; .invalid is nobody's (RFC 2606)."""

SECRET_BYTES = 16
CHECK_BITS = 12
"""Bits of the code that tell a mistyped one, before any connection is made."""
CODE_SYMBOLS = (SECRET_BYTES * 8 + CHECK_BITS) // 5
GROUP = 4
CODE_LIMIT = 200
"""Characters of what the user gives for a code; with blanks and hyphens a right one has 34."""

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32: no letter looks like a digit."""
_LOOKALIKES = str.maketrans("OIL", "011")

_FIRST = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_LAST = datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC)


def new_secret() -> bytes:
    """What a new code stands for."""
    return secrets.token_bytes(SECRET_BYTES)


def format_code(secret: bytes) -> str:
    """The code for `secret`, in groups of four: seven of them."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"secret has {len(secret)} bytes instead of {SECRET_BYTES}")
    number = int.from_bytes(secret, "big") << CHECK_BITS | _check(secret)
    text = "".join(ALPHABET[number >> 5 * place & 31] for place in reversed(range(CODE_SYMBOLS)))
    return "-".join(text[start : start + GROUP] for start in range(0, CODE_SYMBOLS, GROUP))


def parse_code(text: str) -> bytes:
    """The secret that the code `text` stands for, however it is grouped and in either case. Raises `ConfigError`."""
    what = "a pairing code has 7 groups of 4 letters and digits, as 'tvmm run --incoming ... --pair' prints it"
    if len(text) > CODE_LIMIT:
        raise ConfigError("the pairing code is too long", what)
    symbols = text.upper().translate(_LOOKALIKES).replace("-", "").replace(" ", "")
    wrong = next((symbol for symbol in symbols if symbol not in ALPHABET), None)
    if wrong is not None:
        raise ConfigError(f"{wrong!r} cannot be in a pairing code", what)
    if len(symbols) != CODE_SYMBOLS:
        raise ConfigError(f"the pairing code has {len(symbols)} letters and digits instead of {CODE_SYMBOLS}", what)
    number = 0
    for symbol in symbols:
        number = number << 5 | ALPHABET.index(symbol)
    secret = (number >> CHECK_BITS).to_bytes(SECRET_BYTES, "big")
    if number & (1 << CHECK_BITS) - 1 != _check(secret):
        raise ConfigError("the pairing code is mistyped: its check digits do not fit", "see what was printed")
    return secret


def _check(secret: bytes) -> int:
    """Check digits; they are as secret as the code, and say nothing that it does not."""
    return int.from_bytes(hashlib.sha256(b"tvmm pairing check" + secret).digest()[:2], "big") >> 16 - CHECK_BITS


class Credentials(NamedTuple):
    """What one end brings into the handshake, as PEM: the authority both believe, and this end's key and
    certificate."""

    authority: bytes
    own: bytes


def credentials(secret: bytes, *, destination: bool) -> Credentials:
    """The credentials of one end; those of each call are different, and believed by all other ends with `secret`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    from cryptography.x509.oid import ExtendedKeyUsageOID

    from tvmm.migration import authority

    if len(secret) != SECRET_BYTES:
        raise ValueError(f"secret has {len(secret)} bytes instead of {SECRET_BYTES}")
    seed = HKDF(SHA256(), 32, salt=None, info=b"tvmm pairing authority v1").derive(secret)
    key = Ed25519PrivateKey.from_private_bytes(seed)
    ca = authority.Authority(authority.self_signed(key, "tvmm pairing", _FIRST, _LAST), key)
    usage = ExtendedKeyUsageOID.SERVER_AUTH if destination else ExtendedKeyUsageOID.CLIENT_AUTH
    name = DESTINATION_NAME if destination else SOURCE_NAME
    own_key, own = authority.issue(ca, name, (), _FIRST, until=_LAST, extended=(usage,))
    return Credentials(
        authority.certificate_pem(ca.certificate), authority.key_pem(own_key) + authority.certificate_pem(own)
    )


class Refusal(IntEnum):
    """Why a destination does not admit a source whose certificate is right. The number goes over the wire."""

    EXPIRED = 1
    USED = 2
    TRIED = 3
    NO_NAME = 4
    WRONG_USAGE = 5


REASONS = {
    Refusal.EXPIRED: "the pairing code has expired (it is good for 10 minutes)",
    Refusal.USED: "the pairing code has been used by another source",
    Refusal.TRIED: "the pairing code is void, because somebody tried wrong ones",
    Refusal.NO_NAME: "the source's certificate has no host name",
    Refusal.WRONG_USAGE: "the source's certificate is not for clients",
}


class Gate:
    """Whether the destination still takes its code. `now` gives seconds of a monotonic clock.

    To be used by one thread.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._ends = now() + CODE_SECONDS
        self._wrong = 0
        self._admitted = b""

    @property
    def is_void(self) -> bool:
        """Whether no source can be admitted any more that has not been: time to say so, and to end."""
        return not self._admitted and self._refusal() is not None

    def admit(self, certificate: bytes) -> None:
        """Let a source in that has passed the handshake with `certificate` (DER), or raise `ProtocolError`.

        The first one in is the only one; its further connections have the same certificate, and time has no power over
        them: a migration may take longer than the code is good for.
        """
        if self._admitted:
            if not hmac.compare_digest(self._admitted, hashlib.sha256(certificate).digest()):
                raise Refused(Refusal.USED)
            return
        refusal = self._refusal()
        if refusal is not None:
            raise Refused(refusal)
        self._admitted = hashlib.sha256(certificate).digest()

    def count_wrong(self) -> None:
        """Somebody came with another code."""
        self._wrong += 1

    def _refusal(self) -> Refusal | None:
        if self._wrong >= TRIES:
            return Refusal.TRIED
        return Refusal.EXPIRED if self._now() >= self._ends else None


class Refused(ProtocolError):
    """A source that is not admitted; `reason` is told to it."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(REASONS[reason])
        self.reason = reason
