"""How a machine ended."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["SHUTDOWN_REASONS", "STATUS_CRASHED", "Outcome"]

STATUS_CRASHED = 3


class Outcome(NamedTuple):
    """`kind` is ``poweroff``, ``reset`` (and it was not to start again), ``halted``, ``crashed``, ``debug-exit`` or
    ``quit``; `status` the exit status that goes with it; `report` says more, in lines, where there is more to say.
    """

    kind: str
    status: int = 0
    report: str = ""


SHUTDOWN_REASONS = {
    "poweroff": "guest-shutdown",
    "reset": "guest-reset",
    "halted": "guest-shutdown",
    "crashed": "guest-panic",
    "debug-exit": "guest-shutdown",
    "quit": "host-qmp-quit",
}
"""QEMU's ShutdownCause for each kind of outcome."""
