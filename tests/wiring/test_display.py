"""The display of a board: its memory as the guest sees it, which pages of it were written, what kernels are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from struct import unpack_from

import pytest
import trio

from tests.support.pci_driver import EcamAccess, FoundBar, enumerate_bus
from tests.wiring.guests import PROMPT, GuestShell, guest
from tvmm import MachineConfig
from tvmm.board import Board
from tvmm.config.display import DisplayConfig
from tvmm.control.machine_target import memory_map
from tvmm.memory.layout import PCI_ECAM, PCI_MMIO32, ZERO_PAGE
from tvmm.screen import Surface
from tvmm.wiring.display import Display

MIB, PAGE = 1 << 20, 4096
CONFIG = PCI_ECAM.start + (1 << 15)
"""Of the function in slot 1."""
COMMAND, BAR0 = CONFIG + 4, CONFIG + 0x10
ELSEWHERE = 0xD000_0000
WIDE = "bochs-display,xres=1920,yres=1080,vgamem=32M"


def display_of(board: Board) -> Display:
    """It is there."""
    assert board.devices is not None
    assert board.devices.display is not None
    return board.devices.display


def pages(touched: bytes | None) -> list[int]:
    """Numbers of those that were written."""
    assert touched is not None
    return [page for page, byte in enumerate(touched) if byte]


@contextmanager
def made(*devices: str, **options: str) -> Iterator[Board]:
    """A board that nobody runs."""
    board = Board(MachineConfig.parse(memory="64M", device=list(devices), **options))
    try:
        yield board
    finally:
        board.close()


class Screen:
    """A guest with a display, whose shell reads and writes memory."""

    def __init__(self, shell: GuestShell) -> None:
        self.shell = shell
        self.display = display_of(shell.vm.board)
        self.vram = self.display.vram

    async def poke(self, address: int, value: int, size: int = 4) -> None:
        """Have the guest write."""
        assert "error" not in await self.shell.ask(f"poke {address:#x} {value:#x} {size}")

    async def peek(self, address: int) -> int:
        """Have the guest read 4 bytes."""
        text = await self.shell.ask(f"mem {address:#x} 4")
        [line] = [line for line in text.splitlines() if line.startswith(f"{address:012x}")]
        return int.from_bytes(bytes.fromhex("".join(line.split()[1:5])), "little")


# --- on a board ---


@pytest.mark.kvm
def test_the_guest_finds_it() -> None:
    """The identity of QEMU's bochs-display, its BARs with their sizes, no interrupt; memory placed and decoding."""
    with made(WIDE) as board:
        [bridge, function] = enumerate_bus(EcamAccess(board.mmio, PCI_ECAM.start))
        assert (function.vendor_id, function.device_id) == (0x1234, 0x1111)
        assert function.bars == (FoundBar(0, "memory32", 32 * MIB, True), FoundBar(2, "memory32", PAGE, False))
        assert board.mmio.read(CONFIG + 8, 4) >> 8 == 0x03_80_00
        assert board.mmio.read(CONFIG + 0x3D, 1) == 0
        assert bridge.where == (0, 0)
        display = display_of(board)
        assert display.vram.address == PCI_MMIO32.start
        assert display.surface == Surface(1920, 1080, 7680, 32, 0)


@pytest.mark.kvm
def test_the_map_of_addresses() -> None:
    """Video memory is RAM where it is, and nothing where it is not."""
    with made("bochs-display") as board:
        assert [(one.start, one.size, one.kind) for one in memory_map(board) if one.block == "vga.vram"] == [
            (PCI_MMIO32.start, 16 * MIB, "ram")
        ]
        with board.bus_lock:
            board.mmio.write(COMMAND, 2, 0)
        assert "vga.vram" not in {one.block for one in memory_map(board)}
        assert display_of(board).vram.address is None


@pytest.mark.kvm
@pytest.mark.parametrize("size", ["4M", "64M", "128M", "256M"])
def test_any_size_has_room(size: str) -> None:
    """Beside other devices on PCI, whose registers come behind it."""
    with made("virtio-rng", f"bochs-display,xres=640,yres=480,vgamem={size}") as board:
        vram = display_of(board).vram
        assert vram.address == PCI_MMIO32.start
        assert vram.block.size == int(size[:-1]) * MIB
        assert vram.refusals == 0


