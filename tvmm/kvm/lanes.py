"""Lanes: pages of guest RAM over sockets, in C and without the interpreter lock (lanes.h has the wire format).

Senders share a `LaneGroup`: a bitmap of what is to be sent, taken chunk by chunk, so that lanes balance themselves and
each page goes once a round. A round on one lane::

    while True:                                  # on a worker thread
        stop = sender.send_round(number)
        if stop is LaneStop.WOKEN:
            ...                                  # look what is wanted; leave, or clear the waker and go on

On the other side each `LaneReceiver` comes back with `LaneStop.ROUND_END`; when all have, the round is complete. No
lane may begin the next one before that, or an old version of a page could overtake a newer one.

A sender that is given up between two calls may have taken pages that it did not send: their bits are not in the bitmap.
"""

from __future__ import annotations

import os
import socket
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.errors import HostError, ProtocolError
from tvmm.kvm.calls import ffi, lib

if TYPE_CHECKING:
    from tvmm.kvm.pager import Pager
    from tvmm.kvm.pages import PageBitmap, RamPages
    from tvmm.kvm.serve import Waker

__all__ = [
    "PACK_BYTES_MIN",
    "LaneCounters",
    "LaneGroup",
    "LanePacker",
    "LaneReceiver",
    "LaneSender",
    "LaneStop",
    "LaneUnpacker",
    "set_lane_buffers",
]

PACK_BYTES_MIN = 1 << 20
"""The least that a buffer for `LanePacker` has."""
CHUNK_PAGES = 4096
"""Pages that a lane takes, and KVM protects again, at once: each call of KVM's takes some microseconds and its lock."""
UNLOGGED_CHUNK_PAGES = 512
"""The same where nothing is to be protected, as in the last round, so that lanes end it together."""
UNIX_BUFFER = 1 << 20
"""Bytes of a unix socket's buffer. TCP grows its own; more than 1 MiB in flight only leaves the caches."""


class LaneStop(IntEnum):
    """Why a lane comes back."""

    ROUND_END = lib.TVMM_LANE_STOP_ROUND_END
    """The lane's part of the round is over."""
    CLOSED = lib.TVMM_LANE_STOP_CLOSED
    """The peer ended the stream between two frames."""
    WOKEN = lib.TVMM_LANE_STOP_WOKEN
    """Somebody woke the waker. Called again, the lane goes on where it was."""
    STALLED = lib.TVMM_LANE_STOP_STALLED
    """Nothing moved for as long as was said. Called again, the lane goes on where it was."""


class LaneCounters(NamedTuple):
    """Since the lane was made: pages sent whole, as zeros, and not at all as the peer has the same; bytes, frames."""

    normal: int
    zero: int
    unchanged: int
    bytes: int
    frames: int


def set_lane_buffers(connection: socket.socket) -> None:
    """Set up a connected stream socket for a lane, on either side."""
    if connection.family == socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER)
    else:
        # The end of a round must not wait for the answer to the bytes before it.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class LaneGroup:
    """What the senders of one migration share. Close the senders first."""

    def __init__(
        self,
        ram: RamPages,
        bitmap: PageBitmap,
        *,
        log: Any = None,
        skip_unchanged: bool = False,
        chunk_pages: int = CHUNK_PAGES,
    ) -> None:
        """Senders take the bits of `bitmap`. `log` is the tracker's; see the attribute.

        `skip_unchanged`: a page that is dirty but the same as when it was last sent is not sent. Known from the third
        time on that it is looked at, because hashes of 8 bytes are made of pages that are sent again. `chunk_pages` is
        a multiple of 64 up to 16384.
        """
        if (bitmap.names, bitmap.pages) != (ram.names, ram.pages):
            raise ValueError("the bitmap is of other blocks than the RAM")
        if chunk_pages % 64 or not 64 <= chunk_pages <= lib.TVMM_CLEAR_PAGES:
            raise ValueError(f"no chunks of {chunk_pages} pages")
        self.ram, self.bitmap = ram, bitmap
        self.raw = ffi.new("struct tvmm_lane_group *")
        self.raw.ram, self.raw.bitmap = ram.raw, bitmap.raw
        self._chunk_pages = chunk_pages
        if skip_unchanged:
            self._hashes = ffi.new("uint64_t[]", ram.total)
            # Random, so that no guest can write two pages that it knows to hash alike.
            self._key = ffi.new("uint64_t[]", lib.TVMM_PAGE_KEY)
            ffi.buffer(self._key)[:] = os.urandom(ffi.sizeof(self._key))
            self.raw.hashes, self.raw.key = self._hashes, self._key
        self.log = log
        """Has KVM protect a chunk's pages again before they are read; looked at when a round begins. None in a round in
        which nothing runs that could write."""
        self.begin_round()

    def forget_hashes(self) -> None:
        """From now on a page that is marked is sent, whatever was sent before: the peer does not have it any more."""
        self.raw.hashes = ffi.NULL

    def begin_round(self) -> None:
        """Start at the first page again. No lane may be in a round."""
        self.raw.log = ffi.NULL if self.log is None else self.log
        self.raw.chunk_pages = min(self._chunk_pages, UNLOGGED_CHUNK_PAGES) if self.log is None else self._chunk_pages
        self.raw.cursor = 0
        self.raw.stop = 0

    def stop_round(self) -> None:
        """End the round early: each lane ends it after what it is sending now. Unsent bits stay in the bitmap."""
        self.raw.stop = 1

    @property
    def bandwidth(self) -> int:
        """Bytes/s that all lanes send together, 0 for no limit; may be changed at any time."""
        return int(self.raw.bandwidth)

    @bandwidth.setter
    def bandwidth(self, rate: int) -> None:
        if rate < 0:
            raise ValueError(f"no bandwidth of {rate} bytes/s")
        self.raw.bandwidth = rate
        # What was charged at the old rate may lie far ahead.
        self.raw.next_ns = 0

    def delay(self, count: int) -> float:
        """Account for `count` bytes that the caller is about to send itself: 0.0, or how many seconds to wait before
        asking again.
        """
        return int(lib.tvmm_lanes_charge(self.raw, count)) / 1e9


