"""A network device on a TAP or a stream, from its options."""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

from tvmm.config.limits import NET_WORDS
from tvmm.control.target import NetInfo
from tvmm.errors import HostError, UserError
from tvmm.virtio.net import Net, NetSettings
from tvmm.virtio.net_control import RX_MODES
from tvmm.virtio.runner.net import NetRunner
from tvmm.wiring.limits import Throttle
from tvmm.wiring.measures import net_samples
from tvmm.wiring.ring import ring_features

if TYPE_CHECKING:
    from tvmm.config.incoming import IncomingConfig
    from tvmm.config.net import NetConfig
    from tvmm.kvm.bus_lock import BusLock
    from tvmm.net.opened_tap import Tap
    from tvmm.virtio.runner.wire import Wire
    from tvmm.wiring.devices import Devices
    from tvmm.wiring.net_stream import Keeper

__all__ = ["NetDevice", "make_net", "rarp_request"]

BROADCAST, ETHERTYPE_RARP = b"\xff" * 6, b"\x80\x35"
RARP_REQUEST = 3
SHORTEST_FRAME = 60


class NetDevice:
    """The host's side of one network device."""

    def __init__(self, options: NetConfig, model: Net, runner: NetRunner, bus_lock: BusLock) -> None:
        self._options = options
        self._model = model
        self._runner = runner
        self._bus_lock = bus_lock
        self.throttle = Throttle("net", NET_WORDS, runner)

    def info(self) -> NetInfo:
        """The device, and the receive filter that its driver has set."""
        with self._bus_lock:
            found, wanted = self._runner.info(), self._model.filter.state()
        modes = {mode: bool(wanted.modes >> bit & 1) for bit, mode in enumerate(RX_MODES)}
        return NetInfo(
            self._options.id,
            found.wire,
            found.mac,
            found.link_up,
            **modes,  # type: ignore[arg-type]
            unicast=_addresses(wanted.unicast),
            multicast=_addresses(wanted.multicast),
            unicast_overflow=wanted.any_unicast,
            multicast_overflow=wanted.any_multicast,
        )

    def set_link(self, up: bool) -> None:
        """Plug the cable in or out."""
        with self._bus_lock:
            self._runner.set_link(up)

    def announce(self) -> None:
        """Have the driver tell the network where it is. Raises `UserError` if it cannot."""
        with self._bus_lock:
            able = self._runner.announce()
        if not able:
            raise UserError(f"the guest's driver of {self._options.id} cannot announce itself", "ping from the guest")


    def announce_arrival(self, *, by_guest: bool) -> None:
        """Show switches where the guest is now, by a frame that it could have sent itself.

        `by_guest`: have it do that too, if it can: it knows its other addresses.
        """
        with self._bus_lock:
            if by_guest:
                self._runner.announce()
            mac, up = self._model.mac, self._model.link_up
        if up:
            self._runner.inject(rarp_request(mac))


def rarp_request(mac: bytes) -> bytes:
    """The frame with which QEMU and others announce a guest that has moved: who is `mac`? (RFC 903)

    Nobody answers any more; every switch on the way learns where the address is.
    """
    body = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, RARP_REQUEST, mac, bytes(4), mac, bytes(4))
    return (BROADCAST + mac + ETHERTYPE_RARP + body).ljust(SHORTEST_FRAME, b"\0")


def _addresses(table: bytes) -> tuple[bytes, ...]:
    return tuple(table[at : at + 6] for at in range(0, len(table), 6))


def _open_tap(options: NetConfig, machine_name: str, incoming: IncomingConfig | None) -> Tap:
    """The tap, or one that comes along with the guest. Raises `UserError`."""
    from tvmm.net.tap import TapBusy, open_tap

    if incoming is None or not options.ifname:
        return open_tap(options, machine_name)
    if incoming.address is None or incoming.address.kind == "unix":
        from tvmm.net.late_tap import open_or_wait

        return open_or_wait(options, machine_name)
    try:
        return open_tap(options, machine_name)
    except TapBusy as busy:
        raise HostError(
            busy.message, "choose another ifname; over --incoming unix:PATH the guest would bring the tap along"
        ) from busy


def make_net(devices: Devices, options: NetConfig, machine_name: str, index: int) -> None:
    """Put it into a slot of `devices`. Raises `UserError`."""
    stack = devices.host.stack
    mac = options.address(machine_name, index)
    wire: Wire
    keeper: Keeper | None = None
    if options.type == "tap":
        from tvmm.net.membership import in_network

        options = in_network(options)
        wire = tap = devices.taps[options.id] = _open_tap(options, machine_name, devices.config.incoming)
        stack.callback(tap.close)
    else:
        from tvmm.wiring.net_stream import open_stream

        # The machine that a guest comes from may have ports that this one is to have next.
        wire, keeper = open_stream(options, mac, stack, may_wait=devices.config.incoming is not None)
    settings = NetSettings(
        mac=mac,
        backend=wire.backend,
        pairs=options.queues,
        queue_size=options.queue_size,
        mtu=options.mtu,
        link_up=options.link,
    )
    model = Net(settings, ring_features(options))
    slot = devices.place(model, options)
    runner = NetRunner(
        options.id,
        model,
        wire,
        slot.ends(),
        poll_ns=options.poll_us * 1000,
        on_failed=keeper.lost if keeper else lambda reason: devices.warn(f"{options.id}: {reason}; its link is down"),
    )
    stack.callback(runner.close)
    runner.set_limits(options.limits)
    slot.connect(runner)
    devices.measures[options.id] = lambda: net_samples(options.id, runner)
    net = devices.nets[options.id] = NetDevice(options, model, runner, devices.host.bus_lock)
    if keeper is not None:
        keeper.adopt(runner, devices.warn, partial(net.announce_arrival, by_guest=True))
