"""What is behind a disk, and what the disk says of itself by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tvmm.errors import ImageError
from tvmm.virtio.blk import BlkSettings
from tvmm.virtio.blk_request import SECTOR

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from tvmm.config.disk import DiskConfig
    from tvmm.kvm.nbd import NbdLink

__all__ = ["Backing", "blk_settings"]

SEG_MAX = 254
"""Data segments of a request, as QEMU has it: with header and status a chain of 256."""

RANGE_MAX = 1 << 22
"""Sectors of one range to discard or to zero: 2 GiB, so that no single call takes long."""


class Backing(Protocol):
    """What is behind a disk: a file, as `DiskImage` says it, or a server."""

    path: str
    size: int
    read_only: bool
    direct: bool
    warnings: list[str]
    fd: int
    plain_fd: int
    memory_align: int
    offset_align: int
    is_device: bool
    in_memory: bool
    logical_block: int
    physical_block: int
    can_unmap: bool

    def links(self, index: int) -> tuple[NbdLink, ...]:
        """The connections of a queue to a server. None of any queue: requests go to `fd` and `plain_fd`."""

    def resize(self, size: int) -> None:
        """Have another size, in bytes. Raises `ImageError` or `HostError`."""

    def flush(self) -> None:
        """Have what was written on stable storage. Raises `HostError`."""

    def lock(self) -> None:
        """Keep others off, unless that is so. Raises `ImageError`."""

    def unlock(self) -> None:
        """Others may have it."""

    def forget(self) -> None:
        """Drop what this host has cached: another one may have written."""

    def tended(self) -> AbstractAsyncContextManager[None]:
        """Within the block, which all threads of the disk are in, it is looked after by tasks of its own."""

    def close(self) -> None:
        """No queue uses it any more."""


def blk_settings(image: Backing, config: DiskConfig) -> BlkSettings:
    """What the disk says of itself: what the user chose, and else what the image has."""
    logical = config.logical_block_size or image.logical_block
    physical = max(logical, config.physical_block_size or image.physical_block)
    if image.size % logical:
        raise ImageError(
            f"disk image {image.path} has {image.size} bytes, which is no whole number of blocks of {logical}",
            f"'truncate -s %{logical} {image.path}' makes it one, or choose another logical_block_size",
        )
    unmap = config.discard == "unmap" and image.can_unmap
    return BlkSettings(
        capacity=image.size // SECTOR,
        read_only=config.readonly,
        serial=config.serial.encode("ascii"),
        queues=config.queues or 1,  # 0: a machine would have said how many
        queue_size=config.queue_size,
        seg_max=max(1, min(SEG_MAX, config.queue_size - 2)),
        block=logical,
        physical_block=physical,
        min_io=config.min_io_size or logical,
        opt_io=config.opt_io_size,
        max_discard=RANGE_MAX if unmap else 0,
        discard_alignment=physical // SECTOR,
        max_zeroes=0 if config.readonly else RANGE_MAX,
        unmap=unmap,
    )
