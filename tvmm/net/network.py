"""Networks of ``tvmm net``: up, down, and which there are. All of it blocks.

A step is written into the journal before it is done, and out of it after it is undone: whenever the process ends,
the journal has all that there may be.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ConfigError, HostError, UserError
from tvmm.net.do import bridge_is_there, dnsmasq_pids, do, table_is_there, undo
from tvmm.net.host import boot_id, check_rights, gather, namespace, nft, strict_chains
from tvmm.net.links import Links
from tvmm.net.plan import Plan, make_plan
from tvmm.net.ports import ports_of
from tvmm.net.prepared import attach_prepared, prepared_taps
from tvmm.net.spec import bridge_name
from tvmm.net.steps import Journal, RemoveBridge, RemoveTable, RestoreSettings, StopDnsmasq

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.net.spec import NetworkSpec
    from tvmm.net.store import Store

__all__ = ["Up", "is_here", "missing", "plan", "take_down", "take_up"]


class Up(NamedTuple):
    """A network that is up; `made` is False if it was so before. `notes` are for the user."""

    journal: Journal
    made: bool
    notes: tuple[str, ...]


def plan(spec: NetworkSpec, store: Store) -> Plan:
    """What `take_up` would do now. Needs no rights."""
    with Links() as links:
        return make_plan(spec, gather(links, store.directory, spec.name, _shared(store, spec.name)))


def take_up(asked: NetworkSpec, store: Store) -> Up:
    """Make a network. One that is there as it is asked for is left alone. Raises `UserError`, and has then undone all.

    What is left of one that was cut short is undone first.
    """
    spec = asked.check()
    check_rights()
    nft()
    with store.lock() as held:
        notes: list[str] = []
        found = store.read(spec.name)
        if found is not None and not _clear(found, spec, store, held, notes):
            return Up(found, False, ())
        planned = plan(spec, store)
        journal = Journal(spec, boot_id(), namespace(), facts=planned.facts)
        try:
            for step in planned.steps:
                journal = journal._replace(undos=(*journal.undos, step.undo))
                store.write(journal)
                do(step.action, held)
            journal = journal._replace(complete=True)
            store.write(journal)
            taps = attach_prepared(spec.name, planned.bridge, isolated=spec.isolated)
        except BaseException as error:
            try:
                _undo_all(journal, store, held)
            except HostError as second:
                again = f"'tvmm net down {spec.name}' tries again"
                raise HostError(f"{error}; and it cannot be undone: {second}", again) from error
            raise
        if taps:
            notes.append(f"{', '.join(taps)}, made for this network, {'is' if len(taps) == 1 else 'are'} in it again")
    return Up(journal, True, (*notes, *planned.notes, *_strict(planned)))


def _clear(found: Journal, spec: NetworkSpec, store: Store, held: int, notes: list[str]) -> bool:
    """Undo what is left of a network, if it is no network any more; False if it is one, and as it is to be."""
    name = spec.name
    _check_here(found, name)
    if found.complete and found.boot == boot_id():
        if differences := _differences(found, spec):
            raise UserError(
                f"network {name} is up with other options: {'; '.join(differences)}",
                f"'tvmm net down {name}' first, or leave the options as they are",
            )
        gone = missing(found)
        if not gone:
            return False
        if busy := _busy(found):
            raise UserError(
                f"network {name} is damaged ({', '.join(gone)}), and in use by {', '.join(busy)}",
                f"'tvmm net down {name} --force', then up again",
            )
        notes.append(f"network {name} was damaged ({', '.join(gone)}): it is made anew")
    else:
        notes.append(f"undid what was left of network {name}")
    _undo_all(found, store, held)
    return True


def take_down(name: str, store: Store, *, force: bool = False, names: Mapping[int, str] | None = None) -> list[str]:
    """Undo exactly what was done for a network; things to tell the user.

    Raises `UserError` if machines are on it, unless `force`; `names` has theirs by process.
    """
    path = store.path(name)
    if not path.exists() and not store.names():
        _refuse_unknown(name, store)
    check_rights()
    with store.lock() as held:
        journal = store.read(name)
        if journal is None:
            _refuse_unknown(name, store)
            raise AssertionError
        if journal.boot == boot_id() and not (force and journal.namespace != namespace()):
            _check_here(journal, name)
        notes: list[str] = []
        busy = _busy(journal, names) if is_here(journal) else []
        if busy and not force:
            raise UserError(
                f"network {name} is in use by {', '.join(busy)}", f"stop them first, or 'tvmm net down {name} --force'"
            )
        if busy:
            notes.append(f"{', '.join(busy)} had this network, and have none now")
        if not is_here(journal):
            notes.append("it was of another network namespace or boot: only its files and dnsmasq were removed")
        idle = [link.name for link, prepared in prepared_taps() if prepared.network == name]
        _undo_all(journal, store, held)
    if idle:
        notes.append(f"not removed: {', '.join(idle)}, back in the network when it is up again ('tvmm net delete')")
    return notes


def _undo_all(journal: Journal, store: Store, held: int) -> None:
    """In reverse order. What cannot be undone stays in the journal, and what comes before it too."""
    here = is_here(journal)
    while journal.undos:
        *before, last = journal.undos
        elsewhere = not here and isinstance(last, RemoveTable | RemoveBridge | RestoreSettings)
        needed = isinstance(last, RestoreSettings) and last.key in _shared(store, journal.spec.name)
        if not elsewhere and not needed:
            undo(last, held)
        journal = journal._replace(undos=tuple(before), complete=False)
        store.write(journal)
    store.remove(journal.spec.name)


def is_here(journal: Journal) -> bool:
    """Whether it tells of this namespace of a host that has not been booted since."""
    return journal.boot == boot_id() and journal.namespace == namespace()


def _check_here(journal: Journal, name: str) -> None:
    if journal.boot == boot_id() and journal.namespace != namespace():
        raise HostError(
            f"network {name} was set up in another network namespace",
            f"do this there, or 'tvmm net down {name} --force' forgets it",
        )


def _refuse_unknown(name: str, store: Store) -> None:
    with Links() as links:
        link = links.find(bridge_name(name))
    if link is not None:
        raise UserError(
            f"there is a link {link.name}, but no journal that says that tvmm made it ({store.path(name)})",
            f"if it is nobody's: 'sudo ip link del {link.name}'",
        )
    names = store.names()
    raise UserError(
        f"network {name} is not up", f"there is {', '.join(names)}" if names else f"'tvmm net up {name}' makes it"
    )


def _shared(store: Store, name: str) -> dict[str, RestoreSettings]:
    """The settings that networks other than `name` need, by their key; those of this namespace and boot."""
    found = {}
    for other in store.names():
        journal = None
        # One that cannot be read is not to keep the others from going.
        with suppress(HostError, ConfigError):
            journal = store.read(other) if other != name else None
        if journal is not None and is_here(journal):
            found.update({step.key: step for step in journal.undos if isinstance(step, RestoreSettings)})
    return found


def missing(journal: Journal) -> list[str]:
    """What somebody has removed of a network that was up."""
    found = []
    for step in journal.undos:
        if isinstance(step, RemoveBridge) and not bridge_is_there(step):
            found.append(f"bridge {step.name} is gone")
        elif isinstance(step, RemoveTable) and not table_is_there(step):
            found.append(f"table {step.name} is gone")
        elif isinstance(step, StopDnsmasq) and not dnsmasq_pids(step.conf):
            found.append("dnsmasq does not run")
    return found


def _differences(journal: Journal, spec: NetworkSpec) -> list[str]:
    """Options that are not as they were given; what was chosen may be named."""
    found = []
    for field in spec._fields:
        there, asked = getattr(journal.spec, field), getattr(spec, field)
        if there != asked and not (asked and not there and str(asked) == journal.fact(field)):
            found.append(f"{field} is {_shown(there)}, asked for is {_shown(asked)}")
    return found


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return str(value) or "not given"


def _busy(journal: Journal, names: Mapping[int, str] | None = None) -> list[str]:
    """Who is on the network's bridge, in words."""
    step = next((step for step in journal.undos if isinstance(step, RemoveBridge)), None)
    if step is None or not bridge_is_there(step):
        return []
    return [port.describe(names or {}) for port in ports_of(step.name) if port.busy]


def _strict(planned: Plan) -> list[str]:
    """Warnings about rules of others."""
    return [
        f"the firewall's {chain} drops what it does not know: have it accept {planned.bridge}, or guests get nowhere"
        for chain in strict_chains(planned.bridge)
    ]
