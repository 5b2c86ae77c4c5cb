"""Which security types a server offers, strongest first, and what is to be said about them.

| | without encryption | offered | required |
| --- | --- | --- | --- |
| nobody is asked | None | VeNCrypt None, None | VeNCrypt None |
| a password | VNC | VeNCrypt Vnc and Plain, RSA-AES, VNC | VeNCrypt Vnc and Plain, RSA-AES (5, 129) |
| users | nothing, or Plain in the clear | VeNCrypt Plain, RSA-AES | VeNCrypt Plain, RSA-AES (5, 129) |

VeNCrypt's Plain carries all of a password, Vnc eight characters: for viewers that can do one of them only, both are
there. A viewer chooses; most take the first that they know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.vnc.rsa_aes import RSA_AES_TYPES, RsaAes
from tvmm.vnc.security_types import NoSecurity
from tvmm.vnc.vencrypt import (
    PLAIN,
    TLS_NONE,
    TLS_PLAIN,
    TLS_VNC,
    X509_NONE,
    X509_PLAIN,
    X509_VNC,
    VeNCrypt,
    subtype_name,
)
from tvmm.vnc.vnc_auth import VncAuthentication

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from tvmm.vnc.passwords import Passwords
    from tvmm.vnc.rsa_aes import RsaKey
    from tvmm.vnc.security_types import SecurityType

__all__ = ["Means", "Policy", "auth_words", "security_types"]

_X509 = {"none": X509_NONE, "vnc": X509_VNC, "plain": X509_PLAIN}
_ANONYMOUS = {"none": TLS_NONE, "vnc": TLS_VNC, "plain": TLS_PLAIN}
_QAPI = {1: "none", 2: "vnc", 5: "ra2", 6: "ra2ne", 19: "vencrypt", 129: "ra2", 130: "ra2ne"}


class Policy(NamedTuple):
    """What viewers have to do.

    `password`: there is one, or will be. `users` are asked for their names if `Passwords` has any. Without both,
    nobody is asked. `clear_users`: they may say their passwords in the clear.
    """

    password: bool = False
    encryption: Literal["off", "offered", "required"] = "off"
    clear_users: bool = False


class Means(NamedTuple):
    """What encryption is made with; what is None is not offered. `certificate` and `anonymous` are `ssl.SSLContext`."""

    certificate: object = None
    anonymous: object = None
    key: RsaKey | None = None


def security_types(passwords: Passwords, policy: Policy, means: Means = Means()) -> list[SecurityType]:  # noqa: B008
    """The types to offer, in order. None of them means that nobody can come in."""
    users = passwords.has_users
    asked = users or policy.password
    insides = (["vnc"] * policy.password + ["plain"]) if asked else ["none"]
    if users:
        # The password of RFC 6143, 7.2.2 is nobody's: those who have names come first.
        insides = ["plain", *insides[:-1]]
    types: list[SecurityType] = []
    subtypes: list[int] = []
    if policy.encryption != "off":
        if means.certificate is not None:
            subtypes += [_X509[inside] for inside in insides]
        if means.anonymous is not None:
            subtypes += [_ANONYMOUS[inside] for inside in insides]
    if users and policy.clear_users:
        subtypes.append(PLAIN)
    if subtypes:
        types.append(VeNCrypt(passwords, subtypes, certificate=means.certificate, anonymous=means.anonymous))
    if asked and means.key is not None and policy.encryption != "off":
        kinds = [kind for kind in RSA_AES_TYPES.values() if kind.all_encrypted or policy.encryption == "offered"]
        kinds.sort(key=lambda kind: (not kind.all_encrypted, -kind.key_bytes))
        types += [RsaAes(kind.number, passwords, means.key) for kind in kinds]
    if policy.encryption != "required":
        if policy.password:
            types.append(VncAuthentication(passwords))
        elif not asked:
            types.append(NoSecurity())
    return types


def auth_words(types: Sequence[SecurityType]) -> tuple[str, str]:
    """QAPI's VncPrimaryAuth and VncVencryptSubAuth ('' if there is none) of the first of `types`."""
    if not types:
        return "invalid", ""
    first = types[0]
    return _QAPI[first.number], subtype_name(first.subtypes[0]) if isinstance(first, VeNCrypt) else ""
