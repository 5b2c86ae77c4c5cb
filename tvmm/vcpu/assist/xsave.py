"""The XSAVE family, on the image that KVM keeps (Intel SDM volume 1, chapter 13).

KVM hands the extended state out in the standard format; the compacted format of XSAVEC and XSAVES is
laid out here from the sizes and alignments of CPUID leaf 0xD. Two freedoms that the architecture gives
are used: XSAVEOPT and XSAVES never skip a component because it was not modified, and the x87
instruction pointers are always the 64-bit ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.vcpu.assist.cpu import (
    CR0_TS,
    CR4_OSXSAVE,
    DEVICE_NOT_AVAILABLE,
    GENERAL_PROTECTION,
    INVALID_OPCODE,
    MSR_XSS,
    GuestException,
)
from tvmm.vcpu.assist.operation import MXCSR, STATE_AVX, STATE_SSE, STATE_X87, XMM, XSTATE_BV, Unsupported
from tvmm.vcpu.assist.x87 import MXCSR_KNOWN, initial_x87

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tvmm.vcpu.assist.operation import Operation
    from tvmm.vcpu.cpuid import CpuidEntry

__all__ = ["ROWS", "XsaveComponent", "compacted_offsets", "xsave_layout"]

LEGACY_END = 512
HEADER_END = 576
COMPACTED = 1 << 63
MXCSR_DEFAULT = 0x1F80
LEGACY_STATES = STATE_X87 | STATE_SSE


class XsaveComponent(NamedTuple):
    """A state component above SSE, as CPUID leaf 0xD describes it. Supervisor components have offset 0."""

    offset: int
    size: int
    aligned: bool = False


def xsave_layout(entries: Iterable[CpuidEntry]) -> dict[int, XsaveComponent]:
    """The components that CPUID leaf 0xD describes."""
    return {
        entry.index: XsaveComponent(entry.ebx, entry.eax, bool(entry.ecx & 2))
        for entry in entries
        if entry.function == 0xD and entry.index >= 2 and entry.eax
    }


def compacted_offsets(layout: Mapping[int, XsaveComponent], states: int) -> dict[int, int]:
    """Where each component of `states` (a bit map) lies in a compacted area that holds them all."""
    offsets: dict[int, int] = {}
    end = HEADER_END
    for number in _components(states):
        component = layout.get(number)
        if component is None:
            raise Unsupported
        if component.aligned:
            end = (end + 63) & ~63
        offsets[number] = end
        end += component.size
    return offsets


def _components(states: int) -> Iterable[int]:
    """Numbers of the components above SSE in a bit map."""
    return (number for number in range(2, 63) if states >> number & 1)


def _requested(op: Operation, supervisor: bool) -> tuple[int, int]:
    """Check that XSAVE is on and the area aligned; the requested components and those that are enabled."""
    if not op.sregs.cr4 & CR4_OSXSAVE:
        raise GuestException(INVALID_OPCODE)
    if op.sregs.cr0 & CR0_TS:
        raise GuestException(DEVICE_NOT_AVAILABLE)
    enabled = op.cpu.get_xcr0()
    if supervisor:
        op.require_kernel()
        enabled |= op.cpu.read_msr(MSR_XSS)
    if op.address & 63:
        raise GuestException(GENERAL_PROTECTION, 0)
    mask = (op.regs.rdx & 0xFFFF_FFFF) << 32 | op.regs.rax & 0xFFFF_FFFF
    return mask & enabled, enabled


def _known(op: Operation, states: int) -> int:
    """Those of `states` that have a place in KVM's image: components CPUID tells of, but no supervisor
    ones."""
    layout = op.cpu.xsave_layout
    return states & LEGACY_STATES | sum(1 << n for n in _components(states) if n in layout and layout[n].offset)


def _in_use(op: Operation) -> int:
    image = op.image()
    states = int.from_bytes(image[XSTATE_BV : XSTATE_BV + 8], "little")
    if int.from_bytes(image[MXCSR : MXCSR + 4], "little") != MXCSR_DEFAULT:
        states |= STATE_SSE
    return states


def _write_legacy(op: Operation, base: int, states: int, mxcsr: bool) -> list[tuple[int, bytes]]:
    """What goes into the first 512 bytes for the components `states`."""
    image = op.image()
    parts = []
    if states & STATE_X87:
        parts.append((base, bytes(image[:MXCSR])))
        parts.append((base + 32, bytes(image[32:XMM])))
    if mxcsr:
        parts.append((base + MXCSR, bytes(image[MXCSR : MXCSR + 8])))
    if states & STATE_SSE:
        parts.append((base + XMM, bytes(image[XMM : XMM + 256])))
    return parts


def _save_standard(op: Operation, skip_initial: bool) -> None:
    requested, _ = _requested(op, False)
    base, image, layout = op.address, op.image(), op.cpu.xsave_layout
    in_use = _in_use(op)
    written = _known(op, requested & in_use if skip_initial else requested)
    parts = _write_legacy(op, base, written, bool(requested & (STATE_SSE | STATE_AVX)))
    for number in _components(written):
        offset, size, _ = layout[number]
        parts.append((base + offset, bytes(image[offset : offset + size])))
    before = int.from_bytes(op.cpu.read_linear(base + XSTATE_BV, 8, op.user), "little")
    after = before & ~requested | requested & in_use
    parts.append((base + XSTATE_BV, after.to_bytes(8, "little")))
    _write_parts(op, parts)


def _save_compacted(op: Operation, supervisor: bool) -> None:
    requested, _ = _requested(op, supervisor)
    base, image, layout = op.address, op.image(), op.cpu.xsave_layout
    in_use = _in_use(op) & _known(op, requested)
    parts = _write_legacy(op, base, in_use, bool(in_use & STATE_SSE))
    offsets = compacted_offsets(layout, requested)
    for number in _components(in_use):
        offset, size, _ = layout[number]
        parts.append((base + offsets[number], bytes(image[offset : offset + size])))
    header = in_use.to_bytes(8, "little") + (requested | COMPACTED).to_bytes(8, "little") + bytes(48)
    parts.append((base + LEGACY_END, header))
    _write_parts(op, parts)


def _write_parts(op: Operation, parts: list[tuple[int, bytes]]) -> None:
    """Write the pieces, neighbours at once. A fault may leave some of them written, which the architecture
    allows: the instruction runs again after it.
    """
    joined: list[tuple[int, bytes]] = []
    for address, data in sorted(parts):
        if joined and joined[-1][0] + len(joined[-1][1]) == address:
            start, before = joined.pop()
            joined.append((start, before + data))
        else:
            joined.append((address, data))
    for address, data in joined:
        op.cpu.write_linear(address, data, op.user)


def _xsave(op: Operation) -> None:
    _save_standard(op, False)


def _xsaveopt(op: Operation) -> None:
    _save_standard(op, True)


def _xsavec(op: Operation) -> None:
    _save_compacted(op, False)


def _xsaves(op: Operation) -> None:
    _save_compacted(op, True)


def _restore(op: Operation, supervisor: bool) -> None:
    requested, enabled = _requested(op, supervisor)
    base, layout = op.address, op.cpu.xsave_layout
    legacy = op.cpu.read_linear(base, HEADER_END, op.user)
    stored = int.from_bytes(legacy[LEGACY_END : LEGACY_END + 8], "little")
    kept = int.from_bytes(legacy[LEGACY_END + 8 : LEGACY_END + 16], "little")
    compacted = bool(kept & COMPACTED)
    kept &= ~COMPACTED
    if compacted:
        valid = not (kept & ~enabled or stored & ~kept or any(legacy[LEGACY_END + 16 :]))
    else:
        valid = not (supervisor or kept or stored & ~enabled or any(legacy[LEGACY_END + 8 : LEGACY_END + 24]))
    if not valid:
        raise GuestException(GENERAL_PROTECTION, 0)

    loaded = _known(op, requested & stored)
    offsets = {number: layout[number].offset for number in _components(loaded)}
    if compacted:
        offsets = compacted_offsets(layout, kept)
    parts = {
        number: op.cpu.read_linear(base + offsets[number], layout[number].size, op.user)
        for number in _components(loaded)
    }
    # The standard form takes MXCSR also where SSE itself is in its initial state, and for AVX.
    takes_mxcsr = requested & (STATE_SSE | STATE_AVX) if not compacted else requested & stored & STATE_SSE
    mxcsr = int.from_bytes(legacy[MXCSR : MXCSR + 4], "little") if takes_mxcsr else MXCSR_DEFAULT
    image = op.image()
    if mxcsr & ~(int.from_bytes(image[MXCSR + 4 : MXCSR + 8], "little") or MXCSR_KNOWN):
        raise GuestException(GENERAL_PROTECTION, 0)

    image = op.change_image(0)
    if requested & STATE_X87:
        image[0:MXCSR] = legacy[0:MXCSR] if loaded & STATE_X87 else initial_x87()
        image[32:XMM] = legacy[32:XMM] if loaded & STATE_X87 else bytes(XMM - 32)
    if requested & STATE_SSE:
        image[XMM : XMM + 256] = legacy[XMM : XMM + 256] if loaded & STATE_SSE else bytes(256)
    if takes_mxcsr or requested & STATE_SSE:
        image[MXCSR : MXCSR + 4] = mxcsr.to_bytes(4, "little")
    for number in _components(_known(op, requested)):
        offset, size, _ = layout[number]
        image[offset : offset + size] = parts.get(number, bytes(size))
    states = int.from_bytes(image[XSTATE_BV : XSTATE_BV + 8], "little") & ~requested | loaded
    if mxcsr != MXCSR_DEFAULT:
        states |= STATE_SSE  # Or KVM would drop MXCSR with the component.
    image[XSTATE_BV : XSTATE_BV + 8] = states.to_bytes(8, "little")


def _xrstor(op: Operation) -> None:
    _restore(op, False)


def _xrstors(op: Operation) -> None:
    _restore(op, True)


ROWS = {
    "np 0f ae /4 mem": ("xsave", _xsave),
    "np 0f ae /6 mem": ("xsaveopt", _xsaveopt),
    "np 0f c7 /4 mem": ("xsavec", _xsavec),
    "np 0f c7 /5 mem": ("xsaves", _xsaves),
    "np 0f ae /5 mem": ("xrstor", _xrstor),
    "np 0f c7 /3 mem": ("xrstors", _xrstors),
}
