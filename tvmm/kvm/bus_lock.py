"""The lock around a machine's devices: taken in C by a vCPU's step, here by everybody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.kvm.calls import ffi, lib

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["BusLock"]


class BusLock:
    """A lock for `with` blocks; not recursive. Waiting for it lets other Python threads run."""

    def __init__(self) -> None:
        self.raw = ffi.gc(lib.tvmm_bus_new(), lib.tvmm_bus_free)

    def __enter__(self) -> None:
        lib.tvmm_bus_lock(self.raw)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lib.tvmm_bus_unlock(self.raw)
