"""What virtio-mmio and virtio-pci share: status, features, queues, interrupts, resets (virtio 1.3, 2, 3 and 4).

The two transports are register layouts over one `Transport`. It runs the driver's status through the table in
`status`, keeps the selected queue's registers, and tells the shell, an object given to it, what the driver wants
done outside. Everything here is called under the bus lock, by a vCPU's thread or by whoever owns the device.

Nothing that a driver writes raises. What the specification forbids has the answer that it names, or none, and is
counted by kind in `mistakes`: who looks for the bug in a driver finds it there.

Resets take time when requests are in flight. The driver's write starts one, the shell stops the queues and says
`reset_done`, and until then the status field keeps its old value, as 4.1.4.3.1 asks. Since drivers for
virtio-mmio do not wait for that, the write also returns a `Hold`: the vCPU that wrote runs on when it is done.
The same goes for the reset of one queue. A shell that is idle calls back at once, from within its `on_reset`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.errors import ConfigError
from tvmm.virtio.device import Activation
from tvmm.virtio.features import Ring, refusal
from tvmm.virtio.queues import NO_VECTOR, QueueRegisters, misfit, size_fits
from tvmm.virtio.shell import CONFIG_EVENT, MAX_QUEUES, QUEUE_EVENT
from tvmm.virtio.status import DRIVER_OK, FEATURES_OK, NEEDS_RESET, advance
from tvmm.virtio.transport_state import TransportState, check_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.bus import Hold
    from tvmm.virtio.device import VirtioDevice
    from tvmm.virtio.shell import Shell

__all__ = ["Transport"]

WORD = 0xFFFF_FFFF


class Transport:
    """One device's registers without their layout; a `Hold` while a reset is under way.

    `vectors` is the size of the MSI-X table, 0 where there is none; `msix_enabled` says whether it is in use.
    Raises `ConfigError` for more queues than there are doorbells.
    """

    def __init__(
        self,
        device: VirtioDevice,
        shell: Shell,
        vectors: int = 0,
        msix_enabled: Callable[[], bool] | None = None,
    ) -> None:
        if len(device.queue_sizes) > MAX_QUEUES:
            raise ConfigError(f"{device.type_name} with {len(device.queue_sizes)} queues: {MAX_QUEUES} at most")
        self.device = device
        self.vectors = vectors
        self.mistakes: dict[str, int] = {}
        """What drivers did wrong, by kind; kinds are literals in this package, so they are few."""
        self.last_error = ""
        """Why features were refused or the device gave up, in words."""
        self.queues = [QueueRegisters(index, size) for index, size in enumerate(device.queue_sizes)]
        self._shell = shell
        self._msix_enabled = msix_enabled or (lambda: False)
        self._waiting: list[Callable[[], None]] = []
        self._clear()
        device.config_changed = self._config_event

    def _clear(self) -> None:
        self.status = self.isr = 0
        self.device_select = self.driver_select = self.queue_select = 0
        self.driver_features = 0
        self.resetting = False
        self.config_vector = NO_VECTOR
        for queue in self.queues:
            queue.clear()

    # -- views -------------------------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        """DRIVER_OK is set and no reset is under way."""
        return bool(self.status & DRIVER_OK) and not self.resetting

    @property
    def features(self) -> int:
        """The negotiated features; 0 before FEATURES_OK."""
        return self.driver_features if self.status & FEATURES_OK else 0

    def activation(self) -> Activation:
        """What a runner serves; after a restore into a live device it is to begin anew with this."""
        return Activation(self.features, tuple(queue.setup() for queue in self.queues))

    def selected(self) -> QueueRegisters | None:
        """The queue that queue registers mean, if it exists."""
        return self.queues[self.queue_select] if self.queue_select < len(self.queues) else None

    def mistake(self, kind: str) -> None:
        """Count something that a driver must not do."""
        self.mistakes[kind] = self.mistakes.get(kind, 0) + 1

    # -- features and status, by the driver --------------------------------------------------------------

    def offered_word(self) -> int:
        """The 32 offered features that are selected; 0 beyond the second word."""
        return self.device.features >> 32 * self.device_select & WORD if self.device_select < 2 else 0

    def accepted_word(self) -> int:
        """What the driver wrote to the selected word."""
        return self.driver_features >> 32 * self.driver_select & WORD if self.driver_select < 2 else 0

    def accept_word(self, value: int) -> None:
        """The driver's choice of the selected word. What it must not choose is found at FEATURES_OK."""
        if self.status & FEATURES_OK or self.resetting:
            self.mistake("features-late")
        elif self.driver_select < 2:
            shift = 32 * self.driver_select
            self.driver_features = self.driver_features & ~(WORD << shift) | (value & WORD) << shift
        elif value:
            self.mistake("features-beyond")

    def write_status(self, value: int) -> Hold | None:
        """A step, or a reset if `value` is 0."""
        if self.resetting:
            if value:
                self.mistake("during-reset")
            return self
        fit = True
        if value & FEATURES_OK & ~self.status:
            reason = refusal(self.device.device_id, self.device.features, self.driver_features)
            self.last_error = reason or self.last_error
            fit = not reason
        was_live = self.live
        outcome = advance(self.status, value, fit)
        for kind in outcome.mistakes:
            self.mistake(kind)
        if "reset" in outcome.events:
            return self._begin_reset(was_live)
        self.status = outcome.status
        if "negotiated" in outcome.events:
            self.device.negotiated(self.driver_features)
        if "live" in outcome.events:
            activation = self.activation()
            self.device.activate(activation)
            self._shell.on_activate(activation)
            if self.device.unseen_change:
                self._config_event()  # It came after the driver had read, and before it could be told.
        return None

    # -- queues, by the driver ---------------------------------------------------------------------------

    def _writable(self) -> QueueRegisters | None:
        """The selected queue if its registers may be written now; counts the mistake if not."""
        queue = self.selected()
        if queue is None:
            self.mistake("queue-missing")
        elif self.resetting:
            self.mistake("during-reset")
        elif queue.ready:
            self.mistake("queue-busy")
        else:
            return queue
        return None

    @property
    def packed(self) -> bool:
        """The packed ring was negotiated."""
        return bool(self.features & Ring.RING_PACKED)

    def set_queue_size(self, size: int) -> None:
        """Entries of the selected queue; a size that it cannot have changes nothing."""
        queue = self._writable()
        if queue is None:
            return
        if size_fits(size, queue.max_size, self.packed):
            queue.size = size
        else:
            self.mistake("queue-size")

    def set_queue_address(self, area: str, high: bool, value: int) -> None:
        """Half of the address of an area of the selected queue."""
        queue = self._writable()
        if queue is not None:
            queue.set_address(area, high, value)

    def enable_queue(self) -> None:
        """The selected queue may be used from now on, or from DRIVER_OK on."""
        queue = self._writable()
        if queue is None:
            return
        if not self.status & FEATURES_OK:
            self.mistake("queue-early")
            return
        wrong = misfit(queue.state(), queue.max_size, self.packed)
        if wrong:
            # There is no way to refuse a queue; a driver does not look whether it was enabled.
            self.mistake("queue-geometry")
            self.needs_reset(f"queue {queue.index}: {wrong}")
            return
        queue.ready = True
        if self.live:
            self._shell.on_queue_ready(queue.setup())

    def stop_queue(self) -> Hold | None:
        """Take the selected queue out of use, as virtio-mmio's drivers may at any time (4.2.2.2)."""
        queue = self.selected()
        if queue is None:
            self.mistake("queue-missing")
        elif self.resetting or queue.resetting:
            return self
        elif queue.ready and self.live:
            queue.resetting = True
            self._shell.on_queue_reset(queue.index)
            return self if queue.resetting else None
        else:
            queue.ready = False
        return None

    def reset_queue(self, value: int) -> Hold | None:
        """A write to the queue reset register: 1 brings the queue back to its state after a reset (2.6.1)."""
        if not self.features & Ring.RING_RESET or value > 1:
            self.mistake("queue-reset")
            return None
        if not value:
            return None
        hold = self.stop_queue()
        queue = self.selected()
        if queue is not None and not queue.ready and not self.resetting:
            queue.clear()
        return hold

    def notify(self, value: int) -> None:
        """A driver's notification with `value` (4.1.5.2, 4.2.3.3)."""
        with_data = bool(self.features & Ring.NOTIFICATION_DATA)
        index = value & 0xFFFF if with_data else value
        if not self.live:
            self.mistake("notify-early")
        elif index >= len(self.queues) or not self.queues[index].setup().ready:
            self.mistake("notify-queue")
        else:
            self._shell.on_notify(index, value >> 16 if with_data else 0)

    # -- vectors, by the driver --------------------------------------------------------------------------

    def _checked_vector(self, value: int) -> int:
        """`value`, or NO_VECTOR for one that is not in the table: so a driver sees that it failed (4.1.5.1.2.1)."""
        if value != NO_VECTOR and value >= self.vectors:
            self.mistake("vector")
            return NO_VECTOR
        return value

    def set_config_vector(self, value: int) -> None:
        """The MSI-X vector of configuration changes."""
        if self.resetting:
            self.mistake("during-reset")
        else:
            self.config_vector = self._checked_vector(value)

    def set_queue_vector(self, value: int) -> None:
        """The MSI-X vector of the selected queue, which may change while the queue is in use."""
        queue = self.selected()
        if queue is None:
            self.mistake("queue-missing")
        elif self.resetting or queue.resetting:
            self.mistake("during-reset")
        else:
            queue.vector = self._checked_vector(value)
            self._shell.on_vector(queue.index)

    # -- configuration space, by the driver --------------------------------------------------------------

    def read_config(self, offset: int, size: int) -> int:
        """`size` bytes of the configuration space."""
        return self.device.read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """A write to the configuration space, most of which is for reading."""
        if not self.device.write_config(offset, size, value):
            self.mistake("config-read-only")

    # -- interrupts --------------------------------------------------------------------------------------

    def used(self, index: int) -> None:
        """Used buffers are in queue `index` and the driver wants to know. Nothing before DRIVER_OK (2.1.2)."""
        if self.live and self.queues[index].setup().ready:
            self._event(QUEUE_EVENT, self.queues[index].vector)

    def _config_event(self) -> None:
        if self.live:
            self._event(CONFIG_EVENT, self.config_vector)

    def _event(self, bit: int, vector: int) -> None:
        if not self._msix_enabled():
            self.isr |= bit
            self._shell.interrupt(None, self.isr)
            return
        if bit == CONFIG_EVENT:
            self.isr |= bit  # Whatever the interrupt (4.1.4.5.1); queue events leave it alone.
        if vector != NO_VECTOR:
            self._shell.interrupt(vector, self.isr)

    def acknowledge(self, bits: int) -> None:
        """The driver has seen `bits` of the interrupt status."""
        if self.isr:
            self.isr &= ~bits
            self._shell.interrupt(None, self.isr)

    def needs_reset(self, reason: str) -> None:
        """The device cannot go on: a ring or a request makes no sense. Only the driver's reset mends it."""
        if self.resetting:
            return
        self.last_error = reason
        self.status |= NEEDS_RESET
        self._config_event()

    # -- reset -------------------------------------------------------------------------------------------

    def _begin_reset(self, was_live: bool) -> Hold | None:
        self.resetting = True
        if was_live:
            self._shell.on_reset()
        else:
            self.reset_done()
        return self if self.resetting else None

    def reset_done(self) -> None:
        """For the shell: no queue is in use any more. Harmless if no reset was asked for."""
        if self.resetting:
            self._power_on()
            self._release()

    def queue_reset_done(self, index: int) -> None:
        """For the shell: queue `index` is not in use any more. Harmless if that was not asked for."""
        queue = self.queues[index]
        if queue.resetting and not self.resetting:
            queue.clear()
            self.device.queue_reset(index)
            self._release()

    def reset(self) -> None:
        """With the machine, at once: no runner has a queue any more."""
        self._power_on()
        self._release()

    def _power_on(self) -> None:
        self.acknowledge(self.isr)
        self._clear()
        self.device.reset()

    def call_when_ready(self, callback: Callable[[], None]) -> bool:
        """See `tvmm.bus.Hold`: once no reset is under way."""
        if callback not in self._waiting:  # who was interrupted in its wait comes again
            self._waiting.append(callback)
        if self._busy():
            return True
        # The reset may have ended in between, on another thread, and may have called it.
        try:
            self._waiting.remove(callback)
        except ValueError:
            return True
        return False

    def _busy(self) -> bool:
        return self.resetting or any(queue.resetting for queue in self.queues)

    def _release(self) -> None:
        while not self._busy():
            try:
                callback = self._waiting.pop()
            except IndexError:  # also if who waited has taken it back just now
                return
            callback()

    # -- state -------------------------------------------------------------------------------------------

    def state(self) -> TransportState:
        """Registers and device as a record."""
        return TransportState(
            self.status,
            self.isr,
            self.device_select,
            self.driver_select,
            self.queue_select,
            self.driver_features,
            self.resetting,
            self.config_vector,
            tuple(queue.state() for queue in self.queues),
            self.device.state(),
        )

    def restore(self, state: TransportState) -> None:
        """Take over `state`; nobody is told. Whoever restores starts the runner with `activation` if it is `live`.

        Raises `ValueError` with the name of a bad field and then changes nothing.
        """
        checked = check_state(state, self.device, self.queues, self.vectors)
        self.device.restore(state.device, checked.driver_features if checked.status & FEATURES_OK else 0)
        self.status, self.isr, self.device_select, self.driver_select, self.queue_select = checked[:5]
        self.driver_features = checked.driver_features
        self.resetting, self.config_vector = checked.resetting, checked.config_vector
        for queue, registers in zip(self.queues, checked.queues, strict=True):
            queue.load(registers)
