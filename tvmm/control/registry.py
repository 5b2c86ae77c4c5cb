"""Which machines run on this host: one directory per machine, and two kinds of lock.

::

    BASE/                    $XDG_RUNTIME_DIR/tvmm, /run/tvmm for root; mode 0700
        .lock                held for moments, by whoever looks or changes anything below
        NAME/                mode 0700
            lock             held by the machine's process for as long as it lives
            pid              JSON: pid, start_ticks, name, started
            control.sock     QMP
            console.sock     the serial line

The kernel lets go of a lock when its holder dies, however it dies, so a directory whose `lock` is free is
stale: no heartbeat, no guess from a pid that another process may have by now. Everything that takes more than
one step (two processes that start under one name, one that starts while another cleans up) happens under the
base lock, and so in some order.

Rejected: lock files beside the directories, which would have to stay for ever to be free of races; taking
"the pid exists" for a sign of life, because pids come back; POSIX record locks, which a process loses when
any of its parts closes the file, and two machines in one process must not share a name either.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tvmm.config.names import UNIX_PATH_LIMIT, check_name
from tvmm.control.directory import base_lock, check_own, is_own, make_own, try_lock
from tvmm.errors import HostError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "MachineEntry",
    "MachinePaths",
    "check_socket_path",
    "find",
    "is_process",
    "machines",
    "register",
    "remove_stale",
    "runtime_directory",
    "start_ticks",
]

PID_FILE_LIMIT = 4096
"""Bytes of a pid file that are read; tvmm writes about 100."""

FILES = ("control.sock", "console.sock", "pid", "lock")


class MachinePaths(NamedTuple):
    """Where the parts of a registered machine are found."""

    directory: Path
    control: Path
    console: Path


class MachineEntry(NamedTuple):
    """One machine of the registry. What a stale one could not tell any more is 0."""

    name: str
    alive: bool
    pid: int
    start_ticks: int
    """When process `pid` started, in clock ticks since the host booted (see `start_ticks`)."""
    started: float
    """When the machine was registered, in seconds since 1970."""
    paths: MachinePaths


def runtime_directory(environment: Mapping[str, str], uid: int) -> Path:
    """The registry's base directory for user `uid`.

    ``TVMM_RUNTIME_DIR`` wins; else /run/tvmm for root, ``$XDG_RUNTIME_DIR/tvmm`` for others, and where no
    session set that (containers, cron), a directory in /tmp that `register` refuses unless it is the user's
    own.
    """
    if chosen := environment.get("TVMM_RUNTIME_DIR"):
        return Path(chosen).absolute()
    if uid == 0:
        return Path("/run/tvmm")
    if session := environment.get("XDG_RUNTIME_DIR"):
        return Path(session, "tvmm").absolute()
    return Path(f"/tmp/tvmm-{uid}")


def check_socket_path(path: Path) -> None:
    """Raise `UserError` if `path` is too long for a unix socket."""
    size = len(os.fsencode(path))
    if size > UNIX_PATH_LIMIT:
        raise UserError(
            f"the socket path {path} has {size} bytes, the system takes at most {UNIX_PATH_LIMIT}",
            "choose a shorter name or a directory nearer to the root",
        )


def start_ticks(pid: int) -> int:
    """When process `pid` started, in clock ticks since boot; 0 if there is no such process.

    Field 22 of /proc/PID/stat (proc_pid_stat(5)): with it, a pid that was given to another process is told
    apart.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except OSError:
        return 0
    # Field 2 is the program's name in parentheses and may hold anything; count from the last parenthesis.
    return int(line[line.rindex(b")") + 1 :].split()[19])


def is_process(entry: MachineEntry) -> bool:
    """Whether `entry.pid` is still the process that registered the machine, and so may be sent a signal."""
    return entry.pid > 0 and entry.start_ticks > 0 and start_ticks(entry.pid) == entry.start_ticks


@contextmanager
def register(base: Path, name: str) -> Iterator[MachinePaths]:
    """Hold `name` in the registry at `base` for the length of the block; what is left of it goes at the end.

    Raises `UserError` for a name that is malformed or that a live machine has, `HostError` when the
    directory cannot be used.
    """
    check_name(name)
    paths = _paths(base, name)
    check_socket_path(paths.control)
    check_socket_path(paths.console)
    make_own(base)
    with base_lock(base):
        lock = _claim(base, name)
    try:
        yield paths
    finally:
        try:
            # What cannot be removed now is stale from here on, and goes when the next one looks.
            with suppress(OSError, HostError):
                _unregister(base, paths.directory, lock)
        finally:
            os.close(lock)


def machines(base: Path) -> list[MachineEntry]:
    """Every machine of the registry at `base`, live and stale, by name.

    Raises `HostError` if it cannot be read; a base that does not exist has no machines.
    """
    if not is_own(base):
        return []
    try:
        with base_lock(base):
            return _entries(base)
    except OSError as error:
        raise HostError(f"cannot read the machine directory {base}: {error.strerror}") from error


