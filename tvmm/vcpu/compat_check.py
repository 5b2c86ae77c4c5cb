"""Whether what a peer says of its processors is within bounds. Pure."""

from __future__ import annotations

from tvmm.records import check_flag, check_record, check_uint
from tvmm.vcpu.compat import CpuDescription, HostCpu
from tvmm.vcpu.cpu_features import FEATURES
from tvmm.vcpu.cpuid import MODELS

__all__ = ["check_description", "check_host"]

MAX_WORDS, MAX_COMPONENTS, MAX_MSRS, MAX_TEXT, MAX_ADJUSTMENTS = 256, 64, 4096, 64, 512
"""Of a peer's record, which could otherwise make a long answer of a short question."""


def check_description(state: CpuDescription) -> None:
    """Raise `ValueError` naming the first field of a peer's record that is out of range."""
    check_record(state, CpuDescription)
    if state.model not in MODELS:
        raise ValueError("model is not one of CPU models")
    if type(state.adjustments) is not tuple or len(state.adjustments) > MAX_ADJUSTMENTS:
        raise ValueError(f"adjustments is not a tuple of up to {MAX_ADJUSTMENTS} pairs")
    for pair in state.adjustments:
        if type(pair) is not tuple or len(pair) != 2 or type(pair[0]) is not str:
            raise ValueError("adjustments has an entry that is no pair")
        check_flag("adjustments", pair[1])
        if pair[0] not in FEATURES:
            raise ValueError("adjustments has an unknown feature")
    check_uint("count", state.count, 0xFFFF)
    _check_common(state)


def check_host(state: HostCpu) -> None:
    """Raise `ValueError` naming the first field of a peer's record that is out of range."""
    check_record(state, HostCpu)
    check_uint("max_count", state.max_count, 0xFFFF)
    check_flag("tsc_control", state.tsc_control)
    _check_common(state)


def _check_common(state: CpuDescription | HostCpu) -> None:
    for field in ("vendor", "host_id"):
        text = getattr(state, field)
        if type(text) is not str or len(text) > MAX_TEXT or not text.isprintable():
            raise ValueError(f"{field} is not a text of up to {MAX_TEXT} printable characters")
    for field, limit in (("features", MAX_WORDS), ("components", MAX_COMPONENTS), ("processor", MAX_WORDS)):
        rows = getattr(state, field)
        if type(rows) is not tuple or len(rows) > limit:
            raise ValueError(f"{field} is not a tuple of up to {limit} words")
        for row in rows:
            if type(row) is not tuple or len(row) != 4:
                raise ValueError(f"{field} has an entry that is no word")
            for number in row:
                check_uint(field, number, 0xFFFF_FFFF)
            check_uint(field, row[2], 0xFFFF_FFFF if field == "components" else 3)
    check_uint("xcr0", state.xcr0, (1 << 64) - 1)
    check_uint("physical_bits", state.physical_bits, 64)
    if type(state.msrs) is not tuple or len(state.msrs) > MAX_MSRS:
        raise ValueError(f"msrs is not a tuple of up to {MAX_MSRS} numbers")
    for index in state.msrs:
        check_uint("msrs", index, 0xFFFF_FFFF)
    check_uint("tsc_khz", state.tsc_khz, 0xFFFF_FFFF)
    check_flag("emulated_kernel", state.emulated_kernel)
