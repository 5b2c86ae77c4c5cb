"""What must be the same on both sides for a state to fit, as short texts, and what differs, as sentences.

The record of a device is checked against the device that it is put into. That comes when the source has stopped; these
facts come first, and their differences can be understood by the user who started the other side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.config.units import format_size
from tvmm.errors import ProtocolError
from tvmm.virtio.features import names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tvmm.board import Board
    from tvmm.config.machine import MachineConfig
    from tvmm.virtio.device import VirtioDevice
    from tvmm.wiring.slot import Slot

__all__ = ["Facts", "adopted_facts", "check_facts", "describe_board", "differences"]

Facts = tuple[tuple[str, str], ...]
"""(what, value) of each."""

MAX_FACTS = 5000
"""A peer's list is kept and compared: some 50 for each of as many devices as there are places for."""
MAX_TEXT = 300
"""Characters of a name or a value: they are printed."""
DIGEST_DIGITS = 16


def describe_board(board: Board, *, images: bool = True) -> Facts:
    """The facts of a board, in a fixed order. Hashes kernel and initrd, so call it in a worker thread; without `images`
    it leaves them out.
    """
    return tuple(_facts(board, images))


def _facts(board: Board, images: bool) -> Iterator[tuple[str, str]]:
    yield "memory size", format_size(board.ram.size)
    for name, block in board.ram.blocks.items():
        yield f"memory block {name}", format_size(block.size)
    for region in board.ram.regions.fixed():
        mode = "rom" if region.read_only else "ram"
        yield f"memory at {region.gpa:#x}", f"{format_size(region.size)} of {region.block} {mode}"
    yield "vCPU count", str(len(board.vcpus))
    if images:
        yield "kernel", _digest(board.kernel_image)
        yield "initrd", _digest(board.initrd_image) if board.initrd_image is not None else "none"
    yield "kernel command line", _digest(board.config.kernel.append.encode("utf-8", "surrogateescape"))
    # Every machine has a generation ID: with which number it was started does not matter to one that arrives.
    named = [device for device in board.config.devices if device.name != "vmgenid"]
    for index, device in enumerate(named):
        yield f"device {index}", device.spelling()[:MAX_TEXT]
    for slot in board.devices.slots if board.devices is not None else ():
        yield from _slot_facts(slot)
    if board.devices is not None and board.devices.display is not None:
        display = board.devices.display
        yield "display place", f"pci {display.where}"
        yield "display preferred mode", "x".join(map(str, display.model.preferred))


def _digest(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS]


def _slot_facts(slot: Slot) -> Iterator[tuple[str, str]]:
    name, device = slot.name, slot.device
    yield f"{name} type", device.type_name
    yield f"{name} place", f"{slot.transport_name} {slot.place}"
    for feature in names(device.device_id, device.features):
        yield f"{name} feature {feature}", "offered"
    yield f"{name} queue sizes", _short(device.queue_sizes)
    for what, value in _device_facts(device):
        yield f"{name} {what}", value


def _short(sizes: tuple[int, ...]) -> str:
    """A list of sizes in which most are the same: ``4x256, 64``."""
    parts: list[tuple[int, int]] = []
    for size in sizes:
        if parts and parts[-1][1] == size:
            parts[-1] = parts[-1][0] + 1, size
        else:
            parts.append((1, size))
    return ", ".join(f"{count}x{size}" if count > 1 else str(size) for count, size in parts)[:MAX_TEXT]


def _device_facts(device: VirtioDevice) -> Iterator[tuple[str, str]]:
    # Each kind is imported only where a machine has one.
    if device.type_name == "virtio-blk":
        from tvmm.virtio.blk import Blk

        assert isinstance(device, Blk)
        settings = device.settings
        yield "size", format_size(device.capacity * 512)
        yield "serial", settings.serial.decode("ascii") or "none"
        yield "mode", "read-only" if settings.read_only else "read-write"
        yield "block sizes", f"{settings.block}, {settings.physical_block}"
    elif device.type_name == "virtio-net":
        from tvmm.virtio.net import Net

        assert isinstance(device, Net)
        yield "address", device.address.hex(":")
        yield "pairs", str(device.settings.pairs)
        yield "MTU", str(device.settings.mtu or "none")
    elif device.type_name == "virtio-console":
        from tvmm.virtio.console import Console

        assert isinstance(device, Console)
        yield "ports", str(device.max_ports)
        for number, port in device.ports.described():
            kind = "console" if port.console else "port"
            yield f"port {number}", f"{kind} {port.name}".rstrip()
    elif device.type_name == "virtio-rng":
        from tvmm.virtio.rng import Rng

        assert isinstance(device, Rng)
        yield "rate limit", f"{device.max_bytes} bytes in {device.period_ns} ns" if device.max_bytes else "none"
    elif device.type_name == "virtio-input":
        from tvmm.virtio.input import Input

        assert isinstance(device, Input)
        yield "kind", device.settings.kind
        yield "serial", device.settings.serial or "none"
    elif device.type_name == "virtio-vsock":
        from tvmm.virtio.vsock import SocketDevice

        assert isinstance(device, SocketDevice)
        yield "guest-cid", str(device.settings.guest_cid)


def adopted_facts(config: MachineConfig) -> frozenset[str]:
    """Names of the facts that a guest which arrives in a machine of this configuration brings along.

    They are the addresses of network devices for which the user has chosen none: those that were made up from the names
    of two machines would never be the same. And the sizes of disks that are filled from the guest's.
    """
    addresses = {f"{net.id} address" for net in config.nets if not net.mac}
    return frozenset(addresses | {f"{disk.id} size" for disk in config.disks if disk.copy})


def check_facts(facts: object) -> Facts:
    """`facts` if a peer's value is a list of facts. Raises `ProtocolError`."""
    if type(facts) is not tuple or len(facts) > MAX_FACTS:
        raise ProtocolError(f"the description of the machine is not a list of at most {MAX_FACTS} facts")
    for fact in facts:
        if type(fact) is not tuple or len(fact) != 2:
            raise ProtocolError("the description of the machine has something that is no fact")
        for text in fact:
            if type(text) is not str or not 0 < len(text) <= MAX_TEXT or not text.isprintable():
                raise ProtocolError("the description of the machine has something that is no text")
    if len({name for name, _ in facts}) < len(facts):
        raise ProtocolError("the description of the machine says something twice")
    return facts


def differences(
    ours: Facts, theirs: object, words: tuple[str, str] = ("here", "there"), adopted: Collection[str] = ()
) -> list[str]:
    """A sentence for each fact that is not the same; none if a state of theirs fits ours.

    `theirs` comes from a peer. `words` are what our side and the other one are called. `adopted` names facts that our
    side takes over with the state: their values do not matter. Raises `ProtocolError` for what is no list of facts.
    """
    here, there = dict(ours), dict(check_facts(theirs))
    us, them = words
    found = []
    for name in here | there:
        if name not in there:
            found.append(f"{name} ({here[name]}) is only {us}")
        elif name not in here:
            found.append(f"{name} ({there[name]}) is only {them}")
        elif here[name] != there[name] and name not in adopted:
            found.append(f"{name} is {here[name]} {us} and {there[name]} {them}")
    return found
