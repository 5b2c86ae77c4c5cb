"""A disk, from its options: image, model, slot, runner, and what an error of the host does to the machine."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from tvmm.config.limits import DISK_WORDS
from tvmm.control.target import DiskInfo
from tvmm.kvm.blk import Policy
from tvmm.virtio.blk import Blk
from tvmm.virtio.runner.backing import blk_settings
from tvmm.virtio.runner.blk import BlkRunner
from tvmm.virtio.runner.image import DiskImage
from tvmm.wiring.limits import Throttle
from tvmm.wiring.measures import disk_samples
from tvmm.wiring.ring import ring_features

if TYPE_CHECKING:
    from tvmm.config.disk import DiskConfig
    from tvmm.kvm.blk import IoError
    from tvmm.virtio.runner.backing import Backing
    from tvmm.wiring.devices import Devices

__all__ = ["DiskDevice", "make_disk"]

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

ACTIONS = {Policy.REPORT: "report", Policy.IGNORE: "ignore", Policy.STOP: "stop"}
"""QEMU's words."""


class DiskDevice:
    """The host's side of one disk."""

    def __init__(self, options: DiskConfig, runner: BlkRunner, devices: Devices) -> None:
        self._options = options
        self._runner = runner
        self._devices = devices
        self.resize = runner.resize
        self.throttle = Throttle("disk", DISK_WORDS, runner)
        self.image = runner.image
        self.tracked = runner
        runner.on_io_error = self._io_error

    def _io_error(self, error: IoError) -> None:
        """On a queue's thread: tell, and have the machine stop if that is the policy."""
        reason = os.strerror(error.error)
        stop = error.action is Policy.STOP
        if stop:
            full = "make room" if error.error in NO_SPACE else "mend it"
            # What a sync that failed was about the host's kernel has given up.
            lost = "what was not stable may be lost" if error.operation == "flush" else "nothing is lost"
            self._devices.warn(
                f"{self._options.id}: a {error.operation} failed ({reason}) and the machine is paused: "
                f"{full}, then 'tvmm resume'; {lost}"
            )
        data: dict[str, object] = {
            "device": self._options.id,
            "node-name": self._options.id,
            "operation": "read" if error.operation in ("read", "get-id") else "write",
            "action": ACTIONS[error.action],
            "nospace": error.error in NO_SPACE,
            "reason": reason,
        }
        self._devices.on_event("BLOCK_IO_ERROR", data, "io-error" if stop else "")

    def info(self) -> DiskInfo:
        """What there is to tell."""
        found = self._runner.info()
        counted, took = found.counters, self._runner.times_ns()
        status = "ok" if not found.stopped else "nospace" if found.stopped in NO_SPACE else "failed"
        return DiskInfo(
            self._options.id,
            found.path,
            found.size,
            found.read_only,
            self._options.cache,
            found.direct,
            found.aio,
            status,
            format=self._options.image_format,
            rd_bytes=counted.read_bytes,
            wr_bytes=counted.written_bytes,
            unmap_bytes=counted.unmapped_bytes,
            rd_operations=counted.reads,
            wr_operations=counted.writes,
            flush_operations=counted.flushes,
            unmap_operations=counted.discards + counted.write_zeroes,
            failed_rd_operations=counted.read_errors,
            failed_wr_operations=counted.write_errors,
            failed_flush_operations=counted.flush_errors,
            failed_unmap_operations=counted.discard_errors + counted.write_zeroes_errors,
            rd_total_time_ns=took["read"],
            wr_total_time_ns=took["write"],
            flush_total_time_ns=took["flush"],
            unmap_total_time_ns=took["discard"] + took["write-zeroes"],
            invalid_operations=counted.refused,
        )


def make_disk(devices: Devices, options: DiskConfig) -> None:
    """Put it into a slot of `devices`. Raises `UserError`."""
    image: Backing
    if options.is_nbd or options.image_format != "raw":
        from tvmm.wiring.nbd_disk import open_export

        image = open_export(devices, options)
    elif options.copy:
        from tvmm.virtio.runner.image_copy import CopiedImage

        image = CopiedImage(
            options.file,
            overwrite=options.overwrite,
            read_only=options.readonly,
            direct=options.o_direct,
            locking=options.locking,
            say=devices.warn,
        )
    else:
        image = DiskImage(
            options.file,
            read_only=options.readonly,
            direct=options.o_direct,
            locking=options.locking,
            # A guest that is to arrive has its disks still, somewhere else.
            lock_now=devices.config.incoming is None,
        )
    try:
        model = Blk(blk_settings(image, options), ring_features(options))
        slot = devices.place(model, options)
        runner = BlkRunner(model, slot.ends(), image, options, devices.warn, options.id)
    except BaseException:
        image.close()
        raise
    devices.host.stack.callback(runner.close)
    slot.connect(runner)
    devices.measures[options.id] = lambda: disk_samples(options.id, runner)
    if not isinstance(image, DiskImage):
        from tvmm.wiring.nbd_disk import connect_export

        connect_export(devices, image, runner)
    devices.disks[options.id] = DiskDevice(options, runner, devices)
