"""Machines that are looked at again and again: sessions that stay open, answers side by side, rates between looks."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tvmm.cli.top_view import MachineRow, machine_row
from tvmm.control.client import LateError, QmpClient
from tvmm.errors import TvmmError
from tvmm.metrics.rates import Rates
from tvmm.metrics.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from tvmm.control.registry import MachineEntry

__all__ = ["Watched", "Watches"]

ANSWER_SECONDS = 2.0
"""What one machine gets to answer: a hung one must not hide the others for long."""
HUNG_SECONDS = 10.0
"""How long a machine that did not answer is left alone."""
WORKERS = 16
"""Machines that are asked at a time."""


class Watched:
    """One machine. `rates` is None while it does not answer, and `trouble` says why."""

    def __init__(self, entry: MachineEntry) -> None:
        self.entry = entry
        self.rates: Rates | None = None
        self.trouble = ""
        self._client: QmpClient | None = None
        self._last: Snapshot | None = None
        self._asked_again_at = float("-inf")

    def look(self) -> None:
        """Ask it. In any thread; never raises what a machine can cause."""
        if time.monotonic() < self._asked_again_at:
            return
        try:
            if self._client is None:
                self._client = QmpClient(self.entry.paths.control, ANSWER_SECONDS)
            now = Snapshot.from_json(self._client.execute("x-query-metrics"))
        except (TvmmError, ValueError) as error:
            self._failed("no metrics" if isinstance(error, ValueError) else "unreachable")
            if isinstance(error, LateError):
                self._asked_again_at = time.monotonic() + HUNG_SECONDS
            return
        self.rates, self._last, self.trouble = Rates(self._last, now), now, ""

    def _failed(self, trouble: str) -> None:
        self.close()
        self.rates = self._last = None
        self.trouble = trouble

    def row(self) -> MachineRow:
        """For the list."""
        if self.rates is None:
            uptime = max(time.time() - self.entry.started, 0.0)
            return MachineRow(self.entry.name, self.trouble or "unreachable", uptime)
        return machine_row(self.entry.name, self.rates)

    def close(self) -> None:
        """End the session; the next look begins another."""
        if self._client is not None:
            self._client.close()
            self._client = None


class Watches:
    """All of them, a context manager. Machines come and go between looks."""

    def __init__(self) -> None:
        self.machines: list[Watched] = []
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="tvmm-top")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        for watched in self.machines:
            watched.close()

    def look(self, entries: Sequence[MachineEntry]) -> list[Watched]:
        """Ask these machines, which are there now, and forget others."""
        known = {_key(watched.entry): watched for watched in self.machines}
        found = [known[_key(entry)] if _key(entry) in known else Watched(entry) for entry in entries]
        for gone in set(known.values()).difference(found):
            gone.close()
        self.machines = found
        list(self._pool.map(Watched.look, found))
        return found


def _key(entry: MachineEntry) -> tuple[str, int, float]:
    """A machine of the same name may be another one."""
    return entry.name, entry.pid, entry.started
