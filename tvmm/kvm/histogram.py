"""Histograms that C fills (histogram.h), and the switch of all that fills them."""

from __future__ import annotations

from typing import Any

from tvmm.kvm.calls import ffi, lib
from tvmm.metrics.histogram import Times

__all__ = ["CHistogram", "read_times", "set_timing"]


def read_times(raw: Any) -> Times:
    """A `struct tvmm_histogram` as it is; whoever fills it goes on meanwhile."""
    return Times(tuple(ffi.unpack(raw.counts, len(raw.counts))), int(raw.sum_ns))


def set_timing(on: bool) -> None:
    """Whether the servers of this process time anything. Off is for measuring what that costs; before they run."""
    lib.tvmm_timing = int(on)


class CHistogram:
    """One that Python fills, for tests."""

    def __init__(self) -> None:
        self._raw = ffi.new("struct tvmm_histogram *")

    def add(self, ns: int) -> None:
        """One more value, 0 to 2^64 - 1."""
        lib.tvmm_histogram_count(self._raw, ns)

    def read(self) -> Times:
        """As it is now."""
        return read_times(self._raw)
