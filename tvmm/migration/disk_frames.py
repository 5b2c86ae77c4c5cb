"""The bytes of a connection that carries blocks of disks, from the source alone.

::

    frame   kind u8 | zero u8 | disk u16 | length u32 | offset u64 | data, of DATA alone

Numbers are little-endian. `disk` is the place in the source's list of images. DATA is followed by `length` bytes for
byte `offset` of that disk. ZEROES says that so many are zero there: where the destination can it has a hole for them,
so that what is sparse stays so, and what the guest has discarded takes no room. END is the end of a round, with its
number in `offset`; the last round has bit 63 of it set. Later frames overwrite earlier ones: one connection has all.
Nothing here does IO.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DATA_MAX",
    "HEADER_BYTES",
    "LAST_ROUND",
    "ROUND_LIMIT",
    "SECTOR",
    "ZEROES_MAX",
    "DiskFrame",
    "FrameKind",
    "check_frame",
]

_HEADER = struct.Struct("<BBHIQ")
HEADER_BYTES = _HEADER.size
SECTOR = 512
DATA_MAX = 512 << 10
"""Bytes of one frame: what the destination has a buffer for."""
ZEROES_MAX = 1 << 30
"""Bytes that one frame may have zeroed: a destination that can only write them is out of it again soon."""
LAST_ROUND = 1 << 63
"""In the number of a round: the guest is paused, and nothing follows."""
ROUND_LIMIT = 1 << 32
"""Of rounds, without that bit: a source does not keep the destination going for ever."""


class FrameKind(IntEnum):
    """What a frame is."""

    DATA = 1
    ZEROES = 2
    END = 3


class DiskFrame(NamedTuple):
    """A frame's header."""

    kind: FrameKind
    disk: int
    length: int
    offset: int

    def to_bytes(self) -> bytes:
        """As it is sent."""
        return _HEADER.pack(self.kind, 0, self.disk, self.length, self.offset)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> DiskFrame:
        """Raises `ProtocolError` for a kind that is none."""
        kind, zero, disk, length, offset = _HEADER.unpack(data)
        if kind not in tuple(FrameKind) or zero:
            raise ProtocolError("a connection for disks carries something that is no frame")
        return cls(FrameKind(kind), disk, length, offset)


def check_frame(frame: DiskFrame, sizes: Sequence[int], rounds: int) -> DiskFrame:
    """`frame`, if it may follow `rounds` rounds for disks of `sizes` bytes, 0 for those that are not copied.

    Raises `ProtocolError`: nothing that a source sends writes outside of the images that it was let have.
    """
    if frame.kind is FrameKind.END:
        if frame.disk or frame.length or frame.offset & ~LAST_ROUND != rounds or rounds >= ROUND_LIMIT:
            raise ProtocolError(f"a connection for disks ends a round that is not number {rounds}")
        return frame
    size = sizes[frame.disk] if frame.disk < len(sizes) else 0
    most = DATA_MAX if frame.kind is FrameKind.DATA else ZEROES_MAX
    if not 0 < frame.length <= most or frame.length % SECTOR or frame.offset % SECTOR:
        raise ProtocolError(f"a connection for disks has a frame of {frame.length} bytes at {frame.offset}")
    if frame.offset > size or frame.length > size - frame.offset:
        raise ProtocolError(f"a connection for disks writes behind the end of disk {frame.disk}")
    return frame
