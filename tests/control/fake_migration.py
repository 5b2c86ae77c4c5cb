"""A migration without a guest: it goes through the states that it is given, and announces them as a machine does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from tvmm.control.migration_info import EVENT, PASS_EVENT, event_data
from tvmm.errors import UserError
from tvmm.migration.status import NO_MIGRATION, DowntimeParts, MigrationParameters, MigrationStatus, RamProgress

__all__ = ["ACTIVE", "CANCELLED", "COMPLETED", "FAILED", "LAST_PASS", "SETUP", "SWITCHOVER", "WHOLE", "FakeMigration"]

PEER = "tcp:127.0.0.1:4444"

SETUP = MigrationStatus("setup", peer=PEER, phase="connecting", total_ms=0.0)
ACTIVE = SETUP._replace(
    state="active",
    phase="first pass",
    total_ms=500.25,
    setup_ms=12.5,
    seconds_left=1.5,
    connections=2,
    ram=RamProgress(
        total=1 << 30,
        transferred=200 << 20,
        remaining=768 << 20,
        normal=51_200,
        zero=14_336,
        rounds=1,
        throughput=float(400 << 20),
        per_connection=(100 << 20, 100 << 20),
        pages_rate=131_072.5,
    ),
)
LAST_PASS = ACTIVE._replace(
    phase="round 3",
    total_ms=2000.0,
    expected_downtime_ms=4.25,
    seconds_left=None,
    throttle_percent=20,
    ram=ACTIVE.ram._replace(
        transferred=900 << 20, remaining=4 << 20, normal=240_000, unchanged=70, rounds=3, dirty_pages_rate=20_000.0
    ),
)
SWITCHOVER = LAST_PASS._replace(state="device", phase="switchover", seconds_left=0.0)
COMPLETED = SWITCHOVER._replace(
    state="completed",
    phase="done",
    guest="destination",
    total_ms=2110.5,
    downtime_ms=6.125,
    expected_downtime_ms=None,
    ram=LAST_PASS.ram._replace(transferred=904 << 20, remaining=0, downtime_bytes=4 << 20, rounds=4),
    downtime_parts=DowntimeParts(0.5, 2.25, 0.75, 1.0, 1.25, 0.375),
)
FAILED = LAST_PASS._replace(
    state="failed", phase="", error="the destination hung up in round 3", error_hint="its own output says why"
)
CANCELLED = LAST_PASS._replace(state="cancelled", phase="", seconds_left=None)

WHOLE = (SETUP, ACTIVE, LAST_PASS, SWITCHOVER, COMPLETED)
"""A migration that goes well."""


class FakeMigration:
    """`MigrationTarget` that takes a step of `script` each time it is asked how it goes, or when told to.

    `on_end` is called after the last one has been announced.
    """

    def __init__(self, emit: Callable[[str, dict[str, Any] | None], None]) -> None:
        self._emit = emit
        self.script: list[MigrationStatus] = list(WHOLE)
        self.parameters = MigrationParameters()
        self.started: list[tuple[str, MigrationParameters]] = []
        self.listening: list[str] = []
        self.refusal: UserError | None = None
        self.too_late = False
        """It cannot be cancelled any more."""
        self.cancels = 0
        self.orders: list[str] = []
        """What was asked of a post-copy."""
        self.on_query: Callable[[MigrationStatus], None] = lambda status: None
        self.on_end: Callable[[MigrationStatus], None] = lambda status: None
        self.status = NO_MIGRATION
        self._left: list[MigrationStatus] = []

    def step(self) -> None:
        """Go on to the next state of the script, if there is one."""
        if self._left:
            self._become(self._left.pop(0))

    def _become(self, status: MigrationStatus) -> None:
        before, self.status = self.status, status
        if status.state != before.state:
            self._emit(EVENT, event_data(status))
        if status.ram.rounds > before.ram.rounds:
            self._emit(PASS_EVENT, {"pass": status.ram.rounds})
        if status.ended:
            self.on_end(status)

    def migration_status(self) -> MigrationStatus:
        self.on_query(self.status)
        self.step()
        return self.status

    def migration_parameters(self) -> MigrationParameters:
        return self.parameters

    def set_migration_parameters(self, changes: Mapping[str, Any]) -> None:
        self.parameters = self.parameters._replace(**changes).check()

    async def start_migration(self, uri: str, parameters: MigrationParameters) -> None:
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        if self.status.under_way:
            raise UserError("there is a migration under way already", "'tvmm migrate' cancels it with Ctrl-C")
        self.started.append((uri, parameters))
        self._left = [status._replace(peer=uri) for status in self.script]
        self.step()

    def cancel_migration(self) -> None:
        self.cancels += 1
        if self.status.under_way and not self.too_late:
            self._left = [self.status._replace(state="cancelling"), CANCELLED]

    def start_postcopy(self) -> None:
        self.orders.append("start-postcopy")

    def pause_migration(self) -> None:
        self.orders.append("pause")

    async def recover_migration(self, uri: str) -> None:
        await trio.lowlevel.checkpoint()
        self.orders.append(f"recover {uri}".strip())

    async def listen_for_migration(self, uri: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.listening:
            raise UserError("the machine listens for a guest already")
        self.listening.append(uri)
        self.status = NO_MIGRATION._replace(incoming=True, listening=uri)


def states(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the events named `EVENT` among `events` say, in order."""
    return [event["data"]["status"] for event in events if event["event"] == EVENT]
