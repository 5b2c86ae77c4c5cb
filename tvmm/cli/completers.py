"""What the tab key offers beyond option names. Called by argcomplete with what was typed so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import Action
    from collections.abc import Callable, Sequence

    from tvmm.config.properties import Property

__all__ = [
    "address_values",
    "attach",
    "cpu_values",
    "device_values",
    "disk_names",
    "disk_values",
    "group_names",
    "issued_hosts",
    "machine_names",
    "machine_or_disk_names",
    "memory_values",
    "metrics_values",
    "net_values",
    "network_names",
    "pem_files",
    "prepared_tap_names",
    "serial_values",
    "user_names",
    "vnc_values",
    "vsock_values",
    "word_values",
]


def attach(action: Action, completer: Callable[..., list[str]]) -> None:
    """Let `completer` complete the value of an option."""
    # The attribute is argcomplete's interface; argparse does not know it.
    action.completer = completer  # type: ignore[attr-defined]


def machine_names(prefix: str, **context: Any) -> list[str]:
    """The running machines."""
    from tvmm.cli.machines import base_directory
    from tvmm.control.registry import machines
    from tvmm.errors import UserError

    try:
        return [entry.name for entry in machines(base_directory()) if entry.alive and entry.name.startswith(prefix)]
    except UserError:
        return []


def device_values(prefix: str, **context: Any) -> list[str]:
    """Device names; behind a name and a comma its properties."""
    from tvmm.config.device import device_types

    name, comma, _ = prefix.partition(",")
    types = device_types()
    if not comma:
        return _starting(prefix, ["help", *(known.name for known in types)])
    properties = [prop for known in types if known.name == name for prop in known.properties]
    return _properties(prefix, properties, ["help"])


def disk_values(prefix: str, **context: Any) -> list[str]:
    """Behind a file and a comma the properties of a disk; the shell completes the file."""
    from tvmm.config.disk import DISK_PROPERTIES

    if "," not in prefix:
        from argcomplete.completers import FilesCompleter  # type: ignore[import-not-found, unused-ignore]

        return [*FilesCompleter()(prefix), *_starting(prefix, ["help"])]
    return _properties(prefix, [prop for prop in DISK_PROPERTIES if prop.name != "file"])


def net_values(prefix: str, **context: Any) -> list[str]:
    """Kinds of networks; behind one and a comma the properties."""
    from tvmm.config.net import properties_of

    if "," not in prefix:
        return _starting(prefix, ["help", "none", "stream", "tap", "user"])
    properties = properties_of(prefix.partition(",")[0])
    return _properties(prefix, [prop for prop in properties if prop.name != "type"], ["help"])


def disk_names(prefix: str, parsed_args: Any = None, **context: Any) -> list[str]:
    """The disks of a running machine: of the one whose name stands where a disk could, or of the only one."""
    from tvmm.cli.machines import control, named
    from tvmm.errors import TvmmError

    # In `resize web disk0 20G` the first word may be left out, so an unfinished line has its name in `disk`.
    name = getattr(parsed_args, "name", None) or getattr(parsed_args, "disk", None)
    try:
        with control(named({"name": name} if name else {}), timeout=2.0) as client:
            return _starting(prefix, [disk["device"] for disk in client.execute("query-block")])
    except TvmmError:
        return []


def machine_or_disk_names(prefix: str, parsed_args: Any = None, **context: Any) -> list[str]:
    """The disks of the machine that is named; while none is, the machines and the disks of the only one."""
    named = getattr(parsed_args, "name", None) or getattr(parsed_args, "disk", None)
    return disk_names(prefix, parsed_args) + ([] if named else machine_names(prefix))


def cpu_values(prefix: str, **context: Any) -> list[str]:
    """CPU models; behind a comma the features that can be switched."""
    from tvmm.config.cpu import CPU_MODELS

    if "," not in prefix:
        return _starting(prefix, ["help", *CPU_MODELS])
    from tvmm.vcpu.cpu_features import FEATURES

    return _behind_comma(prefix, [f"{sign}{name}" for name in FEATURES for sign in "+-"])


def memory_values(prefix: str, **context: Any) -> list[str]:
    """A few sizes; behind a comma the options that the group takes."""
    if "," not in prefix:
        return _starting(prefix, ["64M", "256M", "512M", "1G", "2G", "4G"])
    return _behind_comma(prefix, ["hugepages=2M", "hugepages=1G", "prealloc=on", "shared=on", "dirty-ring=4096"])


def address_values(prefix: str, **context: Any) -> list[str]:
    """Kinds of migration addresses; behind ``unix:`` the shell's files."""
    if prefix.startswith("unix:"):
        from argcomplete.completers import FilesCompleter  # type: ignore[import-not-found, unused-ignore]

        return [f"unix:{path}" for path in FilesCompleter()(prefix.removeprefix("unix:"))]
    return _starting(prefix, ["tcp:127.0.0.1:", "unix:"])


