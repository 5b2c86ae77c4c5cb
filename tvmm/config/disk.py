"""``--disk FILE[,key=val]``: a file, a block device or a server's export that the guest sees as a virtio disk.

What the bytes of a file mean is decided by `format` or by the name of the file, never by its content: that is the
guest's, who could write into a raw image what looks like another format, and names a file of the host in it.
"""

from __future__ import annotations

from typing import NamedTuple

from tvmm.config.limits import DISK_WORDS, NO_LIMITS, Limits, limit_properties, with_limits
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

__all__ = ["AUTO_QUEUES", "DISK_PROPERTIES", "FORMATS", "MAX_QUEUES", "SERIAL_LIMIT", "DiskConfig"]

MAX_QUEUES = 64

AUTO_QUEUES = 4
"""As many at most for a guest with many processors, unless asked for: each is a thread of the host."""

SERIAL_LIMIT = 20
"""Bytes that get-id answers with (virtio 1.3, 5.2.6)."""

FORMATS = {
    "qcow2": (".qcow2",),
    "qcow": (".qcow",),
    "qed": (".qed",),
    "vdi": (".vdi",),
    "vhdx": (".vhdx",),
    "vmdk": (".vmdk",),
    "vpc": (".vhd", ".vpc"),
}
"""What `qemu-nbd` opens, by the ends of file names."""

MAX_CONNECTIONS = 64
RECONNECT_LIMIT_S = 24 * 3600

_SECTOR, _BLOCK_LIMIT = 512, 1 << 20
_TLS_FILES = ("tls_ca", "tls_cert", "tls_key")