@pytest.mark.kvm
def test_moves_and_marks_without_a_guest() -> None:
    """What tvmm writes is seen at the place where the BAR is, and found; after a move all of it counts as written."""
    with made("bochs-display") as board:
        vram = display_of(board).vram
        watch = vram.watch
        assert watch.take() is None
        watch.turn_on()
        assert watch.is_on
        assert watch.take() is None
        assert pages(watch.take()) == []
        board.ram.write(PCI_MMIO32.start + 2 * PAGE - 1, b"ab")
        vram.write(7 * PAGE + 4, 4, 0x1234_5678)
        assert vram.read(7 * PAGE + 4, 4) == 0x1234_5678
        assert pages(watch.take()) == [1, 2, 7]
        assert pages(watch.take()) == []
        with board.bus_lock:
            board.mmio.write(BAR0, 4, ELSEWHERE)
        assert vram.address == ELSEWHERE
        assert watch.take() is None
        assert pages(watch.take()) == []
        assert board.ram.read(ELSEWHERE + 2 * PAGE - 1, 2) == b"ab"
        board.ram.write(ELSEWHERE, b"c")
        assert pages(watch.take()) == [0]
        board.reset()
        assert vram.address == PCI_MMIO32.start
        assert watch.take() is None
        assert not any(vram.view[: 16 * PAGE])
        watch.turn_off()
        assert not watch.is_on
        assert watch.take() is None


@pytest.mark.kvm
def test_where_there_is_no_room_it_is_nowhere() -> None:
    """A guest that puts the BAR on top of RAM, of the ECAM or behind all windows gets nothing, and no error."""
    with made("bochs-display") as board:
        vram = display_of(board).vram
        for address in (0, 0x100_0000, PCI_ECAM.start, 0xFF00_0000):
            with board.bus_lock:
                board.mmio.write(BAR0, 4, address)
            assert vram.address is None
        with board.bus_lock:
            board.mmio.write(BAR0, 4, ELSEWHERE)
        assert vram.address == ELSEWHERE


@pytest.mark.kvm
def test_changes_of_the_mode_are_told() -> None:
    """By the registers in memory and by the ports, which are there without any decoding."""
    with made("bochs-display") as board:
        display = display_of(board)
        heard: list[str] = []
        display.on_mode = lambda: heard.append("mode")
        registers = PCI_MMIO32.start + 16 * MIB
        with board.bus_lock:
            board.mmio.write(registers + 0x502, 2, 640)
            board.ports.write(0x1CE, 2, 2)
            board.ports.write(0x1CF, 2, 480)
        assert heard == ["mode", "mode"]
        assert display.surface == Surface(640, 480, 5120, 32, 0)
        board.reset()
        assert display.surface == Surface(1280, 800, 5120, 32, 0)


@pytest.mark.kvm
def test_a_linux_kernel_is_told() -> None:
    """The zero page has the framebuffer: a VESA mode, 32 bits, in the memory where the BAR is."""
    with made(WIDE, entry="linux64") as board:
        page = board.ram.read(ZERO_PAGE, 0x40)
    assert page[0x0F] == 0x23
    assert unpack_from("<HHH", page, 0x12) == (1920, 1080, 32)
    assert unpack_from("<II", page, 0x18) == (PCI_MMIO32.start, 32 * MIB >> 16)
    assert unpack_from("<H", page, 0x24) == (7680,)
    assert page[0x26:0x2E] == bytes((8, 16, 8, 8, 8, 0, 8, 24))


@pytest.mark.kvm
def test_without_a_display_nothing_is_told() -> None:
    """No picture, no block, no bus."""
    with made(entry="linux64") as board:
        assert board.ram.read(ZERO_PAGE, 0x40) == bytes(0x40)
        assert list(board.ram.blocks) == ["pc.ram"]
        assert board.devices is None


@pytest.mark.kvm
@pytest.mark.parametrize("kind", ["shared=on", "prealloc=on"])
def test_kinds_of_memory(kind: str) -> None:
    """It is of the kind that the RAM is of."""
    board = Board(MachineConfig.parse(memory=f"64M,{kind}", device="bochs-display"))
    try:
        assert (display_of(board).vram.block.fd >= 0) == (kind == "shared=on")
    finally:
        board.close()


# --- with a guest ---


