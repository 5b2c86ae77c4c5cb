"""The rate limits of a device, as control clients have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tvmm.config.limits import Limits, Words

__all__ = ["Limited", "Throttle"]


class Limited(Protocol):
    """A runner that keeps to limits."""

    @property
    def limits(self) -> Limits:
        """As they are."""

    @property
    def limit_waits(self) -> int:
        """How often somebody has had to wait."""

    def set_limits(self, limits: Limits) -> None:
        """From now on these."""


class Throttle:
    """`LimitTarget` of `tvmm.control.limit_target`."""

    def __init__(self, kind: str, words: Words, runner: Limited) -> None:
        self.kind = kind
        self.words = words
        self.set_limits = runner.set_limits
        self._runner = runner

    @property
    def limits(self) -> Limits:
        """As they are."""
        return self._runner.limits

    @property
    def limit_waits(self) -> int:
        """How often somebody has had to wait."""
        return self._runner.limit_waits
