"""The source of a migration as a table: which event leads where, and in which states its guest may run.

The source has the guest until it has sent COMMIT. Up to then whatever goes wrong ends in a state in which the guest
goes on here. From then on it is the destination's word that counts: it says that the guest runs there, or that it has
abandoned it. When that word is lost the source asks for it on a new connection. If nobody can be asked, the guest
stays here, paused, and a person decides.

Post-copy has states of its own from the pause on, so that no event can end it as if all pages had moved: the source is
done when the destination says that it has every page, and never before. A connection that breaks after COMMIT costs
nothing but time; it is made anew for as long as both processes live.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["MAY_RUN", "SERVES", "TERMINAL", "TRANSITIONS", "SourceEvent", "SourceState", "after"]


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
    PARTING = "parting"
    """Post-copy: the guest is paused; its state is on its way, and pages stay behind."""
    ENTRUSTING = "entrusting"
    """Post-copy: COMMIT is sent. The guest is the destination's, and pages of it are here alone."""
    INQUIRING = "inquiring"
    """Post-copy: its answer is lost and is being asked for."""
    UNHEARD = "unheard"
    """Post-copy: nobody answers. Asked again when the user wants it, who may also decide that it does not run there."""
    SERVING = "serving"
    """Post-copy: the guest runs there, and gets its pages from here."""
    CUT = "cut"
    """Post-copy: the same without a connection."""
    RECOVERING = "recovering"
    """Post-copy: a new one is being made."""


class SourceEvent(Enum):
    """What happens to it. The first ten are messages of the destination."""

    WELCOME = "Welcome"
    REFUSE = "Refuse"
    READY = "Ready"
    RUNNING = "Running"
    FAILURE = "Failure"
    ANSWER_RUNNING = "Answer: running"
    ANSWER_ABANDONED = "Answer: abandoned"
    ANSWER_UNKNOWN = "Answer: unknown"
    """Of somebody who has never heard of this migration: the destination that had is gone."""
    COMPLETE = "Complete"
    RESUMED = "Resumed"
    PAUSED = "guest paused"
    PARTED = "guest paused, pages stay behind"
    RECOVER = "recovery begins"
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
    (_S.COPYING, _E.PARTED): _S.PARTING,
    (_S.PARTING, _E.READY): _S.ENTRUSTING,
    (_S.PARTING, _E.FAILURE): _S.FAILED,
    (_S.PARTING, _E.BROKEN): _S.FAILED,
    (_S.PARTING, _E.LOST): _S.FAILED,
    (_S.PARTING, _E.OVERDUE): _S.FAILED,
    (_S.PARTING, _E.CANCEL): _S.CANCELLED,
    (_S.ENTRUSTING, _E.RUNNING): _S.SERVING,
    (_S.ENTRUSTING, _E.FAILURE): _S.FAILED,
    (_S.ENTRUSTING, _E.LOST): _S.INQUIRING,
    (_S.ENTRUSTING, _E.OVERDUE): _S.INQUIRING,
    (_S.ENTRUSTING, _E.CANCEL): _S.ENTRUSTING,
    (_S.INQUIRING, _E.ANSWER_RUNNING): _S.CUT,
    (_S.INQUIRING, _E.ANSWER_ABANDONED): _S.FAILED,
    (_S.INQUIRING, _E.ANSWER_UNKNOWN): _S.UNCERTAIN,
    (_S.INQUIRING, _E.LOST): _S.INQUIRING,
    (_S.INQUIRING, _E.OVERDUE): _S.UNHEARD,
    (_S.INQUIRING, _E.CANCEL): _S.UNHEARD,
    (_S.UNHEARD, _E.RECOVER): _S.INQUIRING,
    (_S.UNHEARD, _E.CANCEL): _S.UNCERTAIN,
    (_S.SERVING, _E.COMPLETE): _S.DONE,
    (_S.SERVING, _E.BROKEN): _S.CUT,
    (_S.SERVING, _E.LOST): _S.CUT,
    (_S.SERVING, _E.OVERDUE): _S.CUT,
    (_S.SERVING, _E.CANCEL): _S.SERVING,
    (_S.CUT, _E.RECOVER): _S.RECOVERING,
    (_S.CUT, _E.CANCEL): _S.CUT,
    (_S.RECOVERING, _E.RESUMED): _S.SERVING,
    (_S.RECOVERING, _E.COMPLETE): _S.DONE,
    (_S.RECOVERING, _E.BROKEN): _S.CUT,
    (_S.RECOVERING, _E.LOST): _S.CUT,
    (_S.RECOVERING, _E.OVERDUE): _S.CUT,
    (_S.RECOVERING, _E.CANCEL): _S.RECOVERING,
}

TERMINAL = frozenset({_S.DONE, _S.FAILED, _S.CANCELLED, _S.UNCERTAIN})

MAY_RUN = frozenset({_S.GREETING, _S.COPYING, _S.FAILED, _S.CANCELLED})
"""Where the guest may run at the source. In DONE it never does again; in the others it is paused."""

SERVES = frozenset({_S.SERVING, _S.CUT, _S.RECOVERING})
"""Where the guest runs at the destination and pages of it are nowhere but here."""


def after(state: SourceState, event: SourceEvent) -> SourceState | None:
    """The state that `event` leads to; None if it has no place there: a message then breaks the protocol."""
    return TRANSITIONS.get((state, event))
