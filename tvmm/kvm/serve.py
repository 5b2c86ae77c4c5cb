"""What Python has of serve.h: the waker of a server's thread, and the words that servers come back with."""

from __future__ import annotations

import os

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib

__all__ = [
    "CALL_NONE",
    "CALL_PYTHON",
    "SERVE_BROKEN",
    "SERVE_CHAIN",
    "SERVE_CONTROL",
    "SERVE_FAILED",
    "SERVE_INTERRUPT",
    "Waker",
]

SERVE_CONTROL, SERVE_INTERRUPT = int(lib.TVMM_SERVE_CONTROL), int(lib.TVMM_SERVE_INTERRUPT)
SERVE_CHAIN, SERVE_BROKEN = int(lib.TVMM_SERVE_CHAIN), int(lib.TVMM_SERVE_BROKEN)
SERVE_FAILED = int(lib.TVMM_SERVE_FAILED)

CALL_PYTHON, CALL_NONE = int(lib.TVMM_CALL_PYTHON), int(lib.TVMM_CALL_NONE)
"""In place of an eventfd for a queue's interrupts: Python makes them, or nobody does."""


class Waker:
    """Gets a server out of its loop or its sleep. `raw` is the C record."""

    def __init__(self) -> None:
        self.raw = ffi.new("struct tvmm_waker *")
        error = lib.tvmm_waker_open(self.raw)
        if error:
            raise HostError(f"no event descriptor: {os.strerror(-error)}", "raise the limit with 'ulimit -n'")

    def close(self) -> None:
        """The thread must have ended."""
        lib.tvmm_waker_close(self.raw)

    def fileno(self) -> int:
        """For poll: readable from `wake` until `clear`."""
        return int(self.raw.event_fd)

    def wake(self) -> None:
        """From any thread: the server comes back with `SERVE_CONTROL`, and `wait` returns."""
        lib.tvmm_waker_wake(self.raw)

    def clear(self) -> None:
        """By the server's thread, before it looks at what is wanted."""
        lib.tvmm_waker_clear(self.raw)

    def wait(self) -> None:
        """Sleep until woken, without the interpreter lock."""
        lib.tvmm_waker_wait(self.raw)
