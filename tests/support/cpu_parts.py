"""vCPUs and interrupt chips of a board as sections, as little as a move within one host needs: a `CpuParts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.kvm.calls import ffi
from tvmm.kvm.system import Kvm
from tvmm.state import SectionType
from tvmm.vcpu.msrs import restore_order, saved

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.board import Board
    from tvmm.kvm.vcpu import KvmVcpu

__all__ = ["PlainCpuParts"]

MSR_TSC = 0x10


class PlainCpu(NamedTuple):
    """Images of KVM's structures."""

    mp_state: int
    regs: bytes
    sregs: bytes
    xcr0: int
    xsave: bytes
    msrs: tuple[tuple[int, int], ...]
    lapic: bytes
    events: bytes


class PlainChips(NamedTuple):
    """As `Vm.get_chips`."""

    images: tuple[bytes, ...]


def _image(raw: Any) -> bytes:
    return bytes(ffi.buffer(raw))


def _structure(name: str, image: bytes) -> Any:
    raw = ffi.new(f"struct {name} *")
    ffi.memmove(raw, image, len(image))
    return raw


class PlainCpuParts:
    """For guests that tell the time by the time stamp counter, which is the host's."""

    def types(self, board: Board) -> Mapping[str, SectionType]:
        """One section a vCPU, and one for the chips."""
        cpu = SectionType("plain-cpu", 1, (PlainCpu,))
        return {
            **{f"cpu/{vcpu.index}": cpu for vcpu in board.vcpus},
            "chips": SectionType("plain-chips", 1, (PlainChips,)),
        }

    def save(self, board: Board) -> Mapping[str, tuple[Any, ...]]:
        """All of them."""
        with Kvm() as kvm:
            indices = [index for index in saved(kvm.msr_indices()) if index != MSR_TSC]
        records: dict[str, tuple[Any, ...]] = {f"cpu/{vcpu.index}": _save(vcpu, indices) for vcpu in board.vcpus}
        return records | {"chips": PlainChips(tuple(board.vm.get_chips()))}

    def load(self, board: Board, records: Mapping[str, Any]) -> None:
        """Put them back."""
        board.vm.set_chips(list(records["chips"].images))
        for vcpu in board.vcpus:
            _load(vcpu, records[f"cpu/{vcpu.index}"])


def _save(vcpu: KvmVcpu, indices: list[int]) -> PlainCpu:
    mp_state = vcpu.get_mp_state()
    msrs: dict[int, int] = {}
    for index in indices:
        msrs |= vcpu.get_msrs([index])
    return PlainCpu(
        mp_state,
        _image(vcpu.get_regs()),
        _image(vcpu.get_sregs()),
        vcpu.get_xcr0(),
        bytes(vcpu.get_xsave()),
        tuple(sorted(msrs.items())),
        bytes(vcpu.get_lapic()),
        _image(vcpu.get_events()),
    )


def _load(vcpu: KvmVcpu, state: PlainCpu) -> None:
    vcpu.set_sregs(_structure("kvm_sregs", state.sregs))
    vcpu.set_regs(_structure("kvm_regs", state.regs))
    vcpu.set_xcr0(state.xcr0)
    vcpu.set_xsave(state.xsave)
    vcpu.set_lapic(state.lapic)
    values = dict(state.msrs)
    for index in restore_order(values):
        vcpu.set_msrs([(index, values[index])])
    vcpu.set_mp_state(state.mp_state)
    vcpu.set_events(_structure("kvm_vcpu_events", state.events))
