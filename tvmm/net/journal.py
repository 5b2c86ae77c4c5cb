"""What a machine has changed on a link of the host, written into that link's alias.

A process that is killed undoes nothing. So the alias of a link that was changed says who did it and what was there
before; whoever next sets a network up restores links whose owner is dead. Owners are told apart by process number and
start time, and by their namespace of process numbers: of another namespace's processes nothing can be known, and their
links are left alone.

The form is ``tvmm:PID:START:NAMESPACE:WORDS``; words are separated by blanks: ``made`` (the link itself is ours), or
``down``, ``mtu=N``, ``master=NAME`` (empty: none), ``shared`` (was not isolated), ``ip=ADDR/PREFIX`` (added), and
last ``alias=TEXT``, which was there before.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from tvmm.errors import ConfigError

__all__ = ["ALIAS_LIMIT", "Changes", "Owner", "is_alive", "myself", "read_alias", "write_alias"]

ALIAS_LIMIT = 254
"""Bytes that Linux keeps of an alias that comes by netlink."""

_FORM = re.compile(r"tvmm:(\d{1,10}):(\d{1,20}):(\d{1,20}):(.*)", re.DOTALL)


class Owner(NamedTuple):
    """A process: number, start time in clock ticks since boot, inode of its namespace of process numbers."""

    pid: int
    start: int
    namespace: int


class Changes(NamedTuple):
    """What to undo. `made`: remove the link. Else what it was like: None or False for what was not changed.

    `ip` are addresses that were added.
    """

    made: bool = False
    down: bool = False
    mtu: int | None = None
    master: str | None = None
    shared: bool = False
    ip: tuple[str, ...] = ()
    alias: str = ""


def _start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None if there is no such process, or only what is left of it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field may have blanks and brackets of its own.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def myself() -> Owner:
    """This process."""
    pid = os.getpid()
    return Owner(pid, _start_time(pid) or 0, _namespace())


def is_alive(owner: Owner) -> bool:
    """Whether the process lives, as far as can be known."""
    return owner.namespace != _namespace() or _start_time(owner.pid) == owner.start


def write_alias(owner: Owner, changes: Changes) -> str:
    """For the link. Raises `ConfigError` if it is more than an alias can be."""
    words = [name for name in ("made", "down", "shared") if getattr(changes, name)]
    if changes.mtu is not None:
        words.append(f"mtu={changes.mtu}")
    if changes.master is not None:
        words.append(f"master={changes.master}")
    words += [f"ip={address}" for address in changes.ip]
    if changes.alias:
        words.append(f"alias={changes.alias}")
    alias = f"tvmm:{owner.pid}:{owner.start}:{owner.namespace}:{' '.join(words)}"
    if len(os.fsencode(alias)) > ALIAS_LIMIT:
        raise ConfigError(
            "too much would have to be undone on this tap: its alias has no room to say so",
            "give it its addresses beforehand, or a shorter alias",
        )
    return alias


def read_alias(alias: str) -> tuple[Owner, Changes] | None:
    """What somebody's alias says; None if it is not one of ours, as a whole."""
    found = _FORM.fullmatch(alias)
    if not found:
        return None
    owner = Owner(*(int(found[group]) for group in (1, 2, 3)))
    text, *before = re.split(r"(?:^| )alias=", found[4], maxsplit=1)
    changes = Changes(alias="".join(before))
    for word in text.split():
        name, equals, value = word.partition("=")
        if word == "made":
            changes = changes._replace(made=True)
        elif word == "down":
            changes = changes._replace(down=True)
        elif word == "shared":
            changes = changes._replace(shared=True)
        elif name == "mtu" and equals and value.isascii() and value.isdigit() and len(value) < 10:
            changes = changes._replace(mtu=int(value))
        elif name == "master" and equals:
            changes = changes._replace(master=value)
        elif name == "ip" and value:
            changes = changes._replace(ip=(*changes.ip, value))
        else:
            return None
    return owner, changes
