"""Whoever answers a source in place of its destination: the guest goes on where it is, unless it was given up."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio

from tests.support.moving_guests import PAGE, RAM_BYTES, World
from tests.support.plain_lanes import ROUND_END, decode
from tvmm.config.incoming import MigrationAddress
from tvmm.migration import commit
from tvmm.migration.link import Link, LinkLost, listen, read_opening
from tvmm.migration.messages import (
    FROM_SOURCE,
    Answer,
    Cancel,
    Commit,
    Failure,
    Ready,
    Refuse,
    RoundDone,
    Running,
    State,
    Welcome,
)
from tvmm.migration.outgoing import Outgoing
from tvmm.migration.receivers import LAST_ROUND
from tvmm.migration.secure import Insecure
from tvmm.migration.source import SourceState
from tvmm.migration.status import MigrationParameters
from tvmm.migration.wire import Kind, Reply, pack
from tvmm.testing import LONGEST_PAUSE_MS

WELCOME = Welcome(1, b"t" * 16)
ROUNDS = tuple(map(RoundDone, range(12)))
"""More than the fake guest's pages take."""


@asynccontextmanager
async def answering(
    world: World,
    at_once: bytes,
    *,
    to_state: bytes = b"",
    to_commit: bytes = b"",
    lanes: bool = True,
    pause_ms: float = LONGEST_PAUSE_MS,
) -> AsyncIterator[Outgoing]:
    """A source, and somebody who says `at_once` after its greeting, and more when it sends its state and COMMIT.

    Rounds are confirmed if there is something to say to the state. Questions get no answer.
    """
    controls: list[trio.SocketStream] = []

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(LinkLost, trio.BrokenResourceError):
            opening = await read_opening(stream)
            if opening.kind is Kind.QUERY:
                return
            await stream.send_all(Reply.GO.to_bytes())
            if opening.kind is Kind.LANE:
                data = b""
                while lanes and (part := await stream.receive_some()):
                    frames, data = decode(data + part, [RAM_BYTES // PAGE])
                    for frame in frames:
                        if frame.kind == ROUND_END and to_state and frame.number < LAST_ROUND:
                            await controls[0].send_all(pack(RoundDone(frame.number)))
                return
            controls.append(stream)
            link = Link(stream, FROM_SOURCE)
            link.inbox.limit = 1 << 24
            await link.receive()
            await stream.send_all(at_once)
            while True:
                message: Any = await link.receive()
                if isinstance(message, State):
                    await stream.send_all(to_state)
                if isinstance(message, Commit):
                    await stream.send_all(to_commit)

    with tempfile.TemporaryDirectory(prefix="tvmm-") as directory, trio.fail_after(60):
        address = MigrationAddress("unix", path=f"{directory}/there")
        async with listen(address) as listeners, trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            parameters = MigrationParameters(pause_ms, connections=1)
            yield Outgoing(world.source, address, parameters, Insecure(), lambda status: None)
            nursery.cancel_scope.cancel()


def packed(*messages: Any) -> bytes:
    """All of them in one piece."""
    return b"".join(map(pack, messages))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("at_once", "why"),
    [
        (packed(Ready()), "answer to the greeting"),
        (packed(Welcome(7, b"t" * 16)), "answer to the greeting"),
        (packed(Welcome(1, b"")), "token"),
        (packed(Refuse(())), "no reason given"),
        (b"\xff" * 64, "announces a message"),
        (b"\x02\0\0\0\x06\x81", "encoded state"),
        (packed(WELCOME, Ready()), "Ready in place of RoundDone"),
        (packed(WELCOME, Running()), "Running in place of RoundDone"),
        (packed(WELCOME, WELCOME), "Welcome in place of RoundDone"),
        (packed(WELCOME, Answer("running")), "Answer in place of RoundDone"),
        (packed(WELCOME, RoundDone(1)), "round 1 in place of 0"),
        (packed(WELCOME, RoundDone(0), RoundDone(0)), "round 0 in place of 1"),
        (packed(WELCOME, RoundDone(1 << 63)), "in place of 0"),
        (packed(WELCOME, *ROUNDS, *ROUNDS), "nobody has asked for"),
        (packed(WELCOME, Failure("no \x1b[2J room")), "no ?[2J room"),
        (packed(WELCOME) + b"\0" * 64, "announces a message"),
        (packed(WELCOME, Cancel()), "not known here"),
        (packed(WELCOME), "confirm round 0"),
        (b"", "said nothing"),
    ],
    ids=range(19),
)
async def test_nonsense_while_pages_flow(world: World, at_once: bytes, why: str) -> None:
    """The user reads what was wrong, and the guest has noticed nothing."""
    async with answering(world, at_once) as out:
        assert await out.run(trio.Event()) is SourceState.FAILED
        assert why in out.status.error
        assert out.status.error.isprintable()
        assert out.status.guest == "source"
    assert world.running == {"source"}
    assert world.disk.holder is world.source


@pytest.mark.parametrize(
    ("to_state", "why"),
    [
        (packed(Running()), "Running in place of Ready"),
        (packed(RoundDone(99)), "RoundDone in place of Ready"),
        (b"\xff" * 8, "announces a message"),
        (packed(Failure("it is damaged")), "it is damaged"),
        (b"\x10", "paused for more than"),
    ],
    ids=range(5),
)
async def test_nonsense_in_the_pause(world: World, to_state: bytes, why: str) -> None:
    """The guest goes on, with its disk."""
    pause_ms = 300 if "paused" in why else LONGEST_PAUSE_MS
    async with answering(world, packed(WELCOME), to_state=to_state, pause_ms=pause_ms) as out:
        assert await out.run(trio.Event()) is SourceState.FAILED
        assert why in out.status.error
    assert world.running == {"source"}
    assert world.disk.holder is world.source


async def test_nonsense_behind_ready(world: World) -> None:
    """What has come before the guest is given up keeps it here; nobody has to be asked."""
    async with answering(world, packed(WELCOME), to_state=packed(Ready()) + b"\xff" * 8) as out:
        assert await out.run(trio.Event()) is SourceState.FAILED
        assert "announces a message" in out.status.error
    assert world.running == {"source"}
    assert world.disk.holder is world.source


@pytest.mark.parametrize(
    "to_commit", [packed(Ready()), packed(Answer("running")), packed(*ROUNDS), b"\xff" * 8, packed(Welcome(1, b""))]
)
async def test_nonsense_after_commit(world: World, to_commit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest may run there, and nobody can be asked: it is paused here, and a person decides."""
    monkeypatch.setattr(commit, "ASK_SECONDS", 0.5)
    async with answering(world, packed(WELCOME), to_state=packed(Ready()), to_commit=to_commit) as out:
        assert await out.run(trio.Event()) is SourceState.UNCERTAIN
        assert "resume" in out.status.error_hint
    assert world.source.kept_paused
    assert world.running == set()


async def test_lanes_that_hang_up(world: World) -> None:
    """At once, while the destination confirms whatever there is."""
    async with answering(world, packed(WELCOME, *ROUNDS), lanes=False) as out:
        assert await out.run(trio.Event()) is SourceState.FAILED
        assert "connection for pages broke" in out.status.error
    assert world.running == {"source"}
