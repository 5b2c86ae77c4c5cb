"""Pages made smaller with zstd: each packed piece is compressed by itself, with its length in front."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import zstandard

from tvmm.errors import ProtocolError
from tvmm.migration.link import LinkLost
from tvmm.migration.senders import BUFFER_BYTES

if TYPE_CHECKING:
    from tvmm.migration.senders import ThreadStream

__all__ = ["Compressor", "Decompressor"]

LEVEL = 1
"""The fastest of the ordinary ones: higher levels are slower than the networks that guests move over."""
_LENGTH = struct.Struct("<I")
MAX_PACKED = BUFFER_BYTES + (BUFFER_BYTES >> 8) + 64
"""What zstd can make of a piece at worst (ZSTD_compressBound)."""


class Compressor:
    """A `Codec`. One for each lane: the contexts are not to be shared."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdCompressor(level=LEVEL)

    def pack(self, data: memoryview) -> memoryview:
        """See `Codec`."""
        packed = self._context.compress(data)
        return memoryview(_LENGTH.pack(len(packed)) + packed)


class Decompressor:
    """A `Decoder`."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor()

    def read(self, stream: ThreadStream) -> memoryview:
        """See `Decoder`."""
        head = self._exactly(stream, _LENGTH.size, at_start=True)
        if not head:
            return memoryview(b"")
        (length,) = _LENGTH.unpack(head)
        if not 0 < length <= MAX_PACKED:
            raise ProtocolError(f"a compressed piece of {length} bytes, {MAX_PACKED} are allowed")
        packed = self._exactly(stream, length, at_start=False)
        try:
            # A frame says how much comes out of it, and is held to that.
            size = zstandard.frame_content_size(packed)
            if not 0 < size <= BUFFER_BYTES:
                raise ProtocolError("a compressed piece does not say its size, or is larger than allowed")
            return memoryview(self._context.decompress(packed))
        except zstandard.ZstdError as error:
            raise ProtocolError(f"a compressed piece is damaged: {error}") from error

    def _exactly(self, stream: ThreadStream, count: int, *, at_start: bool) -> bytearray:
        data = bytearray(count)
        view, done = memoryview(data), 0
        while done < count:
            got = stream.recv_into(view[done:])
            if not got:
                if at_start and not done:
                    return bytearray()
                raise LinkLost("a connection for pages ended within a piece")
            done += got
        return data
