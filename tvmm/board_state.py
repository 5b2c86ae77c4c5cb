"""The state of a paused machine as sections, and back into a board that was made for it. RAM goes its own way.

============================  =========================================================================
section                       what is in it
============================  =========================================================================
``board``                     what the kernel is, for reports
``serial0``                   registers, receive FIFO, and what was transmitted and nobody was given
``i8042`` ``rtc`` ``acpi-pm`` registers; what waits in the controller, keyboard and mouse
``acpi-gpe`` ``vmgenid``      registers; the generation ID. Older machines had neither
``post`` ``system-control``   registers
``pci``                       the host bridge and the ports of mechanism 1
``pci/00:03.0``               a function: configuration space, BARs, MSI-X with its pending bits
``display``                   registers, palette
``virtio/disk0``              transport, device, rings, and what is on its way between ring and backend
============================  =========================================================================

vCPUs, interrupt chips and clocks are sections of a `CpuParts`.

Time. The RTC's record is relative to the wall clock, which both sides share. The PM timer's says how long the timer has
run, and stands still between save and load. A rate limit's bucket has what it had. No record holds a monotonic time.

The order of loading: functions and their BARs before transports, since queues need vectors; registers before rings;
vCPUs and interrupt chips after all devices, whose interrupts they would forget; then what may have been on its way as
an interrupt once more. Rings are touched no earlier than at the machine's next start, which looks at all of them.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tvmm.board_facts import describe_board, differences
from tvmm.errors import ProtocolError, UserError
from tvmm.records import check_record
from tvmm.state import Section, SectionType, load_sections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from tvmm.board import Board
    from tvmm.wiring.slot import Slot

__all__ = [
    "BoardState",
    "CpuParts",
    "describe_board",
    "differences",
    "keep_board",
    "load_board",
    "save_board",
    "section_types",
]

MAX_LOADED = 200
"""Characters of a kernel's description."""


class BoardState(NamedTuple):
    """`loaded` describes the kernel, as `EntryState.kernel`."""

    loaded: str = ""


class CpuParts(Protocol):
    """vCPUs, interrupt chips and clocks of a board, all of them paused."""

    def types(self, board: Board) -> Mapping[str, SectionType]:
        """The sections by name, such as ``cpu/0`` and ``chips``."""

    def save(self, board: Board) -> Mapping[str, tuple[Any, ...]]:
        """The record of each."""

    def load(self, board: Board, records: Mapping[str, Any]) -> None:
        """Put them back. Raises `ValueError` with the name of a section and a bad field, or `OSError` of KVM's."""


class _Part(NamedTuple):
    """One section of a part that is saved and restored at once, under the bus lock if `locked`."""

    kind: SectionType
    save: Callable[[], tuple[Any, ...]]
    restore: Callable[[Any], None]
    locked: bool = True


async def save_board(board: Board, cpus: CpuParts | None = None) -> list[Section]:
    """Everything that a paused machine has but RAM, in the order of the table above; vCPUs last.

    Waits for resets under way. What the guest has written to its lines and nobody was given stays here and is in the
    sections; if the machine goes on here, it is passed on then. If it stays here without going on, call `keep_board`.
    """
    for slot in _slots(board):
        await slot.settle_resets()
    sections = []
    for name, part in _parts(board).items():
        if part.locked:
            with board.bus_lock:
                record = part.save()
        else:
            record = part.save()
        sections.append(part.kind.save(name, record))
    for slot in _slots(board):
        name = f"virtio/{slot.name}"
        sections.append(_slot_type(slot).save(name, slot.save()))
    if cpus is not None:
        kinds = cpus.types(board)
        sections += [kinds[name].save(name, record) for name, record in cpus.save(board).items()]
    return sections


def keep_board(board: Board) -> None:
    """The machine stays where it was saved, paused: what the guest wrote last is passed on here. Else harmless."""
    board.serial.go_on()


def section_types(board: Board, cpus: CpuParts | None = None) -> dict[str, SectionType]:
    """The sections that this board has, by name."""
    kinds = {name: part.kind for name, part in _parts(board).items()}
    kinds |= {f"virtio/{slot.name}": _slot_type(slot) for slot in _slots(board)}
    if cpus is not None:
        kinds |= cpus.types(board)
    return kinds


