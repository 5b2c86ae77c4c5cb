"""Every part of a machine does its work whatever its guest has been through: booted here, moved, handed over, restored.

One machine per history with a device of every kind, and one check after the other on it, so that it stays cheap.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.support.plain_stream import framed, unframed
from tests.support.vsock_programs import echo, listening
from tests.wiring.guests import GuestShell
from tests.wiring.test_stream_nets import GUEST, HOST, answer
from tvmm import Machine, MachineConfig
from tvmm.testing import HISTORIES

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

MIB = 1 << 20
KEY_A = 30
DISK_MIB = 16


class Place:
    """The machine with its guest, and what it is connected to."""

    def __init__(self, vm: Machine, folder: Path) -> None:
        self.vm = vm
        self.shell = GuestShell(vm)
        self.ask = self.shell.ask
        self.folder = folder


async def peer(stream: trio.SocketStream) -> None:
    """Of the network: answers ARP and pings."""
    rest = b""
    async for data in stream:
        frames, rest, _ = unframed(rest + data)
        await stream.send_all(framed(*filter(None, map(answer, frames))))


@asynccontextmanager
async def surroundings(folder: Path) -> AsyncIterator[None]:
    """What is outside of a machine: the peer of its network, and a program that its guest can connect to."""
    with (folder / "disk.img").open("wb") as file:
        file.truncate(DISK_MIB * MIB)
    with listening(f"{folder}/vsock-there_7", echo), trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(f"{folder}/net")
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.serve_listeners, peer, [trio.SocketListener(listener)]))
            yield
            nursery.cancel_scope.cancel()


def everything(folder: Path, side: str) -> MachineConfig:
    """A machine with a device of every kind."""
    return MachineConfig.parse(
        memory="96M",
        cpus=2,
        display="bochs-display,vgamem=4M",
        disk=[f"{folder}/disk.img"],
        net=[f"stream,path={folder}/net"],
        vsock=f"{folder}/vsock-{side}",
        device=["virtio-console,chardev=none", "virtio-rng", "virtio-balloon", "virtio-keyboard", "virtio-tablet"],
    )


# --- the parts ---


async def serial(place: Place) -> None:
    """The shell echoes what is typed, and answers."""
    assert "one two three\r\n" in await place.ask("echo one two three")


async def processors(place: Place) -> None:
    """All of them."""
    assert "2 of 2 CPUs online" in await place.ask("cpus")


async def memory(place: Place) -> None:
    """Pages are what was written to them, more than once."""
    await place.shell.order("dirty 0 4M 60")
    await place.vm.wait_serial("dirty 0 4M 60\r\n")
    await place.vm.send_serial("q")
    assert " 0 errors" in await place.shell.prompt()
    assert " 0 errors" in await place.ask("check")


async def disk(place: Place) -> None:
    """Blocks that were written are read back and are on the image."""
    assert " 0 failed requests" in await place.ask("blkfill 0 2 7 0")
    assert "blkcheck: 512 blocks, 0 errors, 0 unreadable" in await place.ask("blkcheck 0 2 7")
    with (place.folder / "disk.img").open("rb") as file:
        assert any(file.read(2 * MIB))


async def network(place: Place) -> None:
    """A peer answers the guest's pings."""
    await place.ask(f"ip 0 {GUEST}/24")
    assert "5 sent, 5 received" in await place.ask(f"ping 0 {HOST} 5")


async def console(place: Place) -> None:
    """A port takes what the guest writes."""
    await place.ask("vcon open 0")
    assert "vcon write 0: 6 bytes" in await place.ask("vcon write 0 hello")


async def entropy(place: Place) -> None:
    """Two readings differ."""
    seen = [re.findall(r"[0-9a-f]{32}", await place.ask("rng 0 64")) for _ in range(2)]
    assert all(seen)
    assert seen[0] != seen[1]


