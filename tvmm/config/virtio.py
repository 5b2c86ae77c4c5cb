"""``--disk``, ``--net`` and ``--device virtio-...``: from values to records, and what goes together.

Imported only by machines that have one of them. A virtio device can be named in two ways, by an option of its
own (``--disk a.img``) or as any other device (``--device virtio-blk,file=a.img``), and by QEMU's names, which
say what it is connected by (``virtio-blk-pci``, ``virtio-blk-device``). All of them end in the same records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.config.console import CONSOLE_PROPERTIES, PORT_PROPERTIES, ConsoleConfig, PortConfig
from tvmm.config.device import DeviceConfig, DeviceType
from tvmm.config.disk import DISK_PROPERTIES, DiskConfig
from tvmm.config.net import NET_PROPERTIES, NetConfig, parse_nets
from tvmm.config.properties import parse_device
from tvmm.config.rng import RNG_PROPERTIES, RngConfig
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tvmm.config.machine import MachineConfig
    from tvmm.config.properties import Property
    from tvmm.config.serial import SerialConfig

    Virtio = DiskConfig | NetConfig | ConsoleConfig | RngConfig

__all__ = ["MAX_MMIO", "MAX_PCI", "VIRTIO_TYPES", "Hardware", "VirtioType", "check_virtio", "parse_hardware"]

MAX_MMIO = 12
"""Each has an interrupt pin of its own, and there are so many free ones."""

MAX_PCI = 31
"""Devices on a bus besides the host bridge."""


class Hardware(NamedTuple):
    """Fields of `MachineConfig` that ``--disk``, ``--net`` and ``--device`` fill."""

    devices: tuple[DeviceConfig, ...] = ()
    disks: tuple[DiskConfig, ...] = ()
    nets: tuple[NetConfig, ...] = ()
    consoles: tuple[ConsoleConfig, ...] = ()
    rngs: tuple[RngConfig, ...] = ()


class VirtioType(NamedTuple):
    """A name for ``--device``: its row in help and completion, the record it makes, and what the name fixes."""

    type: DeviceType
    makes: str
    fixed: tuple[tuple[str, str | bool], ...] = ()


_DEVICES: tuple[tuple[str, str, str, str, tuple[Property, ...]], ...] = (
    ("virtio-blk", "virtio-blk", "disk", "disk; the same as --disk", DISK_PROPERTIES),
    ("virtio-net", "virtio-net", "net", "network device; the same as --net", NET_PROPERTIES),
    (
        "virtio-console", "virtio-serial", "console", "console and serial ports",
        (*CONSOLE_PROPERTIES, *PORT_PROPERTIES),
    ),
    ("virtio-rng", "virtio-rng", "rng", "source of random bytes", RNG_PROPERTIES),
)  # fmt: skip
"""Name, QEMU's name without the transport, record, summary, properties."""

_TRANSPORTS = (("pci", "pci", "on PCI"), ("device", "mmio", "with registers in memory (MMIO)"))
"""End of QEMU's name, transport, words."""


def _types() -> Iterator[VirtioType]:
    for name, stem, makes, summary, properties in _DEVICES:
        yield VirtioType(DeviceType(name, summary, properties), makes)
        rest = tuple(prop for prop in properties if prop.name != "transport")
        for end, transport, words in _TRANSPORTS:
            row = DeviceType(f"{stem}-{end}", f"{name} {words}", rest)
            yield VirtioType(row, makes, (("transport", transport),))
    for name, console, summary in (
        ("virtconsole", True, "one more port of the last virtio-console, used as a console"),
        ("virtserialport", False, "one more port of the last virtio-console, for programs"),
    ):
        yield VirtioType(DeviceType(name, summary, PORT_PROPERTIES), "port", (("console", console),))


VIRTIO_TYPES: dict[str, VirtioType] = {known.type.name: known for known in _types()}
"""All of them, by name."""


