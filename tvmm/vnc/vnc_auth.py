"""VNC authentication (RFC 6143, 7.2.2), and how exchanges end."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from tvmm.vnc.des import CHALLENGE_BYTES
from tvmm.vnc.security_types import Failed, Passed, Send

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.vnc.passwords import Grant, Passwords
    from tvmm.vnc.security_types import Exchange, Step

__all__ = ["REFUSED", "VncAuthentication", "ending"]

REFUSED = "authentication failed"
"""What a viewer is told, whatever was wrong: neither whether there is such a user nor that a password has ended."""


def ending(grant: Grant | None) -> Step:
    """The last step of an exchange that led to `grant`."""
    return Failed(REFUSED) if grant is None else Passed(grant.user, grant.view_only)


class VncAuthentication:
    """Type 2: the viewer encrypts a challenge with the password. Weak, see `tvmm.vnc.des`.

    `random` makes that many random bytes.
    """

    number = 2
    name = "VNC authentication"

    def __init__(self, passwords: Passwords, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._passwords = passwords
        self._random = random

    def begin(self, peer: str) -> Exchange:
        """An exchange with a challenge of its own."""
        return _VncExchange(self._passwords, self._random(CHALLENGE_BYTES))


class _VncExchange:
    def __init__(self, passwords: Passwords, challenge: bytes) -> None:
        self._passwords = passwords
        self._challenge = challenge

    def start(self) -> list[Step]:
        return [Send(self._challenge)]

    def receive(self, data: bytearray) -> list[Step]:
        if len(data) < CHALLENGE_BYTES:
            return []
        response = bytes(data[:CHALLENGE_BYTES])
        del data[:CHALLENGE_BYTES]
        return [ending(self._passwords.check_response(self._challenge, response))]
