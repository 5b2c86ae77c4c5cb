"""What the control socket asks of devices whose rate can be limited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.config.limits import Limits, Words

__all__ = ["LimitTarget", "LimitTargets"]


class LimitTarget(Protocol):
    """One device."""

    @property
    def kind(self) -> str:
        """`disk` or `net`."""

    @property
    def words(self) -> Words:
        """How it spells its limits."""

    @property
    def limits(self) -> Limits:
        """As they are."""

    @property
    def limit_waits(self) -> int:
        """How often one of its queues has had to wait for them."""

    def set_limits(self, limits: Limits) -> None:
        """From now on these, which have been checked, also for what waits already."""


class LimitTargets(Protocol):
    """A machine."""

    def limited(self) -> Mapping[str, LimitTarget]:
        """Its devices that can be limited, by id, whether they are or not."""
