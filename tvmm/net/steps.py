"""The steps that make a network, each with what undoes it; and how they are written into a journal. Pure.

An `Undo` holds all that is needed to tell what the step made from what somebody else has made since: a bridge by its
hardware address, a table by a comment in it, a setting by the value that was written.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tvmm.errors import HostError
from tvmm.net.spec import Forward, Host, NetworkSpec, Port

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

__all__ = [
    "JOURNAL_LIMIT",
    "Action",
    "Journal",
    "LoadTable",
    "MakeBridge",
    "MakeFiles",
    "RemoveBridge",
    "RemoveFiles",
    "RemoveTable",
    "RestoreSettings",
    "StartDnsmasq",
    "Step",
    "StopDnsmasq",
    "Undo",
    "WriteSettings",
    "read_journal",
    "write_journal",
]

JOURNAL_LIMIT = 1 << 20
"""Bytes of a journal that are read: it has two settings for each link of the host, and little else."""
VERSION = 1


class MakeFiles(NamedTuple):
    """A directory of this user alone, and files in it."""

    directory: str
    files: tuple[tuple[str, str], ...]


class RemoveFiles(NamedTuple):
    """The directory with these files, and nothing else in it."""

    directory: str
    names: tuple[str, ...]


class LoadTable(NamedTuple):
    """By nft, all of it or nothing."""

    ruleset: str


class RemoveTable(NamedTuple):
    """Table `name` of family inet, if its rules have `mark` as a comment."""

    name: str
    mark: str


class MakeBridge(NamedTuple):
    """`addresses` are ADDR/PREFIX of the host's. `ipv6` False: none of that on this link. `mtu` 0: as it comes."""

    name: str
    mac: str
    mtu: int
    alias: str
    addresses: tuple[str, ...]
    ipv6: bool


class RemoveBridge(NamedTuple):
    """Bridge `name`, if it has the hardware address that was given to it."""

    name: str
    mac: str


class WriteSettings(NamedTuple):
    """Files of /proc/sys, in this order, each with its new value."""

    values: tuple[tuple[str, str], ...]


class RestoreSettings(NamedTuple):
    """All of `before`, if the first of `ours` is still as it was written.

    Networks that need the same have the same `key` and `before`: the last to go restores.
    """

    key: str
    ours: tuple[tuple[str, str], ...]
    before: tuple[tuple[str, str], ...]


class StartDnsmasq(NamedTuple):
    """As a daemon, with one file of options and no other."""

    program: str
    conf: str


class StopDnsmasq(NamedTuple):
    """The process that was started with this file; `conf` is removed first, so that none starts late."""

    conf: str


Action = MakeFiles | LoadTable | MakeBridge | WriteSettings | StartDnsmasq
Undo = RemoveFiles | RemoveTable | RemoveBridge | RestoreSettings | StopDnsmasq


class Step(NamedTuple):
    """One, with a line about it."""

    title: str
    action: Action
    undo: Undo


_KINDS: dict[str, type[Undo]] = {
    "files": RemoveFiles,
    "table": RemoveTable,
    "bridge": RemoveBridge,
    "settings": RestoreSettings,
    "dnsmasq": StopDnsmasq,
}


class Journal(NamedTuple):
    """What was done for a network, or was about to be when it was cut short.

    `boot` and `namespace` tell where: after another boot there is nothing left but files, and in another network
    namespace nothing can be undone. `facts` are for people: addresses, ranges and what else was chosen.
    """

    spec: NetworkSpec
    boot: str
    namespace: int
    undos: tuple[Undo, ...] = ()
    complete: bool = False
    facts: tuple[tuple[str, str], ...] = ()

    def fact(self, name: str) -> str:
        """One of `facts`, '' if it is not there."""
        return dict(self.facts).get(name, "")


def write_journal(journal: Journal) -> str:
    """As JSON."""
    spec = journal.spec._asdict()
    for name in ("hosts", "forwards", "allows"):
        spec[name] = [list(entry) for entry in spec[name]]
    undos = []
    for undo in journal.undos:
        kind = next(kind for kind, known in _KINDS.items() if type(undo) is known)
        undos.append({"kind": kind, **undo._asdict()})
    whole = {"version": VERSION, **journal._asdict(), "spec": spec, "undos": undos, "facts": dict(journal.facts)}
    return json.dumps(whole, indent=1) + "\n"


def read_journal(text: str, path: str) -> Journal:
    """What `write_journal` wrote. Raises `HostError` if it is not whole or not understood."""
    try:
        whole = json.loads(text)
        if whole["version"] != VERSION:
            raise HostError(
                f"{path} was written by another version of tvmm", "take the network down with that one"
            )
        return Journal(
            _spec(whole["spec"]),
            _as(str, whole["boot"]),
            _as(int, whole["namespace"]),
            tuple(_undo(entry) for entry in whole["undos"]),
            _as(bool, whole["complete"]),
            _pairs(list(whole["facts"].items())),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HostError(
            f"{path} cannot be read: {type(error).__name__}", "remove it, and what it was about by hand"
        ) from error


def _as(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _strings(values: object) -> tuple[str, ...]:
    return tuple(_as(str, value) for value in _as(list, values))


def _pairs(values: object) -> tuple[tuple[str, str], ...]:
    found = []
    for entry in _as(list, values):
        first, second = entry
        found.append((_as(str, first), _as(str, second)))
    return tuple(found)


def _undo(entry: Mapping[str, object]) -> Undo:
    kind = _KINDS[_as(str, entry["kind"])]
    if kind is RemoveFiles:
        return RemoveFiles(_as(str, entry["directory"]), _strings(entry["names"]))
    if kind is RestoreSettings:
        return RestoreSettings(_as(str, entry["key"]), _pairs(entry["ours"]), _pairs(entry["before"]))
    if kind is RemoveTable:
        return RemoveTable(_as(str, entry["name"]), _as(str, entry["mark"]))
    if kind is RemoveBridge:
        return RemoveBridge(_as(str, entry["name"]), _as(str, entry["mac"]))
    return StopDnsmasq(_as(str, entry["conf"]))


def _spec(entry: Mapping[str, object]) -> NetworkSpec:
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in entry.items()
    }
    values["dns"] = _strings(entry["dns"])
    for name, kind, types in (
        ("hosts", Host, (str, str)),
        ("forwards", Forward, (str, int, str, int)),
        ("allows", Port, (str, int)),
    ):
        values[name] = tuple(
            kind(*(_as(wanted, field) for wanted, field in zip(types, fields, strict=True)))
            for fields in _as(list, entry[name])
        )
    spec = NetworkSpec(**values)  # type: ignore[arg-type]
    for field, default in NetworkSpec._field_defaults.items():
        _as(type(default), getattr(spec, field))
    return spec
