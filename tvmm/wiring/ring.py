"""Features of queues, from options that all virtio devices have."""

from __future__ import annotations

from typing import Protocol

from tvmm.virtio.features import DEFAULT_RING, Ring

__all__ = ["RingOptions", "ring_features"]


class RingOptions(Protocol):
    """The part of a device's options that is about queues."""

    @property
    def packed(self) -> bool:
        """Offer the packed format."""

    @property
    def in_order(self) -> bool:
        """Offer to use buffers in their order."""

    @property
    def event_idx(self) -> bool:
        """Offer event indices."""

    @property
    def indirect_desc(self) -> bool:
        """Offer indirect descriptors."""


def ring_features(options: RingOptions) -> int:
    """What the options say of queues."""
    features = DEFAULT_RING
    for wanted, feature in (
        (options.packed, Ring.RING_PACKED),
        (options.in_order, Ring.IN_ORDER),
        (options.event_idx, Ring.EVENT_IDX),
        (options.indirect_desc, Ring.INDIRECT_DESC),
    ):
        features = features | feature if wanted else features & ~feature
    return features
