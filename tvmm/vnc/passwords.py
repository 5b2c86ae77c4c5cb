"""What viewers are let in with: passwords, users, and until when.

`Passwords` is the one place where a secret is compared. All comparisons take the same time wherever the difference
is, also for users that there are not. An empty password lets nobody in. A password may have an end; those of users
have none. What is longer than a limit here is refused before it is looked at.
"""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import UserError
from tvmm.vnc.des import CHALLENGE_BYTES, KEY_BYTES, des_key, encrypt_challenge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "GENERATED_LENGTH",
    "PASSWORD_LIMIT",
    "USER_LIMIT",
    "Grant",
    "Passwords",
    "check_password",
    "check_user",
    "expiry_time",
    "generate_password",
    "parse_users",
]

PASSWORD_LIMIT = 255
"""Bytes of a password: what RSA-AES can carry. A viewer's longer one is not compared, let alone stored."""
USER_LIMIT = 255
"""Bytes of a user's name, for the same reason."""
USERS_LIMIT = 1024
"""Users in one file: each of them is compared with."""
GENERATED_LENGTH = 14
"""Characters of a generated password, of 5.8 bits each. VNC authentication uses 8 of them."""

# No letter that looks like another one or like a digit: people type it from a screen.
_LETTERS = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
MAX_SECONDS = 1 << 40
"""The last time that a password may end at, in seconds since 1970: some 34,000 years, and exact as a float."""


class Grant(NamedTuple):
    """Who a viewer is, and what it may do."""

    user: str = ""
    view_only: bool = False


