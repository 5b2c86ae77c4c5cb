"""Devices that can be limited, as control clients see them."""

from __future__ import annotations

from tvmm.config.limits import DISK_WORDS, NET_WORDS, NO_LIMITS, Limits, Words

__all__ = ["FakeThrottle", "fake_limited"]


class FakeThrottle:
    """Remembers what it was given."""

    def __init__(self, kind: str, words: Words) -> None:
        self.kind = kind
        self.words = words
        self.limits = NO_LIMITS
        self.limit_waits = 0

    def set_limits(self, limits: Limits) -> None:
        """See `LimitTarget`."""
        self.limits = limits


def fake_limited() -> dict[str, FakeThrottle]:
    """Two disks and a network device."""
    return {
        "disk0": FakeThrottle("disk", DISK_WORDS),
        "disk1": FakeThrottle("disk", DISK_WORDS),
        "net0": FakeThrottle("net", NET_WORDS),
    }
