"""Lets a thread run soon after it wakes, beside vCPUs and servers that compute all the time."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tvmm.kvm.calls import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["prompt_thread"]


@contextmanager
def prompt_thread() -> Iterator[bool]:
    """The calling thread within the block, the threads that it starts excepted; afterwards as it was.

    Linux's scheduler gives a thread that wakes its turn at the next tick, up to 4 ms later, unless it is urgent. With
    the right to (CAP_SYS_NICE) it is made so by its priority, without by a short time slice, which helps less. A thread
    that has a priority of its own already is left alone. True if something was changed.
    """
    before = ffi.new("struct tvmm_sched_attr *")
    changed = lib.tvmm_prompt(before) == 0
    try:
        yield changed
    finally:
        if changed:
            lib.tvmm_unprompt(before)
