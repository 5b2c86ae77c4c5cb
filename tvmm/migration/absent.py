"""Bitmaps of pages as messages: those that a destination lacks (`Absent`), and those that it has got (`Received`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from tvmm.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tvmm.kvm.pages import PageBitmap
    from tvmm.migration.messages import Absent, Received

__all__ = ["MAX_BITS_BYTES", "difference", "pieces_of", "take_piece"]

T = TypeVar("T")

MAX_BITS_BYTES = 64 << 10
"""Of one message, 2 GiB of RAM: a peer does not choose how much this side takes at once."""
PIECE_BYTES = 16 << 10
"""Sent at once. Pieces without a bit are not sent at all."""


def pieces_of(kind: Callable[[int, int, bytes], T], bitmap: PageBitmap) -> Iterator[T]:
    """Messages of `kind` that name every page whose bit is set."""
    for number, name in enumerate(bitmap.names):
        data = bytes(bitmap.words(name).cast("B"))
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES].rstrip(b"\0")
            rest = piece.lstrip(b"\0")
            if rest:
                yield kind(number, 8 * (start + len(piece) - len(rest)), rest)


def take_piece(message: Absent | Received, bitmap: PageBitmap) -> int:
    """Set the bits that a message of the peer names: how many were not set before. Raises `ProtocolError`."""
    if not 0 <= message.block < len(bitmap.names):
        raise ProtocolError(f"the peer names pages of block {message.block}, of {len(bitmap.names)}")
    pages, length = bitmap.pages[message.block], len(message.bits)
    start, odd = divmod(message.first, 8)
    if odd or start < 0 or not 0 < length <= MAX_BITS_BYTES:
        raise ProtocolError(f"the peer names pages from {message.first} on in {length} bytes")
    bits = int.from_bytes(message.bits, "little")
    if message.first + bits.bit_length() > pages:
        raise ProtocolError(f"the peer names page {message.first + bits.bit_length() - 1} of a block of {pages}")
    words = bitmap.words(bitmap.names[message.block]).cast("B")
    # Bytes behind the last word are zeros, or the check above would have found a page there.
    end = min(start + length, len(words))
    before = int.from_bytes(words[start:end], "little")
    words[start:end] = (before | bits).to_bytes(end - start, "little")
    return (bits & ~before).bit_count()


def difference(whole: PageBitmap, less: PageBitmap, into: PageBitmap) -> None:
    """`into` becomes what is in `whole` and not in `less`; all are of the same blocks."""
    for name in whole.names:
        target = into.words(name).cast("B")
        left = int.from_bytes(whole.words(name).cast("B"), "little") & ~int.from_bytes(
            less.words(name).cast("B"), "little"
        )
        target[:] = left.to_bytes(len(target), "little")
