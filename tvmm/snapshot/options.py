"""The options of a machine as text, as `MachineConfig.parse` takes them: what a snapshot keeps of its configuration.

Text and not records: one parser reads what users write and what files have, however old they are, and what users say
when they restore a machine stands beside what was saved as it stands beside a configuration file.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from tvmm.config.machine import MachineConfig
from tvmm.config.options import join_options
from tvmm.config.properties import spelled
from tvmm.config.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from tvmm.config.disk import DiskConfig
    from tvmm.config.memory import MemoryConfig
    from tvmm.config.serial import SerialConfig

    Options: TypeAlias = dict[str, str | list[str]]

__all__ = ["HOST_OPTIONS", "LISTS", "Options", "options_of"]

LISTS = ("disk", "net", "device")
"""Options that may be given several times."""

HOST_OPTIONS = (
    *("name", "disk", "net", "serial", "control", "vnc", "metrics", "vsock"),
    *("reboot", "paused", "powerdown_timeout", "assist"),
)
"""Those that whoever restores a machine may give anew. What a guest sees of disks and networks has to stay the same."""


def options_of(config: MachineConfig, directory: str) -> Options:
    """The options of a checked `config`, without those that have their defaults. Relative paths begin in `directory`.

    Not saved are `paused`, `incoming` and how an image is filled (a disk's `copy`), which are of one start, and
    descriptors (a network's `fd`).
    """

    def absolute(path: str) -> str:
        return posixpath.normpath(posixpath.join(directory, path)) if path else ""

    options: Options = {
        "name": config.name,
        "memory": _memory(config.memory),
        "cpus": str(config.cpu.count),
        "cpu": ",".join([config.cpu.model, *(f"{'+' if on else '-'}{name}" for name, on in config.cpu.adjustments)]),
        "kernel": absolute(config.kernel.kernel),
        "initrd": absolute(config.kernel.initrd),
        "append": config.kernel.append,
        "entry": config.kernel.entry,
        "decompress": config.kernel.decompress,
        "serial": _chardev(config.serial, directory).spelling(),
        "control": absolute(config.control),
        "reboot": "on" if config.reboot else "off",
        "powerdown_timeout": str(config.powerdown_timeout_s),
        "assist": config.assist,
        "disk": [_disk(disk, absolute).spelling() for disk in config.disks],
        "net": [net._replace(fd=None).spelling() for net in config.nets],
        "device": _devices(config, directory),
    }
    if config.display is not None:
        options["display"] = config.display.spelling()
    if config.vnc is not None:
        options["vnc"] = config.vnc.spelling()
    if config.metrics is not None:
        options["metrics"] = config.metrics.spelling()
    if config.vsocks:
        from tvmm.config.vsock import VSOCK_OPTIONS

        vsock = config.vsocks[0]._replace(path=absolute(config.vsocks[0].path))
        options["vsock"] = join_options(spelled(vsock, VSOCK_OPTIONS), first="path")
    return {name: value for name, value in options.items() if value}


def _disk(disk: DiskConfig, absolute: Callable[[str], str]) -> DiskConfig:
    disk = disk._replace(copy=False, overwrite=False)
    return disk if disk.is_nbd else disk._replace(file=absolute(disk.file))


def _memory(memory: MemoryConfig) -> str:
    values = {"size": format_size(memory.size)}
    if memory.hugepages:
        values["hugepages"] = f"{memory.hugepages >> 20}M"
    values |= {name: "on" for name in ("prealloc", "shared") if getattr(memory, name)}
    if memory.dirty_ring:
        values["dirty-ring"] = str(memory.dirty_ring)
    return join_options(values, first="size")


def _chardev(serial: SerialConfig, directory: str) -> SerialConfig:
    return serial._replace(
        path=posixpath.join(directory, serial.path) if serial.path else "",
        link=posixpath.join(directory, serial.link) if serial.link else "",
    )


def _devices(config: MachineConfig, directory: str) -> list[str]:
    found = [device.spelling() for device in config.devices]
    for console in config.consoles:
        ports = tuple(port._replace(chardev=_chardev(port.chardev, directory)) for port in console.ports)
        found += console._replace(ports=ports).spelling()
    for others in (config.rngs, config.inputs, config.balloons):
        found += [other.spelling() for other in others]
    return found
