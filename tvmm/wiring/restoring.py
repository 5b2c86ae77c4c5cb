"""A machine that is made from a snapshot file.

::

    async with restored("web.snap") as vm:
        await vm.run()

How its memory comes: ``lazy`` maps the file's pages in place of RAM, privately, so that the guest runs at once,
machines that were made from one file share its page cache, and what they write is theirs; a task then reads the file
to its end and compares the checksums. ``eager`` reads and compares all of it before the guest runs. ``demand`` is
lazy without that task, for many machines of one file: nobody has looked at the checksums of a page that the guest
reads. RAM that others share (``shared=on``, huge pages) or that is allocated in advance, and encrypted files, are
read eagerly in any case.

A file that is mapped must never be changed, and never is by tvmm: it is replaced, and the mapping keeps the old one.
"""

from __future__ import annotations

import os
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from tvmm.board import Board
from tvmm.board_facts import adopted_facts, describe_board, differences
from tvmm.board_state import load_board
from tvmm.config.machine import MachineConfig
from tvmm.errors import ConfigError, ImageError, ProtocolError, UserError
from tvmm.kvm.serve import Waker
from tvmm.machine import Machine
from tvmm.migration.threads import run_together, yielding
from tvmm.snapshot.description import IMAGE_BLOCKS
from tvmm.snapshot.options import LISTS
from tvmm.snapshot.reader import Reading, SnapshotFile, ram_views
from tvmm.state import decode
from tvmm.vcpu.compat import CpuDescription, incompatibilities, moved
from tvmm.vcpu.compat_check import check_description
from tvmm.vcpu.compat_kvm import host_under
from tvmm.wiring.cpu_parts import KvmParts
from tvmm.wiring.saving import disk_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from types import TracebackType
    from typing import Self

    from tvmm.snapshot.format import KeySource
    from tvmm.snapshot.sealing import Secret

__all__ = ["LOADS", "Restoring", "check_disks", "config_of", "restored"]

LOADS = ("lazy", "eager", "demand")
EAGER_THREADS, LAZY_THREADS = 4, 2


def config_of(file: SnapshotFile, options: Mapping[str, Any], **places: str) -> MachineConfig:
    """The machine in the file. `options` replace saved ones, as on a command line those of a configuration file;
    `places` are fields of the record such as `runtime_dir`. Raises `ConfigError`, `ImageError` for what is no machine.
    """
    saved = file.options(LISTS)
    try:
        # A file that was tampered with gets no further than the parser of the command line.
        config = MachineConfig.from_options({"paused": False, **saved, **options})
    except ConfigError as error:
        where = "" if options else f"snapshot {file.path}: "
        raise ConfigError(f"{where}{error.message}", error.hint) from None
    return config._replace(**places)  # type: ignore[arg-type]  # all of them are text


class _Images:
    """Kernel and initrd from the file, read when a reset needs them."""

    def __init__(self, file: SnapshotFile) -> None:
        self._file = file

    def kernel(self) -> bytes:
        """See `Images`."""
        data = self._file.image(IMAGE_BLOCKS[0])
        if data is None:
            raise ImageError(f"snapshot {self._file.path}: it has no kernel")
        return data

    def initrd(self) -> bytes | None:
        """See `Images`."""
        return self._file.image(IMAGE_BLOCKS[1])


class Restoring:
    """One restore. A context manager; within it `machine` may be entered once."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        options: Mapping[str, Any] | None = None,
        load: str = "lazy",
        force: bool = False,
        ask: Callable[[KeySource], Secret] | None = None,
        say: Callable[[str], None] | None = None,
        places: Mapping[str, str] | None = None,
    ) -> None:
        """`options` replace those that were saved, `load` is one of `LOADS`. `force`: also when a disk was written
        since. `ask` gives what an encrypted file needs. `say` gets warnings. Blocks while header and description are
        read. Raises `UserError`.
        """
        if load not in LOADS:
            raise ConfigError(f"there is no way {load!r} to load a snapshot", f"there are: {', '.join(LOADS)}")
        self.file = SnapshotFile(os.fspath(path), ask)
        try:
            config = config_of(self.file, options or {}, **(places or {}))
            if not force:
                check_disks(self.file, config)
        except BaseException:
            self.file.close()
            raise
        # One that was paused stays so.
        self.config = config._replace(paused=config.paused or not self.file.description.running)
        self._load = load
        self.say = say

    @asynccontextmanager
    async def machine(self) -> AsyncIterator[Machine]:
        """Within the block the machine, paused where it was saved. Raises `UserError` with all that does not fit."""
        file = self.file
        board = await trio.to_thread.run_sync(_make_board, file, self.config)
        try:
            eager = self._load == "eager" or not _can_map(file, board)
            await _fill(file, board, eager=eager)
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(board.close)
            raise
        machine = Machine(self.config, board=board)
        if self.say is not None:
            machine.on_warning = self.say
        async with machine:
            await _load(file, machine)
            if not eager and self._load != "demand":
                machine.start_task(partial(_read_on, file, machine), "snapshot")
            yield machine

    def close(self) -> None:
        """Idempotent; the machine is gone."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@asynccontextmanager
