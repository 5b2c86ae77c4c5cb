"""Writes the golden sections: ``python -m tests.golden.write_sections`` (root, with /dev/kvm), once for each version.

Files that are there are never written again: those of a released version stand for states that are out there. What they
are of is in `tests.support.state_machines`; the guest has used every device.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio

from tests.golden.sections import FOLDER, file_name
from tests.support.netns import ip, network_namespace
from tests.support.state_machines import all_devices, display_device, make_images, net_devices
from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig
from tvmm.board import Board
from tvmm.board_state import save_board
from tvmm.state import Section, pack_sections

ORDERS = {
    "devices": (
        "blkfill 0 4 1 0", "blkcheck 0 4 1", "blkfill 1 4 2 0", "rng 0 200", "rng 1 200",
        "vcon open 0", "vcon write 0 to nobody", "vcon", "rtc", "cpus",
    ),
    "nets": ("ip 0 10.0.0.15/24", "ping 0 10.0.0.2 3", "link 0 promisc", "ip 1 10.0.1.15/24", "ping 1 10.0.1.2 3"),
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


async def main() -> None:
    """All machines."""
    with tempfile.TemporaryDirectory() as folder, network_namespace():
        make_images(Path(folder))
        devices = all_devices(Path(folder), "faults=200000")
        written = {"devices": await save(devices, ORDERS["devices"], "blkbench 2 randwrite 4096 32 5 irq")}
        written["display"] = await save(display_device(), ORDERS["display"])
        ip("link", "set", "lo", "up")
        written["nets"] = await save(net_devices(0), ORDERS["nets"])
    for machine, sections in written.items():
        if (FOLDER / machine).exists():
            print(f"{machine}: is there already")
            continue
        for section in sections:
            path = FOLDER / machine / file_name(section)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pack_sections([section]))
            print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    trio.run(main)