async def load_board(board: Board, sections: Iterable[Section], cpus: CpuParts | None = None) -> None:
    """Put `sections` into a board that was made with ``load=False``, of a machine that is paused and has not run.

    RAM has been loaded: the rings are looked at. Raises `ProtocolError` naming section and field, with the board of no
    use any more; unless it is the set of sections that is wrong, or one cannot be read, nothing has been changed then.
    """
    records = load_sections(sections, section_types(board, cpus))
    for name, part in _parts(board).items():
        if name not in records:
            continue  # not required: an older tvmm did not write it, and its guest knows of nothing there
        with _naming(name):
            if part.locked:
                with board.bus_lock:
                    part.restore(records[name])
            else:
                part.restore(records[name])
    for slot in _slots(board):
        name = f"virtio/{slot.name}"
        with _naming(name):
            await slot.restore(records[name])
    if cpus is not None:
        with _naming("cpu"):
            cpus.load(board, {name: records[name] for name in cpus.types(board)})
    _redeliver(board)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors in the block become `ProtocolError` with the section's name in front."""
    try:
        yield
    except (ValueError, UserError) as error:
        raise ProtocolError(f"section {name}: {error}") from error
    except OSError as error:
        raise ProtocolError(f"section {name}: KVM refuses it: {error.strerror}") from error


def _redeliver(board: Board) -> None:
    """Interrupts that may have been between a device and the interrupt controller; one too many is harmless.

    An edge that was raised is in the chips' state, or still in a queue of the source's kernel.
    """
    with board.bus_lock:
        board.serial.redeliver()
        keyboard, mouse = board.keyboard.lines_up
        for up, line in (
            (keyboard, board.keyboard_line),
            (mouse, board.mouse_line),
            (board.rtc.line_up, board.rtc_line),
            (board.pm.line_up or board.gpe.line_up, board.sci_line),
        ):
            if up:
                line()
        for slot in _slots(board):
            slot.redeliver()
        if board.devices is not None and board.devices.bus is not None:
            board.devices.bus.redeliver()


def _slots(board: Board) -> list[Slot]:
    return board.devices.slots if board.devices is not None else []


# --- the parts list ---


def _parts(board: Board) -> dict[str, _Part]:
    """All but virtio devices, in the order of loading."""
    from tvmm.devices.acpi_gpe import AcpiGpeState
    from tvmm.devices.acpi_pm import AcpiPmState
    from tvmm.devices.generation_id import GenerationIdState
    from tvmm.devices.i8042 import I8042State
    from tvmm.devices.misc import PostPortState, SystemControlState
    from tvmm.devices.ps2_keyboard import Ps2KeyboardState
    from tvmm.devices.ps2_mouse import Ps2MouseState
    from tvmm.devices.rtc import RtcState
    from tvmm.devices.uart16550_registers import Uart16550State
    from tvmm.serial_port import SerialState

    def save_board_record() -> BoardState:
        return BoardState(board.loaded)

    def restore_board_record(state: BoardState) -> None:
        check_record(state, BoardState)
        if type(state.loaded) is not str or len(state.loaded) > MAX_LOADED or not state.loaded.isprintable():
            raise ValueError(f"loaded is not a text of at most {MAX_LOADED} characters")
        board.loaded = state.loaded

    def kind(name: str, *types: type[Any]) -> SectionType:
        return SectionType(name, 1, types)

    def later(name: str, *types: type[Any]) -> SectionType:
        return SectionType(name, 1, types, required=False)

    keyboard, rtc, pm, post, control = board.keyboard, board.rtc, board.pm, board.post, board.system_control
    parts = {
        "board": _Part(kind("board", BoardState), save_board_record, restore_board_record),
        # It takes the lock itself, where it needs to.
        "serial0": _Part(
            kind("serial", SerialState, Uart16550State), board.serial.save, board.serial.restore, locked=False
        ),
        # Version 1 had no mouse, and none of the keys that are down.
        "i8042": _Part(
            SectionType(
                "i8042", 2, (I8042State, Ps2KeyboardState, Ps2MouseState), minimum=2, upgrades={1: _keyboard_is_used}
            ),
            keyboard.state,
            keyboard.restore,
        ),
        "rtc": _Part(kind("rtc", RtcState), rtc.state, rtc.restore),
        "acpi-pm": _Part(kind("acpi-pm", AcpiPmState), pm.state, pm.restore),
        "acpi-gpe": _Part(later("acpi-gpe", AcpiGpeState), board.gpe.state, board.gpe.restore),
        "vmgenid": _Part(later("vmgenid", GenerationIdState), board.generation.state, board.generation.restore),
        "post": _Part(kind("post", PostPortState), post.state, post.restore),
        "system-control": _Part(kind("system-control", SystemControlState), control.state, control.restore),
    }
    if board.devices is not None and board.devices.bus is not None:
        parts |= _pci_parts(board)
        if board.devices.display is not None:
            from tvmm.devices.bochs_display import BochsDisplayState
            from tvmm.devices.vga_registers import VgaState

            display = board.devices.display
            parts["display"] = _Part(
                kind("bochs-display", BochsDisplayState, VgaState), display.model.state, display.restore
            )
    return parts


