"""Source and destination together: every order of events, losses and deaths that there can be, walked through."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tvmm.migration import destination, source
from tvmm.migration.destination import DestinationEvent, DestinationState
from tvmm.migration.source import SourceEvent, SourceState

DEAD = "dead"
SAID_BY_DESTINATION = {
    "Welcome": SourceEvent.WELCOME,
    "Refuse": SourceEvent.REFUSE,
    "Ready": SourceEvent.READY,
    "Running": SourceEvent.RUNNING,
    "Failure": SourceEvent.FAILURE,
    "Complete": SourceEvent.COMPLETE,
    "Resumed": SourceEvent.RESUMED,
}
SAID_BY_SOURCE = {
    "Hello": DestinationEvent.HELLO,
    "State": DestinationEvent.STATE,
    "Partial State": DestinationEvent.STATE,
    "Recover": DestinationEvent.RECOVER,
    "Commit": DestinationEvent.COMMIT,
    "Cancel": DestinationEvent.CANCEL,
}
ANSWERS = {
    "running": SourceEvent.ANSWER_RUNNING,
    "abandoned": SourceEvent.ANSWER_ABANDONED,
    "unknown": SourceEvent.ANSWER_UNKNOWN,
}
ON_ENTRY = {
    SourceState.FINISHING: "State",
    SourceState.COMMITTING: "Commit",
    SourceState.PARTING: "Partial State",
    SourceState.ENTRUSTING: "Commit",
    SourceState.FAILED: "Cancel",
    SourceState.CANCELLED: "Cancel",
}


class World(NamedTuple):
    """Both sides, what is under way on the connection and on the one that asks, and whether it ever ran there."""

    src: SourceState | str = SourceState.GREETING
    dst: DestinationState | str = DestinationState.WAITING
    to_dst: tuple[str, ...] = ("Hello",)
    to_src: tuple[str, ...] = ()
    cut: bool = False
    told_dst: bool = False
    told_src: bool = False
    asked: bool = False
    answer: str = ""
    ran_there: bool = False
    partial: bool = False
    """The destination has the state of a guest whose pages have stayed behind."""
    whole: bool = False
    """No page is missing at the destination, which runs the guest."""


def source_does(world: World, event: SourceEvent) -> World | None:
    """The source after an event of its own, with what it sends."""
    assert isinstance(world.src, SourceState)
    state = source.after(world.src, event)
    if state is None:
        return None
    said = ON_ENTRY.get(state) if state is not world.src else None
    if state is SourceState.RECOVERING and world.src is not state:
        # A new connection: what was under way on the old one does not count any more.
        world = world._replace(to_dst=("Recover",), to_src=(), cut=world.dst == DEAD, told_dst=False, told_src=False)
    sent = (*world.to_dst, said) if said and not world.cut else world.to_dst
    return world._replace(src=state, to_dst=sent)


def destination_does(world: World, event: DestinationEvent) -> World | None:
    """The destination after an event, with what it sends."""
    assert isinstance(world.dst, DestinationState)
    state = destination.after(world.dst, event)
    if state is None:
        return None
    said = ""
    if state is not world.dst:
        said = {
            DestinationState.RECEIVING: "Welcome",
            DestinationState.READY: "Ready",
            DestinationState.RUNNING: "Running",
            DestinationState.ABANDONED: "Failure",
            DestinationState.FETCHING: "Running",
        }.get(state, "")
    if event is DestinationEvent.REJOINED:
        said = "Resumed"
    if event is DestinationEvent.COMPLETE or (event is DestinationEvent.RECOVER and state is DestinationState.RUNNING):
        said = "Complete"
    sent = (*world.to_src, said) if said and not world.cut else world.to_src
    ran = world.ran_there or state in destination.MAY_RUN
    whole = world.whole or state is DestinationState.RUNNING
    return world._replace(dst=state, to_src=sent, ran_there=ran, whole=whole)


def source_moves(world: World) -> list[World | None]:
    """What may happen next at the source."""
    if not isinstance(world.src, SourceState):
        return []
    moves: list[World | None] = [world._replace(src=DEAD, cut=True)]
    own = (SourceEvent.PAUSED, SourceEvent.PARTED, SourceEvent.RECOVER)
    for event in (*own, SourceEvent.BROKEN, SourceEvent.OVERDUE, SourceEvent.CANCEL):
        moves.append(source_does(world, event))
    if world.to_src:
        moves.append(source_does(world._replace(to_src=world.to_src[1:]), SAID_BY_DESTINATION[world.to_src[0]]))
    if world.cut and not world.told_src:
        moves.append(source_does(world._replace(to_src=(), told_src=True), SourceEvent.LOST))
    if world.src in (SourceState.ASKING, SourceState.INQUIRING):
        moves.append(world._replace(asked=True))
        if world.answer:
            moves.append(source_does(world._replace(answer="", asked=False), ANSWERS[world.answer]))
            moves.append(source_does(world._replace(answer="", asked=False), SourceEvent.LOST))
    return moves


def destination_moves(world: World) -> list[World | None]:
    """What may happen next at the destination; one that is dead may be there anew, and know nothing."""
    if world.dst == DEAD:
        return [world._replace(dst=DestinationState.WAITING, told_dst=True)]
    assert isinstance(world.dst, DestinationState)
    moves: list[World | None] = [world._replace(dst=DEAD, cut=True, to_dst=())]
    started = DestinationEvent.STARTED_PARTIAL if world.partial else DestinationEvent.STARTED
    own = (DestinationEvent.LOADED, started, DestinationEvent.REJOINED, DestinationEvent.COMPLETE)
    for event in (*own, DestinationEvent.BROKEN, DestinationEvent.OVERDUE):
        moves.append(destination_does(world, event))
    if world.to_dst and not world.told_dst:
        rest = world._replace(to_dst=world.to_dst[1:])
        if world.to_dst[0] == "Partial State":
            rest = rest._replace(partial=True)
        moves.append(destination_does(rest, SAID_BY_SOURCE[world.to_dst[0]]))
        if world.to_dst[0] == "Hello" and world.dst is DestinationState.WAITING and not world.cut:
            moves.append(rest._replace(to_src=(*world.to_src, "Refuse")))
    if world.cut and not world.told_dst:
        moves.append(destination_does(world._replace(to_dst=(), told_dst=True), DestinationEvent.LOST))
    if world.asked and not world.answer:
        moves.append(asked(world))
    return moves


def asked(world: World) -> World | None:
    """The destination answers a query; while it is starting the guest it waits with that."""
    after = destination_does(world, DestinationEvent.QUERY)
    if after is None or after.dst is DestinationState.STARTING:
        return None
    assert isinstance(after.dst, DestinationState)
    if after.dst in destination.MAY_RUN:
        return after._replace(answer="running")
    return after._replace(answer="unknown" if after.dst is DestinationState.WAITING else "abandoned")


def explore() -> set[World]:
    """Every world that can come about."""
    first = World()
    seen, todo = {first}, [first]
    while todo:
        world = todo.pop()
        cut = [] if world.cut else [world._replace(cut=True)]
        for following in (*cut, *source_moves(world), *destination_moves(world)):
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return seen


@pytest.fixture(scope="module")
def worlds() -> set[World]:
    """All of them."""
    return explore()


def test_the_walk_gets_everywhere(worlds: set[World]) -> None:
    """Every state of both tables comes about, so that the tests below are about all of them."""
    assert {world.src for world in worlds} == {*SourceState, DEAD}
    assert {world.dst for world in worlds} == {*DestinationState, DEAD}


def test_the_guest_never_runs_on_both_sides(worlds: set[World]) -> None:
    """Whatever is lost, late, cancelled or killed."""
    both = [world for world in worlds if world.src in source.MAY_RUN and world.dst in destination.MAY_RUN]
    assert not both


def test_a_guest_that_has_run_there_never_goes_on_here(worlds: set[World]) -> None:
    """Also when the destination has died since: what it wrote to the disks is in them."""
    assert not [world for world in worlds if world.ran_there and world.src in source.MAY_RUN]


def test_the_source_lets_go_only_of_a_guest_that_runs(worlds: set[World]) -> None:
    """DONE at the source means that it has run at the destination, with no page missing there."""
    assert not [world for world in worlds if world.src is SourceState.DONE and not (world.ran_there and world.whole)]


def test_pages_are_served_only_to_a_guest_that_runs(worlds: set[World]) -> None:
    """Nothing is recovered before COMMIT, nor for a guest that was taken back."""
    assert not [world for world in worlds if world.src in source.SERVES and not world.ran_there]


def test_a_guest_without_its_pages_never_loses_its_source(worlds: set[World]) -> None:
    """As long as the source lives it keeps what the destination lacks, or a person has said that it is in vain."""
    keeps = (*source.SERVES, SourceState.ENTRUSTING, SourceState.INQUIRING, SourceState.UNHEARD, DEAD)
    lacking = {world for world in worlds if world.dst in destination.INCOMPLETE}
    assert {world.src for world in lacking} <= {*keeps, SourceState.UNCERTAIN}
    assert lacking


def test_a_cut_post_copy_comes_to_its_end(worlds: set[World]) -> None:
    """With both processes alive and a network that works again, the source is done in the end."""
    for world in worlds:
        if world.src is SourceState.CUT and world.dst in destination.MAY_RUN:
            reachable, todo = {world}, [world]
            while todo and not any(each.src is SourceState.DONE for each in reachable):
                for following in (*source_moves(todo[-1]), *destination_moves(todo.pop())):
                    if following is not None and following not in reachable:
                        reachable.add(following)
                        todo.append(following)
            assert any(each.src is SourceState.DONE for each in reachable), world


def test_nobody_is_left_with_neither(worlds: set[World]) -> None:
    """With both processes alive there is always a way to one that runs the guest, or to a paused source."""
    ends = (*source.MAY_RUN, SourceState.UNCERTAIN)
    good = {world for world in worlds if world.src in ends or world.dst in destination.MAY_RUN}
    for world in worlds - good:
        if world.src != DEAD and world.dst != DEAD and not world.ran_there:
            reachable, todo = {world}, [world]
            while todo and not reachable & good:
                for following in (*source_moves(todo[-1]), *destination_moves(todo.pop())):
                    if following is not None and following not in reachable:
                        reachable.add(following)
                        todo.append(following)
            assert reachable & good, world


@pytest.mark.parametrize("state", list(SourceState))
def test_every_waiting_state_of_the_source_ends(state: SourceState) -> None:
    """Silence of the peer and a lost connection have a way out everywhere but at the end."""
    events = {event for (at, event) in source.TRANSITIONS if at is state}
    if state in source.TERMINAL:
        assert not events
    elif state in (SourceState.CUT, SourceState.UNHEARD):
        assert events == {SourceEvent.RECOVER, SourceEvent.CANCEL}
    elif state is SourceState.COPYING:
        assert {SourceEvent.LOST, SourceEvent.OVERDUE, SourceEvent.BROKEN, SourceEvent.CANCEL} <= events
    else:
        assert {SourceEvent.LOST, SourceEvent.OVERDUE, SourceEvent.CANCEL} <= events


def test_the_destination_does_not_start_without_commit() -> None:
    """COMMIT is the only way into STARTING, and STARTING the only way to RUNNING."""
    into = {(state, event) for (state, event), to in destination.TRANSITIONS.items() if to is DestinationState.STARTING}
    assert {event for state, event in into if state is not DestinationState.STARTING} == {DestinationEvent.COMMIT}
    running = {state for (state, _), to in destination.TRANSITIONS.items() if to is DestinationState.RUNNING}
    assert running - {DestinationState.RUNNING} == {DestinationState.STARTING, *destination.INCOMPLETE}
    partly = {state for (state, _), to in destination.TRANSITIONS.items() if to in destination.INCOMPLETE}
    assert partly - destination.INCOMPLETE == {DestinationState.STARTING}
