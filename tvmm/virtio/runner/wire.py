"""The wire of a network device: what it has to be able to do, and how it comes to be as driver and user want it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tvmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.kvm.bus_lock import BusLock
    from tvmm.kvm.net import NetPair
    from tvmm.virtio.net import Net, NetBackend
    from tvmm.virtio.runner.net_orders import Wishes

__all__ = ["PluggedWire", "Wire"]


class Wire(Protocol):
    """What frames go through. `tvmm.net.tap.Tap` is one; any descriptors that keep frames apart make another."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def fds(self) -> Sequence[int]:
        """A descriptor for each pair of queues, not blocking."""

    @property
    def is_stream(self) -> bool:
        """Frames come behind their lengths, and without headers (net_stream.h). Else each read has one, behind a header
        of 12 bytes.
        """

    @property
    def backend(self) -> NetBackend:
        """What it can do."""

    def set_offload(self, features: int) -> None:
        """What the driver takes: GUEST_ bits. Raises `UserError` if the host refuses, as all of these."""

    def attach(self, pair: int, on: bool) -> None:
        """Whether frames come to the descriptor of this pair, for pairs behind the first."""

    def set_carrier(self, up: bool) -> None:
        """Show the host whether the cable is in."""


class PluggedWire:
    """`wire` behind the `pairs` of a device. `failure` says why it is of no use any more, or is ''.

    `on_failed(reason)` is called without the bus lock when that comes up. `plug`, `restore` and `lost` want the bus
    lock held; all else takes the host some time, and is done on the thread of pair 0 without it.
    """

    def __init__(
        self, wire: Wire, pairs: Sequence[NetPair], model: Net, bus_lock: BusLock, on_failed: Callable[[str], None]
    ) -> None:
        self.failure = ""
        self._wire = wire
        self._pairs = pairs
        self._model = model
        self._bus_lock = bus_lock
        self._on_failed = on_failed
        self._plugged_in = model.link_up
        self._show_pairs(model.link_up)

    @property
    def name(self) -> str:
        """For messages."""
        return self._wire.name

    # -- with the bus lock -------------------------------------------------------------------------------------

    def plug(self, up: bool) -> bool:
        """The cable in or out. Returns whether the link is up: a wire that is gone has none to plug in."""
        self._plugged_in = up
        up = up and not self.failure
        self._model.set_link(up)
        self._show_pairs(up)
        return up

    @property
    def lost(self) -> bool:
        """The cable is in, and looks as if it were out because the wire is of no use."""
        return bool(self.failure and self._plugged_in)

    def restore(self, lost: bool) -> bool:
        """The model has been restored, with a wire that was `lost` or not; whether the link is up here."""
        self._plugged_in = self._model.link_up or lost
        up = self._plugged_in and not self.failure
        if up != self._model.link_up:
            self._model.set_link(up)
        return up

    def _show_pairs(self, up: bool) -> None:
        for pair in self._pairs:
            pair.set_link(up)

    # -- on the thread of pair 0 -------------------------------------------------------------------------------

    def set_up(self, wishes: Wishes | None, up: bool) -> None:
        """After `restore`: everything anew, as a driver wants it if there is one."""
        self._show_pairs(up)
        self.show_carrier(up)
        if wishes is not None:
            self.begin(wishes)

    def begin(self, wishes: Wishes) -> None:
        """The wire as the driver negotiated, before the first queue is served."""
        try:
            self._wire.set_offload(wishes.offloads)
            self._attach_pairs(wishes.pairs)
        except UserError as error:
            self.fail(str(error))
        self._set_filters(wishes)

    def fulfil(self, old: Wishes, new: Wishes) -> None:
        """What the driver wants now, and did not before. Raises `UserError`."""
        if new.offloads != old.offloads:
            self._wire.set_offload(new.offloads)
        if new.pairs != old.pairs:
            self._attach_pairs(new.pairs)
        if new[2:] != old[2:]:
            self._set_filters(new)

    def end(self) -> None:
        """No driver any more: no frames for any pair."""
        try:
            self._attach_pairs(0)
        except UserError as error:
            self.fail(str(error))

    def show_carrier(self, up: bool) -> None:
        """To the host."""
        try:
            self._wire.set_carrier(up)
        except UserError as error:
            self.fail(str(error))

    def fail(self, reason: str) -> None:
        """It is of no use any more: the driver sees that the cable is out. On any server's thread."""
        with self._bus_lock:
            if self.failure:
                return
            self.failure = f"{self.name}: {reason}"
            self._model.set_link(False)
            self._show_pairs(False)
        self._on_failed(self.failure)

    def connect(self, fd: int) -> None:
        """A stream that failed goes on with the connection `fd`. The link is as it was wanted last."""
        self._pairs[0].connect(fd)
        with self._bus_lock:
            self.failure = ""
            self._model.set_link(self._plugged_in)
            self._pairs[0].set_link(self._plugged_in)

    def _set_filters(self, wishes: Wishes) -> None:
        pair_filter = wishes.pair_filter()
        for pair in self._pairs:
            pair.set_filter(pair_filter)

    def _attach_pairs(self, count: int) -> None:
        """Frames for the first `count` pairs, and no more for the others when this returns (5.1.6.5.5.1).

        What came while a pair was off is thrown away: for this driver, or this number of pairs, it was not meant.
        """
        for number, pair in enumerate(self._pairs):
            wanted = number < count
            if pair.attached == wanted:
                continue
            with pair.attachment(wanted):
                if number:
                    self._wire.attach(number, wanted)
                if wanted:
                    pair.flush()
