"""The protocol's tables as text, for docs/migration-protocol.md: ``python -m tvmm.migration.tables`` prints them.

The sequence is walked through both tables, so that it shows nothing that they do not allow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.migration import destination, source
from tvmm.migration.destination import DestinationEvent, DestinationState
from tvmm.migration.source import SourceEvent, SourceState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from enum import Enum

__all__ = ["destination_table", "postcopy_sequence", "sequence", "source_table"]

_TO_DESTINATION, _TO_SOURCE, _AT_SOURCE, _AT_DESTINATION = "-->", "<--", "   ", "    "

_STEPS: tuple[tuple[str, str, SourceEvent | None, DestinationEvent | None], ...] = (
    (_TO_DESTINATION, "Hello: what the machine is", None, DestinationEvent.HELLO),
    (_TO_SOURCE, "Welcome: token for the lanes", SourceEvent.WELCOME, None),
    (_TO_DESTINATION, "lanes: pages, round 0 ... n", None, None),
    (_TO_SOURCE, "RoundDone 0 ... n", None, None),
    (_AT_SOURCE, "the guest is paused", SourceEvent.PAUSED, None),
    (_TO_DESTINATION, "State: vCPUs and devices", None, DestinationEvent.STATE),
    (_TO_DESTINATION, "lanes: the last pages", None, None),
    (_AT_DESTINATION, "state loaded", None, DestinationEvent.LOADED),
    (_TO_SOURCE, "Ready: all is here and well", SourceEvent.READY, None),
    (_AT_SOURCE, "disks unlocked", None, None),
    (_TO_DESTINATION, "Commit: the guest is yours", None, DestinationEvent.COMMIT),
    (_AT_DESTINATION, "disks locked, guest started", None, DestinationEvent.STARTED),
    (_TO_SOURCE, "Running", SourceEvent.RUNNING, None),
    (_TO_DESTINATION, "Goodbye", None, DestinationEvent.GOODBYE),
)

_POSTCOPY_STEPS: tuple[tuple[str, str, SourceEvent | None, DestinationEvent | None], ...] = (
    *_STEPS[:4],
    (_TO_DESTINATION, "Absent: pages that are dirty", None, None),
    (_TO_SOURCE, "Discarded", None, None),
    (_AT_SOURCE, "the guest is paused", SourceEvent.PARTED, None),
    (_TO_DESTINATION, "Absent, Partial: what is not", None, None),
    (_TO_DESTINATION, "State: vCPUs and devices", None, DestinationEvent.STATE),
    (_TO_SOURCE, "requests for pages", None, None),
    (_AT_DESTINATION, "state loaded", None, DestinationEvent.LOADED),
    (_TO_SOURCE, "Ready: all else is here", SourceEvent.READY, None),
    (_AT_SOURCE, "disks unlocked", None, None),
    (_TO_DESTINATION, "Commit: the guest is yours", None, DestinationEvent.COMMIT),
    (_AT_DESTINATION, "disks locked, guest started", None, DestinationEvent.STARTED_PARTIAL),
    (_TO_SOURCE, "Running", SourceEvent.RUNNING, None),
    (_TO_DESTINATION, "lanes: all other pages", None, None),
    (_AT_SOURCE, "a broken network", SourceEvent.LOST, DestinationEvent.LOST),
    (_TO_DESTINATION, "Recover", SourceEvent.RECOVER, DestinationEvent.RECOVER),
    (_TO_SOURCE, "Received, Rejoin: token", None, None),
    (_AT_DESTINATION, "new lanes and requests", None, DestinationEvent.REJOINED),
    (_TO_SOURCE, "Resumed", SourceEvent.RESUMED, None),
    (_TO_DESTINATION, "lanes: what was not received", None, None),
    (_TO_SOURCE, "Complete", SourceEvent.COMPLETE, DestinationEvent.COMPLETE),
    (_TO_DESTINATION, "Goodbye", None, DestinationEvent.GOODBYE),
)


def sequence() -> str:
    """A migration that goes well, as a diagram with the states of both sides."""
    return _walked(_STEPS)


def postcopy_sequence() -> str:
    """One with post-copy, and a network that breaks once."""
    return _walked(_POSTCOPY_STEPS)


def _walked(steps: Sequence[tuple[str, str, SourceEvent | None, DestinationEvent | None]]) -> str:
    here, there = SourceState.GREETING, DestinationState.WAITING
    lines = [f"{'source':<12}{'':<36}destination", f"{here.value:<12}{'':<36}{there.value}"]
    for arrow, text, at_source, at_destination in steps:
        was = here, there
        if at_source is not None:
            following = source.after(here, at_source)
            assert following is not None, at_source
            here = following
        if at_destination is not None:
            moved = destination.after(there, at_destination)
            assert moved is not None, at_destination
            there = moved
        left = here.value if here is not was[0] else ""
        right = there.value if there is not was[1] else ""
        lines.append(f"{left:<12}{_drawn(arrow, text):<36}{right}".rstrip())
    return "\n".join(lines)


def _drawn(arrow: str, text: str) -> str:
    if arrow == _TO_DESTINATION:
        return f"--{text}--".ljust(34, "-")[:33] + ">"
    if arrow == _TO_SOURCE:
        return f"<-{text}--".ljust(34, "-")
    return f"  ({text})" if arrow == _AT_SOURCE else f"({text})".rjust(34)


def source_table() -> str:
    """`source.TRANSITIONS` as a table in Markdown."""
    return _table(source.TRANSITIONS, SourceState, source.MAY_RUN)


def destination_table() -> str:
    """`destination.TRANSITIONS` as a table in Markdown."""
    return _table(destination.TRANSITIONS, DestinationState, destination.MAY_RUN)


def _table(
    transitions: Mapping[tuple[Enum, Enum], Enum] | Mapping[tuple[SourceState, SourceEvent], SourceState]
    | Mapping[tuple[DestinationState, DestinationEvent], DestinationState],
    states: Iterable[Enum],
    may_run: frozenset[SourceState] | frozenset[DestinationState],
) -> str:
    lines = ["| state | guest | event | next state |", "| --- | --- | --- | --- |"]
    for state in states:
        guest = "may run" if state in may_run else "does not run"
        rows = [(event, to) for (at, event), to in transitions.items() if at is state]
        if not rows:
            lines.append(f"| {state.value} | {guest} | | |")
        for event, to in rows:
            lines.append(f"| {state.value} | {guest} | {event.value} | {to.value} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(sequence(), postcopy_sequence(), source_table(), destination_table(), sep="\n\n")