def parse_hardware(disk: Sequence[str] = (), net: Sequence[str] = (), device: Sequence[str] = ()) -> Hardware:
    """The records of all values, in their order; ``--disk`` and ``--net`` come before ``--device``.

    Raises `ConfigError`. What goes together is `check_virtio`'s affair.
    """
    devices: list[DeviceConfig] = []
    disks = list(map(DiskConfig.parse, disk))
    nets = list(parse_nets(tuple(net)))
    consoles: list[ConsoleConfig] = []
    rngs: list[RngConfig] = []
    for text in device:
        known = VIRTIO_TYPES.get(text.partition(",")[0])
        if known is None:
            devices.append(DeviceConfig.parse(text))
            continue
        values = {**parse_device(text, known.type.properties), **dict(known.fixed)}
        if known.makes == "disk":
            disks.append(DiskConfig(**values).check())
        elif known.makes == "net":
            nets.append(NetConfig(**values).check())
        elif known.makes == "rng":
            rngs.append(RngConfig(**values).check())
        elif known.makes == "console":
            consoles.append(ConsoleConfig.of(values))
        elif not consoles:
            raise ConfigError(
                f"device {known.type.name} has no virtio-console", "put --device virtio-console before it"
            )
        else:
            consoles[-1] = consoles[-1].with_port(PortConfig(**values))
    whole = tuple(console.check() for console in consoles)
    return Hardware(tuple(devices), tuple(disks), tuple(nets), whole, tuple(rngs))


def check_virtio(config: MachineConfig) -> MachineConfig:
    """`config` with ids and numbers of ports filled in; raises `ConfigError` for what does not go together."""
    checked = config._replace(
        disks=tuple(disk.check()._replace(id=disk.id or f"disk{at}") for at, disk in enumerate(config.disks)),
        nets=tuple(net.check()._replace(id=net.id or f"net{at}") for at, net in enumerate(config.nets)),
        consoles=tuple(
            console.check()._replace(id=console.id or f"console{at}") for at, console in enumerate(config.consoles)
        ),
        rngs=tuple(rng.check()._replace(id=rng.id or f"rng{at}") for at, rng in enumerate(config.rngs)),
    )
    everything: list[Virtio] = [*checked.disks, *checked.nets, *checked.consoles, *checked.rngs]
    _check_once("devices have the id", (device.id for device in everything), "give each an id=NAME of its own")
    _check_places(everything)
    _check_files(checked.disks)
    _check_nets(checked.nets)
    _check_backends([config.serial, *(port.chardev for console in checked.consoles for port in console.ports)])
    return checked


def _check_once(what: str, values: Iterable[object], hint: str) -> None:
    """Raise `ConfigError` if a value, other than an empty one, is there twice."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ConfigError(f"two {what} {str(value)!r}", hint)
        if value not in ("", b"", None):
            seen.add(value)


def _check_places(devices: list[Virtio]) -> None:
    mmio = sum(device.transport == "mmio" for device in devices)
    if mmio > MAX_MMIO:
        raise ConfigError(
            f"{mmio} devices with transport=mmio are too many", f"{MAX_MMIO} are possible: use transport=pci"
        )
    if len(devices) - mmio > MAX_PCI:
        raise ConfigError(f"{len(devices) - mmio} devices on PCI are too many", f"{MAX_PCI} are possible")


def _check_files(disks: tuple[DiskConfig, ...]) -> None:
    """Two disks may share a file if nobody writes to it."""
    writable = {disk.file for disk in disks if not disk.readonly}
    _check_once(
        "disks, one of them writable, want the file",
        (disk.file for disk in disks if disk.file in writable),
        "add readonly=on to both, or give them different files",
    )


def _check_nets(nets: tuple[NetConfig, ...]) -> None:
    _check_once("nets want the tap", (net.ifname for net in nets), "give them different names")
    _check_once("nets want the descriptor", (net.fd for net in nets), "open a tap for each")
    _check_once("nets have the MAC address", (net.mac.hex(":") for net in nets), "leave mac out for a free one")


def _check_backends(backends: list[SerialConfig]) -> None:
    """A terminal, a path and a port belong to one serial line or console port."""
    if sum(backend.kind == "stdio" for backend in backends) > 1:
        raise ConfigError("two of the serial line and the console ports want stdio", "give one of them pty or none")
    _check_once("serial lines or ports want the path", (backend.path for backend in backends), "use different ones")
    _check_once("serial lines or ports want the link", (backend.link for backend in backends), "use different ones")
    _check_once(
        "serial lines or ports listen at",
        (f"{backend.host}:{backend.port}" if backend.port else "" for backend in backends),
        "give them different ports",
    )
