"""The block device's runner: one thread per queue, all on one image.

The threads are in C most of the time (`tvmm.kvm.blk`). What is here is the order of things around that: rings are
configured and let go on their own threads, limits go to all queues at once, and errors of the host that stop the
machine are handed to whoever can pause it. A queue that has stopped over an error keeps what failed, takes nothing
more, and repeats it at the next `release`.
"""

from __future__ import annotations

import errno
import os
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from tvmm.config.limits import Rate
from tvmm.errors import ImageError
from tvmm.kvm.blk import OPERATIONS, BlkCounters, BlkFile, BlkQueue, BlkQueueLimits, Engine, IoError
from tvmm.kvm.dirty_blocks import DirtyBlocks
from tvmm.kvm.limit import Limiter
from tvmm.kvm.vring import Vring
from tvmm.records import check_record, check_uint
from tvmm.virtio.blk_request import SECTOR
from tvmm.virtio.runner.base import check_runs, hold_all, ring_config
from tvmm.virtio.runner.blk_queue import ERRNO_MAX, DiskQueue, DiskQueueRun, engines_for, queue_setup

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tvmm.config.disk import DiskConfig
    from tvmm.config.limits import Limits
    from tvmm.kvm.blk import BlkQueueSetup
    from tvmm.kvm.serve import Waker
    from tvmm.metrics.histogram import Times
    from tvmm.virtio.blk import Blk
    from tvmm.virtio.device import Activation, QueueSetup
    from tvmm.virtio.runner.backing import Backing
    from tvmm.virtio.runner.base import Ends

__all__ = ["BlkInfo", "BlkRun", "BlkRunner"]

_ENGINE_NAMES = {Engine.SYNC: "sync", Engine.THREADS: "threads", Engine.IO_URING: "io_uring", Engine.NBD: "nbd"}


class BlkInfo(NamedTuple):
    """A disk as it is. `aio` is what the probe came to; `stopped` the errno that it waits over, 0 if it does not."""

    path: str
    size: int
    read_only: bool
    direct: bool
    aio: str
    stopped: int
    counters: BlkCounters
    """Of all queues together."""
    queues: tuple[BlkCounters, ...]


class BlkRun(NamedTuple):
    """What is saved. `sync_error`: the errno of a sync that failed, after which the image promises nothing any more."""

    queues: tuple[DiskQueueRun, ...]
    sync_error: int = 0