class LaneSender:
    """One connection's sending side. Belongs to one thread at a time."""

    def __init__(self, fd: int, group: LaneGroup, waker: Waker) -> None:
        """`fd` is a stream socket, blocking or not, which stays the caller's."""
        self._group, self._waker = group, waker
        self._raw = _new_lane(group, waker.raw, fd)

    def send_round(self, number: int, stall_ms: int = 0) -> LaneStop:
        """Send pages until the group has none left, and the end of round `number`.

        `stall_ms`: come back with STALLED after that many milliseconds without progress, 0 for never. Raises `OSError`
        when the connection broke, or KVM refuses to protect pages.
        """
        stop = int(lib.tvmm_lane_send(self._raw, number, stall_ms))
        if stop == lib.TVMM_LANE_STOP_FAILED:
            raise OSError(self._raw.failure, os.strerror(self._raw.failure))
        return LaneStop(stop)

    @property
    def counters(self) -> LaneCounters:
        """May be read while the lane is at work."""
        return _counters(self._raw)


class LanePacker:
    """Frames into buffers, for bytes that go their own way (TLS, compression). Belongs to one thread at a time."""

    def __init__(self, group: LaneGroup) -> None:
        """Shares the bitmap with the other lanes of `group`."""
        self._group = group
        self._raw = _new_lane(group, ffi.NULL, -1)
        self._ended = ffi.new("uint32_t *")
        self.round_ended = False
        """Whether the last frame packed was the end of the round."""

    def pack(self, buffer: bytearray | memoryview, number: int) -> int:
        """Fill `buffer` with whole frames of round `number`, its end behind the last. How many bytes those are.

        Raises `ValueError` if it has less than `PACK_BYTES_MIN` bytes, `OSError` if KVM refuses to protect pages. The
        bandwidth limit is the caller's to keep, with `LaneGroup.delay`.
        """
        if len(buffer) < PACK_BYTES_MIN:
            raise ValueError(f"a buffer of {len(buffer)} bytes is too small")
        self._raw.failure = 0
        with ffi.from_buffer("uint8_t[]", buffer, require_writable=True) as target:
            used = int(lib.tvmm_lane_pack(self._raw, target, len(target), number, self._ended))
        if self._raw.failure:
            raise OSError(self._raw.failure, os.strerror(self._raw.failure))
        self.round_ended = bool(self._ended[0])
        return used

    @property
    def counters(self) -> LaneCounters:
        """May be read while the lane is at work."""
        return _counters(self._raw)


class _Intake:
    """What both receivers have."""

    def __init__(self, ram: RamPages, waker: Any, fd: int) -> None:
        self._ram = ram
        self._raw = ffi.gc(ffi.new("struct tvmm_intake *"), lib.tvmm_intake_close)
        self._raw.ram, self._raw.waker, self._raw.fd = ram.raw, waker, fd
        self._pager: Pager | None = None

    @property
    def pager(self) -> Pager | None:
        """Through which pages of its blocks go, in place of straight into RAM; None at first. Set between rounds."""
        return self._pager

    @pager.setter
    def pager(self, pager: Pager | None) -> None:
        self._raw.pager = ffi.NULL if pager is None else pager.raw
        self._pager = pager

    @property
    def round(self) -> int:
        """Number of the round that ended last."""
        return int(self._raw.number)

    @property
    def counters(self) -> LaneCounters:
        """May be read while the lane is at work."""
        return _counters(self._raw)


