"""Disks that are copied to where the guest goes: which there are at the source, and whether they may be filled here."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from tvmm.config.units import format_size
from tvmm.errors import HostError, UserError
from tvmm.migration.disk_files import DiskOrigin, DiskTarget
from tvmm.migration.messages import Image
from tvmm.virtio.runner.image import DiskImage
from tvmm.virtio.runner.image_copy import CopiedImage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tvmm.config.machine import MachineConfig
    from tvmm.wiring.devices import Devices
    from tvmm.wiring.view import DiskPart

__all__ = ["copy_problems", "images_of", "keep_targets", "open_origins", "open_targets"]

ALLOCATED_UNIT = 512
"""Of st_blocks, whatever the file system's own blocks are."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
DEVICE_NAMES = ("dm/uuid", "device/wwid", "wwid", "loop/backing_file")
"""What a block device says of itself on every host that has it, in sysfs; a loop device says its file."""


def _local(devices: Devices | None) -> list[tuple[str, DiskPart, DiskImage]]:
    """Disks whose image is a file or a block device."""
    disks = devices.disks if devices is not None else {}
    return [(name, disk, disk.image) for name, disk in disks.items() if isinstance(disk.image, DiskImage)]


# --- at the source ---


def images_of(devices: Devices | None) -> tuple[Image, ...]:
    """See `LeavingGuest.images`."""
    found = tuple(
        Image(name, image.size, _allocated(image), _file_mark(image), _stamp(image))
        for name, _, image in _local(devices)
    )
    if not found:
        raise UserError(
            "there is no disk to be copied: those of this machine are on servers, or it has none",
            "leave --copy-storage out, and give the servers' addresses at the destination too",
        )
    return found


def open_origins(devices: Devices | None, places: Sequence[int]) -> list[DiskOrigin]:
    """See `LeavingGuest.open_images`."""
    local, origins = _local(devices), []
    try:
        for place in places:
            _, disk, image = local[place]
            origins.append(DiskOrigin(disk.tracked, image.fd, place, image.path, image.size, direct=image.direct))
    except BaseException:
        for origin in origins:
            origin.close()
        raise
    return origins


def _allocated(image: DiskImage) -> int:
    """Bytes that the host has for it; of a block device nobody knows."""
    return 0 if image.is_device else os.fstat(image.fd).st_blocks * ALLOCATED_UNIT


def _file_mark(image: DiskImage) -> bytes:
    """The same for one file, on one host that has not been started anew."""
    about = os.fstat(image.fd)
    place = ("device", about.st_rdev) if image.is_device else (about.st_dev, about.st_ino)
    return hashlib.sha256(repr((BOOT_ID.read_text(), *place)).encode()).digest()


def _stamp(image: DiskImage) -> bytes:
    """The same for one file, on any host, as long as nobody writes: what locks do not reach, as on some networks."""
    about = os.fstat(image.fd)
    what: tuple[object, ...] = (about.st_ino, about.st_size, about.st_mtime_ns)
    if image.is_device:
        what = tuple(_device_names(about.st_rdev)) or (_file_mark(image),)
    return hashlib.sha256(repr(what).encode()).digest()


def _device_names(number: int) -> Iterator[str]:
    folder = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    for name in DEVICE_NAMES:
        try:
            text = (folder / name).read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text:
            yield f"{name} {text}"


# --- at the destination ---


def copy_problems(devices: Devices | None, config: MachineConfig, images: tuple[Image, ...] | None) -> list[str]:
    """See `ArrivingGuest.copy_problems`."""
    wanted = [disk.id for disk in config.disks if disk.copy]
    if images is None:
        names = f"{', '.join(wanted)} {'is' if len(wanted) == 1 else 'are'}"
        return [
            f"{names} to be filled at the destination (copy=on), and the source copies nothing: say --copy-storage "
            "there"
        ]
    if not wanted:
        disks = [disk.id for disk in config.disks if not disk.is_nbd and disk.image_format == "raw"]
        which = f" for {', '.join(disks)}" if disks else ""
        return [
            "the source copies its disks, and none is to be filled at the destination: say --disk FILE,copy=on "
            f"there{which}"
        ]
    offered = {image.name: image for image in images}
    found = [
        f"{name} is to be filled at the destination, and at the source it is no local image: what is on a server needs "
        "no copy, give its address on both sides"
        for name in wanted
        if name not in offered
    ]
    filled = {name: image for name, _, image in _local(devices) if isinstance(image, CopiedImage) and name in offered}
    for name, image in filled.items():
        found += _problems_of(name, image, offered)
    return found or list(_no_room(filled, offered))


def _problems_of(name: str, image: CopiedImage, offered: Mapping[str, Image]) -> Iterator[str]:
    theirs = offered[name]
    there = bool(os.fstat(image.fd).st_size) or image.is_device
    if any(
        other.file == _file_mark(image) or (there and other.stamp == _stamp(image)) for other in offered.values()
    ):
        yield (
            f"{name} would be copied onto itself: {image.path} is the source's image, and is shared if copy=on is left "
            "out on this side and --copy-storage on the other"
        )
    elif image.is_device and image.measured() < theirs.size:
        yield f"{name} has {format_size(theirs.size)} at the source and {format_size(image.measured())} in {image.path}"


def _no_room(filled: Mapping[str, CopiedImage], offered: Mapping[str, Image]) -> Iterator[str]:
    """What the source has allocated has to fit, file system by file system."""
    needed: dict[int, int] = {}
    for name, image in filled.items():
        about = os.fstat(image.fd)
        if image.is_device or not stat.S_ISREG(about.st_mode):
            continue
        needed[about.st_dev] = needed.get(about.st_dev, 0) + offered[name].allocated
        needed[about.st_dev] -= about.st_blocks * ALLOCATED_UNIT
        there = os.fstatvfs(image.fd)
        free = there.f_bavail * there.f_frsize
        if needed[about.st_dev] > free:
            yield (
                f"{name} does not fit at the destination: the source's images need {needed[about.st_dev] >> 20}M, and "
                f"there are {free >> 20}M for {image.path}"
            )


def open_targets(
    devices: Devices | None, config: MachineConfig, images: tuple[Image, ...]
) -> list[DiskTarget | None]:
    """See `ArrivingGuest.open_targets`."""
    filled = {name: image for name, _, image in _local(devices) if isinstance(image, CopiedImage)}
    unsafe = {disk.id for disk in config.disks if disk.cache == "unsafe"}
    targets: list[DiskTarget | None] = []
    try:
        for theirs in images:
            image = filled.get(theirs.name)
            if image is None:
                targets.append(None)
                continue
            image.prepare(theirs.size)
            assert devices is not None
            devices.disks[theirs.name].tracked.set_size(theirs.size)
            targets.append(DiskTarget(image.fd, image.path, theirs.size, syncs=theirs.name not in unsafe))
    except OSError as error:
        raise HostError(f"the images at the destination cannot be made: {error.strerror}") from error
    return targets


def keep_targets(devices: Devices | None) -> None:
    """A guest is about to have what was filled for it: from now on these are images like any other."""
    for _, _, image in _local(devices):
        if isinstance(image, CopiedImage):
            image.keep()
