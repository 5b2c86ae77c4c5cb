"""What a loader hands to the vCPU: the registers that the boot protocol asks for, as plain numbers."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DescriptorTable", "EntryState", "Segment"]


class Segment(NamedTuple):
    """A segment register with its hidden part, fields as in the descriptor (Intel SDM vol. 3, 3.4.5).

    `limit` is in bytes (already scaled by the granularity), the flags are 0 or 1.
    """

    selector: int
    base: int
    limit: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741 - the descriptor's own name for it
    g: int


class DescriptorTable(NamedTuple):
    """GDTR or IDTR: linear base address, and limit in bytes minus one."""

    base: int
    limit: int


class EntryState(NamedTuple):
    """Registers of the boot CPU at the first instruction of the guest.

    `registers` names general registers (``rip``, ``rsi``, ``rbx``, ``rsp``, ...); those left out are zero,
    RFLAGS is 2. `data` serves DS, ES, FS, GS and SS. `kernel` says what was loaded, for reports ("PVH ELF").
    """

    registers: dict[str, int]
    code: Segment
    data: Segment
    task: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: int
    cr3: int
    cr4: int
    efer: int
    kernel: str