class LaneReceiver(_Intake):
    """One connection's receiving side, straight into RAM. Belongs to one thread at a time."""

    def __init__(self, fd: int, ram: RamPages, waker: Waker) -> None:
        """`fd` is a stream socket, blocking or not, which stays the caller's."""
        super().__init__(ram, waker.raw, fd)
        self._waker = waker

    def receive(self, stall_ms: int = 0) -> LaneStop:
        """Take frames until the end of a round, whose number is then `round`; nothing behind it is read.

        Raises `ProtocolError` for what is no frame, with nothing of it in RAM, and `OSError` when the connection broke
        or the pager could not put a page into memory.
        """
        stop = int(lib.tvmm_intake_receive(self._raw, stall_ms))
        if stop == lib.TVMM_LANE_STOP_FAILED:
            raise OSError(self._raw.failure, os.strerror(self._raw.failure))
        if stop == lib.TVMM_LANE_STOP_REFUSED:
            raise refusal(self._raw)
        return LaneStop(stop)


class LaneUnpacker(_Intake):
    """Frames out of buffers, whose pieces may be cut anywhere. Belongs to one thread at a time."""

    def __init__(self, ram: RamPages) -> None:
        super().__init__(ram, ffi.NULL, -1)
        self._consumed = ffi.new("uint64_t *")
        self.round_ended = False
        """Whether the last call stopped behind the end of a round."""

    def unpack(self, buffer: bytes | bytearray | memoryview, length: int, offset: int = 0) -> int:
        """Take `length` bytes of `buffer` from `offset` on: how many were taken, all but for the end of a round.

        Raises `ProtocolError` for what is no frame, with nothing of it in RAM, and `OSError` when the pager could not
        put a page into memory.
        """
        with ffi.from_buffer("uint8_t[]", buffer) as source:
            if not 0 <= offset <= offset + length <= len(source):
                raise ValueError(f"{length} bytes from {offset} on are not in a buffer of {len(source)}")
            stop = int(lib.tvmm_intake_take(self._raw, source + offset, length, self._consumed))
        if stop == lib.TVMM_LANE_STOP_FAILED:
            raise OSError(self._raw.failure, os.strerror(self._raw.failure))
        if stop == lib.TVMM_LANE_STOP_REFUSED:
            raise refusal(self._raw)
        self.round_ended = stop == lib.TVMM_LANE_STOP_ROUND_END
        return int(self._consumed[0])

    @property
    def between_frames(self) -> bool:
        """Whether the stream may end here."""
        return not self._raw.part and not self._raw.have


_REFUSALS = {
    int(lib.TVMM_LANE_BAD_MAGIC): "a frame of pages starts with {value:#x} and not with {limit:#x}",
    int(lib.TVMM_LANE_BAD_KIND): "there are no frames of kind {value}",
    int(lib.TVMM_LANE_BAD_ENCODING): "there are no pages of encoding {value}",
    int(lib.TVMM_LANE_BAD_BLOCK): "a frame is for block {value}, of {limit}",
    int(lib.TVMM_LANE_BAD_COUNT): "a frame has {value} pages, of at most {limit} and at least one",
    int(lib.TVMM_LANE_BAD_PAYLOAD): "a frame has a payload of {value} bytes, where its pages take {limit}",
    int(lib.TVMM_LANE_BAD_NUMBER): "a frame of pages has a number, {value}",
    int(lib.TVMM_LANE_BAD_ORDER): "page {value} comes behind page {limit} in a frame",
    int(lib.TVMM_LANE_BAD_RANGE): "a frame has page {value} of a block of {limit}",
    int(lib.TVMM_LANE_TRUNCATED): "the stream of pages ended within a frame",
}


def refusal(raw: Any) -> ProtocolError:
    """What a `struct tvmm_intake` has refused."""
    value, limit = int(raw.refused_value), int(raw.refused_limit)
    return ProtocolError(_REFUSALS[int(raw.refusal)].format(value=value, limit=limit))


def _new_lane(group: LaneGroup, waker: Any, fd: int) -> Any:
    raw = lib.tvmm_lane_new(group.raw, waker, fd)
    if not raw:
        raise HostError("the host has no memory for a lane", "free some and start again")
    return ffi.gc(raw, lib.tvmm_lane_free)


def _counters(raw: Any) -> LaneCounters:
    counters = raw.counters
    return LaneCounters(counters.normal, counters.zero, counters.unchanged, counters.bytes, counters.frames)
