"""Where a user's keys for migrations are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["default_keys_directory"]


def default_keys_directory(environment: Mapping[str, str], home: str) -> str:
    """Unless the user says otherwise: ``tvmm/keys`` below $XDG_CONFIG_HOME, or below ``.config`` in `home`."""
    base = environment.get("XDG_CONFIG_HOME", "")
    # The specification says to ignore a relative path.
    return f"{base if base.startswith('/') else f'{home}/.config'}/tvmm/keys"
