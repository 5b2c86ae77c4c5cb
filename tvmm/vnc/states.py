"""One viewer's connection as a table: which step leads where, and what may be called in which state.

Versions differ in one step: with 3.3 the server names the security type, from 3.7 on the viewer chooses from a list.
"""

from __future__ import annotations

from enum import Enum

from tvmm.vnc.errors import RfbMisuse

__all__ = ["TRANSITIONS", "State", "Step", "after", "states_table"]


class State(Enum):
    """Where a connection is."""

    VERSION = "version"
    """Both say which version they speak."""
    CHOICE = "choice"
    """The viewer chooses a security type."""
    EXCHANGE = "exchange"
    """The security type's own exchange."""
    UPGRADE = "upgrade"
    """What comes next is inside TLS; the shell makes it, and until then the viewer's bytes wait."""
    INIT = "init"
    """The viewer is to say whether it shares the screen."""
    ADMISSION = "admission"
    """The shell decides whether it gets it; until then the viewer's bytes wait."""
    RUNNING = "running"
    CLOSED = "closed"
    """Nothing is read any more; what has been written may still be sent."""


class Step(Enum):
    """What happens to it."""

    DECIDED = "security type named (3.3)"
    OFFERED = "security types offered (3.7, 3.8)"
    CHOSEN = "viewer chose one"
    TLS = "exchange wants TLS"
    TLS_READY = "TLS begins"
    PASSED = "exchange passed"
    CLIENT_INIT = "ClientInit"
    ADMITTED = "let in"
    END = "refused, failed, broken or closed"


_S, _T = State, Step

TRANSITIONS: dict[tuple[State, Step], State] = {
    (_S.VERSION, _T.DECIDED): _S.EXCHANGE,
    (_S.VERSION, _T.OFFERED): _S.CHOICE,
    (_S.CHOICE, _T.CHOSEN): _S.EXCHANGE,
    (_S.EXCHANGE, _T.TLS): _S.UPGRADE,
    (_S.EXCHANGE, _T.PASSED): _S.INIT,
    (_S.UPGRADE, _T.TLS_READY): _S.EXCHANGE,
    (_S.INIT, _T.CLIENT_INIT): _S.ADMISSION,
    (_S.ADMISSION, _T.ADMITTED): _S.RUNNING,
    **{(state, _T.END): _S.CLOSED for state in State},
}

def after(state: State, step: Step) -> State:
    """The state that `step` leads to. Raises `RfbMisuse` if it has no place in `state`."""
    following = TRANSITIONS.get((state, step))
    if following is None:
        raise RfbMisuse(f"{step.value!r} has no place in the state {state.value!r}")
    return following


def states_table() -> str:
    """`TRANSITIONS` in Markdown, for docs/vnc-protocol.md."""
    lines = ["| state | step | next state |", "| --- | --- | --- |"]
    for (state, step), following in TRANSITIONS.items():
        if step is not _T.END:
            lines.append(f"| {state.value} | {step.value} | {following.value} |")
    lines.append(f"| any | {_T.END.value} | {_S.CLOSED.value} |")
    return "\n".join(lines)