class Passwords:
    """The passwords of one server. `full` and `view_only` are the passwords, `users` has those of users by name.

    `clock` tells the seconds since 1970; it is asked only if a password has an end.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        full: str = "",
        view_only: str = "",
        users: Mapping[str, str] | None = None,
    ) -> None:
        self._clock = clock
        self._view_only = check_password(view_only) if view_only else ""
        self._full = ""
        self.set_password(full)
        self._users = {check_user(name): check_password(password) for name, password in (users or {}).items()}
        self._expires: float | None = None
        # Compared with when a name is unknown, so that an unknown name takes as long as a known one.
        self._nobody = secrets.token_bytes(PASSWORD_LIMIT)

    @property
    def has_users(self) -> bool:
        """Whether viewers give a name."""
        return bool(self._users)

    @property
    def expires(self) -> float | None:
        """When the passwords that belong to no user end, in seconds since 1970; None for never."""
        return self._expires

    @property
    def is_expired(self) -> bool:
        """Whether the passwords that belong to no user let nobody in any more."""
        return self._expires is not None and self._clock() >= self._expires

    def set_password(self, password: str) -> None:
        """Let `password` be the full one from now on; '' lets nobody in. Raises `UserError`."""
        if password:
            check_password(password)
        if password and des_key(_bytes(password)) == des_key(_bytes(self._view_only)):
            # For VNC authentication they would be the same, and who may only look could do everything.
            raise UserError(f"the VNC passwords have the same first {KEY_BYTES} bytes", "choose another one")
        self._full = password

    def expire(self, when: float | None) -> None:
        """Let the passwords that belong to no user end at `when`, in seconds since 1970, or (None) never."""
        self._expires = when

    def check_response(self, challenge: bytes, response: bytes) -> Grant | None:
        """What a viewer may do that answered `challenge` so (RFC 6143, 7.2.2); None if it may not come in."""
        if len(challenge) != CHALLENGE_BYTES:
            raise ValueError("a challenge has 16 bytes")
        answers = [encrypt_challenge(_bytes(password), challenge) for password in (self._full, self._view_only)]
        return self._grant([_same(answer, response) for answer in answers])

    def check_password(self, password: bytes) -> Grant | None:
        """What a viewer may do that sent `password`; None if it may not come in."""
        if len(password) > PASSWORD_LIMIT:
            return None
        return self._grant([_same(_bytes(known), password) for known in (self._full, self._view_only)])

    def check_user(self, user: bytes, password: bytes) -> Grant | None:
        """What a viewer may do that sent `user` and `password`; None if it may not come in.

        On a server without users any name goes with its passwords.
        """
        if len(user) > USER_LIMIT or len(password) > PASSWORD_LIMIT:
            return None
        if not self._users:
            grant = self.check_password(password)
            return None if grant is None else grant._replace(user=_shown(user))
        found, expected = "", self._nobody
        for name, known in self._users.items():
            if _same(_bytes(name), user):
                found, expected = name, _bytes(known)
        right = _same(expected, password)
        return Grant(found) if right and found else None

    def _grant(self, matches: list[bool]) -> Grant | None:
        """By whether the full and the view-only password match."""
        full, view_only = matches
        if self.is_expired:
            return None
        if self._full and full:
            return Grant()
        return Grant(view_only=True) if self._view_only and view_only else None


_HASH_KEY = secrets.token_bytes(32)


def _same(one: bytes, other: bytes) -> bool:
    """Whether they are equal; how long it takes does not tell how much is, nor how long the secret is."""
    return hmac.compare_digest(*(hmac.digest(_HASH_KEY, text, "sha256") for text in (one, other)))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _shown(user: bytes) -> str:
    """A name that a viewer made up, fit for a log."""
    return "".join(letter if letter.isprintable() else "?" for letter in user.decode("utf-8", "replace"))


def check_password(password: str) -> str:
    """`password`, if it can be one. Raises `UserError`."""
    try:
        encoded = password.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("the VNC password is not text") from None
    if not encoded:
        raise UserError("the VNC password is empty", "nobody could come in with it")
    if len(encoded) > PASSWORD_LIMIT:
        raise UserError(f"the VNC password is longer than {PASSWORD_LIMIT} bytes")
    # A NUL ends a password for VNC authentication, a line break cannot be typed.
    if any(letter < " " or letter == "\x7f" for letter in password):
        raise UserError("the VNC password has a control character in it")
    return password


def check_user(name: str) -> str:
    """`name`, if a user can have it. Raises `UserError`."""
    if not name or not name.isprintable() or len(name.encode("utf-8", "replace")) > USER_LIMIT:
        raise UserError(f"{name[:32]!r} is no name of a user", f"use 1 to {USER_LIMIT} printable characters")
    return name


def generate_password() -> str:
    """A password of `GENERATED_LENGTH` letters and digits that nobody can guess."""
    return "".join(secrets.choice(_LETTERS) for _ in range(GENERATED_LENGTH))


def parse_users(text: str, where: str = "the users' file") -> dict[str, str]:
    """Passwords by user out of lines ``user:password``; empty lines and those that begin with ``#`` count for nothing.

    Raises `UserError` naming `where` and the line, but not what is in it.
    """
    users: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, password = line.partition(":")
        if not colon:
            raise UserError(f"line {number} of {where} has no colon", "write user:password")
        try:
            check_user(name)
            check_password(password)
        except UserError as error:
            raise UserError(f"line {number} of {where} names no user with a password", "write user:password") from error
        if name in users:
            raise UserError(f"line {number} of {where} names a user for the second time")
        users[name] = password
        if len(users) > USERS_LIMIT:
            raise UserError(f"{where} has more than {USERS_LIMIT} users")
    if not users:
        raise UserError(f"{where} names nobody", "write lines of user:password")
    return users


def expiry_time(text: str, now: float) -> float | None:
    """When a password ends that ends at `text`, as QEMU's ``expire_password`` has it; None for never.

    ``now``, ``never``, ``+N`` seconds from `now`, or seconds since 1970. Raises `UserError`.
    """
    if text == "now":
        return now
    if text == "never":
        return None
    digits = text.removeprefix("+")
    # int() also reads blanks, underscores and the digits of every script, and takes quadratic time.
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 15 or int(digits) > MAX_SECONDS:
        raise UserError(f"{text[:40]!r} is no time for a password to end", "write now, never, +SECONDS or SECONDS")
    return now + int(digits) if text.startswith("+") else float(digits)
