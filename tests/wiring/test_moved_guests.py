"""The built-in guest with its devices moves to another machine in the middle of its work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from tests.support.netns import ip, network_namespace
from tests.support.state_machines import all_devices, make_images, net_devices
from tests.wiring.guests import PROMPT, GuestShell, guest
from tests.wiring.moves import destination, move
from tvmm import Machine, MachineConfig
from tvmm.board import Board
from tvmm.board_state import describe_board, differences

pytestmark = pytest.mark.guest

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """64 MiB of zeros."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    return path


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize("ring", ["", "packed=on", "in_order=on"])
async def test_a_disk_job_goes_on(image: Path, transport: str, ring: str) -> None:
    """Requests by the thousand are under way when the machine moves; all of them end well, and the data is right."""
    words = "packed" if "packed" in ring else ""
    disk = ",".join(filter(None, [f"{image},locking=off,transport={transport}", ring]))
    async with guest(words, disk=[disk]) as shell, destination(shell.vm.config) as other:
        await shell.ask("blkfill 0 16 7 0")
        await shell.order("blkbench 0 randwrite 4096 32 2 irq")
        await shell.vm.wait_serial("irq")
        await move(shell.vm, other.vm)
        text = (await other.vm.wait_serial(PROMPT)).decode()
        assert " 0 errors" in text
        assert "blkfill" in await other.ask("blkfill 0 16 9 0")
        assert "blkcheck: 4096 blocks, 0 errors, 0 unreadable" in await other.ask("blkcheck 0 16 9")


RINGS = ("", "packed=on", "in_order=on", "packed=on,in_order=on", "event_idx=off,indirect_desc=off")


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize("ring", RINGS)
async def test_requests_that_wait_over_an_error_are_repeated(image: Path, transport: str, ring: str) -> None:
    """The host's disk fails with many requests under way; they move with the machine and end well on a disk that works.

    Others have completed in between, out of order: what a split or a packed ring then has of the failed ones is not
    enough to find them again.
    """
    words = "packed" if "packed" in ring else ""
    disk = ",".join(filter(None, [f"{image},locking=off,aio=threads,transport={transport}", ring]))
    failing = f"{disk},faults=30000,werror=stop,rerror=stop"
    mended = MachineConfig.parse(memory="64M", append=words, disk=[disk])
    async with guest(words, disk=[failing]) as shell, destination(mended) as other:
        await shell.order("blkstress 0 16 7 3000")
        await shell.event("STOP")
        [before] = shell.vm.board.devices.slots[0].runner.save().queues  # type: ignore[union-attr]
        assert before.kept
        await move(shell.vm, other.vm)
        assert "0 wrong, 0 failed requests, 0 unreadable" in (await other.vm.wait_serial(PROMPT)).decode()
        assert other.vm.virtio.disks()[0].io_status == "ok"  # type: ignore[union-attr]


@pytest.mark.parametrize("option", ["intx", ""])
async def test_interrupts_arrive_after_the_move(image: Path, option: str) -> None:
    """A guest that sleeps for each of its requests goes on, by messages and by the pin, on two CPUs."""
    async with guest(option, cpus=2, disk=[f"{image},locking=off"]) as shell, destination(shell.vm.config) as other:
        await shell.ask("cpus")
        await shell.order("blkbench 0 read 4096 1 2 irq")
        await shell.vm.wait_serial("irq")
        await move(shell.vm, other.vm)
        text = (await other.vm.wait_serial(PROMPT)).decode()
        assert " 0 errors" in text
        assert "2 of 2 CPUs online" in await other.ask("cpus")


async def test_there_and_back_and_on(image: Path) -> None:
    """A state that was loaded can be saved, as often as one likes."""
    async with guest(disk=[f"{image},locking=off"]) as shell:
        await shell.order("blkbench 0 randread 4096 8 3 irq")
        await shell.vm.wait_serial("irq")
        async with trio.open_nursery() as nursery:
            here = shell.vm
            stay = trio.Event()

            async def hold_open(task_status: trio.TaskStatus[Machine]) -> None:
                async with destination(shell.vm.config) as other:
                    task_status.started(other.vm)
                    await stay.wait()

            for _ in range(5):
                there = await nursery.start(hold_open)
                await move(here, there)
                here = there
            assert " 0 errors" in (await here.wait_serial(PROMPT)).decode()
            stay.set()


