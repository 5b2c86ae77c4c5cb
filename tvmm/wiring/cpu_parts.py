"""vCPUs, interrupt chips and clocks of a board as sections: the `CpuParts` of `tvmm.board_state`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tvmm.state import SectionType
from tvmm.vcpu.chips import (
    ChipsState,
    ClockState,
    check_chips,
    load_chips,
    load_clock,
    save_chips,
    save_clock,
    time_passed,
)
from tvmm.vcpu.msrs import saved
from tvmm.vcpu.state import VcpuState, check_vcpu, load_vcpu, save_vcpu

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.board import Board

__all__ = ["KvmParts"]

VCPU, CHIPS, CLOCK = (
    SectionType("cpu", 1, (VcpuState,)),
    SectionType("chips", 1, (ChipsState,)),
    SectionType("clock", 1, (ClockState,)),
)


class KvmParts:
    """`ran_at_ns`: a reading of `time.perf_counter_ns` at which the guest still ran. When it is loaded its time is put
    forward by no more than has passed since, loading included; without it, not at all.
    """

    def __init__(self, ran_at_ns: int | None = None) -> None:
        self._ran_at_ns = ran_at_ns

    def _pause_limit_ns(self) -> int:
        return 0 if self._ran_at_ns is None else time.perf_counter_ns() - self._ran_at_ns

    def types(self, board: Board) -> Mapping[str, SectionType]:
        """See `CpuParts`, as all of these."""
        return {"chips": CHIPS, "clock": CLOCK, **{f"cpu/{vcpu.index}": VCPU for vcpu in board.vcpus}}

    def save(self, board: Board) -> Mapping[str, tuple[Any, ...]]:
        """The clock first: it goes on while the rest is read."""
        clock = save_clock(board.vm)
        msrs = saved(board.cpu.listed_msrs)
        vcpus = {f"cpu/{vcpu.index}": save_vcpu(vcpu, msrs) for vcpu in board.vcpus}
        # After the vCPUs: saving one may have KVM take an interrupt from the chips.
        return {"chips": save_chips(board.vm), "clock": clock, **vcpus}

    def load(self, board: Board, records: Mapping[str, Any]) -> None:
        """Chips before vCPUs, whose interrupts they would forget; the clock last, when nothing else takes time."""
        check_chips(records["chips"])
        for vcpu in board.vcpus:
            check_vcpu(records[f"cpu/{vcpu.index}"], vcpu.index, vcpu.xsave_size)
        clock = records["clock"]
        passed = time_passed(clock, self._pause_limit_ns(), time.time_ns())
        load_chips(board.vm, records["chips"])
        msrs = saved(board.cpu.listed_msrs)
        for vcpu in board.vcpus:
            state = records[f"cpu/{vcpu.index}"]
            load_vcpu(vcpu, state, msrs, advance_ns=passed, tsc_control=board.cpu.tsc_control)
        load_clock(board.vm, clock, self._pause_limit_ns(), time.time_ns())
        for vcpu in board.vcpus:
            vcpu.tell_clock_was_stopped()
