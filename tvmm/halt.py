"""Notices that a guest has stopped for good: every vCPU in HLT with interrupts off.

With the interrupt chips in the kernel HLT is no exit, so one has to look. Looking means a short pause, so only a
machine whose threads have used no CPU time since the last look is disturbed for it, and only once until it moves again:
an idle guest costs a clock read for each vCPU twice a second.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import trio

from tvmm.outcome import Outcome

if TYPE_CHECKING:
    from tvmm.machine import Machine
    from tvmm.vcpu.thread import Vcpu

__all__ = ["LOOK_SECONDS", "watch_for_halt"]

LOOK_SECONDS = 0.5

MP_UNINITIALIZED, MP_HALTED = 1, 3
RFLAGS_IF = 1 << 9


async def watch_for_halt(machine: Machine) -> None:
    """End `machine` as ``halted`` when nothing can wake its vCPUs any more; returns when it has ended."""
    before: list[float] = []
    looked_at: list[float] = []
    while machine.outcome is None:
        await trio.sleep(LOOK_SECONDS)
        now = _cpu_seconds(machine)
        if machine.moves.pause_seconds < math.inf:
            # Who waits for a page uses no time either, and cannot be looked at before it is there.
            now = []
        elif now == before and now != looked_at:
            if machine.motion.running and await machine.inspect(lambda: all(map(_is_dead, machine.vcpus))):
                machine.supervisor.post(Outcome("halted"))
            # What looking cost the threads must not count as their own activity.
            await trio.sleep(LOOK_SECONDS)
            now = looked_at = _cpu_seconds(machine)
        before = now


def _cpu_seconds(machine: Machine) -> list[float]:
    """CPU time of each vCPU's thread."""
    idents = [vcpu.thread_ident for vcpu in machine.vcpus]
    return [time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in idents if ident is not None]


def _is_dead(vcpu: Vcpu) -> bool:
    """Whether nothing but a reset can make this paused vCPU run another instruction."""
    state = vcpu.kvm.get_mp_state()
    if state == MP_UNINITIALIZED:
        return True
    return state == MP_HALTED and not vcpu.kvm.get_regs().rflags & RFLAGS_IF
