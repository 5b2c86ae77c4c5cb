"""Boards as sections: what is saved can be loaded, version 1 stays loadable, and hostile sections are refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.golden.sections import FOLDERS, golden
from tests.support.device_contract import mutated
from tests.support.netns import network_namespace
from tests.support.state_machines import (
    all_devices,
    balloon_device,
    display_device,
    generation_device,
    input_devices,
    make_images,
    net_devices,
    standing,
    vsock_device,
)
from tvmm import MachineConfig
from tvmm.board_state import load_board, save_board, section_types
from tvmm.devices.acpi_gpe import AcpiGpeState
from tvmm.devices.acpi_pm import AcpiPmState
from tvmm.errors import ProtocolError
from tvmm.state import Section, decode, encode
from tvmm.wiring.verification import differing_sections

pytestmark = pytest.mark.kvm

PATIENCE_S = 60


class Setting:
    """What boards of one configuration need around them."""

    def __init__(self, machine: str, folder: Path) -> None:
        self.machine = machine
        self._folder = folder

    def config(self, side: int = 0) -> MachineConfig:
        """For a board. Boards of two sides can be there at once."""
        if self.machine == "display":
            return display_device()
        if self.machine == "input":
            return input_devices()
        if self.machine == "vsock":
            return vsock_device(self._folder / str(side))
        if self.machine == "balloon":
            return balloon_device()
        if self.machine == "generation":
            return generation_device()
        return all_devices(self._folder) if self.machine == "devices" else net_devices(side)

    def sections(self) -> list[Section]:
        """The golden ones."""
        return golden(self.machine)


@pytest.fixture(params=list(FOLDERS))
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setting]:
    """Images, or a network namespace."""
    make_images(tmp_path)
    around: AbstractContextManager[None] = network_namespace() if request.param == "nets" else nullcontext()
    with around:
        yield Setting(request.param, tmp_path)


def unclocked(sections: list[Section]) -> dict[str, Section]:
    """By name, with the one field that goes on by itself out of the way."""
    found = {section.name: section for section in sections}
    clock: AcpiPmState = decode(found["acpi-pm"].data, (AcpiPmState,))
    found["acpi-pm"] = found["acpi-pm"]._replace(data=encode(clock._replace(timer_ns=0)))
    return found


async def test_version_1_is_loaded_and_saved_as_it_was(setting: Setting) -> None:
    """The golden sections of a guest that used everything go into a new board, and come out of it byte by byte."""
    config = setting.config()
    async with standing(config) as board:
        await load_board(board, setting.sections())
        saved = await save_board(board)
        known = section_types(board)
        assert board.devices is not None
        in_memory = {f"virtio/{slot.name}" for slot in board.devices.slots if slot.transport_name == "mmio"}
    sent = {section.name: section for section in setting.sections()}
    # An older one does not know of what is everywhere now.
    assert {section.name for section in saved} == set(sent) | {"acpi-gpe", "vmgenid"}
    assert not differing_sections(setting.sections(), saved, known)
    # The timer goes on, interrupts by way of the status register are made once more; there is a mouse now, and networks
    # know of peers that were lost.
    others = {section.name for section in saved if section.name in sent and section.data != sent[section.name].data}
    assert others <= {"acpi-pm", "i8042", "virtio/net0", "virtio/net1", *in_memory}


def test_the_golden_sections_hold_something() -> None:
    """The states are of a guest that was in the middle of things: each kind of record occurs in them."""
    machines = {machine: {section.name: section.data for section in golden(machine)} for machine in FOLDERS}
    for machine, name, words in (
        ("devices", "virtio/disk0", (b"VringConfig", b"BlkRun", b"PciState")),
        ("devices", "virtio/disk2", (b"KeptRequest", b"InFlight", b"TransportState")),
        ("devices", "virtio/console0", (b"PortRun", b"ControlState")),
        ("devices", "virtio/rng1", (b"RngRun", b"VringConfig")),
        ("devices", "pci/00:01.0", (b"MsixState", b"BarState")),
        ("nets", "virtio/net0", (b"NetRun", b"FilterState", b"VringConfig")),
        ("display", "display", (b"BochsDisplayState", b"VgaState")),
        ("nets", "virtio/net1", (b"NetRun", b"VringConfig")),
        ("input", "i8042", (b"Ps2MouseState",)),
        ("input", "virtio/keyboard0", (b"InputRun", b"InputState", b"VringConfig")),
        ("generation", "vmgenid", (bytes.fromhex("324e6eafd1d14bf6bf41b9bb6c91fb87"),)),
        ("generation", "acpi-gpe", (encode(AcpiGpeState(0, 0x20)),)),
        ("balloon", "virtio/balloon0", (b"BalloonRun", b"BalloonState", b"VringConfig", b"PciState")),
        ("input", "virtio/tablet1", (b"InputState", b"PciState")),
    ):
        assert all(word in machines[machine][name] for word in words), name


async def test_a_new_board_goes_into_another(setting: Setting) -> None:
    """Nothing has happened yet, and that is a state like any other."""
    async with standing(setting.config(0)) as first, standing(setting.config(1)) as second:
        sections = await save_board(first)
        await load_board(second, sections)
        again = await save_board(second)
    assert unclocked(again) == unclocked(sections)


async def test_saving_changes_nothing(setting: Setting) -> None:
    """A board that was saved is as it was: saved again it is the same, and devices go on."""
    async with standing(setting.config()) as board:
        await load_board(board, setting.sections())
        first, second = await save_board(board), await save_board(board)
        assert unclocked(first) == unclocked(second)


async def test_the_set_of_sections_is_checked_before_anything_is_touched(setting: Setting) -> None:
    """One too many, one too few and one too new leave the board as it was."""
    sections = setting.sections()
    newer = sections[0]._replace(version=2, minimum=2)
    fewer = [section for section in sections if section.name != "board"]
    async with standing(setting.config()) as board:
        before = unclocked(await save_board(board))
        unknown = newer._replace(name="x")
        for wrong in (fewer, [*sections, sections[-1]], [*sections, unknown], [newer, *sections[1:]]):
            with pytest.raises(ProtocolError, match="section "):
                await load_board(board, wrong)
            assert unclocked(await save_board(board)) == before


def hostile(section: Section, types: tuple[type[Any], ...], count: int, seed: int) -> Iterator[Section]:
    """`section` with fields of its record changed, or bytes of its data."""
    chance = random.Random(f"{section.name} {seed}")
    record = decode(section.data, types)
    while count:
        if chance.random() < 0.3:
            data = bytearray(section.data)
            for _ in range(chance.randint(1, 3)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            yield section._replace(data=bytes(data))
        else:
            try:
                yield section._replace(data=encode(mutated(record, chance.randbytes(2 * chance.randint(1, 3)))))
            except (TypeError, ValueError):
                continue  # No peer can write that.
        count -= 1


async def outcome_of(setting: Setting, sections: list[Section]) -> str:
    """Load into a new board and let its devices go on for a moment. The refusal, '' if there is none."""
    async with standing(setting.config()) as board:
        try:
            await load_board(board, sections)
        except ProtocolError as error:
            return str(error)
        assert board.devices is not None
        board.devices.release()
        await board.devices.hold()
        return ""


COUNT = 4
"""Changed sections of each kind; a new board for each."""


async def test_hostile_sections_are_refused_or_harmless(setting: Setting) -> None:
    """Changed records and bytes are refused by section and field, or a board's devices run with them."""
    sections = setting.sections()
    async with standing(setting.config()) as board:
        kinds = section_types(board)
    refused = taken = 0
    for position, section in enumerate(sections):
        for wrong in hostile(section, kinds[section.name].types, COUNT, 1):
            changed = [*sections[:position], wrong, *sections[position + 1 :]]
            with trio.fail_after(PATIENCE_S):
                refusal = await outcome_of(setting, changed)
            assert not refusal or refusal.startswith("section ")
            assert len(refusal) < 400
            refused, taken = refused + bool(refusal), taken + (not refusal)
    assert refused > len(sections)
    assert taken

