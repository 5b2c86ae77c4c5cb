"""What a virtio transport asks of the machine around it, and where the machine listens for kicks.

The shell is the owner of threads, rings, eventfds and interrupt lines. A transport calls it under the bus lock;
nothing here may block or come back to the bus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from tvmm.virtio.device import Activation, QueueSetup

__all__ = ["CONFIG_EVENT", "MAX_QUEUES", "QUEUE_EVENT", "Kick", "Shell"]

QUEUE_EVENT, CONFIG_EVENT = 0x1, 0x2
"""Bits of the interrupt status: used buffers, changed configuration (4.1.4.5, 4.2.2)."""

MAX_QUEUES = 1024
"""As many as have their own doorbell in a page (see `pci`); devices here need far fewer."""

class Kick(NamedTuple):
    """Where the driver writes to notify `queue`: `size` bytes at `offset` of the transport's range.

    `value` is what it writes there, None if any write counts; for an ioeventfd. `size` 0 is for any width.
    """

    queue: int
    offset: int
    size: int
    value: int | None


class Shell(Protocol):
    """What a transport asks of the machine around it. Nothing here may block or come back to the bus."""

    def on_activate(self, activation: Activation) -> None:
        """DRIVER_OK: begin to serve the queues that are ready."""

    def on_reset(self) -> None:
        """Let go of all queues, drop or finish what is in flight, then call `Transport.reset_done`."""

    def on_queue_ready(self, setup: QueueSetup) -> None:
        """The driver has enabled this queue while the device was live: begin to serve it."""

    def on_queue_reset(self, index: int) -> None:
        """Let go of queue `index`, then call `Transport.queue_reset_done(index)`."""

    def on_vector(self, index: int) -> None:
        """The driver has chosen another MSI-X vector for queue `index`."""

    def on_notify(self, index: int, data: int) -> None:
        """The driver's notification of a live queue, if it came as an access and not by ioeventfd.

        `data` is what NOTIFICATION_DATA adds to the index: next offset and wrap bit (4.2.3.3), else 0.
        """

    def interrupt(self, vector: int | None, isr: int) -> None:
        """With a vector: send that MSI-X message. Without: the line is up while `isr` is not 0.

        For an edge-triggered line each call with an `isr` that is not 0 is one pulse.
        """
