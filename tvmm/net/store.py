"""The journals of the networks that are up: one file each, in a directory of root's alone.

::

    BASE/net/              mode 0700
        .lock              held while a network is set up or taken down, and by the programs that do it
        NAME.json          what was done, or was about to be
        NAME/              dnsmasq's files

All goes with the last network. The lock is a file's (flock(2)): programs that were started have it too, so whoever gets
it knows that nothing of a process that was killed still runs.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tvmm.control.directory import is_own, make_own, try_lock
from tvmm.errors import HostError, UserError
from tvmm.net.spec import check_network_name
from tvmm.net.steps import JOURNAL_LIMIT, Journal, read_journal, write_journal

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Store"]

LOCK_SECONDS, LOCK_POLL_SECONDS = 60.0, 0.02


class Store:
    """The directory `directory`, which need not exist. All methods raise `HostError`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, name: str) -> Path:
        """A network's journal."""
        return self.directory / f"{check_network_name(name)}.json"

    def names(self) -> list[str]:
        """The networks that have one."""
        if not is_own(self.directory):
            return []
        try:
            found = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return sorted(name.removesuffix(".json") for name in found if name.endswith(".json") and name[0] != ".")

    def read(self, name: str) -> Journal | None:
        """A network's journal, None if it has none."""
        path = self.path(name)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), encoding="utf-8") as file:
                text = file.read(JOURNAL_LIMIT)
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            text = ""
        except OSError as error:
            raise HostError(f"cannot read {path}: {error.strerror}") from error
        return read_journal(text, str(path))

    def write(self, journal: Journal) -> None:
        """In place of what was there, as a whole."""
        path = self.path(journal.spec.name)
        beside = path.with_name(f".{path.name}.new")
        try:
            with suppress(FileNotFoundError):
                os.unlink(beside)
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                file.write(write_journal(journal))
            os.replace(beside, path)
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror}") from error

    def remove(self, name: str) -> None:
        """There is no such network any more."""
        path = self.path(name)
        for leftover in (path.with_name(f".{path.name}.new"), path):
            with suppress(FileNotFoundError):
                os.unlink(leftover)

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Nobody else changes networks; the descriptor that holds the lock. What is empty afterwards goes."""
        fd = self._wait()
        try:
            yield fd
        finally:
            with suppress(OSError):
                if os.listdir(self.directory) == [".lock"]:
                    os.unlink(self.directory / ".lock")
                    os.rmdir(self.directory)
            os.close(fd)

    def _wait(self) -> int:
        deadline = time.monotonic() + LOCK_SECONDS
        path = self.directory / ".lock"
        while True:
            make_own(self.directory)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                # The directory went with the last network, just now.
                continue
            except OSError as error:
                raise HostError(f"cannot use {path}: {error.strerror}") from error
            if try_lock(fd) and _is_at(fd, path):
                return fd
            os.close(fd)
            if time.monotonic() > deadline:
                raise UserError(
                    f"another tvmm has been changing networks for {LOCK_SECONDS:g} s",
                    f"'sudo fuser {path}' tells which",
                )
            time.sleep(LOCK_POLL_SECONDS)


def _is_at(fd: int, path: Path) -> bool:
    """Whether it is still the file of that name, and not one that was removed while we waited."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
