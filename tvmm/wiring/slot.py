"""What devices in a PCI slot and devices in memory have in common: a transport, a runner, an eventfd for each queue.

A slot is the `Shell` of its transport. It passes the driver's orders on to the runner, and tells it where the
interrupts of each queue go. All of it happens under the bus lock.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.errors import HostError
from tvmm.kvm.irq import new_event
from tvmm.records import check_record
from tvmm.virtio.device import Activation
from tvmm.virtio.runner.base import Ends

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.kvm.bus_lock import BusLock
    from tvmm.kvm.memory_map import MemoryMap
    from tvmm.kvm.vm import Vm
    from tvmm.virtio.device import QueueSetup, VirtioDevice
    from tvmm.virtio.mmio import VirtioMmio
    from tvmm.virtio.pci import VirtioPci
    from tvmm.virtio.runner.base import Runner
    from tvmm.virtio.shell import Kick
    from tvmm.virtio.transport import Transport

__all__ = ["Slot", "SlotHost", "SlotState"]


class SlotHost:
    """What a slot needs of its machine. `stack` undoes what slots acquire."""

    def __init__(self, vm: Vm, memory: MemoryMap, bus_lock: BusLock, stack: ExitStack) -> None:
        self.vm = vm
        self.memory = memory
        self.bus_lock = bus_lock
        self.stack = stack


class SlotState(NamedTuple):
    """A device: `registers` is the record of its transport with that of the model in it, `run` its runner's."""

    registers: Any
    run: Any


class Slot:
    """Base of both. `transport_name` is ``pci`` or ``mmio``, `place` where the guest finds the device."""

    transport_name = ""

    def __init__(self, name: str, device: VirtioDevice, host: SlotHost) -> None:
        self.name = name
        self.device = device
        self.place = ""
        self.host = host
        self.exits = [0] * len(device.queue_sizes)
        """Kicks by queue that came as accesses and not by eventfd."""
        self.kick_fds: Sequence[int] = [self._event() for _ in device.queue_sizes]
        self.transport: Transport
        self.virtio: VirtioPci | VirtioMmio
        self.runner: Runner

    def _event(self) -> int:
        try:
            fd = new_event()
        except OSError as error:
            raise event_error(self.name, error) from error
        self.host.stack.callback(os.close, fd)
        return fd

    def ends(self) -> Ends:
        """For the runner."""
        transport = self.transport
        return Ends(self.host.memory, self.host.bus_lock, self.kick_fds, transport.used, transport.needs_reset)

    def connect(self, runner: Runner) -> None:
        """From now on the driver's orders go to `runner`."""
        self.runner = runner

    # -- the transport's shell ----------------------------------------------------------------------------

    def on_activate(self, activation: Activation) -> None:
        """DRIVER_OK."""
        for index in range(len(self.exits)):
            self.on_vector(index)
        self.runner.activate(activation)

    def on_reset(self) -> None:
        """The driver has begun a reset."""
        self.runner.reset(self.transport.reset_done)

    def on_queue_ready(self, setup: QueueSetup) -> None:
        """The driver has enabled a queue of a live device."""
        self.on_vector(setup.queue)
        self.runner.start_queue(setup)

    def on_queue_reset(self, index: int) -> None:
        """The driver takes a queue back."""
        self.runner.stop_queue(index, lambda: self.transport.queue_reset_done(index))

    def on_notify(self, index: int, data: int) -> None:
        """A kick that came as an access: by the PCI window, or before the doorbells were listened at."""
        self.exits[index] += 1
        self.runner.notify(index)

    def on_vector(self, index: int) -> None:
        """The vector of a queue is another one."""
        self.runner.set_call(index, self.call_of(index))

    def interrupt(self, vector: int | None, isr: int) -> None:
        """See `Shell`."""
        raise NotImplementedError

    def call_of(self, index: int) -> int:
        """Where the interrupts of a queue go: see `Runner.set_call`."""
        raise NotImplementedError

    # -- doorbells ----------------------------------------------------------------------------------------

    def listen(self, base: int, kicks: Sequence[Kick], *, assign: bool = True) -> None:
        """Have KVM write the queues' eventfds when the driver writes to its doorbells, from `base` on."""
        for kick in kicks:
            fd = self.kick_fds[kick.queue]
            self.host.vm.set_ioeventfd(fd, base + kick.offset, kick.size, kick.value, assign=assign)

    # -- the machine's side -------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Return when the runner has let go of all queues. No vCPU runs."""
        import trio

        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        with self.host.bus_lock:
            self.runner.reset(lambda: token.run_sync_soon(done.set))
        await done.wait()

    def reset(self) -> None:
        """As after power-on; the runner has been stopped. Under the bus lock."""
        raise NotImplementedError

    # -- saving: no vCPU runs, and the runner is held -------------------------------------------------------

    async def settle_resets(self) -> None:
        """Return when no reset of the device or of a queue is under way."""
        import trio

        done = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def ended() -> None:
            token.run_sync_soon(done.set)

        with self.host.bus_lock:
            busy = self.transport.call_when_ready(ended)
        if busy:
            await done.wait()

    def save(self) -> SlotState:
        """All of it but the PCI function."""
        with self.host.bus_lock:
            return SlotState(self.virtio.state(), self.runner.save())

    async def restore(self, state: SlotState) -> None:
        """Go on from it when the runner is released. A PCI function has been restored before.

        Raises `ValueError` with the name of a bad field, or `UserError`: the device is of no use then.
        """
        check_record(state, SlotState)
        with self.host.bus_lock:
            self.virtio.restore(state.registers)
            transport = self.transport
            if transport.resetting or any(queue.resetting for queue in transport.queues):
                raise ValueError("resetting is set, and a machine is saved when resets are over")
            for index in range(len(self.exits)):
                self.on_vector(index)
            activation = transport.activation()
            if not transport.live:
                idle = tuple(setup._replace(ready=False) for setup in activation.queues)
                activation = Activation(0, idle)
        await self.runner.restore(activation, state.run)

    def redeliver(self) -> None:
        """Interrupts that may have been on their way, once more; drivers can do with one too many. Under the bus lock.

        Between an eventfd and the interrupt controller there is a queue of the host's kernel, which is not saved.
        """
        raise NotImplementedError


def event_error(name: str, error: OSError) -> HostError:
    """What a failed eventfd means to the user."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return HostError(f"{name} needs more file descriptors than this process may have", "raise 'ulimit -n'")
    return HostError(f"{name}: no event descriptor: {error.strerror}")