async def restored(path: str | os.PathLike[str], **how: Any) -> AsyncIterator[Machine]:
    """Within the block the machine that was saved at `path`, paused where it was saved; `how` as `Restoring`."""
    restoring = await trio.to_thread.run_sync(partial(Restoring, path, **how))
    with restoring:
        async with restoring.machine() as machine:
            yield machine


def _make_board(file: SnapshotFile, config: MachineConfig) -> Board:
    """On a worker thread: the hardware, compared with what was saved."""
    board = Board(config, load=False, images=_Images(file))
    try:
        problems = _problems(file, board)
        if problems:
            raise ImageError(
                f"snapshot {file.path} is of another machine: {'; '.join(problems)}",
                "give it the options that it was saved with",
            )
    except BaseException:
        board.close()
        raise
    return board


def _problems(file: SnapshotFile, board: Board) -> list[str]:
    """Why the guest cannot go on on this board, in sentences."""
    description = file.description
    ours = describe_board(board, images=False)
    try:
        found = differences(ours, description.facts, ("here", "in the snapshot"), adopted_facts(board.config))
        theirs = decode(description.cpu, (CpuDescription,))
        check_description(theirs)
    except (ProtocolError, ValueError) as error:
        raise ImageError(f"snapshot {file.path}: its description: {error}") from error
    host = host_under(board)
    found += [sentence.rstrip(".") for sentence in incompatibilities(theirs, host)]
    if not found:
        board.came_as = moved(theirs, host)
        sizes = {place.name: place.pages * 4096 for place in description.ram_blocks()}
        if sizes != {name: block.size for name, block in board.ram.blocks.items()}:
            found.append("its RAM is laid out differently")
    return found


def check_disks(file: SnapshotFile, config: MachineConfig) -> None:
    """Raise `UserError` if a disk has changed: with memory that knows what was on it, it ruins its file systems."""
    saved = {disk.id: disk for disk in file.description.disks}
    for disk in disk_files(config):
        was = saved.get(disk.id)
        # Who names another image has said that it is the right one.
        if was is not None and was.path == disk.path and (was.bytes, was.mtime_ns) != (disk.bytes, disk.mtime_ns):
            raise UserError(
                f"disk image {disk.path} was written since the machine was saved: what its guest has in memory does "
                "not fit any more, and would damage what is on the disk",
                "put the image back as it was, or name a copy of that with --disk; --force does it all the same",
            )


def _can_map(file: SnapshotFile, board: Board) -> bool:
    prealloc = board.config.memory.prealloc
    return not file.encrypted and not prealloc and all(block.fd < 0 for block in board.ram.blocks.values())


async def _fill(file: SnapshotFile, board: Board, *, eager: bool) -> None:
    if not eager:
        for block in board.ram.blocks.values():
            file.map_block(block)
        return
    waker = Waker()
    try:
        with Reading(file, ram_views(board.ram), cached=False) as reading:
            await run_together([partial(reading.run, waker)] * EAGER_THREADS, waker)
    finally:
        waker.close()


async def _load(file: SnapshotFile, machine: Machine) -> None:
    """Devices and vCPUs. The guest stays paused."""
    motion = machine.motion
    async with motion.lock:
        await motion.stop()
        try:
            await load_board(machine.board, file.description.state(), KvmParts())
        except ProtocolError as error:
            raise ImageError(f"snapshot {file.path}: {error}") from error
        # It has gone back in time, and may not be the only one that was made from the file.
        machine.board.begin_generation()
        motion.arrive(running=False)
    machine.board.release_keys()


async def _read_on(file: SnapshotFile, machine: Machine) -> None:
    """The rest of the file into the page cache, and its checksums. What is wrong pauses the machine."""
    waker = Waker()
    begun = time.perf_counter()
    try:
        with Reading(file) as reading:
            await run_together([partial(yielding, partial(reading.run, waker))] * LAZY_THREADS, waker)
    except ImageError as error:
        async with machine.motion.lock:
            await machine.motion.stop("io-error")
        machine.on_warning(f"{error}; the machine is paused: what its guest has in memory may be wrong")
        machine.tell("X_RESTORE", {"status": "failed", "error-desc": str(error)})
        return
    finally:
        waker.close()
    machine.tell("X_RESTORE", {"status": "completed", "total-time": (time.perf_counter() - begun) * 1000})
