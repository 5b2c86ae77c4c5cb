"""Where a vCPU's exits go: devices on the buses, instruction assist, or the end of the machine with a report."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from tvmm.vcpu.exits import (
    EMULATION_SUBERROR,
    INTERNAL_ERROR,
    SYSTEM_EVENT,
    crash_title,
    format_registers,
    instruction_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.bus import MmioBus, PortBus
    from tvmm.kvm.bus_lock import BusLock
    from tvmm.memory.ram import GuestRam
    from tvmm.vcpu.assist_kvm import KvmAssistCpu
    from tvmm.vcpu.thread import Vcpu

__all__ = ["ExitDispatcher"]

SYSTEM_EVENT_SHUTDOWN = 1
SYSTEM_EVENT_RESET = 2


class ExitDispatcher:
    """What `Vcpu` needs of its machine. `on_crash` and `on_system_event` are called on vCPU threads."""

    def __init__(
        self,
        ports: PortBus,
        mmio: MmioBus,
        bus_lock: BusLock,
        ram: GuestRam,
        *,
        assist: bool,
    ) -> None:
        self.ports = ports
        self.mmio = mmio
        self.bus_lock = bus_lock
        self.assists: Counter[str] = Counter()
        self.on_crash: Callable[[str], None] = _nobody
        self.on_system_event: Callable[[str], None] = _nobody
        self._ram = ram
        self._assist_allowed = assist
        self._assist: object = None
        self._assist_cpus: dict[int, KvmAssistCpu] = {}

    def unusual_exit(self, vcpu: Vcpu, reason: int) -> bool:
        """See `thread.Exits`."""
        suberror = 0
        data: list[int] = []
        if reason == INTERNAL_ERROR:
            suberror, data = vcpu.kvm.internal_error()
            if suberror == EMULATION_SUBERROR and self._assist_allowed and self._assisted(vcpu, data):
                return True
        words = vcpu.kvm.exit_words()
        if reason == SYSTEM_EVENT and words and words[0] & 0xFFFF_FFFF in (SYSTEM_EVENT_SHUTDOWN, SYSTEM_EVENT_RESET):
            self.on_system_event("poweroff" if words[0] & 0xFFFF_FFFF == SYSTEM_EVENT_SHUTDOWN else "reset")
            return True
        self.on_crash(self._report(vcpu, crash_title(reason, words, suberror), instruction_bytes(data)))
        return False

    def run_failed(self, vcpu: Vcpu, error: int) -> None:
        """See `thread.Exits`."""
        self.on_crash(self._report(vcpu, f"KVM_RUN failed: {os.strerror(error)}", b""))

    def _assisted(self, vcpu: Vcpu, data: list[int]) -> bool:
        """Try to do what KVM could not. True if the guest can go on."""
        from tvmm.vcpu.assist import Assist
        from tvmm.vcpu.assist_kvm import KvmAssistCpu

        if not isinstance(self._assist, Assist):
            self._assist = Assist()
        cpu = self._assist_cpus.get(vcpu.index)
        if cpu is None:
            cpu = self._assist_cpus[vcpu.index] = KvmAssistCpu(vcpu.kvm, self._ram)
        else:
            cpu.load()
        code = instruction_bytes(data)
        if not code:
            code = cpu.fetch()
        name = self._assist.handle(cpu, code)
        if name is None:
            return False
        cpu.write_back()
        self.assists[name] += 1
        return True

    def _report(self, vcpu: Vcpu, title: str, code: bytes) -> str:
        """The crash as lines: what, where, registers, bytes."""
        from tvmm.vcpu.assist_kvm import KvmAssistCpu

        try:
            cpu = KvmAssistCpu(vcpu.kvm, self._ram)
            code = code or cpu.fetch()
            registers = format_registers(cpu.regs, cpu.sregs)
        except OSError as error:
            registers = f"  registers cannot be read: {error}"
        shown = code.hex(" ") or "cannot be read"
        return f"vCPU {vcpu.index}: {title}\n{registers}\n  bytes at rip: {shown}"


def _nobody(text: str) -> None:
    """Before the machine listens, nothing runs that could call."""
