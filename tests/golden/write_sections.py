"""Writes golden sections: ``python -m tests.golden.write_sections MACHINE...`` (root, with /dev/kvm), once for each.

Files that are there are never written again: those of a released version stand for states that are out there. What they
are of is in `tests.support.state_machines`; the guest has used every device.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import trio

from tests.golden.sections import FOLDERS, file_name
from tests.support.input_guest import InputDriver, write_ports
from tests.support.netns import ip, network_namespace
from tests.support.state_machines import (
    all_devices,
    balloon_device,
    display_device,
    generation_device,
    input_devices,
    make_images,
    net_devices,
    vsock_device,
)
from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig
from tvmm.board import Board
from tvmm.board_state import save_board
from tvmm.memory.layout import VIRTIO_MMIO
from tvmm.state import Section, pack_sections
from tvmm.virtio.features import Ring

ORDERS = {
    "devices": (
        "blkfill 0 4 1 0", "blkcheck 0 4 1", "blkfill 1 4 2 0", "rng 0 200", "rng 1 200",
        "vcon open 0", "vcon write 0 to nobody", "vcon", "rtc", "cpus",
    ),
    "nets": ("ip 0 10.0.0.15/24", "ping 0 10.0.0.2 3", "link 0 promisc", "ip 1 10.0.1.15/24", "ping 1 10.0.1.2 3"),
    "generation": ("genid", "rng 0 200"),
    "vsock": ("vsock", "vsock send 7 100", "vsock junk 100 1"),
    "display": (
        # 800x600 with a palette and eight bits a colour, panned, in memory that has been moved; half a colour more.
        "poke 0xe0008010 0xd0000000", "poke 0xc0800502 800 2", "poke 0xc0800504 600 2", "poke 0xc0800506 8 2",
        "poke 0xc080050c 1024 2", "poke 0xc0800512 100 2", "poke 0xc0800508 0x61 2", "poke 0xc0800408 17 1",
        "poke 0xc0800409 1 1", "poke 0xc0800409 2 1", "poke 0xc0800409 3 1", "poke 0xc0800409 4 1",
    ),
}  # fmt: skip


async def save(config: MachineConfig, orders: tuple[str, ...], failing: str = "") -> list[Section]:
    """The sections of a guest that has carried out `orders`; `failing` is one that an error of the host stops."""
    async with Machine(config, board=Board(config)) as vm:
        shell = GuestShell(vm)
        await vm.resume()
        await vm.wait_serial(PROMPT)
        for order in orders:
            print(await shell.ask(order))
        with vm.board.bus_lock:
            for code in (b"\x1c", b"\xf0\x1c"):
                assert vm.board.keyboard.key(code)
        if failing:
            await shell.order(failing)
            await shell.event("STOP")
        await vm.pause()
        return await save_board(vm.board)


async def save_input() -> list[Section]:
    """The sections of a board whose drivers have keys and buttons down, and motion and groups that wait."""
    board = Board(input_devices(), load=False)
    try:
        keyboard = InputDriver(board, VIRTIO_MMIO.start, 0x10_0000, Ring.VERSION_1 | Ring.RING_PACKED)
        tablet = InputDriver(board, VIRTIO_MMIO.start + 0x1000, 0x20_0000)
        write_ports(board, *((port, value) for byte in b"\xf3\xc8\xf3\xc8\xf3\x50\xf4" for port, value in
                             ((0x64, 0xD4), (0x60, byte), (0x64, 0xA8))))  # fmt: skip
        keyboard.offer(3)
        tablet.offer(4)
        keyboard.ask(0x11, 1)
        for code, down in ((30, True), (48, True), (30, False)):
            board.input.key(code, down, "one")
            board.input.sync()
        board.input.move_to(1000, 2000)
        board.input.button(0x110, True, "one")
        board.input.sync()
        board.input.wheel(3)
        board.input.sync()
        with board.bus_lock:
            board.keyboard.press(42, True)
            board.keyboard.move(300, -20, 1, 0x11)
        return await save_board(board)
    finally:
        board.close()


async def save_balloon() -> list[Section]:
    """The sections of a guest that has lent pages, sent statistics, told of free pages, and is asked for more."""
    config = balloon_device()
    async with Machine(config, board=Board(config)) as vm:
        shell = GuestShell(vm)
        await vm.resume()
        await vm.wait_serial(PROMPT)
        await shell.ask("balloon")
        part = vm.board.devices.balloon if vm.board.devices is not None else None
        assert part is not None
        part.set_memory(48 << 20)
        while part.info().actual != 48 << 20:
            await trio.sleep(0.01)
        assert part.runner.begin_hints(lambda runs: 0)
        while not part.info().counters["hinted"]:
            await trio.sleep(0.01)
        part.runner.end_hints()
        await shell.ask("balloon")
        await vm.pause()
        part.set_memory(40 << 20)
        return await save_board(vm.board)


async def main(machines: list[str]) -> None:
    """The machines that were named."""
    written = {}
    with tempfile.TemporaryDirectory() as folder, network_namespace():
        if "devices" in machines:
            make_images(Path(folder))
            devices = all_devices(Path(folder), "faults=200000")
            written["devices"] = await save(devices, ORDERS["devices"], "blkbench 2 randwrite 4096 32 5 irq")
        if "display" in machines:
            written["display"] = await save(display_device(), ORDERS["display"])
        if "nets" in machines:
            ip("link", "set", "lo", "up")
            written["nets"] = await save(net_devices(0), ORDERS["nets"])
        if "vsock" in machines:
            written["vsock"] = await save(vsock_device(Path(folder)), ORDERS["vsock"])
        if "input" in machines:
            written["input"] = await save_input()
        if "generation" in machines:
            written["generation"] = await save(generation_device(), ORDERS["generation"])
        if "balloon" in machines:
            written["balloon"] = await save_balloon()
    for machine, sections in written.items():
        if FOLDERS[machine].exists():
            print(f"{machine}: is there already")
            continue
        for section in sections:
            path = FOLDERS[machine] / file_name(section)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pack_sections([section]))
            print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
