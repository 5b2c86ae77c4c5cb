"""``--config FILE.toml``: the options of the command line in a file.

Each option can be written as on the command line, or its group as a table; the two files below mean the
same::

    memory = "1G,hugepages=2M"          [memory]
    cpus = 4                            size = "1G"
    cpu = "host,-avx2"                  hugepages = "2M"
    kernel = "vmlinuz"
    append = "console=ttyS0"            [cpu]
    serial = "file=boot.log"            count = 4
    disk = ["a.img,cache=none"]         model = "host"
    net = ["tap,ip=10.0.2.1/24"]        features = ["-avx2"]
    device = ["isa-debug-exit"]
    reboot = false

                                        [kernel]
                                        file = "vmlinuz"
                                        append = "console=ttyS0"

                                        [serial]
                                        file = "boot.log"

                                        [[disk]]
                                        file = "a.img"
                                        cache = "none"

                                        [[net]]
                                        type = "tap"
                                        ip = ["10.0.2.1/24"]

                                        [[device]]
                                        name = "isa-debug-exit"

                                        [machine]
                                        reboot = false

A guest that comes from elsewhere is waited for with ``incoming = "tcp:HOST:PORT"`` and its companions ``tls``,
``keys``, ``pair`` and ``insecure``, or with the table ``[incoming]``, where the address is called ``uri``.

Tables are turned into the command line's spelling, so there is one parser. An option on the command line
replaces the same option of the file whole, also ``--disk``, ``--net`` and ``--device``. A device that has a
property called name is named by ``driver`` in its table, as QEMU does. Paths mean what they mean on the command
line: relative ones start at the current directory, not at the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.config.cpu import CpuConfig
from tvmm.config.kernel import KernelConfig
from tvmm.config.machine import OPTION_NAMES, MachineConfig
from tvmm.config.memory import MemoryConfig
from tvmm.config.options import join_options, parse_bool, unknown_name
from tvmm.config.serial import SerialConfig
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["config_from_file", "options_from_toml", "read_config"]

_KERNEL_KEYS = {
    "file": "kernel",
    "initrd": "initrd",
    "append": "append",
    "entry": "entry",
    "decompress": "decompress",
}
_MACHINE_KEYS = ("name", "control", "reboot", "paused", "powerdown_timeout", "assist")
_INCOMING_KEYS = {"uri": "incoming", **{name: name for name in ("tls", "keys", "pair", "insecure")}}
_TABLES = (
    *("memory", "cpu", "kernel", "serial", "disk", "net", "device", "display", "vnc", "vsock"),
    *("metrics", "machine", "incoming"),
)

_LISTS = {"disk": "file", "net": "type", "device": "name"}
"""Options that may be given several times, and what stands in front of each value."""

_FORMS = {"disk": "FILE,key=value", "net": "tap,key=value", "device": "NAME,property=value"}

_BOOLEAN_OPTIONS = ("reboot", "paused", "tls", "pair", "insecure")


def read_config(path: str) -> dict[str, object]:
    """The options in the file at `path`, ready for `MachineConfig.from_options`.

    Raises `ConfigError`, beginning with the file's name, if it cannot be read, is not TOML, or holds what
    is no option.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError:
        raise ConfigError(f"config file {path!r} is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"config file {path!r} cannot be read: {reason}") from error
    return options_from_toml(text, path)


def config_from_file(path: str, **options: object) -> MachineConfig:
    """The machine described by the file at `path`, with `options` (those of `MachineConfig.parse`) on top."""
    return MachineConfig.from_options({**read_config(path), **options})


def options_from_toml(text: str, source: str) -> dict[str, object]:
    """As `read_config`, for the text of a file called `source`."""
    from tomllib import TOMLDecodeError, loads

    try:
        document = loads(text)
    except TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source}: not TOML: nested too deeply") from None
    options: dict[str, object] = {}
    try:
        for key, value in document.items():
            for name, spelled in _options_of(key.replace("-", "_"), key, value).items():
                if name in options:
                    raise ConfigError(f"{name} is given twice", "write it once, as an option or in its table")
                options[name] = spelled
        _check_each(options)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}", error.hint) from None
    return options


