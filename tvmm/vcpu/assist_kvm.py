"""A vCPU that stands before an instruction, as instruction assist sees it: `AssistCpu` on KVM's calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.errors import MemoryAccessError
from tvmm.kvm.atomic import compare_exchange
from tvmm.vcpu.assist.cpu import GENERAL_PROTECTION, GuestException
from tvmm.vcpu.assist.paging import Paging, paging_of, read_linear, translate, write_linear

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.kvm.vcpu import KvmVcpu
    from tvmm.memory.ram import GuestRam
    from tvmm.vcpu.assist.xsave import XsaveComponent

__all__ = ["KvmAssistCpu"]

INSTRUCTION_LIMIT = 15
CR3_WRITE_THROUGH = 1 << 3


class KvmAssistCpu:
    """Registers are read by `load` and written by `write_back`; everything else goes to KVM at once."""

    def __init__(self, kvm: KvmVcpu, ram: GuestRam) -> None:
        self._kvm = kvm
        self._ram = ram
        self._layout: Mapping[int, XsaveComponent] | None = None
        self.load()

    def load(self) -> None:
        """Take the vCPU as it is now, before another instruction."""
        self.regs: Any = self._kvm.get_regs()
        self.sregs: Any = self._kvm.get_sregs()
        self._sregs_changed = False
        self._exception: tuple[int, int | None] | None = None

    def write_back(self) -> None:
        """Give KVM the registers, and the exception if there is one."""
        self._kvm.set_regs(self.regs)
        if self._sregs_changed:
            self._kvm.set_sregs(self.sregs)
        if self._exception is not None:
            vector, error_code = self._exception
            events = self._kvm.get_events()
            events.exception.injected = 1
            events.exception.nr = vector
            events.exception.has_error_code = error_code is not None
            events.exception.error_code = error_code or 0
            self._kvm.set_events(events)

    def fetch(self) -> bytes:
        """The bytes at RIP, as many of 15 as can be read."""
        address = (self.regs.rip + (0 if self.sregs.cs.l else self.sregs.cs.base)) & (1 << 64) - 1
        code = b""
        while len(code) < INSTRUCTION_LIMIT:
            try:
                found = translate(self._ram, self._paging, address + len(code), user=self.sregs.cs.dpl == 3)
                code += self._ram.read(found.gpa, min(found.room, INSTRUCTION_LIMIT - len(code)))
            except (GuestException, MemoryAccessError):
                break
        return code

    def sregs_changed(self) -> None:
        """See `AssistCpu`."""
        self._sregs_changed = True

    def read_linear(self, address: int, length: int, user: bool = False) -> bytes:
        """See `AssistCpu`."""
        return read_linear(self._ram, self._paging, address, length, user)

    def write_linear(self, address: int, data: bytes, user: bool = False) -> None:
        """See `AssistCpu`."""
        write_linear(self._ram, self._paging, address, data, user)

    def compare_exchange(self, address: int, expected: bytes, desired: bytes) -> bytes:
        """See `AssistCpu`. An aligned operand never crosses a page, so one translation is enough."""
        found = translate(self._ram, self._paging, address, write=True)
        for slot, value in found.marks:
            self._ram.write(slot, bytes((value,)))
        old = compare_exchange(self._ram.window(found.gpa, len(expected)), expected, desired)
        if old == expected:
            self._ram.mark_written(found.gpa, len(expected))
        return old

    def inject(self, vector: int, error_code: int | None) -> None:
        """See `AssistCpu`."""
        self._exception = (vector, error_code)

    def read_msr(self, index: int) -> int:
        """See `AssistCpu`."""
        values = self._kvm.get_msrs([index])
        if index not in values:
            raise GuestException(GENERAL_PROTECTION, 0)
        return values[index]

    def write_msr(self, index: int, value: int) -> None:
        """See `AssistCpu`."""
        if not self._kvm.set_msrs([(index, value)]):
            raise GuestException(GENERAL_PROTECTION, 0)

    def get_xsave(self) -> bytes:
        """See `AssistCpu`."""
        return bytes(self._kvm.get_xsave())

    def set_xsave(self, image: bytes) -> None:
        """See `AssistCpu`."""
        self._kvm.set_xsave(image)

    @property
    def xsave_layout(self) -> Mapping[int, XsaveComponent]:
        """See `AssistCpu`. CPUID does not change once a vCPU has run."""
        if self._layout is None:
            from tvmm.vcpu.assist.xsave import xsave_layout

            self._layout = xsave_layout(self._kvm.get_cpuid())
        return self._layout

    def flush_translations(self) -> None:
        """See `AssistCpu`. The bit that differs in between only chooses how tables are cached."""
        self.sregs.cr3 ^= CR3_WRITE_THROUGH
        self._kvm.set_sregs(self.sregs)
        self.sregs.cr3 ^= CR3_WRITE_THROUGH
        self.sregs_changed()

    def get_xcr0(self) -> int:
        """See `AssistCpu`."""
        return self._kvm.get_xcr0()

    def set_xcr0(self, value: int) -> None:
        """See `AssistCpu`."""
        try:
            self._kvm.set_xcr0(value)
        except OSError:
            raise GuestException(GENERAL_PROTECTION, 0) from None

    @property
    def _paging(self) -> Paging:
        return paging_of(self.regs, self.sregs)
