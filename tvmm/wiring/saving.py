"""A machine that is written into a snapshot file: paused while its pages are read, and as before afterwards.

The order: the file is made, without a name; the guest is held; its disks are flushed, its state is taken, its pages are
written; it goes on; the file is made safe and takes its place. Whatever fails, or whoever cancels, before that
leaves the guest running and what was there in place. With `stop` the guest is held until the file is safe, and the
machine ends.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from tvmm import __version__
from tvmm.errors import TvmmError, UserError
from tvmm.kernel_files import builtin_guest_path
from tvmm.kvm.serve import Waker
from tvmm.migration.threads import run_together
from tvmm.outcome import STATUS_SAVED, Outcome
from tvmm.snapshot.description import IMAGE_BLOCKS, Description, DiskFile, options_record
from tvmm.snapshot.files import absolute
from tvmm.snapshot.options import options_of
from tvmm.snapshot.status import ENDED, SaveStatus
from tvmm.snapshot.writer import Image, SnapshotWriter
from tvmm.state import pack_sections
from tvmm.wiring.moving import LeavingMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.board import Board
    from tvmm.config.machine import MachineConfig
    from tvmm.machine import Machine
    from tvmm.snapshot.sealing import Secret
    from tvmm.snapshot.status import SaveParameters
    from tvmm.state import Section
    from tvmm.wiring.live_saving import LiveSaving

__all__ = ["Saving", "SavingMachine", "describe_machine"]

THREADS = 4
"""As many requests keep a disk busy; to look for zeros takes one processor for some GB/s."""


class SavingMachine(LeavingMachine):
    """The guest as it is held and saved for a migration, under another name."""

    stage = "save-vm"

    def __init__(self, machine: Machine) -> None:
        # What its disks have is to be as safe as the file.
        super().__init__(machine, local=False)

    def end_saved(self, path: str) -> None:
        """While it is held: it does not go on here, and the machine ends."""
        self._ended = True
        self.release_disks()
        machine = self._machine
        machine.farewell = Outcome("saved", STATUS_SAVED, path)
        if self._board.devices is not None and self._board.devices.vsock is not None:
            self._board.devices.vsock.leave()
        machine.start_task(partial(self._end_soon, machine.farewell, None), "farewell")


class Saving:
    """One save. `changed` gets each new state. Use it once: `open`, then `run`."""

    def __init__(
        self, machine: Machine, path: str, parameters: SaveParameters, changed: Callable[[SaveStatus], None]
    ) -> None:
        self.parameters = parameters
        self._machine = machine
        self._guest = SavingMachine(machine)
        self._path = absolute(path)
        self._changed = changed
        self._scope = trio.CancelScope()
        self._state = "setup"
        self._begun = time.perf_counter()
        self._took: float | None = None
        self._held_at: float | None = None
        self._pause = 0.0
        self._writer: SnapshotWriter | None = None
        self.live: LiveSaving | None = None
        self._figures = (0, 0, 0)
        self._file_bytes = 0
        self._error = ("", "")

    @property
    def status(self) -> SaveStatus:
        """As it is now."""
        now = time.perf_counter()
        writer = self._writer
        total, done, data = (writer.total, writer.done, writer.data) if writer is not None else self._figures
        pause = self._pause + (now - self._held_at if self._held_at is not None else 0.0)
        return SaveStatus(
            self._state, self._path, total, done, data, self._file_bytes,
            (self._took if self._took is not None else now - self._begun) * 1000, pause * 1000,
            bool(self.parameters.passphrase or self.parameters.key), self.parameters.stop, *self._error,
            self.live.by if self.live is not None else "",
        )  # fmt: skip

    def cancel(self) -> None:
        """Too late once the file is being put in its place."""
        if self._state in ("setup", "active"):
            self._enter("cancelling")
            self._scope.cancel()

    def _enter(self, state: str) -> None:
        self._state = state
        if state in ENDED:
            self._took = time.perf_counter() - self._begun
        self._changed(self.status)

    async def open(self) -> None:
        """Make the file. Raises `UserError` if there cannot be one at its place."""
        images = machine_images(self._machine.board)
        self._writer = await trio.to_thread.run_sync(
            lambda: SnapshotWriter(
                self._path, self._guest.ram, images, force=self.parameters.force, secret=secret_of(self.parameters)
            )
        )

    async def run(self) -> None:
        """To its end, which `status` tells."""
        writer = self._writer
        assert writer is not None
        end = "failed"
        try:
            with self._scope:
                await self._write(writer)
                end = "completed"
            if self._scope.cancelled_caught:
                end = "cancelled"
        except UserError as error:
            self._error = error.message, error.hint
        except TvmmError as error:
            self._error = str(error), ""
        finally:
            self._figures = writer.total, writer.done, writer.data
            self._writer = None
            with trio.CancelScope(shield=True):
                # To give gigabytes that nobody wants back to the disk takes its time.
                await trio.to_thread.run_sync(writer.close)
        if self._state != "completed":
            self._enter(end)

    async def _write(self, writer: SnapshotWriter) -> None:
        self._enter("active")
        if self.parameters.live:
            await self._write_live(writer)
            return
        async with self._guest.held() as was_running:
            self._held_at = time.perf_counter()
            try:
                sections = await self._guest.save()
                await write_all(writer)
                description = await trio.to_thread.run_sync(
                    describe_machine, self._machine, sections, was_running
                )
                if self.parameters.stop:
                    await self._finish(writer, description)
                    self._enter("completed")
                    self._guest.end_saved(self._path)
            finally:
                self._pause, self._held_at = time.perf_counter() - self._held_at, None
        if not self.parameters.stop:
            await self._finish(writer, description)

    async def _write_live(self, writer: SnapshotWriter) -> None:
        from tvmm.wiring.live_saving import LiveSaving

        self.live = LiveSaving(self._machine, writer, self._hold)
        await self._finish(writer, await self.live.write())

    def _hold(self, held: bool) -> None:
        if held:
            self._held_at = time.perf_counter()
        elif self._held_at is not None:
            self._pause, self._held_at = self._pause + time.perf_counter() - self._held_at, None

    async def _finish(self, writer: SnapshotWriter, description: Description) -> None:
        self._enter("finishing")
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(writer.finish, description)
        self._file_bytes = writer.file_bytes


async def write_all(writer: SnapshotWriter) -> None:
    """All pages of a guest that stands still, by several threads. Raises `HostError`."""
    waker = Waker()
    try:
        await run_together([lambda: writer.write_pages(waker)] * THREADS, waker)
    finally:
        waker.close()


def secret_of(parameters: SaveParameters) -> Secret | None:
    """What encrypts the file, if anything is to."""
    if not parameters.passphrase and not parameters.key:
        return None
    from tvmm.snapshot.sealing import Secret

    if parameters.key:
        return Secret(parameters.key, from_file=True)
    return Secret(parameters.passphrase.encode())


def machine_images(board: Board) -> list[Image]:
    """Kernel and initrd: a restored machine has them from the file, wherever it is and whatever has become of
    theirs."""
    files = board.config.kernel
    images = [Image(IMAGE_BLOCKS[0], os.path.abspath(files.kernel or builtin_guest_path()), board.kernel_image)]
    if board.initrd_image:
        images.append(Image(IMAGE_BLOCKS[1], os.path.abspath(files.initrd), board.initrd_image))
    return images


def describe_machine(machine: Machine, sections: Sequence[Section], running: bool) -> Description:
    """For a machine that stands still, on a worker thread; blocks and images are the writer's."""
    from tvmm.board_facts import describe_board
    from tvmm.state import encode
    from tvmm.vcpu.compat_kvm import guest_on

    board = machine.board
    return Description(
        name=machine.name,
        saved_at_ns=time.time_ns(),
        program=f"tvmm {__version__}",
        running=running,
        options=options_record(options_of(machine.config, os.getcwd())),
        facts=describe_board(board, images=False),
        cpu=encode(guest_on(board)),
        sections=pack_sections(sections),
        blocks=(),
        disks=tuple(disk_files(machine.config)),
    )


def disk_files(config: MachineConfig) -> list[DiskFile]:
    """The images of writable disks as they are now, where they can be asked. What a disk is besides is in the facts."""
    found = []
    for disk in config.disks:
        if not disk.is_nbd and not disk.readonly:
            with suppress(OSError):
                path = os.path.abspath(disk.file)
                stat = os.stat(path)
                found.append(DiskFile(disk.id, path, stat.st_size, stat.st_mtime_ns))
    return found
