"""How a machine ended."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["STATUS_CRASHED", "Outcome"]

STATUS_CRASHED = 3


class Outcome(NamedTuple):
    """`kind` is ``poweroff``, ``reset`` (and it was not to start again), ``halted``, ``crashed``, ``debug-exit`` or
    ``quit``; `status` the exit status that goes with it; `report` says more, in lines, where there is more to say.
    """

    kind: str
    status: int = 0
    report: str = ""
