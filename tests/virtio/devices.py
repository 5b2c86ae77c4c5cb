"""One of each device, small, for tests that go through all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.virtio.balloon import Balloon, BalloonSettings
from tvmm.virtio.blk import Blk, BlkSettings
from tvmm.virtio.console import Console, ConsoleSettings
from tvmm.virtio.console_control import PortSettings
from tvmm.virtio.features import DEFAULT_RING, Ring
from tvmm.virtio.input import Input, InputSettings
from tvmm.virtio.net import Net, NetBackend, NetSettings
from tvmm.virtio.rng import Rng
from tvmm.virtio.vsock import SocketDevice, VsockSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.virtio.device import VirtioDevice

MAC = bytes.fromhex("525400123456")
ALL_RING = DEFAULT_RING | Ring.RING_PACKED | Ring.IN_ORDER


def make_rng(ring: int = ALL_RING) -> Rng:
    """Without a limit."""
    return Rng(ring=ring)


def make_blk(ring: int = ALL_RING) -> Blk:
    """1 MiB with two queues and everything that there is."""
    return Blk(
        BlkSettings(2048, serial=b"disk-1", queues=2, queue_size=128, max_discard=1024, max_zeroes=512, ranges=4), ring
    )


def make_net(ring: int = ALL_RING) -> Net:
    """Two pairs, all offloads."""
    return Net(NetSettings(MAC, NetBackend(True, True, True, True, True), pairs=2, mtu=1500), ring)


def make_console(ring: int = ALL_RING) -> Console:
    """Three ports, two of them there."""
    ports = (PortSettings("main", console=True), PortSettings("agent"))
    return Console(ConsoleSettings(ports, max_ports=3), lambda byte: None, ring)


def make_keyboard(ring: int = ALL_RING) -> Input:
    """With a serial number."""
    return Input(InputSettings("keyboard", "key-1"), ring)


def make_tablet(ring: int = ALL_RING) -> Input:
    """Without."""
    return Input(InputSettings("tablet"), ring)


def make_balloon(ring: int = ALL_RING) -> Balloon:
    """Of 8 MiB, with all queues."""
    return Balloon(BalloonSettings(2048, deflate_on_oom=True, hinting=True, reporting=True), ring)


def make_vsock(ring: int = ALL_RING) -> SocketDevice:
    """For a guest with an address that is not the first one."""
    return SocketDevice(VsockSettings(0x1234), ring)


MAKERS: dict[str, Callable[[], VirtioDevice]] = {
    "rng": make_rng,
    "blk": make_blk,
    "net": make_net,
    "console": make_console,
    "keyboard": make_keyboard,
    "tablet": make_tablet,
    "balloon": make_balloon,
    "vsock": make_vsock,
}
