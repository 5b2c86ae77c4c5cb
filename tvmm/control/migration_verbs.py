"""Commands of the control socket about live migration; `tvmm.control.verbs` has the table.

Names and shapes are QAPI's (qapi/migration.json); tvmm's own members begin with `x-`.

What QEMU switches by capabilities is either always on here or a value of `MigrationParameters`: there is one truth,
and both commands tell it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.config.incoming import MigrationAddress, check_listeners_in
from tvmm.config.options import unknown_name
from tvmm.control.migration_info import info_of
from tvmm.control.qmp import Argument, CommandFailed, fits
from tvmm.migration.status import MAX_THROTTLE_PERCENT, POSTCOPIES, MigrationParameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tvmm.control.target import ControlTarget, Json

__all__ = [
    "MIGRATE",
    "PARAMETERS",
    "migrate",
    "migrate_cancel",
    "migrate_incoming",
    "migrate_pause",
    "migrate_recover",
    "migrate_set_capabilities",
    "migrate_set_parameters",
    "migrate_start_postcopy",
    "parameters_as_arguments",
    "query_migrate",
    "query_migrate_capabilities",
    "query_migrate_parameters",
]

PARAMETERS = (
    Argument("announce-initial", "integer", required=False),
    Argument("announce-max", "integer", required=False),
    Argument("announce-rounds", "integer", required=False),
    Argument("announce-step", "integer", required=False),
    Argument("downtime-limit", "number", required=False),
    Argument("max-bandwidth", "integer", required=False),
    Argument("max-cpu-throttle", "integer", required=False),
    Argument("multifd-channels", "integer", required=False),
    Argument("multifd-compression", "string", required=False),
    Argument("tls-creds", "string", required=False),
    Argument("tls-hostname", "string", required=False),
    Argument("x-copy-storage", "boolean", required=False),
    Argument("x-insecure", "boolean", required=False),
    Argument("x-pair", "string", required=False),
    Argument("x-postcopy", "string", required=False),
    Argument("x-timeout", "number", required=False),
    Argument("x-tls", "boolean", required=False),
    Argument("x-verify", "boolean", required=False),
)
"""QAPI: MigrateSetParameters, without what has no meaning here. `tls-creds` is the directory with the certificates,
'' for no TLS; `x-tls` with it left empty takes the user's own. `x-timeout` is in milliseconds like `downtime-limit`.
The `announce-` ones are taken and not needed: the guest decides how often it announces itself."""

MIGRATE = (
    Argument("uri", "string"),
    Argument("blk", "boolean", required=False),
    Argument("inc", "boolean", required=False),
    Argument("detach", "boolean", required=False),
    Argument("resume", "boolean", required=False),
    Argument("x-copy-storage", "boolean", required=False),
    Argument("x-parameters", "object", required=False),
)
"""QAPI: migrate. `blk`, or `x-copy-storage`: copy disks too. `x-parameters`: members of `migrate-set-parameters`, for
this migration alone."""

_ALWAYS_ON = ("events", "late-block-activate", "return-path")
"""Capabilities of QEMU that describe how tvmm migrates, whoever asks."""

MAX_URI = 300
"""Characters: room for every host and path. A client must not choose how long our refusals are, which repeat it."""
MAX_ECHO = 80

_TO_QEMU = {"off": "none", "zstd": "zstd"}
_FROM_QEMU = {word: ours for ours, word in _TO_QEMU.items()}


async def migrate(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when a migration is under way, and has been announced by the event."""
    if arguments.get("inc"):
        raise CommandFailed(
            "GenericError", "disks are copied whole, with 'blk', or not at all: then both sides have the same image"
        )
    if arguments.get("resume"):
        return await migrate_recover(target, {"uri": arguments["uri"]})
    changes = arguments.get("x-parameters", {})
    known = {argument.name for argument in PARAMETERS}
    for name in changes:
        if name not in known:
            raise unknown_name("member of x-parameters", name[:MAX_ECHO], sorted(known))
    _check_kinds(changes)
    parameters = _changed(target.migration_parameters(), changes)
    if arguments.get("blk") or arguments.get("x-copy-storage"):
        parameters = parameters._replace(copy_storage=True)
    address = _address(arguments["uri"], listen=False)
    check_listeners_in(address, protected=parameters.tls or bool(parameters.pair), insecure=parameters.insecure)
    await target.start_migration(address.uri, parameters)
    return {}


