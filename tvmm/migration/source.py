"""The source of a migration as a table: which event leads where, and in which states its guest may run.

The source has the guest until it has sent COMMIT. Up to then whatever goes wrong ends in a state in which the guest
goes on here. From then on it is the destination's word that counts: it says that the guest runs there, or that it has
abandoned it. When that word is lost the source asks for it on a new connection. If nobody can be asked, the guest
stays here, paused, and a person decides.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["MAY_RUN", "TERMINAL", "TRANSITIONS", "SourceEvent", "SourceState", "after"]


class SourceState(Enum):
    """Where the source is."""

    GREETING = "greeting"
    """Connected; the destination is looking at what the machine is."""
    COPYING = "copying"
    """Pages flow while the guest runs."""
    FINISHING = "finishing"
    """The guest is paused; the last pages and the state are on their way."""
    COMMITTING = "committing"
    """COMMIT is sent: the guest is the destination's unless it says otherwise."""
    ASKING = "asking"
    """Its answer is lost and is being asked for."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNCERTAIN = "uncertain"
    """Nobody answers: paused here, until a person decides."""


class SourceEvent(Enum):
    """What happens to it. The first eight are messages of the destination."""

    WELCOME = "Welcome"
    REFUSE = "Refuse"
    READY = "Ready"
    RUNNING = "Running"
    FAILURE = "Failure"
    ANSWER_RUNNING = "Answer: running"
    ANSWER_ABANDONED = "Answer: abandoned"
    ANSWER_UNKNOWN = "Answer: unknown"
    """Of somebody who has never heard of this migration: the destination that had is gone."""
    PAUSED = "guest paused"
    BROKEN = "something here fails"
    LOST = "connection lost"
    OVERDUE = "no word in time"
    CANCEL = "cancelled by the user"


_S, _E = SourceState, SourceEvent

TRANSITIONS: dict[tuple[SourceState, SourceEvent], SourceState] = {
    (_S.GREETING, _E.WELCOME): _S.COPYING,
    (_S.GREETING, _E.REFUSE): _S.FAILED,
    (_S.GREETING, _E.FAILURE): _S.FAILED,
    (_S.GREETING, _E.BROKEN): _S.FAILED,
    (_S.GREETING, _E.LOST): _S.FAILED,
    (_S.GREETING, _E.OVERDUE): _S.FAILED,
    (_S.GREETING, _E.CANCEL): _S.CANCELLED,
    (_S.COPYING, _E.PAUSED): _S.FINISHING,
    (_S.COPYING, _E.FAILURE): _S.FAILED,
    (_S.COPYING, _E.BROKEN): _S.FAILED,
    (_S.COPYING, _E.LOST): _S.FAILED,
    (_S.COPYING, _E.OVERDUE): _S.FAILED,
    (_S.COPYING, _E.CANCEL): _S.CANCELLED,
    (_S.FINISHING, _E.READY): _S.COMMITTING,
    (_S.FINISHING, _E.FAILURE): _S.FAILED,
    (_S.FINISHING, _E.BROKEN): _S.FAILED,
    (_S.FINISHING, _E.LOST): _S.FAILED,
    (_S.FINISHING, _E.OVERDUE): _S.FAILED,
    (_S.FINISHING, _E.CANCEL): _S.CANCELLED,
    (_S.COMMITTING, _E.RUNNING): _S.DONE,
    (_S.COMMITTING, _E.FAILURE): _S.FAILED,
    (_S.COMMITTING, _E.LOST): _S.ASKING,
    (_S.COMMITTING, _E.OVERDUE): _S.ASKING,
    (_S.COMMITTING, _E.CANCEL): _S.COMMITTING,
    (_S.ASKING, _E.ANSWER_RUNNING): _S.DONE,
    (_S.ASKING, _E.ANSWER_ABANDONED): _S.FAILED,
    (_S.ASKING, _E.ANSWER_UNKNOWN): _S.UNCERTAIN,
    (_S.ASKING, _E.LOST): _S.ASKING,
    (_S.ASKING, _E.OVERDUE): _S.UNCERTAIN,
    (_S.ASKING, _E.CANCEL): _S.UNCERTAIN,
}

TERMINAL = frozenset({_S.DONE, _S.FAILED, _S.CANCELLED, _S.UNCERTAIN})

MAY_RUN = frozenset({_S.GREETING, _S.COPYING, _S.FAILED, _S.CANCELLED})
"""Where the guest may run at the source. In DONE it never does again; in the others it is paused."""


def after(state: SourceState, event: SourceEvent) -> SourceState | None:
    """The state that `event` leads to; None if it has no place there: a message then breaks the protocol."""
    return TRANSITIONS.get((state, event))
