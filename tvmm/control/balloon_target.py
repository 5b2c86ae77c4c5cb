"""What the control socket asks of a machine's balloon."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BalloonInfo", "BalloonTarget"]


class BalloonInfo(NamedTuple):
    """A balloon, as it is now. Sizes are in bytes, counts in pages of 4 KiB since the machine was started."""

    id: str
    memory: int
    """What the guest has without a balloon."""
    target: int
    """What it is to have."""
    actual: int
    """What it has, as its driver says."""
    driver: bool
    """Whether it has a driver."""
    deflate_on_oom: bool
    """Whether the driver may take memory back when it has no other."""
    counters: Mapping[str, int]
    """Pages by what was done to them."""


class BalloonTarget(Protocol):
    """A balloon."""

    def info(self) -> BalloonInfo:
        """As it is now."""

    async def resident(self) -> int:
        """Bytes of the guest's RAM that the host has given memory for."""

    def set_memory(self, memory: int) -> None:
        """How many bytes the guest is to have, from 1 up; as much as there is for more. The driver does it in its own
        time, if there is one.
        """

    def stats(self) -> tuple[Mapping[str, int | None], int]:
        """The statistics that came last, by QEMU's names, None for those that the driver does not have; and when they
        came, in seconds since 1970, 0 for never.
        """

    async def fresh_stats(self, patience_s: float) -> bool:
        """Have the guest send new ones. False: they did not come in time, or there is no driver that sends them."""

    @property
    def interval_s(self) -> int:
        """Seconds between two requests for statistics, 0 for none."""

    def set_interval(self, seconds: int) -> None:
        """From now on. Raises `ValueError` if that is none."""
