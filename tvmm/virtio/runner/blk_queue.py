"""One queue of a disk: its ring, its thread, and what is done on that thread when C comes back."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tvmm.errors import HostError
from tvmm.kvm.blk import BlkQueueSetup, Engine, Policy
from tvmm.kvm.blk_state import KeptRequest, check_kept, keep_again, kept_requests
from tvmm.kvm.serve import SERVE_BROKEN, SERVE_FAILED, SERVE_INTERRUPT, Waker
from tvmm.records import check_flag, check_uint
from tvmm.virtio.runner.base import QueueRun
from tvmm.virtio.runner.thread import ServerThread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.config.disk import DiskConfig
    from tvmm.kvm.blk import BlkQueue, BlkQueueLimits, IoError
    from tvmm.kvm.limit import Limiter
    from tvmm.kvm.memory_map import MemoryMap
    from tvmm.kvm.vring import Vring
    from tvmm.kvm.vring_records import VringConfig
    from tvmm.virtio.runner.backing import Backing

__all__ = ["DiskQueue", "DiskQueueRun", "QueueOwner", "engines_for", "queue_setup"]

BROKEN_MAX, ERRNO_MAX = 4, 4095
_POLICIES = {
    "report": Policy.REPORT,
    "ignore": Policy.IGNORE,
    "stop": Policy.STOP,
    "enospc": Policy.ENOSPC,
}


def queue_setup(image: Backing, config: DiskConfig, depth: int, *, remote: bool) -> BlkQueueSetup:
    """How queues of up to `depth` requests serve `image`, whose file is elsewhere if `remote`; but for the engine."""
    return BlkQueueSetup(
        fd=image.fd,
        plain_fd=image.plain_fd,
        memory_align=image.memory_align,
        offset_align=image.offset_align,
        # A server has a call of its own for what is discarded, as a device does.
        is_device=image.is_device or remote,
        depth=depth,
        read_policy=_POLICIES[config.rerror],
        write_policy=_POLICIES[config.werror],
        ignore_flush=config.cache == "unsafe",
        fault_ppm=config.faults,
    )


def engines_for(image: Backing, aio: str, *, remote: bool) -> tuple[Engine, ...]:
    """What to try, best first. Where no call waits, nothing is faster than to make it."""
    if remote:
        return (Engine.NBD,)
    if aio == "threads":
        return (Engine.THREADS,)
    if aio == "auto" and image.in_memory:
        return (Engine.SYNC,)
    return (Engine.IO_URING, Engine.THREADS)


class DiskQueueRun(NamedTuple):
    """What is saved of a queue. `broken`: why it takes no more, by number as C has it, and `given_up`: that was said.

    `stopped` is the errno that it waits over. What is to be repeated is in `kept`: over that error, or because a server
    was out of reach; so is what has not begun yet because of a limit. Nothing else is in flight, but in a queue that
    is broken.
    """

    queue: QueueRun = QueueRun()
    broken: int = 0
    given_up: bool = False
    stopped: int = 0
    kept: tuple[KeptRequest, ...] = ()


class QueueOwner(Protocol):
    """What a queue asks of its disk. All but the first three are called on the queue's thread."""

    name: str

    def new_ring(self) -> Vring:
        """In the machine's memory."""

    def open_queue(self, index: int, setup: BlkQueueSetup, waker: Waker, spin_max_ns: int) -> BlkQueue:
        """The C half of queue `index`. Raises `OSError` if its engine is not to be had."""

    def interrupt(self, index: int) -> None:
        """Interrupt the driver for queue `index`."""

    def give_up(self, reason: str) -> None:
        """The driver has to reset the device."""

    def failed(self, error: IoError) -> None:
        """The host has."""


