"""A balloon without a guest."""

from __future__ import annotations

from collections.abc import Mapping

from tvmm.control.balloon_target import BalloonInfo

COUNTERS = {"inflated": 16384, "deflated": 0, "reported": 0, "hinted": 0, "spared": 0, "strange": 1}


class FakeBalloon:
    """Behaves towards control clients as a balloon does, with a driver that is done at once."""

    def __init__(self, name: str = "balloon0") -> None:
        self.name = name
        self.memory = 256 << 20
        self.size = 192 << 20
        self.interval = 0
        self.answers = True

    def info(self) -> BalloonInfo:
        return BalloonInfo(self.name, self.memory, self.size, self.size, True, False, COUNTERS)

    async def resident(self) -> int:
        return 100 << 20

    def set_memory(self, memory: int) -> None:
        self.size = min(memory, self.memory)

    def stats(self) -> tuple[Mapping[str, int | None], int]:
        return {"stat-swap-in": None, "stat-free-memory": 5000, "stat-total-memory": 9000}, 1700000000

    async def fresh_stats(self, patience_s: float) -> bool:
        return self.answers

    @property
    def interval_s(self) -> int:
        return self.interval

    def set_interval(self, seconds: int) -> None:
        if seconds < 0:
            raise ValueError(f"{seconds} s is no interval")
        self.interval = seconds
