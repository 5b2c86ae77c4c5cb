"""The destination of a migration as a table: the counterpart of `tvmm.migration.source`.

The guest runs here after COMMIT and never before. Whoever is asked what has become of it before COMMIT has come
abandons it with the answer, so that a source that resumes upon that answer is the only one. After COMMIT the guest is
the destination's, connected or not, unless it cannot be started: then it says so and has abandoned it.

After post-copy's State the guest is started with pages missing. It then runs in three more states, with a connection
over which they come, without one, and while a new one is being made. From these it only ever comes to `RUNNING`, when
the last page is here, or nobody needs the missing ones any more.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["INCOMPLETE", "MAY_RUN", "TERMINAL", "TRANSITIONS", "DestinationEvent", "DestinationState", "after"]


class DestinationState(Enum):
    """Where the destination is."""

    WAITING = "waiting"
    """Nobody has come yet."""
    RECEIVING = "receiving"
    """Pages come in."""
    LOADING = "loading"
    """The state has come and is being loaded."""
    READY = "ready"
    """All is here and well; without COMMIT nothing runs."""
    STARTING = "starting"
    """COMMIT has come: disks are locked, the guest is started."""
    RUNNING = "running"
    ABANDONED = "abandoned"
    FETCHING = "fetching"
    """Post-copy: the guest runs, and gets its missing pages from the source."""
    SEVERED = "severed"
    """Post-copy: the same without a connection. What touches a missing page waits."""
    REJOINING = "rejoining"
    """Post-copy: the source is here again, and makes its connections."""


class DestinationEvent(Enum):
    """What happens to it. The first seven are messages of the source."""

    HELLO = "Hello"
    STATE = "State"
    COMMIT = "Commit"
    CANCEL = "Cancel"
    QUERY = "Query"
    GOODBYE = "Goodbye"
    RECOVER = "Recover"
    LOADED = "state loaded"
    STARTED = "guest started"
    STARTED_PARTIAL = "guest started, pages missing"
    REJOINED = "connections made anew"
    COMPLETE = "no page missing"
    BROKEN = "something here fails"
    LOST = "connection lost"
    OVERDUE = "no word in time"


_S, _E = DestinationState, DestinationEvent

TRANSITIONS: dict[tuple[DestinationState, DestinationEvent], DestinationState] = {
    (_S.WAITING, _E.HELLO): _S.RECEIVING,
    (_S.WAITING, _E.QUERY): _S.WAITING,
    (_S.RECEIVING, _E.STATE): _S.LOADING,
    (_S.RECEIVING, _E.CANCEL): _S.ABANDONED,
    (_S.RECEIVING, _E.QUERY): _S.ABANDONED,
    (_S.RECEIVING, _E.BROKEN): _S.ABANDONED,
    (_S.RECEIVING, _E.LOST): _S.ABANDONED,
    (_S.RECEIVING, _E.OVERDUE): _S.ABANDONED,
    (_S.LOADING, _E.LOADED): _S.READY,
    (_S.LOADING, _E.CANCEL): _S.ABANDONED,
    (_S.LOADING, _E.QUERY): _S.ABANDONED,
    (_S.LOADING, _E.BROKEN): _S.ABANDONED,
    (_S.LOADING, _E.LOST): _S.ABANDONED,
    (_S.LOADING, _E.OVERDUE): _S.ABANDONED,
    (_S.READY, _E.COMMIT): _S.STARTING,
    (_S.READY, _E.CANCEL): _S.ABANDONED,
    (_S.READY, _E.QUERY): _S.ABANDONED,
    (_S.READY, _E.BROKEN): _S.ABANDONED,
    (_S.READY, _E.LOST): _S.ABANDONED,
    (_S.READY, _E.OVERDUE): _S.ABANDONED,
    (_S.STARTING, _E.STARTED): _S.RUNNING,
    (_S.STARTING, _E.STARTED_PARTIAL): _S.FETCHING,
    (_S.STARTING, _E.BROKEN): _S.ABANDONED,
    (_S.STARTING, _E.QUERY): _S.STARTING,
    (_S.STARTING, _E.LOST): _S.STARTING,
    (_S.RUNNING, _E.QUERY): _S.RUNNING,
    (_S.RUNNING, _E.GOODBYE): _S.RUNNING,
    (_S.RUNNING, _E.RECOVER): _S.RUNNING,
    (_S.RUNNING, _E.LOST): _S.RUNNING,
    (_S.ABANDONED, _E.STATE): _S.ABANDONED,
    (_S.ABANDONED, _E.COMMIT): _S.ABANDONED,
    (_S.ABANDONED, _E.CANCEL): _S.ABANDONED,
    (_S.ABANDONED, _E.QUERY): _S.ABANDONED,
    (_S.ABANDONED, _E.LOST): _S.ABANDONED,
    (_S.FETCHING, _E.COMPLETE): _S.RUNNING,
    (_S.FETCHING, _E.QUERY): _S.FETCHING,
    (_S.FETCHING, _E.RECOVER): _S.REJOINING,
    (_S.FETCHING, _E.BROKEN): _S.SEVERED,
    (_S.FETCHING, _E.LOST): _S.SEVERED,
    (_S.SEVERED, _E.COMPLETE): _S.RUNNING,
    (_S.SEVERED, _E.QUERY): _S.SEVERED,
    (_S.SEVERED, _E.RECOVER): _S.REJOINING,
    (_S.REJOINING, _E.REJOINED): _S.FETCHING,
    (_S.REJOINING, _E.COMPLETE): _S.RUNNING,
    (_S.REJOINING, _E.QUERY): _S.REJOINING,
    (_S.REJOINING, _E.BROKEN): _S.SEVERED,
    (_S.REJOINING, _E.LOST): _S.SEVERED,
    (_S.REJOINING, _E.OVERDUE): _S.SEVERED,
}

TERMINAL = frozenset({_S.RUNNING, _S.ABANDONED})

INCOMPLETE = frozenset({_S.FETCHING, _S.SEVERED, _S.REJOINING})
"""Where the guest runs and pages of it are at the source alone."""

MAY_RUN = frozenset({_S.RUNNING}) | INCOMPLETE
"""Where the guest runs at the destination."""


def after(state: DestinationState, event: DestinationEvent) -> DestinationState | None:
    """The state that `event` leads to; None if it has no place there: a message then breaks the protocol."""
    return TRANSITIONS.get((state, event))
