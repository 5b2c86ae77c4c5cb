"""``--disk``, ``--net``, ``--display`` and ``--device``: from values to records, and what goes together.

Imported only by machines that have one of them, and imports only what these need: it counts when a machine starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tvmm.config.balloon import BalloonConfig
    from tvmm.config.console import ConsoleConfig
    from tvmm.config.disk import DiskConfig
    from tvmm.config.input import InputConfig
    from tvmm.config.machine import MachineConfig
    from tvmm.config.net import NetConfig
    from tvmm.config.rng import RngConfig
    from tvmm.config.serial import SerialConfig
    from tvmm.config.vsock import VsockConfig

    Virtio = DiskConfig | NetConfig | ConsoleConfig | RngConfig | InputConfig | BalloonConfig | VsockConfig

__all__ = ["MAX_MMIO", "MAX_PCI", "check_virtio", "parse_hardware"]

MAX_MMIO = 12
"""Each has an interrupt pin of its own, and there are so many free ones."""

MAX_PCI = 31
"""Devices on a bus besides the host bridge."""


def parse_hardware(
    disk: Sequence[str] = (), net: Sequence[str] = (), device: Sequence[str] = (), display: Sequence[str] = (),
    vsock: Sequence[str] = (),
) -> dict[str, Any]:
    """Fields of `MachineConfig`: the records of all values, ``--disk`` and ``--net`` before ``--device``.

    Raises `ConfigError`. What goes together is `check_virtio`'s affair.
    """
    fields: dict[str, Any] = {}
    screens = [*display, *(value for value in device if value.partition(",")[0] == "bochs-display")]
    device = [value for value in device if value not in screens]
    if any(value.startswith(("virt", "vhost")) for value in device):
        from tvmm.config.virtio_types import parse_devices

        fields = parse_devices(device)._asdict()
    elif device:
        from tvmm.config.device import DeviceConfig

        fields = {"devices": tuple(map(DeviceConfig.parse, device))}
    if disk:
        from tvmm.config.disk import DiskConfig

        fields["disks"] = (*map(DiskConfig.parse, disk), *fields.get("disks", ()))
    if net:
        from tvmm.config.net import parse_nets

        fields["nets"] = (*parse_nets(tuple(net)), *fields.get("nets", ()))
    if vsock:
        from tvmm.config.vsock import VsockConfig

        fields["vsocks"] = (*map(VsockConfig.parse, vsock), *fields.get("vsocks", ()))
    if screens:
        from tvmm.config.display import DisplayConfig

        displays = list(map(DisplayConfig.parse, screens))
        if len(displays) > 1:
            raise ConfigError("a machine has one display at most", "leave out all but one")
        fields["display"] = displays[0]
    return fields


def check_virtio(config: MachineConfig) -> MachineConfig:
    """`config` with ids and numbers of ports filled in; raises `ConfigError` for what does not go together."""
    checked = config._replace(
        disks=tuple(disk.check().resolved(at, config.cpu.count) for at, disk in enumerate(config.disks)),
        nets=tuple(net.check()._replace(id=net.id or f"net{at}") for at, net in enumerate(config.nets)),
        consoles=tuple(
            console.check()._replace(id=console.id or f"console{at}") for at, console in enumerate(config.consoles)
        ),
        rngs=tuple(rng.check()._replace(id=rng.id or f"rng{at}") for at, rng in enumerate(config.rngs)),
        inputs=_name_inputs(config.inputs),
        balloons=tuple(one.check_machine(config)._replace(id=one.id or "balloon0") for one in config.balloons),
        vsocks=tuple(vsock.check()._replace(id=vsock.id or f"vsock{at}") for at, vsock in enumerate(config.vsocks)),
    )
    everything: list[Virtio] = [
        *checked.disks, *checked.nets, *checked.consoles, *checked.rngs, *checked.inputs, *checked.balloons,
        *checked.vsocks,
    ]  # fmt: skip
    _check_once("devices have the id", (device.id for device in everything), "give each an id=NAME of its own")
    _check_places(everything, 1 if checked.display is not None else 0)
    _check_files(checked.disks)
    _check_nets(checked.nets)
    if len(checked.vsocks) > 1:
        raise ConfigError("a machine has one virtio-vsock at most", "guests have drivers for one: leave out the others")
    ports = [port.chardev for console in checked.consoles for port in console.ports]
    _check_backends([config.serial, *ports], [config.control, *(vsock.path for vsock in checked.vsocks)])
    return checked


def _name_inputs(inputs: tuple[InputConfig, ...]) -> tuple[InputConfig, ...]:
    """``keyboard0``, ``tablet0`` and so on, each kind by itself."""
    counts: dict[str, int] = {}
    named = []
    for device in inputs:
        number = counts.get(device.kind, 0)
        counts[device.kind] = number + 1
        named.append(device.check()._replace(id=device.id or f"{device.kind}{number}"))
    return tuple(named)


def _check_once(what: str, values: Iterable[object], hint: str) -> None:
    """Raise `ConfigError` if a value, other than an empty one, is there twice."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ConfigError(f"two {what} {str(value)!r}", hint)
        if value not in ("", b"", None):
            seen.add(value)


def _check_places(devices: list[Virtio], others: int) -> None:
    """`others` are devices on PCI that are not virtio's."""
    mmio = sum(device.transport == "mmio" for device in devices)
    if mmio > MAX_MMIO:
        raise ConfigError(
            f"{mmio} devices with transport=mmio are too many", f"{MAX_MMIO} are possible: use transport=pci"
        )
    on_pci = len(devices) - mmio + others
    if on_pci > MAX_PCI:
        raise ConfigError(f"{on_pci} devices on PCI are too many", f"{MAX_PCI} are possible")


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


def _check_backends(backends: list[SerialConfig], others: list[str]) -> None:
    """A terminal, a path and a port belong to one serial line or console port; paths also to the sockets `others`."""
    if sum(backend.kind == "stdio" for backend in backends) > 1:
        raise ConfigError("two of the serial line and the console ports want stdio", "give one of them pty or none")
    paths = [*others, *(backend.path for backend in backends), *(backend.link for backend in backends)]
    _check_once("of control socket, vsock, serial line and console ports want the path", paths, "use different ones")
    _check_once(
        "of serial line and console ports listen at",
        (f"{backend.host}:{backend.port}" if backend.port else "" for backend in backends),
        "give them different ports",
    )
