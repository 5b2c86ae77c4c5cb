"""The socket device (virtio 1.3, 5.10): streams between programs in the guest and programs on the host.

Queues: packets to the guest, packets from it, events. Each packet has a header of 44 bytes, all of it little-endian:

====== ==== ===========================================================================================
0      8    source: a context id, which is the guest's or `HOST_CID`
8      8    destination
16     4    source port
20     4    destination port
24     4    bytes of data behind the header
28     2    type: `STREAM`
30     2    what it is about: an `Op`
32     4    flags of ``SHUTDOWN``
36     4    room that the sender has for a connection's data, in bytes
40     4    how many of those it has passed on since the connection began; goes round at 2^32
====== ==== ===========================================================================================

The last two are credit: a side may have sent at most as much as the other's room beyond what that has passed on. The
configuration space is the guest's context id, in 8 bytes. Connections are the runner's; this is what driver and
transport see of the device, and the codec of packets.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ConfigError
from tvmm.virtio.device import VirtioDevice
from tvmm.virtio.features import DEFAULT_RING, VSOCK_ID, Vsock

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "HEADER_LENGTH",
    "HOST_CID",
    "MAX_CID",
    "MIN_CID",
    "NO_RECEIVE",
    "NO_SEND",
    "STREAM",
    "Op",
    "Packet",
    "SocketDevice",
    "VsockSettings",
]

HEADER_LENGTH = 44
HOST_CID = 2
MIN_CID, MAX_CID = 3, 0xFFFF_FFFE
"""0 to 2 and all ones are reserved, and the upper 32 bits are zero (5.10.4)."""
STREAM = 1
NO_RECEIVE, NO_SEND = 1, 2
"""Flags of ``SHUTDOWN``: its sender will receive, or send, no more."""
EVENT_QUEUE_SIZE = 16
MIN_QUEUE_SIZE, MAX_QUEUE_SIZE = 16, 32768

_HEADER = Struct("<QQIIIHHIII")
assert _HEADER.size == HEADER_LENGTH


class Op:
    """What a packet is about (5.10.6)."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Packet(NamedTuple):
    """A header. `op` and `type` may be any number of 16 bits: a guest writes them."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    type: int
    op: int
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """From the first bytes of a packet. Raises `ValueError` if there are too few for a header."""
        if len(data) < HEADER_LENGTH:
            raise ValueError(f"a packet of {len(data)} bytes has no whole header")
        return cls._make(_HEADER.unpack_from(data))

    def pack(self) -> bytes:
        """The bytes."""
        return _HEADER.pack(*self)


class VsockSettings(NamedTuple):
    """A guest's address, and the entries of its two queues for packets."""

    guest_cid: int = MIN_CID
    queue_size: int = 256


class SocketDevice(VirtioDevice):
    """The registers of a socket device. Raises `ConfigError` for settings that make none."""

    device_id = VSOCK_ID
    type_name = "virtio-vsock"

    def __init__(self, settings: VsockSettings = VsockSettings(), ring: int = DEFAULT_RING) -> None:  # noqa: B008
        if not MIN_CID <= settings.guest_cid <= MAX_CID:
            raise ConfigError(f"guest-cid {settings.guest_cid} is no guest's: {MIN_CID} to {MAX_CID} are possible")
        if not MIN_QUEUE_SIZE <= settings.queue_size <= MAX_QUEUE_SIZE:
            raise ConfigError(f"virtio-vsock with queues of {settings.queue_size} entries")
        queues = (settings.queue_size, settings.queue_size, EVENT_QUEUE_SIZE)
        super().__init__(queues, Vsock.STREAM, settings.guest_cid.to_bytes(8, "little"), ring=ring)
        self.settings = settings
