"""A save as control clients see it: `SaveStatus` as JSON and back, and the event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.snapshot.status import STATES, SaveStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.control.target import Json

__all__ = ["EVENT", "save_info", "save_status_of"]

EVENT = "X_SAVE"
"""Each new state; data has `status` and, as `x-info`, what `query-x-save` would answer."""

_NUMBERS = {
    "total": "total",
    "done": "done",
    "data": "data",
    "file-size": "file_bytes",
    "total-time": "total_ms",
    "pause": "pause_ms",
}


def save_info(status: SaveStatus) -> dict[str, Json]:
    """What `query-x-save` answers."""
    if status.state == "none":
        return {"status": "none"}
    info: dict[str, Json] = {"status": status.state, "path": status.path}
    info |= {name: getattr(status, field) for name, field in _NUMBERS.items()}
    info |= {"encrypted": status.encrypted, "stop": status.stopped}
    if status.live_by:
        info["live-by"] = status.live_by
    if status.error:
        info["error-desc"] = f"{status.error}; {status.error_hint}" if status.error_hint else status.error
    return info


def save_status_of(info: Mapping[str, Any]) -> SaveStatus:
    """The record back. Raises `ValueError` for what no machine answers."""
    state = info.get("status")
    if state not in STATES:
        raise ValueError("the machine tells of a save in a state that is not known")
    numbers = {field: info.get(name, 0) for name, field in _NUMBERS.items()}
    if any(type(value) not in (int, float) for value in numbers.values()):
        raise ValueError("the machine tells of a save in figures that are none")
    return SaveStatus(
        state,
        str(info.get("path", "")),
        **numbers,
        encrypted=bool(info.get("encrypted")),
        stopped=bool(info.get("stop")),
        error=str(info.get("error-desc", "")),
        live_by=str(info.get("live-by", "")),
    )