def _options_of(key: str, written: str, value: object) -> dict[str, object]:
    """The options that one top-level key stands for."""
    if key in _LISTS and isinstance(value, list):
        return {key: [_item(key, item) for item in value]}
    if isinstance(value, dict):
        table = {str(name).replace("-", "_"): item for name, item in value.items()}
        if key == "memory":
            return {key: join_options(_texts(table, key), first="size")}
        if key == "serial":
            return {key: join_options(_texts(table, key), first="kind")}
        if key in ("vnc", "metrics"):
            return {key: _listener(key, value)}
        if key == "vsock":
            return {key: join_options(_texts(table, key), first="path")}
        if key == "display":
            return {key: join_options({"name": "bochs-display", **_texts(table, key)}, first="name")}
        if key == "cpu":
            return _cpu(table)
        if key == "kernel":
            return _renamed(table, key, _KERNEL_KEYS)
        if key == "machine":
            return _renamed(table, key, {name: name for name in _MACHINE_KEYS})
        if key == "incoming":
            return _renamed(table, key, _INCOMING_KEYS)
        if key in _LISTS:
            raise ConfigError(f"[{written}] is no list", f"write [[{written}]], once for each")
        if key in OPTION_NAMES:
            raise ConfigError(f"{written} is no table", f'write {written} = "..."; the tables are {", ".join(_TABLES)}')
        raise unknown_name("table", written, _TABLES)
    if key not in OPTION_NAMES:
        raise unknown_name("option", written, [name.replace("_", "-") for name in OPTION_NAMES])
    if key in _LISTS:
        raise ConfigError(f"{key} is no list", f'write {key} = ["{_FORMS[key]}"] or a [[{key}]] table')
    return {key: _scalar(key, written, value)}


def _scalar(key: str, what: str, value: object) -> object:
    """A value in the type that `MachineConfig.parse` takes."""
    if key in _BOOLEAN_OPTIONS:
        if not isinstance(value, bool | str):
            raise ConfigError(f"{what} is neither true nor false")
        return value
    return _text(what, value)


def _text(what: str, value: object) -> str:
    """A TOML value as it is written on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | int | float):
        return str(value)
    raise ConfigError(f"{what} must be text or a number")


def _texts(table: Mapping[str, object], group: str) -> dict[str, str]:
    return {name: _text(f"[{group}] {name}", value) for name, value in table.items()}


def _renamed(table: Mapping[str, object], group: str, keys: Mapping[str, str]) -> dict[str, object]:
    """A table whose keys are options of their own."""
    options = {}
    for name, value in table.items():
        if name not in keys:
            raise unknown_name(f"key in [{group}]", name, list(keys))
        options[keys[name]] = _scalar(keys[name], f"[{group}] {name}", value)
    return options


def _listener(key: str, table: Mapping[str, object]) -> str:
    """A server's table."""
    values = _texts({str(name): value for name, value in table.items()}, key)
    if "address" not in values:
        raise ConfigError(f"[{key}] has no address", 'write address = "HOST:PORT"')
    return join_options(values, first="address")


def _cpu(table: Mapping[str, object]) -> dict[str, object]:
    keys = ("count", "model", "features")
    for name in table:
        if name not in keys:
            raise unknown_name("key in [cpu]", name, keys)
    features = table.get("features", [])
    if not isinstance(features, list) or not all(isinstance(feature, str) for feature in features):
        raise ConfigError("[cpu] features is no list of text", 'write features = ["+x2apic", "-avx2"]')
    options: dict[str, object] = {}
    if "count" in table:
        options["cpus"] = _text("[cpu] count", table["count"])
    if "model" in table or features:
        options["cpu"] = ",".join([_text("[cpu] model", table.get("model", "host")), *features])
    return options


def _item(key: str, item: object) -> str:
    """One entry of a list in the command line's spelling."""
    if isinstance(item, str):
        return item
    if not isinstance(item, dict):
        raise ConfigError(
            f"{key} holds what is neither text nor a table",
            f'write "{_FORMS[key]}" or a [[{key}]] table',
        )
    table = {str(name): value for name, value in item.items()}
    if key == "net" and isinstance(table.get("ip"), list):
        table["ip"] = "+".join(_text("[[net]] ip", address) for address in table["ip"])
    values = _texts(table, f"[{key}]")
    first = _LISTS[key]
    if key == "device" and "driver" in values:
        first = "driver"
    if first not in values:
        more = "tvmm run --device help lists the names" if key == "device" else ""
        raise ConfigError(f"[[{key}]] has no {first}", more)
    if first != "driver":
        return join_options(values, first)
    name = values.pop(first)
    return f"{name},{join_options(values)}" if values else name


def _check_each(options: Mapping[str, object]) -> None:
    """Raise `ConfigError` for a value that is wrong by itself, while the file is still known to be to blame.

    What goes together is checked later, with the options of the command line.
    """
    texts = {name: value for name, value in options.items() if isinstance(value, str)}
    if "memory" in texts:
        MemoryConfig.parse(texts["memory"])
    if "serial" in texts:
        SerialConfig.parse(texts["serial"])
    CpuConfig.parse(texts.get("cpus", 1), texts.get("cpu", "host"))
    if texts.get("incoming"):
        from tvmm.config.incoming import DEFER, MigrationAddress

        # The switches may be on the command line, so only the address is known to be wrong.
        if texts["incoming"] != DEFER:
            MigrationAddress.parse(texts["incoming"], "incoming", listen=True)
    for name in ("tls", "pair", "insecure"):
        parse_bool(texts.get(name, False), name)
    KernelConfig(**{name: texts[name] for name in KernelConfig._fields if name in texts}).check()
    alone = (*_MACHINE_KEYS, *_LISTS, "display", "vnc", "metrics", "vsock")
    MachineConfig.from_options({name: options[name] for name in alone if name in options})
