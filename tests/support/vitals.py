"""What a process holds, read from /proc: the figures that must not grow however hostile a guest or a client is."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from typing import NamedTuple

__all__ = ["Vitals", "allocated_kib", "own_vitals", "vcpu_threads", "vitals"]


class Vitals(NamedTuple):
    """`descriptors` is where each open descriptor leads, `anonymous_kib` memory that is no file and no guest RAM."""

    descriptors: tuple[str, ...]
    threads: int
    anonymous_kib: int

    def of_machines(self) -> tuple[str, ...]:
        """Those descriptors that only a machine opens: KVM's, its events and guest RAM."""
        return tuple(link for link in self.descriptors if "kvm" in link or "tvmm" in link or "eventfd" in link)


def vitals(pid: int) -> Vitals:
    """Of any process of ours that lives."""
    descriptors = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            descriptors.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            continue  # the one that the listing itself was read through
    fields = {}
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            fields[key] = value.split()
    return Vitals(tuple(sorted(descriptors)), int(fields["Threads"][0]), int(fields["RssAnon"][0]))


def own_vitals() -> Vitals:
    """Of this process, without garbage that only waits to be collected."""
    gc.collect()
    return vitals(os.getpid())


def vcpu_threads() -> set[str]:
    """Threads of this process that run a vCPU. (Trio keeps idle worker threads; those have other names.)"""
    return {thread.name for thread in threading.enumerate() if "vcpu" in thread.name}


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def allocated_kib() -> int:
    """What malloc has given away and not got back, in all threads: a leak shows here that RSS would hide."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd) >> 10
