"""The run-state table: every event in every state."""

from __future__ import annotations

import itertools

import pytest

from tvmm.vcpu.runstate import TRANSITIONS, RunEvent, RunState, after


@pytest.mark.parametrize(("state", "event"), list(itertools.product(RunState, RunEvent)))
def test_every_event_in_every_state(state: RunState, event: RunEvent) -> None:
    """Leads where the table says, or is refused; only FINISH is possible at the end."""
    if (state, event) in TRANSITIONS:
        assert after(state, event) is TRANSITIONS[state, event]
    else:
        assert state is RunState.FINISHED
        with pytest.raises(RuntimeError, match=f"a {state.value} vCPU cannot {event.value}"):
            after(state, event)


def test_finished_is_final() -> None:
    """Nothing leads out of it."""
    assert all(to is RunState.FINISHED for (state, _), to in TRANSITIONS.items() if state is RunState.FINISHED)