async def migrate_cancel(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Begin to give up the migration, if there is one; the event tells how it ended."""
    target.cancel_migration()
    return {}


async def migrate_start_postcopy(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Let the guest go before its memory, once the first pass has ended."""
    target.start_postcopy()
    return {}


async def migrate_pause(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Cut the connections of a post-copy."""
    target.pause_migration()
    return {}


async def migrate_recover(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Go on with a post-copy that is paused. At the source answer when it has begun to connect, to `uri` if there is
    one; at the destination when it listens there too.
    """
    uri = arguments.get("uri", "")
    if uri:
        uri = _address(uri, listen=target.migration_status().incoming).uri
    await target.recover_migration(uri)
    return {}


async def migrate_incoming(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when a machine that was started with ``--incoming defer`` listens."""
    address = _address(arguments["uri"], listen=True)
    await target.listen_for_migration(address.uri)
    return {}


def _address(uri: str, *, listen: bool) -> MigrationAddress:
    if len(uri) > MAX_URI:
        raise CommandFailed("GenericError", f"argument 'uri' has more than {MAX_URI} characters")
    return MigrationAddress.parse(uri, "uri", listen=listen)


async def query_migrate(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: MigrationInfo."""
    return info_of(target.migration_status())


async def query_migrate_parameters(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: MigrationParameters, without what has no meaning here. A pairing code is not told."""
    return parameters_as_arguments(target.migration_parameters())


def parameters_as_arguments(parameters: MigrationParameters) -> dict[str, Json]:
    """`parameters` as `migrate-set-parameters` takes them, without the pairing code."""
    return {
        "downtime-limit": _whole(parameters.max_downtime_ms),
        "max-bandwidth": parameters.bandwidth,
        "max-cpu-throttle": parameters.max_throttle_percent,
        "multifd-channels": parameters.connections,
        "multifd-compression": _TO_QEMU[parameters.compress],
        "tls-creds": parameters.keys,
        "tls-hostname": parameters.tls_hostname,
        "x-copy-storage": parameters.copy_storage,
        "x-insecure": parameters.insecure,
        "x-postcopy": parameters.postcopy,
        "x-timeout": _whole(parameters.timeout_s * 1000),
        "x-tls": parameters.tls,
        "x-verify": parameters.verify,
    }


async def migrate_set_parameters(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Change what later migrations go by, all of it or, if a value is wrong, none."""
    before = target.migration_parameters()
    after = _changed(before, arguments)
    _set(target, before, after)
    return {}


async def query_migrate_capabilities(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: a list of MigrationCapabilityStatus, of those that tvmm has."""
    return [
        {"capability": name, "state": state} for name, state in _capabilities(target.migration_parameters()).items()
    ]


async def migrate_set_capabilities(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Switch those that can be switched. To switch off what is not there is no mistake."""
    before = after = target.migration_parameters()
    for item in arguments["capabilities"]:
        name, state = item.get("capability"), item.get("state")
        if item.keys() != {"capability", "state"} or type(name) is not str or type(state) is not bool:
            raise CommandFailed("GenericError", "each of 'capabilities' must have a 'capability' and a 'state'")
        if name in _SWITCHED:
            # One that is as wished keeps the number behind it.
            if _capabilities(after)[name] != state:
                after = _SWITCHED[name](after, state)
        elif name in _ALWAYS_ON and not state:
            raise CommandFailed("GenericError", f"capability {name!r} is always on")
        elif name not in _ALWAYS_ON and state:
            raise unknown_name("capability", name[:MAX_ECHO], list(_capabilities(after)))
    _set(target, before, after)
    return {}


def _capabilities(parameters: MigrationParameters) -> dict[str, bool]:
    return {
        "auto-converge": parameters.max_throttle_percent > 0,
        **dict.fromkeys(_ALWAYS_ON, True),
        "multifd": parameters.connections != 1,
        "postcopy-ram": parameters.postcopy != "off",
    }


_SWITCHED: dict[str, Callable[[MigrationParameters, bool], MigrationParameters]] = {
    "auto-converge": lambda parameters, state: parameters._replace(
        max_throttle_percent=MAX_THROTTLE_PERCENT if state else 0
    ),
    "multifd": lambda parameters, state: parameters._replace(connections=0 if state else 1),
    "postcopy-ram": lambda parameters, state: parameters._replace(postcopy="allow" if state else "off"),
}


def _changed(parameters: MigrationParameters, changes: Mapping[str, Any]) -> MigrationParameters:
    """`parameters` with `changes`, by QAPI's names. Raises `ConfigError`."""
    fields: dict[str, Any] = {
        field: changes[name]
        for name, field in (
            ("downtime-limit", "max_downtime_ms"),
            ("max-bandwidth", "bandwidth"),
            ("max-cpu-throttle", "max_throttle_percent"),
            ("multifd-channels", "connections"),
            ("tls-hostname", "tls_hostname"),
            ("tls-creds", "keys"),
            ("x-copy-storage", "copy_storage"),
            ("x-insecure", "insecure"),
            ("x-pair", "pair"),
            ("x-verify", "verify"),
        )
        if name in changes
    }
    if "multifd-compression" in changes:
        word = changes["multifd-compression"]
        if word not in _FROM_QEMU:
            raise unknown_name("multifd-compression", word[:MAX_ECHO], list(_FROM_QEMU))
        fields["compress"] = _FROM_QEMU[word]
    if "x-postcopy" in changes:
        word = changes["x-postcopy"]
        if word not in POSTCOPIES:
            raise unknown_name("x-postcopy", word[:MAX_ECHO], list(POSTCOPIES))
        fields["postcopy"] = word
    if "x-timeout" in changes:
        fields["timeout_s"] = changes["x-timeout"] / 1000
    if "x-tls" in changes:
        fields["tls"] = changes["x-tls"]
    elif "tls-creds" in changes:
        fields["tls"] = bool(changes["tls-creds"])
    return parameters._replace(**fields).check()


def _set(target: ControlTarget, before: MigrationParameters, after: MigrationParameters) -> None:
    old, new = before._asdict(), after.check()._asdict()
    target.set_migration_parameters({name: value for name, value in new.items() if value != old[name]})


def _check_kinds(changes: Mapping[str, Any]) -> None:
    """Refuse values of `x-parameters` that have another type than the argument of that name."""
    for argument in PARAMETERS:
        if argument.name in changes and not fits(argument, changes[argument.name]):
            raise CommandFailed("GenericError", f"member {argument.name!r} of x-parameters has the wrong type")


def _whole(number: float) -> int | float:
    """QAPI's numbers here are whole; tvmm's need not be."""
    return int(number) if number == int(number) else number