class DiskConfig(NamedTuple):
    """One disk.

    `id` is '' until `MachineConfig.check` gives it by position, and `queues` 0 until that gives their number: one for
    each processor up to `AUTO_QUEUES`, and one in memory, where they share an interrupt. `cache`: "writeback" uses
    the host's page cache, "none" goes past it, "unsafe" ignores flushes. `direct` None: as `cache` has it, see
    `o_direct`. Block sizes of 0 are probed; `min_io_size` and `opt_io_size` of 0 say nothing. All sizes are in bytes.
    `faults` of a million requests fail as if the host's disk had, to test the guest. `werror` and `rerror` say what
    an error of the host does: "report" it to the guest, "stop" the machine, "ignore" it, or ("enospc") stop if the
    host is full and report otherwise.

    `file` may be the address of an NBD export. `format` "auto": by the file's name, see `image_format`. `connections`
    to a server, 0 for as many as there are queues; requests wait `reconnect_delay` seconds for one that is away. `tls`
    None: as the address says; the files are PEM, and `tls_hostname` is looked for in the server's certificate.
    `limits` bound the guest's requests. `copy`: the file is filled from the source's image when a guest arrives, and
    `overwrite`, even if something is in it.
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
    format: str = "auto"
    connections: int = 0
    reconnect_delay: int = 30
    tls: bool | None = None
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_hostname: str = ""
    copy: bool = False
    overwrite: bool = False
    limits: Limits = NO_LIMITS

    @classmethod
    def parse(cls, text: str) -> DiskConfig:
        """From the value of ``--disk``. Raises `ConfigError`."""
        from tvmm.nbd.uri import is_nbd

        # An address has a '=' of its own where it names a socket.
        text = f"file={text}" if is_nbd(text) else text
        return cls(**with_limits(parse_values(text, "disk", DISK_PROPERTIES, first="file"))).check()

    def check(self) -> DiskConfig:
        """The same record, if its fields are in range and go together; raises `ConfigError` otherwise."""
        check_values(self, "disk", DISK_PROPERTIES)
        self.limits.check("disk", DISK_WORDS)
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
        self._check_server()
        if self.copy and (self.is_nbd or self.image_format != "raw"):
            raise ConfigError(
                f"disk property copy=on is for raw files and block devices, and {self.file!r} is none",
                "what is on a server needs no copy: give its address on both sides",
            )
        if self.overwrite and not self.copy:
            raise ConfigError("disk property overwrite=on has no meaning without copy=on")
        return self

    def _check_server(self) -> None:
        """What goes together with where the bytes are."""
        from tvmm.nbd.uri import parse_uri

        if self.is_nbd:
            address = parse_uri(self.file)
            if self.format not in ("auto", "raw"):
                raise ConfigError(
                    f"disk property format {self.format} has no meaning for an NBD address",
                    "the server knows the format, and gives the disk that is in it",
                )
            if self.tls is False and address.tls:
                raise ConfigError(f"disk {self.file!r} is an address with TLS, and tls=off", "say nbd:// or tls=on")
            named = address.host or address.tls_hostname
            self._check_tls(with_tls=bool(self.tls) or address.tls, named=bool(named))
        else:
            given = [name for name in ("tls", *_TLS_FILES, "tls_hostname") if getattr(self, name)]
            if self.image_format == "raw":
                given += [name for name in ("connections", "reconnect_delay") if self._differs(name)]
            if given:
                raise ConfigError(f"disk property {given[0]} has no meaning for a file", "it is for nbd:// addresses")
        if self.connections and self.connections < self.queues:
            raise ConfigError(
                f"disk property connections {self.connections} is less than queues {self.queues}",
                "each queue needs one of its own",
            )

    def _check_tls(self, *, with_tls: bool, named: bool) -> None:
        given = [name for name in (*_TLS_FILES, "tls_hostname") if getattr(self, name)]
        if given and not with_tls:
            raise ConfigError(f"disk property {given[0]} is given, and no TLS", "say tls=on, or nbds:// for nbd://")
        if self.tls_key and not self.tls_cert:
            raise ConfigError("disk property tls_key is given without tls_cert", "a key belongs to a certificate")
        if with_tls and not (named or self.tls_hostname):
            raise ConfigError(
                "TLS over a unix socket, and no name to look for in the certificate", "say tls_hostname=NAME"
            )

    def _differs(self, name: str) -> bool:
        return bool(getattr(self, name) != self._field_defaults[name])

    @property
    def is_nbd(self) -> bool:
        """Whether `file` is the address of an export."""
        from tvmm.nbd.uri import is_nbd

        return is_nbd(self.file)

    @property
    def image_format(self) -> str:
        """"raw", or one of `FORMATS`."""
        if self.format != "auto" or self.is_nbd:
            return self.format.replace("auto", "raw")
        name = self.file.lower()
        return next((each for each, ends in FORMATS.items() if name.endswith(ends)), "raw")

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
    Property("file", "text", None, "image, block device or NBD address"),
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
    Property(
        "format", "choice", None, "what the file is; auto: by its name; all but raw need qemu-nbd",
        choices=("auto", "raw", *FORMATS),
    ),
    Property(
        "connections", "integer", None, "connections to an NBD server", 1, MAX_CONNECTIONS, or_zero=True,
        otherwise="0: one for each queue",
    ),
    Property(
        "reconnect_delay", "integer", None, "seconds that requests wait for an NBD server that is away",
        0, RECONNECT_LIMIT_S,
    ),
    Property("tls", "boolean", None, "TLS to an NBD server", otherwise="on with nbds://, else off"),
    Property("tls_ca", "text", None, "PEM file: CA of the server's certificate", otherwise="the system's"),
    Property("tls_cert", "text", None, "PEM file: certificate to show to the server"),
    Property("tls_key", "text", None, "PEM file: key of tls_cert", otherwise="in the same file"),
    Property("tls_hostname", "text", None, "name in the server's certificate", otherwise="the address's host"),
    Property("copy", "boolean", None, "with --incoming: make the file, and fill it from the source's"),
    Property("overwrite", "boolean", None, "with copy=on: lose what is in the file, if it is there already"),
    *limit_properties(DISK_WORDS),
)  # fmt: skip
"""What ``--disk`` and ``--device virtio-blk`` take."""
