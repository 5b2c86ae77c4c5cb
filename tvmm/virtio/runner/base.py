"""What a device's slot (its place on PCI or in memory) and its runner owe one another.

The slot knows the transport, eventfds and interrupts; the runner owns the rings and the backend. Both are made once
per device and live as long as the machine. Calls into a runner come under the bus lock, from any thread, and return at
once; what takes time is told by a callback, again under the bus lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tvmm.kvm.vring_records import RING_FEATURES, VringConfig, VringState
from tvmm.kvm.vring_records import check_state as check_ring
from tvmm.records import check_flag, check_record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.kvm.bus_lock import BusLock
    from tvmm.kvm.memory_map import MemoryMap
    from tvmm.kvm.vring import Vring
    from tvmm.virtio.device import Activation, QueueSetup

__all__ = ["Ends", "Holder", "QueueRun", "Runner", "check_runs", "hold_all", "ring_config"]


class Ends(NamedTuple):
    """What a runner gets of its slot.

    `kick_fds`: an eventfd for each queue, written by KVM when the driver kicks. `used(index)` interrupts the driver
    for a queue whose call is `CALL_PYTHON`, `needs_reset(reason)` gives the device up; both want the bus lock held.
    """

    memory: MemoryMap
    bus_lock: BusLock
    kick_fds: Sequence[int]
    used: Callable[[int], None]
    needs_reset: Callable[[str], None]


class Holder(Protocol):
    """What can be made to let guest memory alone for a while: a thread, a device."""

    async def hold(self) -> None:
        """Return when it does not touch guest memory any more; what was in flight is done."""

    def release(self) -> None:
        """Undo one `hold`."""


async def hold_all(holders: Sequence[Holder]) -> None:
    """Hold each in turn. One that fails, or a cancellation, releases those that were held already."""
    held: list[Holder] = []
    try:
        for holder in holders:
            await holder.hold()
            held.append(holder)
    except BaseException:
        for holder in held:
            holder.release()
        raise


class QueueRun(NamedTuple):
    """One queue, to be saved. `served` is False for one that is not set up, or was given up until a reset."""

    ring: VringState = VringState()
    served: bool = False


def ring_config(setup: QueueSetup, features: int) -> VringConfig:
    """What the ring of a queue is configured with, as the driver has set it up."""
    return VringConfig(setup.size, setup.desc, setup.driver, setup.device, features & RING_FEATURES)


def check_runs(runs: object, activation: Activation) -> tuple[QueueRun, ...]:
    """`runs` if the queues of a device with this activation can be in it. Raises `ValueError` that names a field."""
    if type(runs) is not tuple or len(runs) != len(activation.queues):
        raise ValueError(f"queues is not a tuple of {len(activation.queues)} records")
    for setup, run in zip(activation.queues, runs, strict=True):
        check_record(run, QueueRun)
        try:
            check_ring(run.ring)
        except ValueError as error:
            raise ValueError(f"queues: ring {setup.queue}: {error}") from None
        served = check_flag("queues: served", run.served)
        if run.ring.config is None:
            if served:
                raise ValueError(f"queues: served queue {setup.queue} without a ring")
        elif not setup.ready or run.ring.config != ring_config(setup, activation.features):
            raise ValueError(f"queues: config of ring {setup.queue} is not what the driver has set up")
    return runs


class Runner(Protocol):
    """Serves the queues of one device."""

    @property
    def rings(self) -> Sequence[Vring]:
        """The ring of each queue, by index; for counters."""

    def activate(self, activation: Activation) -> None:
        """DRIVER_OK: serve the queues that are ready."""

    def reset(self, done: Callable[[], None]) -> None:
        """Let go of all queues, with nothing in flight any more; then call `done`, perhaps at once."""

    def start_queue(self, setup: QueueSetup) -> None:
        """Serve this queue too; the features are those of the activation."""

    def stop_queue(self, index: int, done: Callable[[], None]) -> None:
        """Let go of one queue, then call `done`."""

    def notify(self, index: int) -> None:
        """A kick that came as an access to the transport and not through the eventfd."""

    def set_call(self, index: int, fd: int) -> None:
        """Where the interrupts of a queue go: an eventfd, or `CALL_PYTHON` or `CALL_NONE` of `tvmm.kvm.serve`."""

    def save(self) -> Any:
        """All that is on its way between rings and backend, as a record. Held, with no reset under way."""

    async def restore(self, activation: Activation, state: Any) -> None:
        """Go on from `state` at the next `release`, which looks at every queue once. Held, with no queue in use.

        The model has been restored, and `activation` is what it is live with: without features and ready queues if it
        is not.
        Raises `ValueError` with the name of a bad field, or `HostError`: the device is of no use then.
        """

    def arrived(self) -> None:
        """After `restore`, when interrupts get through: tell the driver what is otherwise on this side."""

    async def run(self) -> None:
        """All threads and tasks of the device, until cancelled."""

    def suspend(self) -> None:
        """As `hold`, without waiting: from any thread, under the bus lock. `release` undoes it too."""

    async def hold(self) -> None:
        """Return when nothing of the device touches guest memory any more; what was in flight is done."""

    def release(self) -> None:
        """Undo one `hold` or `suspend`, which nest."""

    def close(self) -> None:
        """Give back what was opened. Nothing runs any more."""
