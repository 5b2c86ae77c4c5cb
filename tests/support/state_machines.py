"""Machines with every device on both transports, whose state is saved: what the golden sections are of."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tvmm import MachineConfig
from tvmm.board import Board

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = [
    "DISK_BYTES",
    "all_devices",
    "balloon_device",
    "display_device",
    "generation_device",
    "input_devices",
    "make_images",
    "net_devices",
    "standing",
    "vsock_device",
]

DISK_BYTES = 8 << 20
PLAIN = "locking=off,discard=ignore,logical_block_size=512,physical_block_size=512,min_io_size=512"
"""Nothing that depends on the host's file system."""
TAP = "tap,csum=off,mac=52:54:00:12:34:5{number},ifname=tvmm{side}{number},ip=10.{side}.{number}.2/24"


def make_images(folder: Path) -> None:
    """For `all_devices`."""
    for name in ("first", "second", "third"):
        with (folder / name).open("wb") as file:
            file.truncate(DISK_BYTES)


def all_devices(folder: Path, extra: str = "") -> MachineConfig:
    """Disks, consoles and sources of entropy. `extra` options are the third disk's."""
    return MachineConfig.parse(
        memory="64M",
        cpus=2,
        append="packed",
        disk=[
            f"{folder}/first,{PLAIN},queues=2,packed=on,serial=one",
            f"{folder}/second,{PLAIN},transport=mmio,in_order=on",
            ",".join(filter(None, [f"{folder}/third,{PLAIN},transport=mmio,werror=stop,rerror=stop", extra])),
        ],
        device=[
            "virtio-console,chardev=none,cols=100,rows=30",
            "virtserialport,chardev=none,name=org.tvmm.port",
            "virtio-console,chardev=none,transport=mmio",
            "virtio-rng,max-bytes=100000,period=1000",
            "virtio-rng-device",
            "isa-debug-exit",
        ],
    )


def net_devices(side: int) -> MachineConfig:
    """A network device on each transport, without offloads. `side` keeps the taps of two machines apart."""
    taps = [TAP.format(side=side, number=number) for number in range(2)]
    return MachineConfig.parse(memory="64M", net=[f"{taps[0]},queues=2,packed=on", f"{taps[1]},transport=mmio"])


def display_device() -> MachineConfig:
    """A display, which is all that is on PCI."""
    return MachineConfig.parse(memory="64M", display="bochs-display,xres=1024,yres=768,vgamem=8M")


def input_devices() -> MachineConfig:
    """Keyboards and tablets on both transports."""
    devices = ["virtio-keyboard-device,packed=on,serial=k1", "virtio-tablet-device", "virtio-keyboard", "virtio-tablet"]
    return MachineConfig.parse(memory="64M", device=devices)


def vsock_device(folder: Path) -> MachineConfig:
    """Sockets, with registers in memory and packed rings."""
    return MachineConfig.parse(
        memory="64M", append="packed", vsock=f"{folder}/vsock,cid=52,transport=mmio,packed=on,queue-size=64"
    )


def balloon_device() -> MachineConfig:
    """A balloon with all that it can have."""
    words = "deflate-on-oom=on,free-page-hint=on,free-page-reporting=on,packed=on"
    return MachineConfig.parse(memory="64M", append="packed", device=[f"virtio-balloon,{words}"])


def generation_device() -> MachineConfig:
    """What every machine has, with an ID that was chosen; and a source of entropy."""
    chosen = "vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"
    return MachineConfig.parse(memory="64M", device=[chosen, "virtio-rng"])


@asynccontextmanager
async def standing(config: MachineConfig) -> AsyncIterator[Board]:
    """A new board with its devices' threads, held: as in a paused machine. Made on this thread."""
    board = Board(config, load=False)
    try:
        async with trio.open_nursery() as nursery:
            if board.devices is not None:
                for name, run in board.devices.tasks():
                    nursery.start_soon(run, name=name)
                await board.devices.hold()
            yield board
            nursery.cancel_scope.cancel()
    finally:
        board.close()
