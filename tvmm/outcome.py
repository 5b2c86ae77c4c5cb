"""How a machine ended."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["SHUTDOWN_REASONS", "STATUS_CRASHED", "STATUS_MIGRATED", "STATUS_SAVED", "Outcome"]

STATUS_CRASHED = 3
STATUS_MIGRATED = 4
STATUS_SAVED = 5


class Outcome(NamedTuple):
    """`kind` is ``poweroff``, ``reset`` (and it was not to start again), ``halted``, ``crashed``, ``debug-exit``,
    ``migrated`` (the guest goes on elsewhere), ``saved`` (it is in a file) or ``quit``; `status` the exit status that
    goes with it; `report` says more, in lines, where there is more to say: of a guest that moved or was saved the first
    says where to.
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
    "migrated": "host-qmp-quit",
    "saved": "host-qmp-quit",
}
"""QEMU's ShutdownCause for each kind of outcome. A QEMU whose guest has moved stays until somebody ends it, as if that
were done at once."""
