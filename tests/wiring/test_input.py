"""A board's keyboards and pointers together: who gets what is typed, lights, what moves with the guest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.support.input_guest import InputDriver, write_ports
from tests.wiring.guests import guest
from tvmm import MachineConfig
from tvmm.board import Board
from tvmm.board_state import load_board, save_board
from tvmm.control.machine_target import MachineTarget
from tvmm.devices.input_hub import InputHub
from tvmm.memory.layout import VIRTIO_MMIO
from tvmm.virtio.features import Ring

pytestmark = pytest.mark.kvm

A, SHIFT, LEFT = 30, 42, 0x110
KEY, REL, ABS, END = 1, 2, 3, (0, 0, 0)
KEYBOARD, TABLET = VIRTIO_MMIO.start, VIRTIO_MMIO.start + 0x1000
PACKED = Ring.VERSION_1 | Ring.RING_PACKED
DEVICES = ["virtio-keyboard-device,packed=on,serial=k1", "virtio-tablet-device"]


@asynccontextmanager
async def standing(*devices: str) -> AsyncIterator[Board]:
    """A board with the tasks of its devices."""
    board = Board(MachineConfig.parse(memory="64M", device=list(devices)), load=False)
    try:
        async with trio.open_nursery() as nursery:
            for name, run in board.devices.tasks() if board.devices is not None else ():
                nursery.start_soon(run, name=name)
            yield board
            nursery.cancel_scope.cancel()
    finally:
        board.close()


def waiting(board: Board) -> bytes:
    """What the keyboard controller has for the guest."""
    got = bytearray()
    with board.bus_lock:
        while board.ports.read(0x64, 1) & 1:
            got.append(board.ports.read(0x60, 1))
    return bytes(got)


async def test_every_board_has_ps2() -> None:
    """Without any options keys go to the keyboard controller, and its lights are heard of."""
    async with standing() as board:
        hub = board.input
        assert isinstance(hub, InputHub)
        assert board.input is hub
        hub.key(A, True, "x")
        hub.sync()
        assert waiting(board) == b"\x1e"
        seen: list[int] = []
        hub.on_leds.append(seen.append)
        write_ports(board, (0x60, 0xED), (0x60, 4))
        assert (seen, hub.leds) == ([4], 4)
        with board.bus_lock:
            board.keyboard.reset()
        assert seen == [4, 0]


async def test_virtio_devices_are_preferred_once_they_have_a_driver() -> None:
    """Before that PS/2 gets all; a key goes up where it went down; lights are those of the keyboard that is used."""
    async with standing(*DEVICES) as board:
        hub = board.input
        hub.key(SHIFT, True, 1)
        assert not hub.absolute
        keyboard = InputDriver(board, KEYBOARD, 0x10_0000, PACKED)
        tablet = InputDriver(board, TABLET, 0x20_0000)
        assert keyboard.ask(2) == b"k1"
        keyboard.offer(8)
        tablet.offer(8)
        hub.key(A, True, 1)
        hub.key(SHIFT, False, 1)
        hub.move_to(5, 6)
        hub.button(LEFT, True, 1)
        hub.wheel(-1)
        hub.sync()
        assert hub.absolute
        assert keyboard.events() == [(KEY, A, 1), END]
        assert tablet.events() == [(ABS, 0, 5), (ABS, 1, 6), (KEY, LEFT, 1), (REL, 8, -1), END]
        assert waiting(board) == b"\x2a\xaa"
        seen: list[int] = []
        hub.on_leds.append(seen.append)
        keyboard.light(1, True)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert (seen, hub.leds) == ([4], 4)
        keyboard.write(0x70, 0)
        assert hub.leds == 0
        hub.key(A, False, 1)
        hub.key(A, True, 1)
        hub.sync()
        assert waiting(board) == b"\x1e"


async def test_keys_that_are_down_when_the_guest_moves() -> None:
    """The other side tells the guest that they are up, on each device, unless somebody holds them there."""
    async with standing(*DEVICES) as first, standing(*DEVICES) as second:
        keyboard = InputDriver(first, KEYBOARD, 0x10_0000, PACKED)
        tablet = InputDriver(first, TABLET, 0x20_0000)
        write_ports(first, (0x64, 0xD4), (0x60, 0xF4))
        waiting(first)
        keyboard.offer(4)
        first.input.key(A, True, 1)
        first.input.sync()
        with first.bus_lock:
            first.keyboard.press(SHIFT, True)
        first.input.move_to(7, 8)
        first.input.button(LEFT, True, 1)
        first.input.sync()
        assert first.devices is not None
        assert second.devices is not None
        assert waiting(first) == b"\x2a"
        await first.devices.hold()
        await second.devices.hold()
        sections = await save_board(first)
        await load_board(second, sections)
        for at in range(0x10_0000, 0x30_0000, 0x1_0000):
            second.ram.write(at, first.ram.read(at, 0x1_0000))
        second.release_keys()
        second.devices.release()
        for driver in (keyboard, tablet):
            driver.move(second)
        tablet.offer(8)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert keyboard.events() == [(KEY, A, 1), END, (KEY, A, 0), END]
        assert tablet.events() == [(ABS, 0, 7), (ABS, 1, 8), (KEY, LEFT, 1), END, (KEY, LEFT, 0), END]
        assert waiting(second) == b"\xaa"
        first.devices.release()


@pytest.mark.guest
@pytest.mark.timeout(60)
async def test_keys_reach_a_running_guest() -> None:
    """What a control client types interrupts the guest, which prints the scancodes."""
    async with guest() as shell:
        await shell.order("kbd 30")
        await shell.vm.wait_serial("press keys")
        await MachineTarget(shell.vm).send_keys([29, 111], 1)
        for code in ("1d", "e0", "53", "e0", "d3", "9d"):
            await shell.vm.wait_serial(f"scan code 0x{code}")


async def test_a_plain_board_makes_no_hub_when_a_guest_arrives() -> None:
    """Nothing is down: nothing is imported or made."""
    async with standing() as board:
        board.release_keys()
        assert "input" not in vars(board)
