"""``--disk FILE[,key=val]``: a file or block device that the guest sees as a virtio disk."""

from __future__ import annotations

from typing import NamedTuple

from tvmm.config.options import join_options
from tvmm.config.properties import (
    ID,
    POLL,
    QUEUE_SIZE,
    RING,
    Property,
    check_values,
    parse_values,
    spelled,
    with_defaults,
)
from tvmm.errors import ConfigError

__all__ = ["AUTO_QUEUES", "DISK_PROPERTIES", "MAX_QUEUES", "SERIAL_LIMIT", "DiskConfig"]

MAX_QUEUES = 64

AUTO_QUEUES = 4
"""As many at most for a guest with many processors, unless asked for: each is a thread of the host."""

SERIAL_LIMIT = 20
"""Bytes that get-id answers with (virtio 1.3, 5.2.6)."""

_SECTOR, _BLOCK_LIMIT = 512, 1 << 20


class DiskConfig(NamedTuple):
    """One disk.

    `id` is '' until `MachineConfig.check` gives it by position, and `queues` 0 until that gives their number: one for
    each processor up to `AUTO_QUEUES`, and one in memory, where they share an interrupt. `cache`: "writeback" uses
    the host's page cache, "none" goes past it, "unsafe" ignores flushes. `direct` None: as `cache` has it, see
    `o_direct`. Block sizes of 0 are probed; `min_io_size` and `opt_io_size` of 0 say nothing. All sizes are in bytes.
    `faults` of a million requests fail as if the host's disk had, to test the guest. `werror` and `rerror` say what
    an error of the host does: "report" it to the guest, "stop" the machine, "ignore" it, or ("enospc") stop if the
    host is full and report otherwise.
    """

    file: str
    id: str = ""
    readonly: bool = False
    cache: str = "writeback"
    direct: bool | None = None
    aio: str = "auto"
    queues: int = 0
    queue_size: int = 256
    serial: str = ""
    logical_block_size: int = 0
    physical_block_size: int = 0
    min_io_size: int = 0
    opt_io_size: int = 0
    discard: str = "unmap"
    werror: str = "enospc"
    rerror: str = "report"
    locking: bool = True
    faults: int = 0
    transport: str = "pci"
    packed: bool = False
    in_order: bool = False
    event_idx: bool = True
    indirect_desc: bool = True
    poll_us: int = 32

    @classmethod
    def parse(cls, text: str) -> DiskConfig:
        """From the value of ``--disk``. Raises `ConfigError`."""
        return cls(**parse_values(text, "disk", DISK_PROPERTIES, first="file")).check()

    def check(self) -> DiskConfig:
        """The same record, if its fields are in range and go together; raises `ConfigError` otherwise."""
        check_values(self, "disk", DISK_PROPERTIES)
        if len(self.serial) > SERIAL_LIMIT or not (self.serial.isascii() and self.serial.isprintable()):
            raise ConfigError(
                f"disk property serial {self.serial[:40]!r} is no serial number",
                f"it has at most {SERIAL_LIMIT} printable ASCII characters",
            )
        logical, physical = self.logical_block_size, self.physical_block_size
        if physical and physical < logical:
            raise ConfigError(
                f"disk property physical_block_size {physical} is less than logical_block_size {logical}",
                "make them equal, or leave one out",
            )
        for name in ("min_io_size", "opt_io_size"):
            if getattr(self, name) % (logical or _SECTOR):
                raise ConfigError(
                    f"disk property {name} {getattr(self, name)} is no multiple of the logical block size",
                    f"that is {logical or _SECTOR} bytes",
                )
        return self

    @property
    def o_direct(self) -> bool:
        """Whether the file is opened to go past the host's page cache."""
        return self.cache == "none" if self.direct is None else self.direct

    def resolved(self, position: int, cpus: int) -> DiskConfig:
        """With what depends on the machine: its place among the disks, and the processors that share it."""
        queues = self.queues or (min(cpus, AUTO_QUEUES) if self.transport == "pci" else 1)
        return self._replace(id=self.id or f"disk{position}", queues=queues)

    def spelling(self) -> str:
        """The command line's spelling of this disk, without options that have their default."""
        return join_options(spelled(self, DISK_PROPERTIES), first="file")


def _block_size(name: str, meaning: str) -> Property:
    return Property(
        name, "size", 0, meaning, _SECTOR, _BLOCK_LIMIT, or_zero=True, power_of_two=True, otherwise="0: probed"
    )


DISK_PROPERTIES = with_defaults(
    DiskConfig,
    Property("file", "text", None, "raw image or block device"),
    ID,
    Property("readonly", "boolean", None, "let the guest read only"),
    Property(
        "cache", "choice", None, "writeback: the host's page cache; none: past it; unsafe: without flushes",
        choices=("none", "writeback", "unsafe"),
    ),
    Property("direct", "boolean", None, "open the file with O_DIRECT", otherwise="on with cache=none, else off"),
    Property(
        "aio", "choice", None, "how requests wait; auto: io_uring where the host has it",
        choices=("auto", "io_uring", "threads"),
    ),
    Property("queues", "integer", None, "request queues, each served by a thread", 1, MAX_QUEUES, or_zero=True,
             otherwise=f"one for each processor up to {AUTO_QUEUES}"),
    QUEUE_SIZE,
    Property("serial", "text", None, f"serial number, {SERIAL_LIMIT} ASCII characters at most"),
    _block_size("logical_block_size", "smallest unit of a request"),
    _block_size("physical_block_size", "unit that the medium writes at once"),
    Property("min_io_size", "size", None, "smallest request that performs well", 0, 0xFFFF * _SECTOR),
    Property("opt_io_size", "size", None, "size of a request that performs best", 0, 1 << 30),
    Property("discard", "choice", None, "what a discard does to the file", choices=("unmap", "ignore")),
    Property(
        "werror", "choice", None, "on a write error; enospc: stop if the host is full, else report",
        choices=("report", "stop", "ignore", "enospc"),
    ),
    Property("rerror", "choice", None, "on a read error", choices=("report", "stop", "ignore")),
    Property("locking", "boolean", None, "keep other machines off the file"),
    Property("faults", "integer", None, "of a million requests so many fail, to test the guest", 0, 1_000_000),
    *RING,
    POLL,
)  # fmt: skip
"""What ``--disk`` and ``--device virtio-blk`` take."""