class DiskQueue:
    """A `QueueServer`. `engine` is the one of those asked for that is to be had."""

    def __init__(
        self, owner: QueueOwner, index: int, setup: BlkQueueSetup, engines: Sequence[Engine], spin_max_ns: int
    ) -> None:
        self.index = index
        self.ring = owner.new_ring()
        self._owner = owner
        self._waker = Waker()
        try:
            self.server, self.engine = self._open(setup, engines, spin_max_ns)
        except BaseException:
            self._waker.close()
            raise
        self.thread = ServerThread(f"{owner.name} queue {index}", self._waker, self)

    def _open(
        self, setup: BlkQueueSetup, engines: Sequence[Engine], spin_max_ns: int
    ) -> tuple[BlkQueue, Engine]:
        for engine in engines:
            try:
                with_engine = setup._replace(engine=engine)
                return self._owner.open_queue(self.index, with_engine, self._waker, spin_max_ns), engine
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise HostError("a disk needs more file descriptors than there are", "raise 'ulimit -n'") from error
                reason = error.strerror
        raise HostError(f"a disk's queue cannot be served: {reason}", "free some memory")

    def close(self) -> None:
        """Nothing runs any more."""
        self.server.close()
        self._waker.close()

    def set_limit(self, limiter: Limiter, *, on: bool) -> None:
        """Whether requests keep to it, those that wait already too. By any thread."""
        self.server.set_limit(limiter, on=on)
        self._waker.wake()

    # On the thread.

    def start(self, config: VringConfig, limits: BlkQueueLimits) -> None:
        """Serve the ring that the driver has set up."""
        try:
            self.ring.configure(config)
            self.server.start(self.ring, limits)
        except HostError as error:
            self._owner.give_up(str(error))

    def stop(self) -> None:
        """Let go of it."""
        self.server.stop()
        self.ring.reset()

    def active(self) -> bool:
        """See `QueueServer`."""
        return self.server.active()

    def serve(self) -> int:
        """See `QueueServer`."""
        return self.server.serve()

    def react(self, word: int) -> None:
        """See `QueueServer`."""
        if word == SERVE_INTERRUPT:
            self._owner.interrupt(self.index)
        elif word == SERVE_FAILED:
            self._owner.failed(self.server.take_error())
        else:
            assert word == SERVE_BROKEN
            self._owner.give_up(self.server.broken_reason)

    def drain(self) -> None:
        """See `QueueServer`."""
        if self.server.drain():
            self._owner.interrupt(self.index)

    # Held: by whoever saves the machine, and on the thread.

    def save(self, memory: MemoryMap) -> DiskQueueRun:
        """As a record."""
        raw = self.server.raw
        return DiskQueueRun(
            QueueRun(self.ring.state(), self.server.has_ring),
            int(raw.broken),
            bool(raw.given_up),
            self.server.stopped,
            kept_requests(self.server, memory),
        )

    def restore(self, state: DiskQueueRun, limits: BlkQueueLimits, memory: MemoryMap) -> None:
        """Go on from it; its `queue` has been checked. Raises `ValueError` and `HostError`."""
        run = state.queue
        broken = check_uint("queues: broken", state.broken, BROKEN_MAX)
        given_up = check_flag("queues: given_up", state.given_up)
        stopped = check_uint("queues: stopped", state.stopped, ERRNO_MAX)
        chains = {chain.id: chain for chain in run.ring.in_flight}
        kept = check_kept(state.kept, chains, memory, read_only=bool(limits.read_only))
        if not run.served and (broken or given_up or stopped or kept):
            raise ValueError("queues: broken or stopped without being served")
        lost = {chain.id for chain in run.ring.in_flight if not chain.done} - {request.id for request in kept}
        if run.served and not broken and lost:
            raise ValueError("queues: in_flight has chains that nothing would ever bring back")
        self.ring.restore(run.ring)
        if run.served:
            self.server.start(self.ring, limits)
            keep_again(self.server, kept, memory)
            self.server.raw.broken, self.server.raw.given_up = broken, given_up
            self.server.raw.stopped = stopped