async def screen(place: Place) -> None:
    """What the guest paints is in video memory."""
    assert "screen" in await place.ask("screen mode 640x480")
    board: Any = place.vm.board
    for colour in (0x123456, 0xFEDCBA):
        await place.ask(f"screen fill {colour:06x}")
        display = board.devices.display
        surface = display.surface
        view = display.vram.block.view
        assert (surface.width, surface.height) == (640, 480)
        for at in (0, 479 * surface.stride + 4 * 639):
            assert int.from_bytes(view[at : at + 3], "little") == colour


async def keyboard(place: Place) -> None:
    """A key goes down and up."""
    board: Any = place.vm.board
    await place.shell.order("keys")
    await place.vm.wait_serial("to end\r\n")
    for down in (True, False):
        board.input.key(KEY_A, down, "test")
        board.input.sync()
    await place.vm.wait_serial(f"key {KEY_A} up from ")
    await place.vm.send_serial("\x03")
    assert "keys: 2 events" in await place.shell.prompt()


async def balloon(place: Place) -> None:
    """The guest gives memory back, and gets it again."""
    board: Any = place.vm.board
    part = board.devices.balloon
    assert "balloon: 0 of 0 pages" in await place.ask("balloon")
    for size in (80 * MIB, 96 * MIB):
        part.set_memory(size)
        while part.info().actual != size:
            await trio.sleep(0.005)


async def vsock(place: Place) -> None:
    """The guest and a program on the host talk."""
    assert "20 round trips" in await place.ask("vsock ping 7 20 100")


async def pause(place: Place) -> None:
    """Nothing happens while it is paused, and all of it afterwards."""
    await place.vm.pause()
    exits = place.shell.exits
    await place.vm.send_serial("echo paused\n")
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert place.shell.exits == exits
    await place.vm.resume()
    assert "paused\r\n" in await place.shell.prompt()


async def qmp(place: Place) -> None:
    """What the control socket tells of it."""
    async with await trio.open_unix_socket(f"{place.folder}/control") as stream:
        lines = Lines(stream)
        assert "QMP" in await lines.read()
        for command in ("qmp_capabilities", "query-status", "query-block", "query-cpus-fast", "query-balloon"):
            await stream.send_all(json.dumps({"execute": command}).encode() + b"\n")
            reply = await lines.read()
            assert "return" in reply, reply
            if command == "query-status":
                assert reply["return"]["status"] == "running"


async def reset(place: Place) -> None:
    """It boots anew and its disk is what it was."""
    await place.shell.order("reboot")
    await place.vm.wait_serial("tvmm> ")
    assert "blkcheck: 512 blocks, 0 errors, 0 unreadable" in await place.ask("blkcheck 0 2 7")


async def poweroff(place: Place) -> None:
    """The end."""
    await place.shell.order("poweroff")
    assert (await place.vm.wait()).kind == "poweroff"


CHECKS: tuple[Callable[[Place], Awaitable[None]], ...] = (
    *(serial, processors, memory, disk, network, console, entropy, screen, keyboard, balloon, vsock, pause, qmp),
    *(reset, serial, memory, network, entropy, keyboard, vsock, poweroff),
)


class Lines:
    """JSON from a control socket, without events."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._data = b""

    async def read(self) -> dict[str, Any]:
        """The next answer."""
        while True:
            while b"\n" not in self._data:
                data = bytes(await self._stream.receive_some())
                assert data, "the control socket was closed"
                self._data += data
            line, self._data = self._data.split(b"\n", 1)
            found: dict[str, Any] = json.loads(line)
            if "event" not in found:
                return found


@pytest.mark.parametrize("history", HISTORIES)
async def test_every_part_works(history: str, tmp_path: Path) -> None:
    """Of a guest that has been through that, one after the other, before a reset and after it."""
    with trio.fail_after(120):
        here, there = (everything(tmp_path, side) for side in ("here", "there"))
        async with surroundings(tmp_path), HISTORIES[history](here, there) as vm:
            from tvmm.control.machine_target import serve_machine

            await vm.nursery.start(serve_machine, vm, f"{tmp_path}/control", "")
            place = Place(vm, tmp_path)
            for check in CHECKS:
                try:
                    with trio.fail_after(20):
                        await check(place)
                except (AssertionError, trio.TooSlowError) as error:
                    raise AssertionError(f"{check.__name__} does not work: {error}") from error
