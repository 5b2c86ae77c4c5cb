"""The control queue of a network device (virtio 1.3, 5.1.6.5): one command at a time, on pair 0's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import UserError
from tvmm.kvm.net import PairFilter
from tvmm.kvm.vring import Batch
from tvmm.virtio.net_control import ACK_ERROR, ACK_OK, MAX_COMMAND

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.kvm.bus_lock import BusLock
    from tvmm.kvm.vring import Vring
    from tvmm.virtio.net import Net
    from tvmm.virtio.net_filter import FilterState

__all__ = ["NO_ANSWER", "Orders", "Wishes", "wishes_of"]

NO_ANSWER = "a control buffer has no room for the answer"


class Wishes(NamedTuple):
    """What a driver wants of the wire: see `Net`. `own` is its address."""

    pairs: int
    offloads: int
    own: bytes
    filter: FilterState

    def pair_filter(self) -> PairFilter:
        """For the servers."""
        modes, unicast, multicast, any_unicast, any_multicast = self.filter
        return PairFilter(
            self.own, modes, unicast, multicast, any_unicast=any_unicast, any_multicast=any_multicast
        )


def wishes_of(model: Net) -> Wishes:
    """As they are now; with the bus lock held."""
    return Wishes(model.pairs, model.offloads, model.filter.own, model.filter.state())


class Orders:
    """Takes commands off the ring, has the model understand them, and `fulfil` what changed."""

    def __init__(self, model: Net, bus_lock: BusLock, fulfil: Callable[[Wishes, Wishes], None]) -> None:
        """`fulfil(old, new)` raises `UserError` if the host cannot; it is called without the bus lock."""
        self._model = model
        self._bus_lock = bus_lock
        self._fulfil = fulfil
        self._batch = Batch(1)

    def serve_one(self, ring: Vring) -> str:
        """Carry the next command out and give its buffer back. What the driver did wrong, in words, or ''."""
        if not ring.pop(self._batch):
            return ring.error_sentence
        [chain] = self._batch.chains
        if not chain.writable_bytes:
            return NO_ANSWER
        # On this thread: there is nothing else to do for a driver whose command is still to come.
        ring.memory.bring(ring.missing(self._batch, [chain]))
        command = bytearray()
        for piece in self._batch.readable(chain):
            # A command of gigabytes is not copied: the model looks at no more than this.
            command += piece[: MAX_COMMAND - len(command)]
            if len(command) == MAX_COMMAND:
                break
        ring.memory.fill(self._batch.writable(chain), bytes([self._execute(bytes(command))]))
        ring.push(chain.id, 1)
        return ""

    def _execute(self, command: bytes) -> int:
        """The answer."""
        with self._bus_lock:
            before = wishes_of(self._model)
            answer = self._model.execute(command)
            wanted = wishes_of(self._model)
        if answer != ACK_OK or wanted == before:
            return answer
        try:
            self._fulfil(before, wanted)
        except UserError:
            with self._bus_lock:
                # Unless the driver has reset the device meanwhile.
                if (self._model.pairs, self._model.offloads) == wanted[:2]:
                    self._model.pairs, self._model.offloads = before[:2]
            return ACK_ERROR
        return answer
