"""Users and groups of this host, by name or number."""

from __future__ import annotations

import grp
import pwd

from tvmm.errors import ConfigError

__all__ = ["all_groups", "all_users", "find_group", "find_user"]

ID_LIMIT = (1 << 32) - 1
"""The last one stands for nobody at all."""


def find_user(text: str) -> tuple[str, int]:
    """Name and number; a number need not have a name. Raises `ConfigError`."""
    try:
        entry = pwd.getpwuid(int(text)) if _is_number(text) else pwd.getpwnam(text)
    except (KeyError, ValueError):
        if _is_number(text):
            return text, int(text)
        raise ConfigError(f"there is no user {text[:40]!r}", "'getent passwd' lists those there are") from None
    return entry.pw_name, entry.pw_uid


def find_group(text: str) -> tuple[str, int]:
    """The same of groups."""
    try:
        entry = grp.getgrgid(int(text)) if _is_number(text) else grp.getgrnam(text)
    except (KeyError, ValueError):
        if _is_number(text):
            return text, int(text)
        raise ConfigError(f"there is no group {text[:40]!r}", "'getent group' lists those there are") from None
    return entry.gr_name, entry.gr_gid


def all_users() -> list[str]:
    """Their names."""
    return sorted({entry.pw_name for entry in pwd.getpwall()})


def all_groups() -> list[str]:
    """Their names."""
    return sorted({entry.gr_name for entry in grp.getgrall()})


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 11 and int(text) < ID_LIMIT