@pytest.mark.parametrize("device", ["virtio-rng", "virtio-rng-device"])
async def test_a_request_for_entropy_goes_on(device: str) -> None:
    """A guest at its rate limit gets the rest of what it asked for on the other side."""
    async with (
        guest(device=[f"{device},max-bytes=40000,period=100"]) as shell,
        destination(shell.vm.config) as other,
    ):
        await shell.order("rng 0 400000")
        await shell.vm.wait_serial("400000")
        await move(shell.vm, other.vm)
        assert "rng: 400000 bytes" in (await other.vm.wait_serial(PROMPT)).decode()


@pytest.mark.parametrize("transport", ["pci", "mmio"])
async def test_console_input_from_both_sides(transport: str, tmp_path: Path) -> None:
    """A guest that has read half of what it wants gets the other half after the move."""
    configs = [
        MachineConfig.parse(
            memory="64M", device=[f"virtio-console,chardev=unix={tmp_path / side},transport={transport}"]
        )
        for side in ("a", "b")
    ]
    async with (
        Machine(configs[0]) as vm,
        destination(configs[1]) as other,
        await trio.open_unix_socket(str(tmp_path / "a")) as first,
        await trio.open_unix_socket(str(tmp_path / "b")) as second,
    ):
        shell = GuestShell(vm)
        await vm.resume()
        await vm.wait_serial(PROMPT)
        await shell.ask("vcon open 0")
        await shell.order("vcon read 0 11")
        await vm.wait_serial("vcon read 0 11")
        await first.send_all(b"hello ")
        while vm.virtio.virtio()[0].queues[0].chains < 1:  # type: ignore[union-attr]
            await trio.lowlevel.checkpoint()
        await move(vm, other.vm)
        await second.send_all(b"guest")
        text = (await other.vm.wait_serial(PROMPT)).decode()
        assert "vcon read 0: 11 bytes" in text
        assert '"hello guest"' in text


@pytest.mark.parametrize("transport", ["pci", "mmio"])
async def test_console_output_that_nobody_took(transport: str, tmp_path: Path) -> None:
    """With a reader that does not read, output stays in the guest's buffers, and goes to the reader on the other side.

    What the first reader was given and what the second gets are all of it, each byte once.
    """
    count = 2_000_000
    configs = [
        MachineConfig.parse(
            memory="64M", device=[f"virtio-console,chardev=unix={tmp_path / side},transport={transport}"]
        )
        for side in ("a", "b")
    ]
    async with (
        Machine(configs[0]) as vm,
        destination(configs[1]) as other,
        await trio.open_unix_socket(str(tmp_path / "a")) as first,
        await trio.open_unix_socket(str(tmp_path / "b")) as second,
        trio.open_nursery() as nursery,
    ):
        shell = GuestShell(vm)
        await vm.resume()
        await vm.wait_serial(PROMPT)
        await shell.ask("vcon open 0")
        await shell.order(f"vcon pump 0 {count}")
        await vm.wait_serial("pump")
        with trio.move_on_after(0.3):
            await vm.wait_serial(PROMPT)
        received = [0, 0]

        async def read(index: int, stream: trio.SocketStream) -> None:
            while True:
                received[index] += len(await stream.receive_some())

        await move(vm, other.vm)
        nursery.start_soon(read, 0, first)
        nursery.start_soon(read, 1, second)
        assert f"vcon pump 0: {count} bytes" in (await other.vm.wait_serial(PROMPT)).decode()
        while sum(received) < count:
            await trio.lowlevel.checkpoint()
        assert all(received)
        assert sum(received) == count
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("options", ["", "packed=on,queues=2", "transport=mmio", "in_order=on,csum=off"])
async def test_pings_go_on(options: str) -> None:
    """The host's side moves to the other tap, and the guest's pings are answered there."""
    with network_namespace():
        ip("link", "set", "lo", "up")
        configs = [
            MachineConfig.parse(
                name="web", memory="64M", append="packed", net=[",".join(filter(None, [f"tap,ifname={name}", options]))]
            )
            for name in ("tap-a", "tap-b")
        ]
        async with Machine(configs[0], board=Board(configs[0])) as vm, destination(configs[1]) as other:
            ip("link", "set", "tap-b", "down")
            address = re.findall("ether ([0-9a-f:]+)", ip("link", "show", "tap-a"))[0]
            ip("link", "set", "tap-b", "address", address)
            ip("addr", "add", "10.0.2.2/24", "dev", "tap-a")
            shell = GuestShell(vm)
            await vm.resume()
            await vm.wait_serial(PROMPT)
            await shell.ask("ip 0 10.0.2.15/24")
            await shell.ask("link 0 promisc")
            await shell.order("ping 0 10.0.2.2 4000")
            await vm.wait_serial("4000")
            await vm.pause()
            ip("addr", "del", "10.0.2.2/24", "dev", "tap-a")
            ip("link", "set", "tap-b", "up")
            ip("addr", "add", "10.0.2.2/24", "dev", "tap-b")
            await move(vm, other.vm)
            found = re.search(rb"(\d+) sent, (\d+) received", await other.vm.wait_serial(PROMPT))
            assert found
            sent, received = map(int, found.groups())
            assert sent == 4000
            assert received >= sent - 3
            info = other.vm.virtio.nets()[0]  # type: ignore[union-attr]
            assert info.promiscuous
            assert "up" in await other.ask("link 0")


