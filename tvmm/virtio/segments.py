"""Buffers of a chain as segments, cut by bytes.

How a driver divides a request into descriptors means nothing (virtio 1.3, 2.7.4.1): a header may come in sixteen
pieces, or share its descriptor with the data. So requests are cut out of the chain by length, and only here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Segment", "Segments", "gather", "split", "total"]


class Segment(NamedTuple):
    """`length` bytes at `address`, guest-physical or host-virtual: whatever the ring gives its caller."""

    address: int
    length: int


Segments = tuple[Segment, ...]


def total(segments: Segments) -> int:
    """Bytes in all of them."""
    return sum(segment.length for segment in segments)


def split(segments: Segments, length: int) -> tuple[Segments, Segments]:
    """The first `length` bytes and the rest; fewer first if there are fewer. No empty segment comes out."""
    head: list[Segment] = []
    for position, (address, available) in enumerate(segments):
        if length < available:
            tail = Segment(address + length, available - length)
            if length:
                head.append(Segment(address, length))
            return tuple(head), (tail, *segments[position + 1 :])
        if available:
            head.append(segments[position])
        length -= available
    return tuple(head), ()


def gather(segments: Segments, read: Callable[[int, int], bytes]) -> bytes:
    """The bytes of all segments in one string; the caller has looked at how many they are."""
    return b"".join(read(address, length) for address, length in segments)