def _keyboard_is_used(fields: dict[str, Any]) -> None:
    """A guest that has run for a while has a driver for it."""
    fields["keyboard"].fields["used"] = True


def _pci_parts(board: Board) -> dict[str, _Part]:
    from tvmm.devices.pci_bars import BarState
    from tvmm.devices.pci_config import ConfigState
    from tvmm.devices.pci_function import PciFunctionState
    from tvmm.devices.pci_host import PciHostState
    from tvmm.devices.pci_msix import MsixState

    assert board.devices is not None
    assert board.devices.bus is not None
    bus = board.devices.bus
    function = (PciFunctionState, ConfigState, BarState, MsixState)
    parts = {
        f"pci/{slot.where}": _Part(SectionType("pci-function", 1, function), slot.function.state, slot.restore_function)
        for slot in bus.slots
    }
    parts["pci"] = _Part(SectionType("pci", 1, (PciHostState, *function)), bus.host.state, bus.restore)
    return parts


def _slot_type(slot: Slot) -> SectionType:
    from tvmm.kvm.vring_records import InFlight, VringConfig, VringState
    from tvmm.virtio.device import ConfigState
    from tvmm.virtio.pci import PciState
    from tvmm.virtio.pci_window import WindowState
    from tvmm.virtio.queues import QueueState
    from tvmm.virtio.runner.base import QueueRun
    from tvmm.virtio.transport_state import TransportState
    from tvmm.wiring.slot import SlotState

    common = (SlotState, PciState, WindowState, TransportState, QueueState, ConfigState)
    rings = (QueueRun, VringState, VringConfig, InFlight)
    kind = slot.device.type_name
    return SectionType(kind, 1, (*common, *rings, *_device_types(kind)))


def _device_types(kind: str) -> tuple[type[Any], ...]:
    """Records of a kind of device and of its runner."""
    if kind == "virtio-blk":
        from tvmm.kvm.blk_state import KeptRequest
        from tvmm.virtio.runner.blk import BlkRun
        from tvmm.virtio.runner.blk_queue import DiskQueueRun

        return BlkRun, DiskQueueRun, KeptRequest
    if kind == "virtio-net":
        from tvmm.virtio.net import NetState
        from tvmm.virtio.net_filter import FilterState
        from tvmm.virtio.runner.net import NetRun

        return NetState, FilterState, NetRun
    if kind == "virtio-console":
        from tvmm.virtio.console import ConsoleState
        from tvmm.virtio.console_control import ControlState, PortState
        from tvmm.virtio.runner.console import ConsoleRun, PortRun

        return ConsoleState, ControlState, PortState, ConsoleRun, PortRun
    if kind == "virtio-rng":
        from tvmm.virtio.rng import RngState
        from tvmm.virtio.runner.rng import RngRun

        return RngState, RngRun
    if kind == "virtio-input":
        from tvmm.virtio.input import InputState
        from tvmm.virtio.runner.input import InputRun

        return InputState, InputRun
    if kind == "virtio-balloon":
        from tvmm.virtio.balloon import BalloonState
        from tvmm.virtio.runner.balloon import BalloonRun

        return BalloonState, BalloonRun
    if kind == "virtio-vsock":
        from tvmm.virtio.runner.vsock import VsockRun

        return (VsockRun,)
    raise ValueError(f"devices of kind {kind} have no section")