async def test_what_was_typed_early_is_read_on_the_other_side() -> None:
    """A guest that is busy leaves input in the FIFO and behind it; all of it arrives, in order, once."""
    async with guest() as shell, destination(shell.vm.config) as other:
        await shell.order("spin 1")
        await shell.vm.wait_serial("spin 1")
        words = " ".join(f"word{number}" for number in range(40))
        await shell.vm.send_serial(f"echo {words}\n")
        await move(shell.vm, other.vm)
        await other.prompt()
        assert f"\n{words}\r\n" in await other.prompt()


async def test_a_moved_machine_can_be_reset() -> None:
    """The kernel is read again from where this side has it, and BARs are placed anew."""
    async with guest(device=["virtio-rng"]) as shell, destination(shell.vm.config) as other:
        await move(shell.vm, other.vm)
        assert "rng: 16 bytes" in await other.ask("rng 0 16")
        await other.vm.reset()
        await other.vm.wait_serial(PROMPT)
        assert "rng: 16 bytes" in await other.ask("rng 0 16")


async def test_everything_at_once(tmp_path: Path) -> None:
    """Disks, consoles, entropy and networks, on PCI and in memory, in one machine, in the middle of a disk job."""
    make_images(tmp_path)
    with network_namespace():
        ip("link", "set", "lo", "up")
        configs = [all_devices(tmp_path)._replace(nets=net_devices(side).nets) for side in range(2)]
        async with Machine(configs[0], board=Board(configs[0])) as vm, destination(configs[1]) as other:
            assert differences(describe_board(vm.board), describe_board(other.vm.board)) == []
            shell = GuestShell(vm)
            await vm.resume()
            await vm.wait_serial(PROMPT)
            for order in ("cpus", "blkfill 0 4 1 0", "blkfill 1 4 2 0", "vcon open 0", "rng 0 100", "rng 1 100"):
                await shell.ask(order)
            for number in range(2):
                await shell.ask(f"ip {number} 10.0.{number}.15/24")
                assert "5 sent, 5 received" in await shell.ask(f"ping {number} 10.0.{number}.2 5")
            await shell.order("blkbench 2 randwrite 4096 32 1 irq")
            await vm.wait_serial("irq")
            await move(vm, other.vm)
            assert " 0 errors" in (await other.vm.wait_serial(PROMPT)).decode()
            assert "1024 blocks, 0 errors, 0 unreadable" in await other.ask("blkcheck 0 4 1")
            assert "1024 blocks, 0 errors, 0 unreadable" in await other.ask("blkcheck 1 4 2")
            for number in range(2):
                assert "rng: 100 bytes" in await other.ask(f"rng {number} 100")
                await other.ask(f"ip {number} 10.1.{number}.15/24")
                assert "5 sent, 5 received" in await other.ask(f"ping {number} 10.1.{number}.2 5")
            assert "vcon write 0: 6 bytes\r\n" in await other.ask("vcon write 0 hello")
            assert "2 of 2 CPUs online" in await other.ask("cpus")
