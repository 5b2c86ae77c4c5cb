"""Holds those vCPUs of a guest that write, so that its pages can be sent faster than it writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tvmm.kvm.dirty_log import DirtyTracker
    from tvmm.machine import Machine
    from tvmm.vcpu.thread import Vcpu

__all__ = ["Throttle"]

THROTTLE_PERIOD_S = 0.01
"""A vCPU that is held for a share of its time is held in pieces that nobody notices."""
BRAKE_PERIOD_S, BRAKE_PERCENT = 0.002, 75
"""Shorter ones up to that share. Above it they would leave it no time at all: each costs some tenth of a ms."""
WRITER_SHARE = 0.1
"""Of what the busiest vCPU dirties: one that dirties less is left alone, where it is known."""


class Throttle:
    """Of the vCPUs of `machine`. `tracker` knows which of them write."""

    def __init__(self, machine: Machine, tracker: DirtyTracker | None) -> None:
        self._machine = machine
        self._tracker = tracker
        self._percent = 0
        self._holding = False

    def hold(self, percent: int) -> None:
        """From now on, for that share of their time (0 to 99)."""
        self._percent = percent
        if percent and not self._holding:
            self._holding = True
            self._machine.start_task(self._hold, "throttle")

    async def _hold(self) -> None:
        while self._percent:
            period = BRAKE_PERIOD_S if self._percent <= BRAKE_PERCENT else THROTTLE_PERIOD_S
            for vcpu in self._writers():
                vcpu.nap(period * self._percent / 100)
            await trio.sleep(period)
        self._holding = False

    def _writers(self) -> list[Vcpu]:
        vcpus = self._machine.vcpus
        counts = self._tracker.vcpu_counts() if self._tracker is not None else []
        if not any(counts):
            return vcpus
        return [vcpu for vcpu, count in zip(vcpus, counts, strict=True) if count >= WRITER_SHARE * max(counts)]
