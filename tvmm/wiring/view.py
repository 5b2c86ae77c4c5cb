"""The devices of a machine as its control clients see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tvmm.control.target import QueueInfo, VirtioInfo, no_such
from tvmm.virtio.features import names
from tvmm.virtio.status import describe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvmm.control.balloon_target import BalloonTarget
    from tvmm.control.limit_target import LimitTarget
    from tvmm.control.target import ChardevInfo, DiskInfo, NetInfo
    from tvmm.virtio.runner.backing import Backing
    from tvmm.virtio.runner.blk import BlkRunner
    from tvmm.wiring.devices import Devices
    from tvmm.wiring.slot import Slot

__all__ = ["DeviceView", "DiskPart", "NetPart"]


class DiskPart(Protocol):
    """One disk, as its maker leaves it."""

    def info(self) -> DiskInfo:
        """What there is to tell."""

    @property
    def image(self) -> Backing:
        """What is behind it, to be handed over."""

    @property
    def tracked(self) -> BlkRunner:
        """Its runner, for who copies it."""

    @property
    def throttle(self) -> LimitTarget:
        """Its limits."""

    async def resize(self, size_bytes: int) -> None:
        """Give file and device another size. Raises `UserError`."""


class NetPart(Protocol):
    """One network device."""

    def info(self) -> NetInfo:
        """What there is to tell."""

    @property
    def throttle(self) -> LimitTarget:
        """Its limits."""

    def set_link(self, up: bool) -> None:
        """Plug the cable in or out."""

    def announce(self) -> None:
        """Have the driver tell the network where it is. Raises `UserError` if it cannot."""

    def announce_arrival(self, *, by_guest: bool) -> None:
        """Show switches where the guest is now; `by_guest`: have it do that itself too, if it can."""


class DeviceView:
    """`VirtioDevices` of `tvmm.control.target`."""

    def __init__(self, devices: Devices) -> None:
        self._devices = devices

    def virtio(self) -> Sequence[VirtioInfo]:
        """Every device with its queues, as they are now."""
        with self._devices.host.bus_lock:
            found = [_describe(slot) for slot in self._devices.slots]
        vsock = self._devices.vsock
        if vsock is None:
            return found
        counted = vsock.counters()
        return [
            device._replace(counters={**device.counters, **counted}) if device.name == vsock.id else device
            for device in found
        ]

    def disks(self) -> Sequence[DiskInfo]:
        """The disks."""
        return [disk.info() for disk in self._devices.disks.values()]

    def nets(self) -> Sequence[NetInfo]:
        """The network devices."""
        return [net.info() for net in self._devices.nets.values()]

    def balloon(self) -> BalloonTarget | None:
        """The balloon."""
        return self._devices.balloon

    def limited(self) -> Mapping[str, LimitTarget]:
        """The limits of disks and network devices."""
        parts: dict[str, DiskPart | NetPart] = {**self._devices.disks, **self._devices.nets}
        return {name: part.throttle for name, part in parts.items()}

    def ports(self) -> Sequence[ChardevInfo]:
        """The ports of all consoles."""
        return [port for console in self._devices.consoles.values() for port in console.info()]

    async def resize_disk(self, disk_id: str, size_bytes: int) -> None:
        """See `VirtioDevices`."""
        disk = self._devices.disks.get(disk_id)
        if disk is None:
            raise no_such("disk", disk_id, list(self._devices.disks))
        await disk.resize(size_bytes)

    def set_link(self, net_id: str, up: bool) -> None:
        """See `VirtioDevices`."""
        self._net(net_id).set_link(up)

    def announce(self, net_ids: Sequence[str]) -> None:
        """See `VirtioDevices`."""
        for net in [self._net(net_id) for net_id in net_ids or self._devices.nets]:
            net.announce()

    def _net(self, net_id: str) -> NetPart:
        net = self._devices.nets.get(net_id)
        if net is None:
            raise no_such("network device", net_id, list(self._devices.nets))
        return net


def _describe(slot: Slot) -> VirtioInfo:
    transport, device = slot.transport, slot.device
    queues = []
    for queue, ring, exits in zip(transport.queues, slot.runner.rings, slot.exits, strict=True):
        counted = ring.counters
        queues.append(
            QueueInfo(
                queue.index,
                queue.size,
                queue.ready,
                counted.pops,
                counted.chains,
                counted.kicks,
                counted.interrupts,
                counted.suppressed,
                exits,
                counted.errors,
            )
        )
    return VirtioInfo(
        slot.name,
        device.type_name.removeprefix("virtio-"),
        slot.transport_name,
        slot.place,
        tuple(describe(transport.status).split()) if transport.status else (),
        names(device.device_id, transport.features),
        sum(transport.mistakes.values()),
        transport.last_error,
        tuple(queues),
        {f"mistake-{kind}": count for kind, count in sorted(transport.mistakes.items())},
    )
