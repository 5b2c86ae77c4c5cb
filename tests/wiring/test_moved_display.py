"""Guests with a display that move: its memory, wherever the guest has put it, its mode, and who looks at it."""

from __future__ import annotations

import pytest

from tests.support.patience import PATIENT
from tests.wiring.guests import GuestShell
from tests.wiring.moves import destination, move
from tests.wiring.test_display import BAR0, COMMAND, ELSEWHERE, PAGE, Screen, display_of, pages
from tvmm import MachineConfig
from tvmm.board import Board
from tvmm.board_state import describe_board, differences
from tvmm.config.incoming import IncomingConfig
from tvmm.errors import UserError
from tvmm.machine import Machine
from tvmm.memory.layout import PCI_MMIO32
from tvmm.screen import Surface
from tvmm.testing import VmPair, pair

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

CONFIG = MachineConfig.parse(memory="64M", device=["bochs-display,xres=1024,yres=768"])
BASE = PCI_MMIO32.start
ADDRESSES = {"in place": BASE, "moved": ELSEWHERE, "off": None}


async def place(screen: Screen, where: str) -> None:
    """Move the BAR."""
    if where == "moved":
        await screen.poke(BAR0, ELSEWHERE)
    elif where == "off":
        await screen.poke(COMMAND, 0, 2)
    assert screen.vram.address == ADDRESSES[where]


@pytest.mark.parametrize("where", ADDRESSES)
@pytest.mark.parametrize("watched", [False, True])
async def test_a_display_moves(where: str, watched: bool) -> None:
    """Every byte of it arrives, also what the guest has written last, and KVM maps it where it was.

    Who looks at the source's screen until the end takes no page away from the migration.
    """
    async with pair(CONFIG) as machines:
        source = Screen(GuestShell(machines.source))
        if watched:
            source.vram.watch.turn_on()
        await source.poke(BASE + 11 * PAGE, 0x1234_5678)
        await source.poke(BASE + 16 * (1 << 20) + 0x502, 800, 2)
        await place(source, where)
        machines.source.board.ram.blocks["vga.vram"].view[-4:] = b"last"
        await machines.source.migrate(machines.uri, PATIENT._replace(verify=True))
        await machines.destination.wait_arrival()
        there = Screen(GuestShell(machines.destination))
        assert there.vram.address == ADDRESSES[where]
        assert there.vram.read(11 * PAGE, 4) == 0x1234_5678
        assert bytes(there.vram.view[-4:]) == b"last"
        assert there.display.surface == Surface(800, 768, 4096, 32, 0)
        there.vram.watch.turn_on()
        assert there.vram.watch.take() is None
        if where == "off":
            await there.poke(COMMAND, 2, 2)
            assert there.vram.watch.take() is None
        base = there.vram.address
        assert base is not None
        assert await there.peek(base + 11 * PAGE) == 0x1234_5678
        # KVM counts the first look at a page as a write.
        assert set(pages(there.vram.watch.take())) <= {11}
        await there.poke(base + 12 * PAGE, 1)
        assert pages(there.vram.watch.take()) == [12]


async def test_a_failed_move_leaves_the_watch_alone() -> None:
    """The source goes on, and so does who looks at its screen."""
    async with Machine(CONFIG) as vm:
        await vm.resume()
        shell = GuestShell(vm)
        await vm.wait_serial("tvmm> ")
        screen = Screen(shell)
        screen.vram.watch.turn_on()
        assert screen.vram.watch.take() is None
        await screen.poke(BASE, 1)
        with pytest.raises(UserError):
            await vm.migrate("unix:/nobody/is/here")
        await screen.poke(BASE + PAGE, 1)
        assert pages(screen.vram.watch.take()) == [0, 1]


async def test_who_waits_at_the_destination_sees_it_arrive() -> None:
    """A viewer that is there before the guest: the mode is told, and everything is to be compared."""
    async with pair(CONFIG) as machines:
        display = display_of(machines.destination.board)
        heard: list[str] = []
        display.on_mode = lambda: heard.append("mode")
        display.vram.watch.turn_on()
        assert display.vram.watch.take() is None
        assert display.surface is None
        await machines.source.migrate(machines.uri, PATIENT._replace(verify=True))
        await machines.destination.wait_arrival()
        assert heard
        assert display.surface == Surface(1024, 768, 4096, 32, 0)
        assert display.vram.watch.take() is None
        await Screen(GuestShell(machines.destination)).poke(BASE + PAGE, 1)
        assert pages(display.vram.watch.take()) == [1]


async def test_there_and_back() -> None:
    """By way of sections, twice."""
    async with pair(CONFIG) as machines, destination(CONFIG) as other:
        await Screen(GuestShell(machines.source)).poke(BASE + PAGE, 0xABCD)
        await move(machines.source, other.vm)
        screen = Screen(other)
        assert await screen.peek(BASE + PAGE) == 0xABCD
        assert screen.display.surface == Surface(1024, 768, 4096, 32, 0)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ([], "display"),
        (["bochs-display,xres=1024,yres=768,vgamem=32M"], "vga.vram"),
        (["bochs-display"], "display preferred mode is"),
        (["virtio-rng", "bochs-display,xres=1024,yres=768"], "display place"),
    ],
)
async def test_displays_that_differ_are_refused(device: list[str], words: str, vm_pair: VmPair) -> None:
    """Before anything is sent, in words."""
    ours = Board(CONFIG)
    theirs = Board(MachineConfig.parse(memory="64M", device=device), load=False)
    try:
        found = differences(describe_board(ours), describe_board(theirs))
        assert any(words in sentence for sentence in found), found
    finally:
        ours.close()
        theirs.close()
    waiting = MachineConfig.parse(memory="64M", device=device)._replace(incoming=IncomingConfig(f"{vm_pair.uri}-2"))
    async with Machine(waiting), Machine(CONFIG) as source:
        await source.resume()
        with pytest.raises(UserError):
            await source.migrate(f"{vm_pair.uri}-2")
