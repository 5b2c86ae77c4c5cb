"""Source and destination over real sockets, with guests that are no more than RAM, and a wire between them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from tests.support.cut_wire import Wire
from tests.support.moving_guests import World
from tests.support.patience import PATIENT
from tvmm.config.incoming import MigrationAddress
from tvmm.errors import IncomingFailed
from tvmm.migration import commit, hand_over, pairing, rounds, talk, tls
from tvmm.migration.incoming import Incoming
from tvmm.migration.link import listen
from tvmm.migration.outgoing import Outgoing
from tvmm.migration.secure import Insecure, Securer, Tls
from tvmm.migration.source import SourceState
from tvmm.migration.status import MigrationParameters, MigrationStatus
from tvmm.migration.wire import Security
from tvmm.testing import LONGEST_PAUSE_MS

__all__ = ["Ends", "check_one_guest", "connected", "impatient", "paired"]

LIMIT_SECONDS = 60.0
"""Above all that a busy host may need: what takes so long hangs."""


class Ends(NamedTuple):
    """Both sides, and the wire between them."""

    out: Outgoing
    incoming: Incoming
    wire: Wire
    ended: list[IncomingFailed]
    incoming_over: trio.Event


@asynccontextmanager
async def connected(
    world: World,
    tmp_path: Path,
    on_message: Callable[[str], bool] = lambda name: True,
    parameters: MigrationParameters | None = None,
    secured: tuple[Securer, Securer] | None = None,
) -> AsyncIterator[Ends]:
    """A destination that waits behind a wire, and a source that has not begun. Both ended when the block is left."""
    here = MigrationAddress("unix", path=str(tmp_path / "wire"))
    there = MigrationAddress("unix", path=str(tmp_path / "there"))
    said: list[str] = []
    told: list[MigrationStatus] = []
    wire = Wire(here.path, there.path, on_message)
    near, far = secured or (Insecure(), Insecure())
    arriving = Incoming(world.destination, far, told.append, said.append)
    parameters = parameters or PATIENT._replace(connections=2)
    # The wire cannot follow what is encrypted.
    leaving = Outgoing(world.source, there if secured else here, parameters, near, told.append)
    ended: list[IncomingFailed] = []

    async def arrive() -> None:
        try:
            await arriving.run(listeners)
        except IncomingFailed as error:
            ended.append(error)
        over.set()

    over = trio.Event()
    with trio.fail_after(LIMIT_SECONDS):
        async with listen(there) as listeners, trio.open_nursery() as nursery:
            await nursery.start(wire.run)
            nursery.start_soon(arrive)
            yield Ends(leaving, arriving, wire, ended, over)
            nursery.cancel_scope.cancel()


def check_one_guest(world: World, ends: Ends) -> None:
    """The rule of the module's text."""
    state = ends.out.state
    if state is SourceState.DONE:
        assert world.running == {"destination"}
        assert world.disk.holder is world.destination
        assert bytes(world.destination.ram.blocks["pc.ram"].view) == bytes(world.source.ram.blocks["pc.ram"].view)
    elif state is SourceState.UNCERTAIN:
        assert world.source.kept_paused
        assert world.running <= {"destination"}
    else:
        assert world.running == {"source"}
        assert world.disk.holder is world.source


STALL_SECONDS = 1.5
"""After which a word is taken to be lost: no host is so busy that the one before it is late by as much."""


def impatient(name: str, monkeypatch: pytest.MonkeyPatch) -> MigrationParameters:
    """What has a source, from which message `name` is kept, find that out soon. All that comes before may take as long
    as for users.
    """
    if name in ("Hello", "Welcome", "Grants"):
        monkeypatch.setattr(talk, "GREETING_SECONDS", STALL_SECONDS)
    elif name in ("Descriptors", "RoundDone"):
        monkeypatch.setattr(rounds, "ROUND_SECONDS", STALL_SECONDS)
        monkeypatch.setattr(hand_over, "TAKEN_SECONDS", STALL_SECONDS)
    else:
        monkeypatch.setattr(commit, "RUNNING_SECONDS", STALL_SECONDS)
    return PATIENT._replace(max_downtime_ms=STALL_SECONDS * 1000 if name in ("State", "Ready") else LONGEST_PAUSE_MS)


def paired() -> tuple[Securer, Securer]:
    """Both ends of a pairing code."""
    secret = pairing.new_secret()
    gate = pairing.Gate(time.monotonic)
    return (
        Tls(tls.paired_source(secret), Security.PAIR, "localhost"),
        Tls(tls.paired_destination(secret, gate), Security.PAIR, gate=gate),
    )
