"""Names of virtio devices for ``--device``, and the records that they end in.

A virtio device can be named in two ways, by an option of its own (``--disk a.img``) or as any other device
(``--device virtio-blk,file=a.img``), and by QEMU's names, which say what it is connected by (``virtio-blk-pci``,
``virtio-blk-device``). All of them end in the same records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.config.balloon import BALLOON_PROPERTIES, BalloonConfig
from tvmm.config.console import CONSOLE_PROPERTIES, PORT_PROPERTIES, ConsoleConfig, PortConfig
from tvmm.config.device import DeviceConfig, DeviceType
from tvmm.config.disk import DISK_PROPERTIES, DiskConfig
from tvmm.config.input import INPUT_PROPERTIES, InputConfig
from tvmm.config.limits import with_limits
from tvmm.config.net import NET_PROPERTIES, NetConfig
from tvmm.config.properties import parse_device
from tvmm.config.rng import RNG_PROPERTIES, RngConfig
from tvmm.config.vsock import VSOCK_PROPERTIES, VsockConfig
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tvmm.config.properties import Property

__all__ = ["VIRTIO_TYPES", "Hardware", "VirtioType", "parse_devices"]


class Hardware(NamedTuple):
    """Fields of `MachineConfig` that ``--disk``, ``--net`` and ``--device`` fill."""

    devices: tuple[DeviceConfig, ...] = ()
    disks: tuple[DiskConfig, ...] = ()
    nets: tuple[NetConfig, ...] = ()
    consoles: tuple[ConsoleConfig, ...] = ()
    rngs: tuple[RngConfig, ...] = ()
    inputs: tuple[InputConfig, ...] = ()
    balloons: tuple[BalloonConfig, ...] = ()
    vsocks: tuple[VsockConfig, ...] = ()


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
    ("virtio-balloon", "virtio-balloon", "balloon", "memory that the guest lends to the host", BALLOON_PROPERTIES),
    ("virtio-vsock", "vhost-vsock", "vsock", "sockets between guest and host; the same as --vsock", VSOCK_PROPERTIES),
    ("virtio-keyboard", "virtio-keyboard", "keyboard", "keyboard, for guests without PS/2", INPUT_PROPERTIES),
    ("virtio-tablet", "virtio-tablet", "tablet", "pointer that goes where the viewer's is", INPUT_PROPERTIES),
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


def parse_devices(values: Sequence[str]) -> Hardware:
    """The records of all values of ``--device``, each kind in its order. Raises `ConfigError`."""
    devices: list[DeviceConfig] = []
    disks: list[DiskConfig] = []
    nets: list[NetConfig] = []
    consoles: list[ConsoleConfig] = []
    rngs: list[RngConfig] = []
    inputs: list[InputConfig] = []
    balloons: list[BalloonConfig] = []
    vsocks: list[VsockConfig] = []
    for text in values:
        known = VIRTIO_TYPES.get(text.partition(",")[0])
        if known is None:
            devices.append(DeviceConfig.parse(text))
            continue
        given = {**parse_device(text, known.type.properties), **dict(known.fixed)}
        if known.makes == "disk":
            disks.append(DiskConfig(**with_limits(given)).check())
        elif known.makes == "net":
            nets.append(NetConfig(**with_limits(given)).check())
        elif known.makes == "rng":
            rngs.append(RngConfig(**given).check())
        elif known.makes == "balloon":
            balloons.append(BalloonConfig(**given).check())
        elif known.makes == "vsock":
            vsocks.append(VsockConfig(**given).check())
        elif known.makes in ("keyboard", "tablet"):
            inputs.append(InputConfig(kind=known.makes, **given).check())
        elif known.makes == "console":
            consoles.append(ConsoleConfig.of(given))
        elif not consoles:
            raise ConfigError(
                f"device {known.type.name} has no virtio-console", "put --device virtio-console before it"
            )
        else:
            consoles[-1] = consoles[-1].with_port(PortConfig(**given))
    whole = tuple(console.check() for console in consoles)
    return Hardware(
        tuple(devices), tuple(disks), tuple(nets), whole, tuple(rngs), tuple(inputs), tuple(balloons), tuple(vsocks)
    )
