"""The line in which the built-in guest's load, `churn`, says how it goes."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Summary", "summary"]

SUMMARY = re.compile(
    r"(\d+) page writes, (\d+) page errors, (\d+) disk requests, (\d+) disk errors, (\d+) echoes, (\d+) lost, "
    r"(\d+) wrong, longest stall (\d+) us, clock (\d+) backward, drift (\d+) us, rtc (-?\d+) s off, in (\d+) us"
)


class Summary(NamedTuple):
    """The line that `churn` ends with."""

    page_writes: int
    page_errors: int
    disk_requests: int
    disk_errors: int
    echoes: int
    lost: int
    wrong: int
    stall_us: int
    backward: int
    drift_us: int
    rtc_off: int
    time_us: int

    def damage(self) -> dict[str, int]:
        """What should be 0 and is not."""
        names = ("page_errors", "disk_errors", "lost", "wrong", "backward", "rtc_off")
        return {name: value for name in names if (value := getattr(self, name))}


def summary(text: str) -> Summary:
    """The last one in what the guest printed."""
    found = SUMMARY.findall(text)
    assert found, text
    return Summary(*map(int, found[-1]))
