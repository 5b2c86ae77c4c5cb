"""CPU time and memory of this process and its threads, from /proc (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["CpuTimes", "process_resident_bytes", "process_times", "thread_times"]

TICKS_PER_SECOND = 100
"""USER_HZ of x86 Linux, in which /proc counts."""


class CpuTimes(NamedTuple):
    """Seconds of CPU time: in tvmm's own code, in the host's kernel, and in the guest."""

    user: float = 0.0
    system: float = 0.0
    guest: float = 0.0


def thread_times(thread: int | None) -> CpuTimes:
    """Of a thread of this process, by its number in the host; zeros if there is none."""
    return _times(f"/proc/self/task/{thread}/stat") if thread else CpuTimes()


def process_times() -> CpuTimes:
    """Of all threads of this process, those that have ended included."""
    return _times("/proc/self/stat")


def _times(path: str) -> CpuTimes:
    try:
        text = Path(path).read_text()
    except OSError:
        return CpuTimes()
    # Behind the name, which may have anything in it: utime, stime and guest_time are fields 14, 15 and 43.
    fields = text.rpartition(")")[2].split()
    user, system, guest = (int(fields[number - 3]) / TICKS_PER_SECOND for number in (14, 15, 43))
    return CpuTimes(max(user - guest, 0.0), system, guest)


def process_resident_bytes() -> int:
    """Memory that the host holds for this process."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
