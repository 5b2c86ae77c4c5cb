"""What is behind a disk that is no raw image: an NBD server's export, or an image that `qemu-nbd` opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.errors import ConfigError, UserError
from tvmm.nbd.connect import RemoteServer
from tvmm.nbd.image import NbdImage
from tvmm.nbd.local import LocalImage, LocalServer
from tvmm.nbd.tls import Credentials
from tvmm.nbd.uri import parse_uri

if TYPE_CHECKING:
    from tvmm.config.disk import DiskConfig
    from tvmm.nbd.connect import Server
    from tvmm.virtio.runner.backing import Backing
    from tvmm.virtio.runner.blk import BlkRunner
    from tvmm.wiring.devices import Devices

__all__ = ["connect_export", "open_export"]


def open_export(devices: Devices, options: DiskConfig) -> NbdImage:
    """Connect to what `options` name; `qemu-nbd` is started for it if it is a file. Raises `UserError`."""
    server = _remote(options) if options.is_nbd else _local(options)
    image = NbdImage(
        server,
        read_only=options.readonly,
        queues=options.queues,
        connections=options.connections,
        patience_s=options.reconnect_delay,
        name=options.id,
        # A guest that is to arrive has its disks still, somewhere else.
        lock_now=devices.config.incoming is None,
    )
    try:
        _check_blocks(image, options)
    except UserError:
        image.close()
        raise
    return image


def connect_export(devices: Devices, image: Backing, runner: BlkRunner) -> None:
    """Have warnings and changes of the size told."""
    assert isinstance(image, NbdImage)
    image.warn = devices.warn
    image.on_size = runner.set_size
    image.on_lost_writes = runner.lost_writes


def _remote(options: DiskConfig) -> Server:
    address = parse_uri(options.file)
    if not (address.tls or options.tls):
        return RemoteServer(address)
    hostname = options.tls_hostname or address.tls_hostname or address.host
    credentials = Credentials(hostname, options.tls_ca, options.tls_cert, options.tls_key)
    return RemoteServer(address._replace(tls=True), credentials)


def _local(options: DiskConfig) -> Server:
    return LocalServer(
        LocalImage(
            options.file,
            options.image_format,
            read_only=options.readonly,
            direct=options.o_direct,
            no_flush=options.cache == "unsafe",
            aio="" if options.aio == "auto" else options.aio,
            unmap=options.discard == "unmap",
            locking=options.locking,
            connections=max(options.connections, options.queues),
        )
    )


def _check_blocks(image: NbdImage, options: DiskConfig) -> None:
    if options.logical_block_size and options.logical_block_size < image.logical_block:
        raise ConfigError(
            f"disk property logical_block_size {options.logical_block_size} is less than the server's blocks",
            f"{options.file} has blocks of {image.logical_block}",
        )
