"""The block device (virtio 1.3, 5.2): features and configuration space of one disk.

What chains mean is in `blk_request`; this is who the disk says that it is, and what the driver made of it: the cache
mode, and the limits that requests are checked against.

Offsets in the configuration space:

====== ==== ==========================================================
0      8    capacity, in sectors of 512 bytes
8      4    size_max, bytes per segment (0: not offered)
12     4    seg_max, data segments per request
20     4    blk_size, bytes
24     8    topology: exponent of blocks per physical block, alignment offset, minimum and optimal I/O in blocks
32     1    writeback, to be written if CONFIG_WCE was negotiated
34     2    num_queues
36     12   discard: sectors, ranges, alignment in sectors
48     9    write zeroes: sectors, ranges, may_unmap
====== ==== ==========================================================
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ConfigError
from tvmm.virtio.blk_request import MAX_RANGES, SECTOR, Limits
from tvmm.virtio.device import VirtioDevice
from tvmm.virtio.features import BLK_ID, DEFAULT_RING
from tvmm.virtio.features import Blk as Feature

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.virtio.device import ConfigState

__all__ = ["Blk", "BlkSettings"]

CAPACITY, WRITEBACK = 0, 32
CONFIG_LENGTH = 60
MAX_QUEUES = 64
MAX_CAPACITY = 1 << 54
"""Sectors: 2^63 bytes, as far as an offset in a file goes."""


class BlkSettings(NamedTuple):
    """A disk. Sizes in bytes, but `capacity`, `discard_alignment` and the `max_` sizes in sectors of 512 bytes.

    `physical_block`, `min_io` and `opt_io` are hints. `max_discard` and `max_zeroes` of 0 take the request away.
    `unmap` says that write-zeroes may deallocate. `cache_control` lets the driver switch the cache mode.
    """

    capacity: int
    read_only: bool = False
    serial: bytes = b""
    queues: int = 1
    queue_size: int = 256
    seg_max: int = 254
    size_max: int = 0
    block: int = 512
    physical_block: int = 512
    min_io: int = 512
    opt_io: int = 0
    flush: bool = True
    cache_control: bool = True
    max_discard: int = 0
    discard_alignment: int = 1
    max_zeroes: int = 0
    ranges: int = MAX_RANGES
    unmap: bool = True


def _check(settings: BlkSettings) -> None:
    """Raise `ConfigError` for a disk that cannot be."""
    wrong = ""
    for name in ("block", "physical_block"):
        size = getattr(settings, name)
        if not SECTOR <= size <= 1 << 20 or size & (size - 1):
            wrong = f"{name} of {size} bytes: a power of two from 512 to 1 MiB is needed"
    if not 0 <= settings.capacity <= MAX_CAPACITY:
        wrong = f"{settings.capacity} sectors"
    elif settings.physical_block < settings.block:
        wrong = "physical blocks smaller than logical ones"
    elif settings.min_io % settings.block or settings.opt_io % settings.block:
        wrong = "I/O sizes that are not whole blocks"
    elif not 0 <= settings.min_io // settings.block <= 0xFFFF or not 0 <= settings.opt_io <= 0xFFFF_FFFF:
        wrong = "I/O sizes that do not fit their registers"
    elif not 1 <= settings.queues <= MAX_QUEUES:
        wrong = f"{settings.queues} queues: 1 to {MAX_QUEUES} are possible"
    elif not 1 <= settings.seg_max <= 0xFFFF or not 0 <= settings.size_max <= 0xFFFF_FFFF:
        wrong = "segments that do not fit their registers"
    elif len(settings.serial) > 20 or not settings.serial.isascii():
        wrong = "a serial number of more than 20 characters, or not of ASCII"
    elif not 1 <= settings.ranges <= MAX_RANGES or not 1 <= settings.discard_alignment <= 0xFFFF_FFFF:
        wrong = f"ranges per request or their alignment: 1 to {MAX_RANGES} ranges are possible"
    elif not all(0 <= most <= 0xFFFF_FFFF for most in (settings.max_discard, settings.max_zeroes)):
        wrong = "discard or write-zeroes sizes that do not fit their registers"
    elif settings.cache_control and not settings.flush:
        wrong = "a cache mode to switch without a flush"
    if wrong:
        raise ConfigError(f"virtio-blk with {wrong}")


def _features(settings: BlkSettings) -> int:
    offered = Feature.SEG_MAX | Feature.BLK_SIZE | Feature.TOPOLOGY
    for wanted, feature in (
        (settings.size_max, Feature.SIZE_MAX),
        (settings.read_only, Feature.RO),
        (settings.flush, Feature.FLUSH),
        (settings.cache_control, Feature.CONFIG_WCE),
        (settings.queues > 1, Feature.MQ),
        (settings.max_discard and not settings.read_only, Feature.DISCARD),
        (settings.max_zeroes and not settings.read_only, Feature.WRITE_ZEROES),
    ):
        if wanted:
            offered |= feature
    return offered


def _config(settings: BlkSettings) -> bytes:
    blocks = (settings.physical_block // settings.block).bit_length() - 1
    discard = bool(_features(settings) & Feature.DISCARD)
    zeroes = bool(_features(settings) & Feature.WRITE_ZEROES)
    space = pack(
        "<QIIHBBIBBHIBBHIIIIIB3x",
        settings.capacity,
        settings.size_max,
        settings.seg_max,
        *(0, 0, 0),  # geometry, of a time when disks had one
        settings.block,
        blocks,
        0,
        settings.min_io // settings.block,
        settings.opt_io // settings.block,
        int(settings.cache_control),
        0,
        settings.queues if settings.queues > 1 else 0,
        settings.max_discard if discard else 0,
        settings.ranges if discard else 0,
        settings.discard_alignment if discard else 0,
        settings.max_zeroes if zeroes else 0,
        settings.ranges if zeroes else 0,
        int(zeroes and settings.unmap),
    )
    assert len(space) == CONFIG_LENGTH
    return space


def _mask(offset: int, length: int) -> bytes:
    return bytes(offset) + b"\xff" * length


class Blk(VirtioDevice):
    """A disk's registers. Raises `ConfigError` for settings that make none."""

    device_id = BLK_ID
    type_name = "virtio-blk"

    def __init__(self, settings: BlkSettings, ring: int = DEFAULT_RING) -> None:
        _check(settings)
        changeable = bytearray(_mask(CAPACITY, 8).ljust(CONFIG_LENGTH, b"\0"))
        changeable[WRITEBACK] = 0x01
        super().__init__(
            (settings.queue_size,) * settings.queues,
            _features(settings),
            _config(settings),
            bytes(changeable),
            ring,
        )
        self.settings = settings
        self.cache_mode_changed: Callable[[], None] = _nobody_cares
        """Called after `write_through` may have changed under a live driver."""

    # -- the driver's side -------------------------------------------------------------------------------

    def negotiated(self, features: int) -> None:
        """Open the cache mode for writing if the driver took it; 0 without FLUSH (5.2.5.2)."""
        super().negotiated(features)
        self._open(features)
        if features & Feature.CONFIG_WCE and not features & Feature.FLUSH:
            self._config[WRITEBACK] = 0

    def _open(self, accepted: int) -> None:
        writable = bytearray(CONFIG_LENGTH)
        writable[WRITEBACK] = 0x01 if accepted & Feature.CONFIG_WCE else 0
        self.writable = bytes(writable)

    def config_written(self, offset: int, size: int) -> None:
        """The cache mode: nothing else is writable."""
        self.cache_mode_changed()

    def reset(self) -> None:
        """The cache mode as at first; the capacity is the host's and stays."""
        super().reset()
        self._open(0)
        self._config[WRITEBACK] = self._first_config[WRITEBACK]

    # -- the owner's side --------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Sectors of 512 bytes."""
        return int.from_bytes(self._config[CAPACITY : CAPACITY + 8], "little")

    def resize(self, sectors: int) -> None:
        """The disk has another size; the driver is told. Raises `ConfigError` for an impossible one."""
        if not 0 <= sectors <= MAX_CAPACITY:
            raise ConfigError(f"virtio-blk with {sectors} sectors")
        self.change_config(CAPACITY, sectors.to_bytes(8, "little"))

    @property
    def write_through(self) -> bool:
        """A write has to be stable when it completes (5.2.6.2): the driver never flushes, or turned the cache off."""
        if self.accepted & Feature.CONFIG_WCE:
            return not self._config[WRITEBACK]
        return bool(self.features & Feature.FLUSH) and not self.accepted & Feature.FLUSH

    def limits(self) -> Limits:
        """What requests are checked against, as negotiated; to be taken anew after a resize."""
        settings = self.settings
        return Limits(
            self.capacity,
            settings.read_only,
            settings.flush,
            settings.max_discard if self.accepted & Feature.DISCARD else 0,
            settings.ranges,
            settings.max_zeroes if self.accepted & Feature.WRITE_ZEROES else 0,
            settings.ranges,
            settings.serial,
        )

    def restore(self, state: ConfigState, accepted: int) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        config = self.check_config(state)
        if int.from_bytes(config.space[CAPACITY : CAPACITY + 8], "little") > MAX_CAPACITY:
            raise ValueError("space has an impossible capacity")
        self.load_config(config)
        self.accepted = accepted
        self._open(accepted)


def _nobody_cares() -> None:
    """Before a runner has the device, nothing is written."""