@pytest.mark.guest
async def test_the_guest_writes_memory() -> None:
    """Its writes cost no exit, and the watch finds exactly their pages, wherever the BAR is."""
    async with guest(device="bochs-display") as shell:
        screen = Screen(shell)
        vram, base = screen.vram, PCI_MMIO32.start
        await screen.poke(base + 3 * PAGE, 0x1111)
        assert vram.read(3 * PAGE, 4) == 0x1111
        vram.watch.turn_on()
        assert vram.watch.take() is None
        for page in (0, 3, 64, 1024, 4095):
            await screen.poke(base + page * PAGE + 8, page + 1)
        assert pages(vram.watch.take()) == [0, 3, 64, 1024, 4095]
        assert vram.read(4095 * PAGE + 8, 4) == 4096
        assert pages(vram.watch.take()) == []
        await screen.poke(base + 3 * PAGE, 0x2222)
        assert pages(vram.watch.take()) == [3]

        await screen.poke(BAR0, ELSEWHERE)
        assert vram.address == ELSEWHERE
        assert vram.watch.take() is None
        await screen.poke(ELSEWHERE + 5 * PAGE, 0x3333)
        assert pages(vram.watch.take()) == [5]
        await screen.poke(base + 6 * PAGE, 0x4444)
        assert pages(vram.watch.take()) == []
        await screen.poke(COMMAND, 0, 2)
        await screen.poke(ELSEWHERE + 6 * PAGE, 0x4444)
        assert vram.watch.take() is None
        assert pages(vram.watch.take()) == []
        await screen.poke(COMMAND, 2, 2)
        assert vram.watch.take() is None
        await screen.poke(ELSEWHERE + 6 * PAGE, 0x5555)
        assert pages(vram.watch.take()) == [6]
        assert vram.read(3 * PAGE, 4) == 0x2222


@pytest.mark.guest
async def test_an_unwatched_screen_is_not_logged() -> None:
    """On, off and on again: what was written in between is not known."""
    async with guest(device="bochs-display") as shell:
        screen = Screen(shell)
        watch = screen.vram.watch
        watch.turn_on()
        watch.turn_on()
        assert watch.take() is None
        watch.turn_off()
        await screen.poke(PCI_MMIO32.start, 1)
        assert watch.take() is None
        watch.turn_on()
        assert watch.take() is None
        await screen.poke(PCI_MMIO32.start + PAGE, 1)
        assert pages(watch.take()) == [1]


@pytest.mark.guest
async def test_the_guest_sets_a_mode() -> None:
    """By memory and by ports is all the same; whoever looks is told."""
    async with guest(device="bochs-display") as shell:
        screen = Screen(shell)
        heard: list[str] = []
        screen.display.on_mode = lambda: heard.append("mode")
        registers = PCI_MMIO32.start + 16 * MIB + 0x500
        for register, value in ((4, 0), (3, 16), (1, 800), (2, 600), (6, 800), (4, 0x41)):
            await screen.poke(registers + 2 * register, value, 2)
        assert screen.display.surface == Surface(800, 600, 1600, 16, 0)
        assert heard == ["mode", "mode"]


@pytest.mark.guest
@pytest.mark.parametrize("seed", [3, 4])
async def test_a_guest_that_writes_anywhere(seed: int) -> None:
    """Random accesses to ports, registers and the holes between, with somebody who looks all the time.

    Whatever is to be seen lies in the memory, and a reset makes everything good again.
    """
    async with guest(device=["bochs-display", "virtio-rng"]) as shell:
        screen = Screen(shell)
        vram, display = screen.vram, screen.display
        vram.watch.turn_on()
        looks = trio.Event()

        def look() -> None:
            surface = display.surface
            touched = vram.watch.take()
            assert touched is None or len(touched) == vram.pages
            if surface is not None:
                surface.check(vram.block.size)

        async def keep_looking() -> None:
            while not looks.is_set():
                look()
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_looking)
            assert "fuzz" in await shell.ask(f"fuzz 1 {seed}")
            for register in range(12):
                await screen.poke(PCI_MMIO32.start + 16 * MIB + 0x500 + 2 * register, 0xFFFF >> register, 2)
            for address in (ELSEWHERE, 0, 0xFFFF_FFFF, PCI_MMIO32.start, 0xE000_0000, ELSEWHERE):
                await screen.poke(BAR0, address)
            looks.set()
        await shell.vm.reset()
        await shell.vm.wait_serial(PROMPT)
        assert display.surface == Surface(1280, 800, 5120, 32, 0)
        assert vram.address == PCI_MMIO32.start


def test_its_default_is_a_common_size() -> None:
    """1280x800, as QEMU's."""
    assert DisplayConfig() == DisplayConfig(1280, 800, 16 * MIB)
