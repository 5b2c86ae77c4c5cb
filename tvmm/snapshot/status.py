"""How a machine is saved, and how that goes: records that the machine fills and control clients read."""

from __future__ import annotations

from typing import NamedTuple

from tvmm.errors import ConfigError

__all__ = ["ENDED", "MECHANISMS", "NO_SAVE", "STATES", "SaveParameters", "SaveStatus"]

STATES = ("none", "setup", "active", "finishing", "cancelling", "completed", "failed", "cancelled")
ENDED = ("completed", "failed", "cancelled")
MECHANISMS = ("write-protection", "dirty-log")
"""How the pages of one moment are found while the guest goes on writing: docs/live-snapshot.md."""
MAX_PASSPHRASE = 1024
MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 4096


class SaveParameters(NamedTuple):
    """`force`: a file that is no snapshot may be replaced. `stop`: the machine ends when the file is safe.
    `live`: the guest runs while it is written, and is held for some milliseconds. `passphrase` or `key`, the bytes of a
    key file, encrypt it.
    """

    force: bool = False
    stop: bool = False
    live: bool = False
    passphrase: str = ""
    key: bytes = b""

    def check(self) -> SaveParameters:
        """The same record. Raises `ConfigError`."""
        if self.live and self.stop:
            raise ConfigError("a machine that is to stop is not saved live", "leave out one of live and stop")
        if self.live and (self.passphrase or self.key):
            raise ConfigError("a live snapshot cannot be encrypted", "save without live, or encrypt it later")
        if self.passphrase and self.key:
            raise ConfigError("a passphrase and a key file are given", "a snapshot is encrypted with one of them")
        if len(self.passphrase) > MAX_PASSPHRASE:
            raise ConfigError("the passphrase is too long", f"it may have {MAX_PASSPHRASE} characters")
        if self.key and not MIN_KEY_BYTES <= len(self.key) <= MAX_KEY_BYTES:
            raise ConfigError(
                f"the key has {len(self.key)} bytes", f"{MIN_KEY_BYTES} to {MAX_KEY_BYTES} are possible"
            )
        try:
            self.passphrase.encode()
        except UnicodeEncodeError:
            raise ConfigError("the passphrase has something that is no character") from None
        return self


class SaveStatus(NamedTuple):
    """`state` is one of `STATES`. Figures are bytes and milliseconds; `done` of `total` bytes of RAM have been
    looked at, of which `data` were not zero; `pause_ms` is how long the guest stood still for it, or stands so far.
    `live_by` is one of `MECHANISMS` for a guest that runs meanwhile, "" before that is known.
    """

    state: str = "none"
    path: str = ""
    total: int = 0
    done: int = 0
    data: int = 0
    file_bytes: int = 0
    total_ms: float = 0.0
    pause_ms: float = 0.0
    encrypted: bool = False
    stopped: bool = False
    error: str = ""
    error_hint: str = ""
    live_by: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state in ENDED

    @property
    def under_way(self) -> bool:
        """Whether one is."""
        return self.state in ("setup", "active", "finishing", "cancelling")


NO_SAVE = SaveStatus()