def serial_values(prefix: str, **context: Any) -> list[str]:
    """The ways to connect the serial port."""
    return _starting(prefix, ["stdio", "pty", "none", "file=", "unix=", "tcp="])


def vnc_values(prefix: str, **context: Any) -> list[str]:
    """Ways to listen; behind one and a comma the properties."""
    from tvmm.config.vnc import VNC_PROPERTIES

    if "," not in prefix:
        return _starting(prefix, ["help", "none", "127.0.0.1:5900", ":0", "unix:"])
    return _properties(prefix, [prop for prop in VNC_PROPERTIES if prop.name != "address"])


def metrics_values(prefix: str, **context: Any) -> list[str]:
    """Ways to listen; behind one and a comma the properties."""
    from tvmm.config.metrics import METRICS_PROPERTIES

    if "," not in prefix:
        return _starting(prefix, ["help", "none", "127.0.0.1:9100", "unix:"])
    return _properties(prefix, [prop for prop in METRICS_PROPERTIES if prop.name != "address"])


def vsock_values(prefix: str, **context: Any) -> list[str]:
    """Behind a path and a comma the properties; the shell completes the path."""
    from tvmm.config.vsock import VSOCK_OPTIONS

    if "," not in prefix:
        from argcomplete.completers import FilesCompleter

        return [*FilesCompleter()(prefix), *_starting(prefix, ["help"])]
    return _properties(prefix, [prop for prop in VSOCK_OPTIONS if prop.name != "path"])


def pem_files(prefix: str, **context: Any) -> list[str]:
    """Files in the form that keys are carried in."""
    from argcomplete.completers import FilesCompleter  # type: ignore[import-not-found, unused-ignore]

    return list(FilesCompleter(["pem"])(prefix))


def issued_hosts(prefix: str, parsed_args: Any = None, **context: Any) -> list[str]:
    """The hosts that this host's CA has issued certificates to and not revoked them."""
    from tvmm.cli.keys import key_directory
    from tvmm.errors import TvmmError

    try:
        issued = key_directory(vars(parsed_args) if parsed_args else {}).inventory().issued
    except TvmmError:
        return []
    return _starting(prefix, list(dict.fromkeys(one.facts.subject for one in issued if one.revoked is None)))


def network_names(prefix: str, **context: Any) -> list[str]:
    """The networks that are up."""
    from tvmm.cli.net import store
    from tvmm.errors import UserError

    try:
        return _starting(prefix, store().names())
    except UserError:
        return []


def prepared_tap_names(prefix: str, **context: Any) -> list[str]:
    """The taps that were made for users."""
    from tvmm.errors import UserError
    from tvmm.net.prepared import prepared_taps

    try:
        return _starting(prefix, [link.name for link, _ in prepared_taps()])
    except UserError:
        return []


def user_names(prefix: str, **context: Any) -> list[str]:
    """The users of this host."""
    from tvmm.net.users import all_users

    return _starting(prefix, all_users())


def group_names(prefix: str, **context: Any) -> list[str]:
    """The groups of this host."""
    from tvmm.net.users import all_groups

    return _starting(prefix, all_groups())


def word_values(*words: str) -> Callable[..., list[str]]:
    """A completer for a value that is one of `words`."""

    def complete(prefix: str, **context: Any) -> list[str]:
        return _starting(prefix, list(words))

    return complete


def _properties(prefix: str, properties: Sequence[Property], more: Sequence[str] = ()) -> list[str]:
    """What can follow the last comma: properties, and the values of one whose name is typed already."""
    done, _, word = prefix.rpartition(",")
    name, equals, _ = word.partition("=")
    if not equals:
        return _behind_comma(prefix, [*(f"{prop.name}=" for prop in properties), *more])
    words: dict[str, tuple[str, ...]] = {
        prop.name: ("on", "off") if prop.type == "boolean" else prop.choices for prop in properties
    }
    if name == "network":
        words[name] = tuple(network_names(""))
    return _starting(prefix, [f"{done},{name}={value}" for value in words.get(name, ())])


def _behind_comma(prefix: str, items: list[str]) -> list[str]:
    """Those of `items` that can follow what is typed up to the last comma, and are not there yet."""
    done = prefix.rpartition(",")[0]
    names = {_name_of(item) for item in done.split(",")}
    return _starting(prefix, [f"{done},{item}" for item in items if _name_of(item) not in names])


def _name_of(item: str) -> str:
    return item.lstrip("+-").partition("=")[0]


def _starting(prefix: str, words: list[str]) -> list[str]:
    return [word for word in words if word.startswith(prefix)]
