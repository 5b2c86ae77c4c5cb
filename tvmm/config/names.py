"""What machines and their sockets may be called. Apart from the options that these are given with, for those who only
look a machine up.
"""

from __future__ import annotations

from tvmm.errors import ConfigError

__all__ = ["NAME_LIMIT", "UNIX_PATH_LIMIT", "check_name"]

NAME_LIMIT = 64
"""Characters in a machine's name: it becomes a directory, and part of the path of a socket."""

UNIX_PATH_LIMIT = 107
"""Bytes that sockaddr_un holds besides the final NUL."""

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def check_name(name: str) -> str:
    """`name`, if a machine (and so a directory) may be called that; raises `ConfigError` otherwise."""
    if not name:
        raise ConfigError("a machine's name must not be empty")
    if len(name) > NAME_LIMIT:
        raise ConfigError(
            f"the name {name[:16]!r}... has {len(name)} characters, at most {NAME_LIMIT} are allowed"
        )
    if not _NAME_CHARACTERS.issuperset(name) or name[0] in ".-":
        raise ConfigError(
            f"{name!r} cannot name a machine",
            "use letters, digits, '.', '_' and '-', with a letter, digit or '_' first",
        )
    return name
