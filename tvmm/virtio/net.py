"""The network device (virtio 1.3, 5.1): features by what its backend can do, configuration, control queue.

Queues: receive and transmit of pair 0, of pair 1, and so on, then control. Where the driver did not take MQ, only
pair 0 exists, and control is the third queue (5.1.2). Frames never pass through here.

Offsets in the configuration space:

====== ==== ===================================================
0      6    mac
6      2    status: bit 0 the link is up, bit 1 please announce
8      2    max_virtqueue_pairs
10     2    mtu
12     4    speed in Mbit/s, all ones: unknown
16     1    duplex, 0xff: unknown
====== ==== ===================================================
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ConfigError
from tvmm.records import check_bytes, check_record, check_uint
from tvmm.virtio import net_control as control
from tvmm.virtio.device import ConfigState, VirtioDevice
from tvmm.virtio.features import DEFAULT_RING, NET_ID
from tvmm.virtio.features import Net as Feature
from tvmm.virtio.net_filter import FilterState, RxFilter

if TYPE_CHECKING:
    from tvmm.virtio.device import Activation

__all__ = ["HEADER_LENGTH", "Net", "NetBackend", "NetSettings", "NetState"]

HEADER_LENGTH = 12
"""Bytes in front of each frame (5.1.6); the header of a TAP with that size set is the same."""

LINK_UP, ANNOUNCE = 0x01, 0x02
MAC, STATUS = 0, 6
MAX_PAIRS = 256
MIN_MTU, MAX_MTU = 68, 65535
UNKNOWN_SPEED, UNKNOWN_DUPLEX = 0xFFFF_FFFF, 0xFF

OFFLOADS = (
    Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.GUEST_ECN
    | Feature.GUEST_UFO
    | Feature.GUEST_USO4
    | Feature.GUEST_USO6
)
"""What CTRL_GUEST_OFFLOADS can turn off and on again (5.1.6.5.6)."""


class NetBackend(NamedTuple):
    """What the other end of the wire can do. Segmentation needs `checksum`, `ecn` needs TSO."""

    checksum: bool = False
    tso4: bool = False
    tso6: bool = False
    ecn: bool = False
    uso: bool = False


class NetSettings(NamedTuple):
    """A network interface. `mtu` of 0 offers none."""

    mac: bytes
    backend: NetBackend = NetBackend()
    pairs: int = 1
    queue_size: int = 256
    mtu: int = 0
    link_up: bool = True


class NetState(NamedTuple):
    """What the driver set by commands; its own address is in the configuration space.

    `address` is the one after a reset: a guest keeps it wherever it moves.
    """

    address: bytes
    config: ConfigState
    pairs: int
    offloads: int
    filter: FilterState


def _is_address(mac: bytes) -> bool:
    """Whether an interface can have it: six bytes, not all zero, of no group."""
    return len(mac) == 6 and not mac[0] & 1 and any(mac)


def _check(settings: NetSettings) -> None:
    """Raise `ConfigError` for an interface that cannot be."""
    if not _is_address(settings.mac):
        raise ConfigError("virtio-net needs a MAC address of six bytes that is not a multicast one")
    if not 1 <= settings.pairs <= MAX_PAIRS:
        raise ConfigError(f"virtio-net with {settings.pairs} pairs of queues: 1 to {MAX_PAIRS} are possible")
    if settings.mtu and not MIN_MTU <= settings.mtu <= MAX_MTU:
        raise ConfigError(f"virtio-net with an MTU of {settings.mtu}: {MIN_MTU} to {MAX_MTU} are possible")


def _features(settings: NetSettings) -> int:
    """Offers by capability. Raises `ConfigError`, through `check_offer`, for those that do not go together."""
    backend = settings.backend
    offered = (
        Feature.MAC
        | Feature.STATUS
        | Feature.MRG_RXBUF
        | Feature.CTRL_VQ
        | Feature.CTRL_RX
        | Feature.CTRL_RX_EXTRA
        | Feature.CTRL_MAC_ADDR
        | Feature.GUEST_ANNOUNCE
        | Feature.SPEED_DUPLEX
    )
    for wanted, features in (
        (settings.mtu, Feature.MTU),
        (settings.pairs > 1, Feature.MQ),
        (backend.checksum, Feature.CSUM | Feature.GUEST_CSUM | Feature.CTRL_GUEST_OFFLOADS),
        (backend.tso4, Feature.HOST_TSO4 | Feature.GUEST_TSO4),
        (backend.tso6, Feature.HOST_TSO6 | Feature.GUEST_TSO6),
        (backend.ecn, Feature.HOST_ECN | Feature.GUEST_ECN),
        (backend.uso, Feature.HOST_USO | Feature.GUEST_USO4 | Feature.GUEST_USO6),
    ):
        if wanted:
            offered |= features
    return offered


def _config(settings: NetSettings) -> bytes:
    pairs = settings.pairs if settings.pairs > 1 else 0
    status = LINK_UP if settings.link_up else 0
    return settings.mac + pack("<HHHIB3x", status, pairs, settings.mtu, UNKNOWN_SPEED, UNKNOWN_DUPLEX)


class Net(VirtioDevice):
    """An interface's registers. `offloads` and `pairs` change with control commands: the runner looks after each.

    `address` is the interface's own, which it has after each reset: that of `settings`, until a state brings another.

    Raises `ConfigError` for settings that make none.
    """

    device_id = NET_ID
    type_name = "virtio-net"

    def __init__(self, settings: NetSettings, ring: int = DEFAULT_RING) -> None:
        _check(settings)
        queues = (settings.queue_size,) * (2 * settings.pairs) + (min(settings.queue_size, 64),)
        config = _config(settings)
        changeable = b"\xff" * 6 + bytes([LINK_UP | ANNOUNCE])
        super().__init__(queues, _features(settings), config, changeable, ring)
        self.settings = settings
        self.address = settings.mac
        self.filter = RxFilter(settings.mac)
        self._after_reset()

    def _after_reset(self) -> None:
        self.pairs = 1
        self.offloads = 0
        self.filter.reset(self.address)

    # -- life --------------------------------------------------------------------------------------------

    def negotiated(self, features: int) -> None:
        """Every offload that was negotiated is on (5.1.6.5.6.1)."""
        super().negotiated(features)
        self.offloads = features & OFFLOADS

    def activate(self, activation: Activation) -> None:
        """With one pair: the others wait for a command (5.1.5)."""
        super().activate(activation)
        self.pairs = 1

    def reset(self) -> None:
        """The own address and all filters as at first; the link is the host's and stays."""
        super().reset()
        self._after_reset()
        self._config[MAC : MAC + 6] = self.address
        self._config[STATUS] &= LINK_UP

    # -- queues ------------------------------------------------------------------------------------------

    @property
    def control_queue(self) -> int | None:
        """The index of the control queue, as negotiated."""
        if not self.accepted & Feature.CTRL_VQ:
            return None
        return 2 * self.settings.pairs if self.accepted & Feature.MQ else 2

    @property
    def usable_pairs(self) -> int:
        """How many pairs the driver may come to use."""
        return self.settings.pairs if self.accepted & Feature.MQ else 1

    # -- the host's side ---------------------------------------------------------------------------------

    @property
    def link_up(self) -> bool:
        """Whether the cable is in."""
        return bool(self._config[STATUS] & LINK_UP)

    def set_link(self, up: bool) -> None:
        """Plug the cable in or out; the driver is told."""
        self.change_config(STATUS, bytes([self._config[STATUS] & ~LINK_UP | (LINK_UP if up else 0)]))

    def ask_to_announce(self) -> bool:
        """Have the driver tell the network where it is now. False if it does not know how."""
        if not self.accepted & Feature.GUEST_ANNOUNCE:
            return False
        self.change_config(STATUS, bytes([self._config[STATUS] | ANNOUNCE]))
        return True

    @property
    def mac(self) -> bytes:
        """The address that frames to the guest have, as the driver set it."""
        return bytes(self._config[MAC : MAC + 6])

    # -- the control queue -------------------------------------------------------------------------------

    def execute(self, command: bytes) -> int:
        """Do what the readable bytes of a control buffer say; the answer is `ACK_OK` or `ACK_ERROR`.

        Bytes beyond `MAX_COMMAND` need not be given: a command as long as that is refused, but for address tables.
        """
        match control.parse(command[: control.MAX_COMMAND]):
            case control.RxMode(mode, on):
                extra = control.RX_MODES.index(mode) > 1
                done = self._may(Feature.CTRL_RX_EXTRA if extra else Feature.CTRL_RX)
                if done:
                    self.filter.set_mode(mode, on)
            case control.MacTable(unicast, multicast):
                done = self._may(Feature.CTRL_RX)
                if done:
                    self.filter.set_table(unicast, multicast)
            case control.MacAddress(mac):
                done = self._may(Feature.CTRL_MAC_ADDR) and not mac[0] & 1
                if done:
                    self._config[MAC : MAC + 6] = mac
                    self.filter.own = mac
            case control.AnnounceAck():
                done = self._may(Feature.GUEST_ANNOUNCE)
                if done:
                    self._config[STATUS] &= ~ANNOUNCE
            case control.QueuePairs(pairs):
                done = self._may(Feature.MQ) and 1 <= pairs <= self.settings.pairs
                if done:
                    self.pairs = pairs
            case control.Offloads(features):
                wanted = features & ~(self.accepted & OFFLOADS)
                done = self._may(Feature.CTRL_GUEST_OFFLOADS) and not wanted
                if done:
                    self.offloads = features
            case _:  # VLAN filters among them: all tags pass, and no feature says otherwise (5.1.6.5.3.1).
                done = False
        return control.ACK_OK if done else control.ACK_ERROR

    def _may(self, feature: int) -> bool:
        return bool(self.accepted & feature)

    # -- state -------------------------------------------------------------------------------------------

    def state(self) -> NetState:
        """What the driver set, as a record."""
        return NetState(self.address, self.config_state(), self.pairs, self.offloads, self.filter.state())

    def restore(self, state: NetState, accepted: int) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        check_record(state, NetState)
        address = check_bytes("address", state.address, 6, 6)
        if not _is_address(address):
            raise ValueError("address is none that an interface can have")
        config = self.check_config(state.config)
        if config.space[MAC] & 1:
            raise ValueError("space has a multicast address")
        pairs = check_uint("pairs", state.pairs, self.settings.pairs if accepted & Feature.MQ else 1)
        if not pairs:
            raise ValueError("pairs is zero")
        offloads = check_uint("offloads", state.offloads, (1 << 64) - 1)
        if offloads & ~(accepted & OFFLOADS):
            raise ValueError("offloads has some that were not negotiated")
        self.filter.check(state.filter)
        self.address = address
        self.load_config(config)
        self.filter.restore(state.filter)
        self.filter.own = self.mac
        self.accepted, self.pairs, self.offloads = accepted, pairs, offloads
