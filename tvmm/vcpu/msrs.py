"""Model-specific registers: their names, which of them move with a guest, and what a reset makes of them.

KVM lists the MSRs that make up guest state (KVM_GET_MSR_INDEX_LIST), but its list is neither complete
(EFER and the segment bases are in the special registers, MTRRs are left out) nor all fit to be set
elsewhere. The table says what tvmm does with each; one that KVM lists and the table does not know is
saved, so that a newer kernel's state is not lost. Names are Linux's without MSR_ or MSR_IA32_, in lower
case. Values after reset: Intel SDM volume 3, table 10-1, and for KVM's own the kernel's
Documentation/virt/kvm/x86/msr.rst. The time stamp counter goes on over a reset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["MAY_BE_REFUSED", "MSRS", "Msr", "name_of", "reset_values", "restore_order", "saved"]


class Msr(NamedTuple):
    """`skip` is why it is not saved (empty: it is). `reset` is its value after a reset, None: left
    alone."""

    name: str
    reset: int | None = 0
    skip: str = ""


READ_ONLY = "read-only"
ELSEWHERE = "part of the special registers"
HOST = "describes the host, not the guest"

PAT_RESET = 0x0007_0406_0007_0406


def _variable_mtrrs() -> dict[int, Msr]:
    found = {}
    for number in range(8):
        found[0x200 + 2 * number] = Msr(f"mtrr_phys_base_{number}")
        found[0x201 + 2 * number] = Msr(f"mtrr_phys_mask_{number}")
    return found


def _machine_check_banks() -> dict[int, Msr]:
    found = {}
    for bank in range(32):
        for offset, what in enumerate(("ctl", "status", "addr", "misc")):
            found[0x400 + 4 * bank + offset] = Msr(f"mc{bank}_{what}", None)
    return found


_FIXED_MTRRS = (
    (0x250, "64k_00000"),
    (0x258, "16k_80000"),
    (0x259, "16k_a0000"),
    (0x268, "4k_c0000"),
    (0x269, "4k_c8000"),
    (0x26A, "4k_d0000"),
    (0x26B, "4k_d8000"),
    (0x26C, "4k_e0000"),
    (0x26D, "4k_e8000"),
    (0x26E, "4k_f0000"),
    (0x26F, "4k_f8000"),
)

MSRS: dict[int, Msr] = {
    0x10: Msr("tsc", None),
    0x11: Msr("kvm_wall_clock"),
    0x12: Msr("kvm_system_time"),
    0x1B: Msr("apicbase", None, ELSEWHERE),
    0x34: Msr("smi_count", None),
    0x3A: Msr("feat_ctl"),
    0x3B: Msr("tsc_adjust"),
    0x48: Msr("spec_ctrl"),
    0x49: Msr("pred_cmd", None, "write-only"),
    0x8B: Msr("ucode_rev", None, HOST),
    0xCE: Msr("platform_info", None),
    0xE1: Msr("umwait_control"),
    0xFE: Msr("mtrrcap", None, READ_ONLY),
    0x10A: Msr("arch_capabilities", None, HOST),
    0x10B: Msr("flush_cmd", None, "write-only"),
    0x140: Msr("misc_features_enables"),
    0x174: Msr("sysenter_cs"),
    0x175: Msr("sysenter_esp"),
    0x176: Msr("sysenter_eip"),
    0x179: Msr("mcg_cap", None, READ_ONLY),
    0x17A: Msr("mcg_status"),
    0x17B: Msr("mcg_ctl", None),
    0x1A0: Msr("misc_enable", 1),
    0x1C4: Msr("xfd"),
    0x1C5: Msr("xfd_err"),
    0x1D9: Msr("debugctl"),
    0x1DB: Msr("lastbranchfromip", None),
    0x1DC: Msr("lastbranchtoip", None),
    0x1DD: Msr("lastintfromip", None),
    0x1DE: Msr("lastinttoip", None),
    0x1FC: Msr("power_ctl"),
    **_variable_mtrrs(),
    **{index: Msr(f"mtrr_fix_{name}") for index, name in _FIXED_MTRRS},
    0x277: Msr("cr_pat", PAT_RESET),
    0x2FF: Msr("mtrr_def_type"),
    0x345: Msr("perf_capabilities", None, HOST),
    0x38D: Msr("core_perf_fixed_ctr_ctrl"),
    0x38E: Msr("core_perf_global_status", None, READ_ONLY),
    0x38F: Msr("core_perf_global_ctrl"),
    **_machine_check_banks(),
    0x6E0: Msr("tsc_deadline"),
    0xD90: Msr("bndcfgs"),
    0xDA0: Msr("xss"),
    0x4000_0000: Msr("hv_guest_os_id"),
    0x4000_0001: Msr("hv_hypercall"),
    0x4B56_4D00: Msr("kvm_wall_clock_new"),
    0x4B56_4D01: Msr("kvm_system_time_new"),
    0x4B56_4D02: Msr("kvm_async_pf_en"),
    0x4B56_4D03: Msr("kvm_steal_time"),
    0x4B56_4D04: Msr("kvm_pv_eoi_en"),
    0x4B56_4D05: Msr("kvm_poll_control", 1),
    0x4B56_4D06: Msr("kvm_async_pf_int"),
    0x4B56_4D07: Msr("kvm_async_pf_ack", None, "only acknowledges"),
    0x4B56_4D08: Msr("kvm_migration_control"),
    0xC000_0080: Msr("efer", None, ELSEWHERE),
    0xC000_0081: Msr("star"),
    0xC000_0082: Msr("lstar"),
    0xC000_0083: Msr("cstar"),
    0xC000_0084: Msr("syscall_mask"),
    0xC000_0100: Msr("fs_base", None, ELSEWHERE),
    0xC000_0101: Msr("gs_base", None, ELSEWHERE),
    0xC000_0102: Msr("kernel_gs_base"),
    0xC000_0103: Msr("tsc_aux"),
    0xC000_0104: Msr("amd64_tsc_ratio", None, HOST),
    0xC001_0015: Msr("k7_hwcr", None),
    0xC001_0117: Msr("vm_hsave_pa"),
    0xC001_011F: Msr("amd64_virt_spec_ctrl"),
    0xC001_102A: Msr("f10h_decfg", None, HOST),
}

EXTRA = (0x277, 0x2FF, 0xC000_0103, 0x6E0, 0xDA0, *(index for index, _ in _FIXED_MTRRS), *_variable_mtrrs())
"""Saved although older kernels do not list them. XSS is tried, and is 0 where it cannot be set."""

_COUNTERS = "performance counters: a measurement that runs in the guest goes wrong, nothing else"
_NESTED = "what the host's nested virtualization can do; a guest that uses it is not moved"

MAY_BE_REFUSED: dict[int, str] = {
    0x34: "counts interrupts of firmware that the guest cannot act on",
    0xCE: "KVM only says in it whether CPUID can be made to fault",
    0xE1: "limits how long a processor may doze, which every host decides for itself",
    0x1FC: "KVM stores it and acts on nothing in it",
    0x4B56_4D05: "only allows the host to spin before it lets a halted vCPU sleep",
    0xC001_0015: "KVM stores a few bits of it and acts on none that a guest of ours can see",
    **dict.fromkeys((*range(0xC1, 0xC9), *range(0x186, 0x18E), *range(0x309, 0x30D)), _COUNTERS),
    **dict.fromkeys((*range(0x38D, 0x391), *range(0x4C1, 0x4C9)), _COUNTERS),
    **dict.fromkeys((*range(0xC001_0000, 0xC001_0008), *range(0xC001_0200, 0xC001_020C)), _COUNTERS),
    **dict.fromkeys(range(0xC000_0300, 0xC000_0304), _COUNTERS),
    **dict.fromkeys(range(0x480, 0x494), _NESTED),
}
"""MSRs that another host may refuse, and why the guest can go on without each. One with value 0 always may be: it is
what a new vCPU has."""

_FIRST = (0x10, 0x3B)
_LAST = (0x6E0, 0x4B56_4D00, 0x4B56_4D01, 0x11, 0x12)


def name_of(index: int) -> str:
    """The MSR's name, or its number for one that the table does not know."""
    known = MSRS.get(index)
    return known.name if known is not None else f"{index:#x}"


def saved(listed: Iterable[int]) -> list[int]:
    """The MSRs to read for a snapshot or a migration, given those that KVM lists; ascending, each once.

    Reading may fail for some of `EXTRA` on some hosts, and a value of 0 need not be written back.
    """
    return sorted(index for index in {*listed, *EXTRA} if not (index in MSRS and MSRS[index].skip))


def restore_order(indices: Iterable[int]) -> list[int]:
    """The order to write them in: the time stamp counter before all, what measures by it (deadline,
    clock) last."""

    def rank(index: int) -> tuple[int, int]:
        return (0 if index in _FIRST else 2 if index in _LAST else 1, index)

    return sorted(indices, key=rank)


def reset_values(available: Sequence[int]) -> list[tuple[int, int]]:
    """(index, value) of what to write when the machine is reset, out of the MSRs that this KVM has."""
    return [
        (index, known.reset)
        for index in sorted(set(available))
        if (known := MSRS.get(index)) is not None and known.reset is not None and not known.skip
    ]