def remove_stale(base: Path) -> list[MachineEntry]:
    """Remove what machines left behind that ended without cleaning up; returns those that were removed."""
    if not is_own(base):
        return []
    try:
        with base_lock(base):
            stale = [entry for entry in _entries(base) if not entry.alive]
            for entry in stale:
                _remove(entry.paths.directory)
            return stale
    except OSError as error:
        raise HostError(f"cannot clean up the machine directory {base}: {error.strerror}") from error


def find(base: Path, name: str | None) -> MachineEntry:
    """The live machine `name`; with None, the only one there is.

    Raises `UserError` with the nearest name if there is none of that name, if it is no longer running, or if
    None leaves a choice.
    """
    entries = machines(base)
    live = [entry for entry in entries if entry.alive]
    if name is None:
        if len(live) == 1:
            return live[0]
        if not live:
            raise UserError("no machine is running", "start one with 'tvmm run'")
        raise UserError(
            "several machines are running", f"name one of: {', '.join(entry.name for entry in live)}"
        )
    for entry in entries:
        if entry.name == name:
            if entry.alive:
                return entry
            raise UserError(f"machine {name!r} is not running: its process ended without cleaning up")
    raise UserError(f"no machine is named {name!r}", _nearest(name, [entry.name for entry in live]))


def _nearest(name: str, names: list[str]) -> str:
    """What to do next for one who asked for `name`."""
    if not names:
        return "none is running; start one with 'tvmm run'"
    from difflib import get_close_matches

    if near := get_close_matches(name, names, n=1):
        return f"did you mean {near[0]!r}?"
    return "'tvmm ps' lists those that run"


def _paths(base: Path, name: str) -> MachinePaths:
    directory = base / name
    return MachinePaths(directory, directory / "control.sock", directory / "console.sock")


def _claim(base: Path, name: str) -> int:
    """Make the directory of machine `name` and lock it; returns the descriptor that holds the lock.

    The base lock is held.
    """
    directory = base / name
    try:
        with suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        check_own(directory, os.lstat(directory))
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(f"cannot set up {directory}: {error.strerror}") from error
    try:
        if not try_lock(lock):
            entry = _entry(base, name, alive=True)
            raise UserError(
                f"a machine named {name!r} is already running (pid {entry.pid})",
                "choose another --name or stop it",
            )
        for leftover in FILES[:2]:
            with suppress(FileNotFoundError):
                os.unlink(directory / leftover)
        pid = os.getpid()
        # Written by hand: `name` has nothing that JSON escapes, and the json module is not wanted at start.
        ticks = start_ticks(pid)
        text = f'{{"pid": {pid}, "start_ticks": {ticks}, "name": "{name}", "started": {time.time():.6f}}}\n'
        (directory / "pid").write_bytes(text.encode())
    except BaseException as error:
        os.close(lock)
        if isinstance(error, OSError):
            raise HostError(f"cannot set up {directory}: {error.strerror}") from error
        raise
    return lock


def _unregister(base: Path, directory: Path, lock: int) -> None:
    """Remove the directory of a machine that ends, unless somebody did, and another machine has the name
    now."""
    with base_lock(base):
        if os.path.samestat(os.fstat(lock), os.lstat(directory / "lock")):
            _remove(directory)


def _entries(base: Path) -> list[MachineEntry]:
    """The machines of `base`: each directory with a lock file. The base lock is held."""
    found = []
    with os.scandir(base) as listing:
        for item in listing:
            if not item.name.startswith(".") and item.is_dir(follow_symlinks=False):
                locked = _is_locked(Path(item.path))
                if locked is not None:
                    found.append(_entry(base, item.name, locked))
    return sorted(found)


def _is_locked(directory: Path) -> bool | None:
    """Whether some process holds the lock of a machine's directory, None if it has none; the base lock is
    held.

    None keeps tvmm's hands off directories that are not its own, should someone name ~ as the base.
    """
    try:
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, IsADirectoryError):
        return None
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _entry(base: Path, name: str, alive: bool) -> MachineEntry:
    """What the pid file of machine `name` says. One that died while it wrote the file says nothing."""
    import json

    paths = _paths(base, name)
    try:
        with open(paths.directory / "pid", "rb") as file:
            record = json.loads(file.read(PID_FILE_LIMIT))
        return MachineEntry(
            name, alive, int(record["pid"]), int(record["start_ticks"]), float(record["started"]), paths
        )
    except (OSError, ValueError, KeyError, TypeError):
        return MachineEntry(name, alive, 0, 0, 0.0, paths)


def _remove(directory: Path) -> None:
    """Remove a machine's directory, but nothing that tvmm did not put there; the base lock is held.

    The lock file goes last, so that a removal that is cut short leaves what the next one recognises as stale.
    """
    for name in FILES:
        with suppress(FileNotFoundError):
            os.unlink(directory / name)
    with suppress(OSError):
        os.rmdir(directory)
