"""VeNCrypt (type 19, version 0.2): TLS first, then another way to prove oneself inside.

::

    server                                   viewer
    version 0.2                 ──>
                                <──          version 0.2
    0, count, subtypes (u32)    ──>
                                <──          subtype (u32)
    1                           ──>                          only with TLS
    ═══════════════════ TLS handshake ═════════════════════  only with TLS
    then, inside: nothing (None), RFC 6143, 7.2.2 (Vnc), or (Plain)
                                <──          length of name, length of password (u32), name, password

Subtypes are TLS with a certificate (X509) or with an anonymous key exchange (TLS). The latter keeps out who only
listens; who stands in the middle gets everything, but the same is true of a viewer that does not check certificates,
and some have no other TLS.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

from tvmm.vnc.passwords import PASSWORD_LIMIT, USER_LIMIT
from tvmm.vnc.security_types import Failed, NoSecurity, Send, StartTls
from tvmm.vnc.vnc_auth import VncAuthentication, ending

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.vnc.passwords import Passwords
    from tvmm.vnc.security_types import Exchange, Step

__all__ = [
    "PLAIN",
    "TLS_NONE",
    "TLS_PLAIN",
    "TLS_VNC",
    "VERSION",
    "X509_NONE",
    "X509_PLAIN",
    "X509_VNC",
    "VeNCrypt",
    "subtype_name",
]

VERSION = b"\0\2"
PLAIN = 256
TLS_NONE, TLS_VNC, TLS_PLAIN = 257, 258, 259
X509_NONE, X509_VNC, X509_PLAIN = 260, 261, 262


class _Subtype(NamedTuple):
    name: str
    """QAPI's VncVencryptSubAuth."""
    tls: str
    inside: str


_SUBTYPES = {
    PLAIN: _Subtype("plain", "", "plain"),
    TLS_NONE: _Subtype("tls-none", "anonymous", "none"),
    TLS_VNC: _Subtype("tls-vnc", "anonymous", "vnc"),
    TLS_PLAIN: _Subtype("tls-plain", "anonymous", "plain"),
    X509_NONE: _Subtype("x509-none", "certificate", "none"),
    X509_VNC: _Subtype("x509-vnc", "certificate", "vnc"),
    X509_PLAIN: _Subtype("x509-plain", "certificate", "plain"),
}


def subtype_name(number: int) -> str:
    """What QEMU calls the subtype, as in ``x509-vnc``."""
    return _SUBTYPES[number].name


class VeNCrypt:
    """Type 19, with `subtypes` in the order in which viewers are to prefer them.

    `certificate` and `anonymous` are the `ssl.SSLContext` for X509 and TLS subtypes; each must be there if a subtype
    needs it. Raises `ValueError` if not, and for a subtype that there is not.
    """

    number = 19
    name = "VeNCrypt"

    def __init__(
        self,
        passwords: Passwords,
        subtypes: Sequence[int],
        *,
        certificate: object = None,
        anonymous: object = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        contexts = {"": None, "certificate": certificate, "anonymous": anonymous}
        for number in subtypes:
            if number not in _SUBTYPES:
                raise ValueError(f"there is no subtype {number}")
            if _SUBTYPES[number].tls and contexts[_SUBTYPES[number].tls] is None:
                raise ValueError(f"subtype {number} needs a context for TLS")
        if not 0 < len(subtypes) < 256:
            raise ValueError("at least one subtype is to be offered, and at most 255")
        self.subtypes = tuple(subtypes)
        self._passwords = passwords
        self._contexts = contexts
        self._random = random

    def begin(self, peer: str) -> Exchange:
        """An exchange that begins with versions."""
        return _VeNCryptExchange(self, peer)

    def context(self, subtype: int) -> object:
        """The context for the TLS of `subtype`, None if it has no TLS."""
        return self._contexts[_SUBTYPES[subtype].tls]

    def inside(self, subtype: int, peer: str) -> Exchange:
        """The exchange that goes on after TLS."""
        kind = _SUBTYPES[subtype].inside
        if kind == "none":
            return NoSecurity().begin(peer)
        if kind == "vnc":
            return VncAuthentication(self._passwords, self._random).begin(peer)
        return _PlainExchange(self._passwords)


class _VeNCryptExchange:
    def __init__(self, offer: VeNCrypt, peer: str) -> None:
        self._offer = offer
        self._peer = peer
        self._inner: Exchange | None = None
        self._receive = self._version

    def start(self) -> list[Step]:
        return [Send(VERSION)]

    def receive(self, data: bytearray) -> list[Step]:
        if self._inner is not None:
            return [*self._inner.receive(data)]
        steps: list[Step] = []
        while self._inner is None:
            more = self._receive(data)
            steps += more
            if not more or isinstance(more[-1], Failed):
                return steps
        # Not a byte is read beyond the beginning of TLS: it would have come in the clear.
        return steps

    def _version(self, data: bytearray) -> list[Step]:
        if len(data) < 2:
            return []
        version = bytes(data[:2])
        del data[:2]
        if version != VERSION:
            return [Send(b"\xff"), Failed("this version of VeNCrypt is not spoken here, only 0.2")]
        self._receive = self._subtype
        numbers = b"".join(number.to_bytes(4, "big") for number in self._offer.subtypes)
        return [Send(bytes([0, len(self._offer.subtypes)]) + numbers)]

    def _subtype(self, data: bytearray) -> list[Step]:
        if len(data) < 4:
            return []
        subtype = int.from_bytes(data[:4], "big")
        del data[:4]
        if subtype not in self._offer.subtypes:
            return [Failed("this subtype of VeNCrypt was not offered")]
        self._inner = self._offer.inside(subtype, self._peer)
        context = self._offer.context(subtype)
        tls: list[Step] = [] if context is None else [Send(b"\1"), StartTls(context)]
        return [*tls, *self._inner.start()]


class _PlainExchange:
    def __init__(self, passwords: Passwords) -> None:
        self._passwords = passwords

    def start(self) -> list[Step]:
        return []

    def receive(self, data: bytearray) -> list[Step]:
        if len(data) < 8:
            return []
        user, password = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
        # Without a limit a viewer that nobody knows would have up to 8 GiB of memory here.
        if user > USER_LIMIT or password > PASSWORD_LIMIT:
            return [Failed("the name or the password is too long")]
        end = 8 + user + password
        if len(data) < end:
            return []
        given = bytes(data[8:end])
        del data[:end]
        return [ending(self._passwords.check_user(given[:user], given[user:]))]
