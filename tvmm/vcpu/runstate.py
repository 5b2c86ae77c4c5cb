"""The run states of a vCPU and what may follow what. Nothing else changes a state.

=========  ========  ==========  ==========
state      resume    pause       finish
=========  ========  ==========  ==========
Paused     Running   Paused      Finished
Running    Running   Paused      Finished
Finished   illegal   illegal     Finished
=========  ========  ==========  ==========
"""

from __future__ import annotations

from enum import Enum

__all__ = ["TRANSITIONS", "RunEvent", "RunState", "after"]


class RunState(Enum):
    """Where a vCPU thread is, or is asked to be."""

    PAUSED = "paused"
    RUNNING = "running"
    FINISHED = "finished"


class RunEvent(Enum):
    """What can be asked of a vCPU."""

    RESUME = "resume"
    PAUSE = "pause"
    FINISH = "finish"


TRANSITIONS = {
    (RunState.PAUSED, RunEvent.RESUME): RunState.RUNNING,
    (RunState.PAUSED, RunEvent.PAUSE): RunState.PAUSED,
    (RunState.PAUSED, RunEvent.FINISH): RunState.FINISHED,
    (RunState.RUNNING, RunEvent.RESUME): RunState.RUNNING,
    (RunState.RUNNING, RunEvent.PAUSE): RunState.PAUSED,
    (RunState.RUNNING, RunEvent.FINISH): RunState.FINISHED,
    (RunState.FINISHED, RunEvent.FINISH): RunState.FINISHED,
}


def after(state: RunState, event: RunEvent) -> RunState:
    """The state that `event` leads to. Raises `RuntimeError` for what the table does not have."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise RuntimeError(f"a {state.value} vCPU cannot {event.value}") from None
