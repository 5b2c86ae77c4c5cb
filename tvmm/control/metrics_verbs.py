"""The command of the control socket about everything that a machine counts, and what it asks of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.control.target import ControlTarget, Json
    from tvmm.metrics.model import Reading

__all__ = ["MetricsTarget", "query_metrics"]


class MetricsTarget(Protocol):
    """The numbers of a machine, as control clients see them."""

    async def metrics(self) -> Reading:
        """All of them, as they are now."""


async def query_metrics(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Every metric with its samples, and when that was: ``at`` is in seconds of a clock that only goes forward."""
    from tvmm.metrics.model import to_json

    reading = await target.metrics()
    return {"machine": target.name, "at": reading.at, "metrics": to_json(reading.samples)}
