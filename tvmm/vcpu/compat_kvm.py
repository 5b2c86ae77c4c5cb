"""The records of `compat` for a machine on this host."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tvmm.kvm.system import host_cpuid
from tvmm.vcpu.compat import CpuDescription, HostCpu, describe, describe_host, processor_words
from tvmm.vcpu.msrs import saved

if TYPE_CHECKING:
    from tvmm.board import Board
    from tvmm.vcpu.compat import Words

__all__ = ["guest_on", "host_under"]

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def host_under(board: Board) -> HostCpu:
    """What this host's KVM can give to a guest on `board`."""
    with open(BOOT_ID, encoding="ascii") as file:
        host_id = file.read().strip()
    return describe_host(
        board.cpu.supported,
        board.cpu.emulated,
        max_count=board.max_cpus,
        msrs=saved(board.cpu.listed_msrs),
        tsc_khz=board.tsc_khz,
        tsc_control=board.cpu.tsc_control,
        processor=_processor() if board.emulated_kernel else (),
        host_id=host_id,
    )


@cache
def _processor() -> Words:
    """It stays the same, and where this host is a guest itself, each CPUID instruction costs an exit."""
    return processor_words(host_cpuid)


def guest_on(board: Board) -> CpuDescription:
    """The vCPUs of `board` as its guest knows them: as they were made, unless it came from elsewhere."""
    if board.came_as is not None:
        return board.came_as
    return describe(board.leaves, board.config.cpu, saved(board.cpu.listed_msrs), host_under(board))