class BlkRunner:
    """A `Runner` of `tvmm.virtio.runner.base`, which owns `image` from now on.

    `on_io_error` is called on a queue's thread, without the bus lock, for an error that stops the queue (`STOP`: pause
    the machine; `release` goes on), and now and then for others. It must not wait.
    """

    def __init__(
        self,
        model: Blk,
        ends: Ends,
        image: Backing,
        config: DiskConfig,
        warn: Callable[[str], None],
        name: str = "disk",
    ) -> None:
        """Raises `HostError` if no engine is to be had; the image is the caller's again then."""
        self.name = name
        self.image = image
        self.on_io_error: Callable[[IoError], None] = _nobody_pauses
        self._model = model
        self._ends = ends
        self._features = 0
        self._file = BlkFile()
        self._limiter = Limiter()
        self._changes: DirtyBlocks | None = None
        self._tracked = False
        self._slowed = 0
        self._resizing = trio.Lock()
        self._queues: list[DiskQueue] = []
        self._links = [image.links(index) for index in range(len(model.queue_sizes))]
        self._is_remote = any(self._links)
        setup = queue_setup(image, config, max(model.queue_sizes), remote=self._is_remote)
        try:
            for line in image.warnings:
                warn(f"{name}: {line}")
            engines = engines_for(image, config.aio, remote=self._is_remote)
            for index in range(len(model.queue_sizes)):
                self._queues.append(DiskQueue(self, index, setup, engines, config.poll_us * 1000))
                # What one queue has is good for the next.
                engines = (self._queues[-1].engine,)
        except BaseException:
            self._close_queues()
            raise
        self.engine = self._queues[0].engine
        if config.aio == "io_uring" and self.engine is Engine.THREADS:
            warn(f"{name}: this host has no io_uring for tvmm; aio=threads is used")
        model.cache_mode_changed = self._cache_mode_changed
        self.set_limits(config.limits)

    # -- the driver's orders -------------------------------------------------------------------------------

    @property
    def rings(self) -> Sequence[Vring]:
        """See `Runner`."""
        return [queue.ring for queue in self._queues]

    def activate(self, activation: Activation) -> None:
        """See `Runner`."""
        self._features = activation.features
        self._cache_mode_changed()
        for setup in activation.queues:
            if setup.ready:
                self.start_queue(setup)

    def start_queue(self, setup: QueueSetup) -> None:
        """See `Runner`."""
        queue = self._queues[setup.queue]
        config = ring_config(setup, self._features)
        limits = BlkQueueLimits(*self._model.limits())
        queue.server.set_capacity(limits.capacity)
        queue.thread.post(lambda: queue.start(config, limits))

    def reset(self, done: Callable[[], None]) -> None:
        """See `Runner`."""
        busy = len(self._queues)

        def stopped() -> None:
            nonlocal busy
            busy -= 1
            if not busy:
                done()

        for queue in self._queues:
            self.stop_queue(queue.index, stopped)

    def stop_queue(self, index: int, done: Callable[[], None]) -> None:
        """See `Runner`."""
        queue, bus_lock = self._queues[index], self._ends.bus_lock

        def command() -> None:
            queue.stop()
            with bus_lock:
                done()

        queue.thread.post(command)

    def notify(self, index: int) -> None:
        """See `Runner`."""
        # A counter that is full has told the thread already.
        with suppress(BlockingIOError):
            os.eventfd_write(self._ends.kick_fds[index], 1)

    def set_call(self, index: int, fd: int) -> None:
        """See `Runner`."""
        self._queues[index].server.set_call(fd)

    def _cache_mode_changed(self) -> None:
        on = self._model.write_through
        for queue in self._queues:
            queue.server.set_write_through(on)

    # -- saving, held --------------------------------------------------------------------------------------

    def save(self) -> BlkRun:
        """See `Runner`."""
        memory = self._ends.memory
        return BlkRun(tuple(queue.save(memory) for queue in self._queues), int(self._file.raw.sync_error))

    async def restore(self, activation: Activation, state: BlkRun) -> None:
        """See `Runner`."""
        check_record(state, BlkRun)
        if type(state.queues) is not tuple:
            raise ValueError("queues is not a tuple")
        for run in state.queues:
            check_record(run, DiskQueueRun)
        check_runs(tuple(run.queue for run in state.queues), activation)
        self._file.raw.sync_error = check_uint("sync_error", state.sync_error, ERRNO_MAX)
        self._features = activation.features
        self._cache_mode_changed()
        limits = BlkQueueLimits(*self._model.limits())
        if limits.capacity * SECTOR > self.image.size:
            raise ValueError("capacity is more than the image has here")
        for queue, run in zip(self._queues, state.queues, strict=True):
            queue.server.set_capacity(limits.capacity)
            await queue.thread.call(partial(queue.restore, run, limits, self._ends.memory))

    def arrived(self) -> None:
        """See `Runner`: nothing to tell."""

    # -- life ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """See `Runner`."""
        limiter = trio.CapacityLimiter(len(self._queues))
        async with self.image.tended(), trio.open_nursery() as nursery:
            for queue in self._queues:
                nursery.start_soon(queue.thread.run, limiter, name=queue.thread.name)

    def suspend(self) -> None:
        """See `Runner`."""
        for queue in self._queues:
            queue.thread.suspend()

    async def hold(self) -> None:
        """See `Runner`. What failed and waits for `release` stays in the ring, in flight."""
        await hold_all([queue.thread for queue in self._queues])

    def release(self) -> None:
        """See `Runner`. Queues that stopped over an error try again."""
        for queue in self._queues:
            queue.thread.release()
            queue.thread.post(queue.server.resume)

    def close(self) -> None:
        """See `Runner`."""
        self._close_queues()
        self.image.close()

    def _close_queues(self) -> None:
        for queue in self._queues:
            queue.close()
        self._queues.clear()

    # -- the machine's orders ------------------------------------------------------------------------------

    async def resize(self, size: int) -> None:
        """Give image and disk `size` bytes, and tell the driver. Raises `ImageError` or `HostError`.

        A disk that shrinks gives up its end before the file loses it.
        """
        if size < 0 or size % SECTOR:
            raise ImageError(f"a disk of {size} bytes is not possible", f"sizes are multiples of {SECTOR}")
        async with self._resizing:
            if self._tracked:
                raise ImageError(f"{self.name} is being copied and keeps its size", "wait until the guest has moved")
            if size < self.image.size:
                await self._shrink(size)
            else:
                await trio.to_thread.run_sync(self.image.resize, size)
                self.set_size(size)

    async def _shrink(self, size: int) -> None:
        self.set_size(size)
        try:
            async with self._at_rest():
                await trio.to_thread.run_sync(self.image.resize, size)
        except BaseException:
            self.set_size(self.image.size)
            raise

    @asynccontextmanager
    async def _at_rest(self) -> AsyncIterator[None]:
        """Within the block no queue is served, and nothing is under way."""
        await self.hold()
        try:
            yield
        finally:
            # Not `release`: a queue that waits over an error is not meant.
            for queue in self._queues:
                queue.thread.release()

    async def track_changes(self) -> DirtyBlocks:
        """From now on what the guest writes is marked in the blocks that are returned; at first all are marked.

        The disk keeps its size until `stop_tracking`. A disk is tracked once at a time, and not one with a server.
        """
        async with self._resizing:
            if self._tracked or self._is_remote:
                raise ValueError(f"{self.name} cannot be tracked")
            changes = DirtyBlocks(self.image.size)
            changes.fill()
            async with self._at_rest():
                changes.attach(self._file)
                # Those before are nobody's now.
                self._changes = changes
            self._tracked = True
            return changes

    def stop_tracking(self) -> None:
        """Undo `track_changes`, and `slow_writes`. Idempotent, at any time."""
        self.slow_writes(0)
        DirtyBlocks.detach(self._file)
        self._tracked = False

    def slow_writes(self, bytes_per_second: int) -> None:
        """Whatever the user's limits allow, the guest writes no faster than that; 0: it may."""
        if bytes_per_second != self._slowed:
            self._slowed = bytes_per_second
            self._apply_limits()

    def set_size(self, size: int) -> None:
        """Tell queues and driver that the image has `size` bytes now, whole sectors."""
        with self._ends.bus_lock:
            self._model.resize(size // SECTOR)
            for queue in self._queues:
                queue.server.set_capacity(size // SECTOR)

    def latencies(self) -> tuple[dict[str, Times], ...]:
        """How long requests took: for each queue a histogram by operation, as `tvmm.kvm.blk.OPERATIONS` has them."""
        return tuple(queue.server.latencies for queue in self._queues)

    def set_limits(self, limits: Limits) -> None:
        """For all that has not begun yet, from now on."""
        self.limits = limits
        self._apply_limits()

    def _apply_limits(self) -> None:
        limits = self.limits
        if self._slowed and not 0 < limits.bytes_out.rate <= self._slowed:
            limits = limits._replace(bytes_out=Rate(self._slowed))
        on = self._limiter.set(limits.rates, limits.size)
        for queue in self._queues:
            queue.set_limit(self._limiter, on=on)

    @property
    def limit_waits(self) -> int:
        """How often a queue has had to wait for the limits."""
        return sum(self._limiter.waits)

    def lost_writes(self) -> bool:
        """What a server has not flushed is gone. If there is any that the driver takes for written, all later syncs
        fail, as after one that failed. Returns whether that is so.
        """
        raw = self._file.raw
        if raw.changed == raw.covered:
            return False
        raw.sync_error = errno.EIO
        return True

    def times_ns(self) -> dict[str, int]:
        """How long requests took by operation, all queues together, in nanoseconds."""
        return {name: sum(queue.server.time_ns(name) for queue in self._queues) for name in OPERATIONS}

    def info(self) -> BlkInfo:
        """As it is now."""
        queues = tuple(queue.server.counters for queue in self._queues)
        stopped = next((queue.server.stopped for queue in self._queues if queue.server.stopped), 0)
        image = self.image
        total = BlkCounters(*(sum(counts) for counts in zip(*queues, strict=True)))
        return BlkInfo(
            image.path, image.size, image.read_only, image.direct, _ENGINE_NAMES[self.engine], stopped, total, queues
        )

    # -- a queue's wishes ----------------------------------------------------------------------------------

    def interrupt(self, index: int) -> None:
        """By a queue's thread."""
        with self._ends.bus_lock:
            self._ends.used(index)

    def give_up(self, reason: str) -> None:
        """By a queue's thread."""
        with self._ends.bus_lock:
            self._ends.needs_reset(reason)

    def failed(self, error: IoError) -> None:
        """By a queue's thread."""
        self.on_io_error(error)

    def new_ring(self) -> Vring:
        """In the machine's memory."""
        return Vring(self._ends.memory)

    def open_queue(self, index: int, setup: BlkQueueSetup, waker: Waker, spin_max_ns: int) -> BlkQueue:
        """For queue `index`. Raises `OSError` if its engine is not to be had."""
        kick_fd, links = self._ends.kick_fds[index], self._links[index]
        return BlkQueue(setup, self._file, waker, kick_fd, spin_max_ns, links)


def _nobody_pauses(error: IoError) -> None:
    """Before a machine has the disk."""
