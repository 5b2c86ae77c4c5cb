"""What works, and what is refused, while a guest runs and none of its memory is there: pages come only when touched.

All pages are missing at first, and nothing but what is touched comes before the test lets the rest go.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.support.echo_peer import checksum
from tests.support.netns import ip, network_namespace
from tests.support.plain_stream import framed, unframed
from tests.wiring.guests import PROMPT, GuestShell
from tests.wiring.test_stream_nets import GUEST, HOST, MAC, answer
from tvmm import Machine, MachineConfig, halt, moves
from tvmm.board import Board, GuestRequest
from tvmm.config.incoming import IncomingConfig
from tvmm.errors import UserError
from tvmm.kvm.uffd import Uffd
from tvmm.memory.ram import MAIN_BLOCK
from tvmm.migration import postcopy_source
from tvmm.migration.status import MigrationParameters
from tvmm.snapshot.status import SaveParameters

pytestmark = [pytest.mark.guest, pytest.mark.timeout(90)]

MIB = 1 << 20
SECONDS = 40
ECHO_PORT, OUR_PORT = 7, 4000
NOW = MigrationParameters(10_000, postcopy="now", connections=2)


class Gate:
    """Holds back what nobody asks for."""

    def __init__(self) -> None:
        self.open = trio.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Nothing is there when the guest starts at the destination, and what it does not touch waits for the gate."""
    try:
        Uffd().close()
    except UserError as error:
        pytest.skip(str(error))
    gate = Gate()
    announce, push = postcopy_source.Departure.announce, postcopy_source.Serving._push

    async def announce_all(self: postcopy_source.Departure, *details: object) -> None:
        bitmap = self._lanes.bitmap
        bitmap.mark(MAIN_BLOCK, 0, bitmap.pages[bitmap.names.index(MAIN_BLOCK)])
        await announce(self, *details)  # type: ignore[arg-type]

    async def push_later(self: postcopy_source.Serving, number: int) -> None:
        await gate.open.wait()
        await push(self, number)

    monkeypatch.setattr(postcopy_source.Departure, "announce", announce_all)
    monkeypatch.setattr(postcopy_source.Serving, "_push", push_later)
    monkeypatch.setattr(postcopy_source, "AGAIN_SECONDS", 0.05)
    return gate


class Pair:
    """Both machines; the guest runs at `there` from `gone` on."""

    def __init__(self, here: Machine, there: Machine, said: list[str], gate: Gate) -> None:
        self.here, self.there, self.said = here, there, said
        self.uri = next(line.split()[-1] for line in said if "waiting for a guest at" in line)
        self.gate = gate
        self.before, self.shell = GuestShell(here), GuestShell(there)

    @property
    def states(self) -> tuple[str, str]:
        """Of the migration, at the source and at the destination."""
        return self.here.moves.migration_status().state, self.there.moves.migration_status().state

    @property
    def missing(self) -> int:
        """Bytes."""
        return self.there.moves.migration_status().ram.remaining

    async def until(self, *states: str) -> None:
        """Both sides say so."""
        while self.states != states:
            assert "failed" not in self.states, self.here.moves.migration_status().reason
            await trio.sleep(0.002)

    async def go(self, parameters: MigrationParameters = NOW) -> None:
        """The guest runs there, without its memory."""
        await self.here.moves.start_migration(self.uri, parameters)
        await self.there.wait_arrival()
        await self.until("postcopy-active", "postcopy-active")
        assert self.missing > 32 * MIB

    async def finish(self) -> None:
        """All of it is there."""
        assert self.missing
        self.gate.open.set()
        status = await self.here.moves.wait_migration()
        assert status.state == "completed", status.reason
        await self.until("completed", "completed")
        assert not self.missing


@asynccontextmanager
async def pair(gate: Gate, folder: Path, config: MachineConfig, there: MachineConfig | None = None,
               *, paired: bool = False) -> AsyncIterator[Pair]:  # fmt: skip
    """A guest at its prompt, and a machine that waits for it."""
    uri = "tcp:127.0.0.1:0" if paired else f"unix:{folder}/there"
    waiting = (there or config)._replace(incoming=IncomingConfig(uri, pair=paired))
    # Both on this thread, for the namespace that it is in.
    boards = Board(config), Board(waiting, load=False)
    with trio.fail_after(SECONDS):
        machines = Machine(config, board=boards[0]), Machine(waiting, board=boards[1])
        said: list[str] = []
        machines[1].on_warning = said.append
        async with machines[0] as here, machines[1] as destination:
            await here.resume()
            await here.wait_serial(PROMPT)
            yield Pair(here, destination, said, gate)


class Peer:
    """At the other end of the network: answers as a host does, and asks the guest."""

    def __init__(self) -> None:
        self.heard: trio.MemoryReceiveChannel[bytes]
        self._said, self.heard = trio.open_memory_channel[bytes](100)
        self._streams: list[trio.SocketStream] = []
        self._sending = trio.Lock()

    async def talk(self, stream: trio.SocketStream) -> None:
        """With one machine."""
        self._streams.append(stream)
        rest = b""
        async for data in stream:
            frames, rest, _ = unframed(rest + data)
            for frame in frames:
                if reply := answer(frame):
                    await self._send(stream, reply)
                elif frame[12:14] == b"\x08\x00":
                    self._said.send_nowait(frame[34:])

    async def _send(self, stream: trio.SocketStream, frame: bytes) -> None:
        async with self._sending:  # questions and answers come from two tasks
            await stream.send_all(framed(frame))

    async def ask(self, mac: bytes, protocol: int, payload: bytes) -> bytes:
        """What the guest answers, at the machine that has connected last."""
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
        addresses = socket.inet_aton(HOST) + socket.inet_aton(GUEST)
        header = header[:10] + checksum(header + addresses).to_bytes(2, "big") + addresses
        await self._send(self._streams[-1], mac + MAC + b"\x08\x00" + header + payload)
        return await self.heard.receive()

    async def ping(self, mac: bytes, text: bytes) -> None:
        """One echo request."""
        echo = struct.pack("!BBHHH", 8, 0, 0, 1, 1) + text
        echo = echo[:2] + checksum(echo).to_bytes(2, "big") + echo[4:]
        reply = await self.ask(mac, 1, echo)
        assert (reply[0], reply[8:]) == (0, text)

    async def udp(self, mac: bytes, text: bytes) -> None:
        """One datagram to the echo service."""
        reply = await self.ask(mac, 17, struct.pack("!HHHH", OUR_PORT, ECHO_PORT, 8 + len(text), 0) + text)
        assert (reply[:4], reply[8:]) == (struct.pack("!HH", ECHO_PORT, OUR_PORT), text)


@asynccontextmanager
async def network(path: Path) -> AsyncIterator[Peer]:
    """A peer that listens at `path` in this block."""
    peer = Peer()
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, peer.talk, [trio.SocketListener(listener)])
            yield peer
            nursery.cancel_scope.cancel()


def images(folder: Path) -> list[str]:
    """A disk for each way to read it, past the page cache."""
    options = []
    for aio in ("io_uring", "threads"):
        path = folder / f"{aio}.img"
        with path.open("wb") as file:
            file.truncate(8 * MIB)
        options.append(f"{path},direct=on,aio={aio}")
    return options


async def check_disks(shell: GuestShell) -> None:
    """What was written before is read, and something else is written and read."""
    for number in range(2):
        assert "blkcheck: 1024 blocks, 0 errors, 0 unreadable" in await shell.ask(f"blkcheck {number} 4 7")
        assert " 0 wrong, 0 failed requests, 0 unreadable" in await shell.ask(f"blkstress {number} 1 9 50")
        assert " 0 failed requests" in await shell.ask(f"blkfill {number} 4 7")


async def check_network(machines: Pair, peer: Peer) -> None:
    """Both ways."""
    assert machines.there.board.devices is not None
    mac = machines.there.virtio.nets()[0].mac  # type: ignore[union-attr]
    for number in range(3):
        await peer.ping(mac, b"ping %d" % number)
        await peer.udp(mac, b"datagram %d" % number)
    assert "3 sent, 3 received" in await machines.shell.ask(f"ping 0 {HOST} 3")


async def check_refusals(machines: Pair, folder: Path) -> None:
    """One line each, and nothing changes."""
    there = machines.there
    wanted: dict[str, Callable[[], Awaitable[object]]] = {
        "cannot be saved": lambda: there.saves.start_save(f"{folder}/a.snap", SaveParameters()),
        "cannot be moved": lambda: there.moves.start_migration(f"unix:{folder}/on", NOW),
    }
    for told, order in wanted.items():
        with pytest.raises(UserError, match=told) as caught:
            await order()
        assert "\n" not in str(caught.value)
    assert not (folder / "a.snap").exists()
    with pytest.raises(UserError, match="gets its memory from here"):
        await machines.here.resume()
    with pytest.raises(UserError):
        await machines.here.saves.start_save(f"{folder}/a.snap", SaveParameters())


async def check_pauses(machines: Pair) -> None:
    """At the destination, then at the source; the guest is paused and resumed meanwhile."""
    here, there = machines.here, machines.there
    there.moves.pause_migration()
    await machines.until("postcopy-paused", "postcopy-paused")
    await there.pause()
    assert there.run_state() == "paused"
    await there.resume()
    # The source comes again by itself, and is told why that is of no use.
    while (reason := here.moves.migration_status().reason) is None or "wanted there first" not in reason:
        await trio.sleep(0.002)
    await there.moves.recover_migration("")
    await machines.until("postcopy-active", "postcopy-active")
    here.moves.pause_migration()
    await machines.until("postcopy-paused", "postcopy-paused")
    # What it does now needs a page, sooner or later.
    await machines.shell.order("check")
    await there.pause()
    await there.resume()
    with pytest.raises(UserError, match="cannot be saved"):
        await there.saves.start_save("/nowhere", SaveParameters())
    await here.moves.recover_migration("")
    await machines.until("postcopy-active", "postcopy-active")
    assert "checked 2048 pages: 0 errors" in await machines.shell.prompt()


@pytest.mark.parametrize(
    "ring",
    [
        "",
        pytest.param("transport=mmio,packed=on", marks=pytest.mark.slow),
        pytest.param("packed=on", marks=pytest.mark.slow),
        pytest.param("in_order=on", marks=pytest.mark.slow),
    ],
)
async def test_a_guest_works_without_its_memory(gate: Gate, tmp_path: Path, ring: str) -> None:
    """Disks, network, pauses of the guest and of the migration; what would need all of it is refused."""
    option = f",{ring}" if ring else ""
    config = MachineConfig.parse(
        memory="64M",
        cpus=2,
        append="packed" if "packed" in ring else "",
        disk=[f"{disk}{option}" for disk in images(tmp_path)],
        net=[f"stream,path={tmp_path}/net{option}"],
        device=["virtio-rng"],
    )
    async with network(tmp_path / "net") as peer, pair(gate, tmp_path, config) as machines:
        await machines.before.ask(f"ip 0 {GUEST}/24")
        for number in range(2):
            assert " 0 failed requests" in await machines.before.ask(f"blkfill {number} 4 7")
        await machines.before.ask("cpus")
        assert " 0 errors" in await machines.before.ask("dirty 0 8M 1")
        await machines.go()
        await check_refusals(machines, tmp_path)
        await check_network(machines, peer)
        await check_disks(machines.shell)
        await check_pauses(machines)
        await check_network(machines, peer)
        assert "2 of 2 CPUs online" in await machines.shell.ask("cpus")
        assert "rng: 64 bytes" in await machines.shell.ask("rng 0 64")
        await machines.finish()
        await check_disks(machines.shell)
        await check_network(machines, peer)


async def test_a_reset_needs_no_memory(gate: Gate, tmp_path: Path) -> None:
    """What is missing is not wanted any more: the source ends, and the guest boots and works."""
    config = MachineConfig.parse(memory="64M", disk=images(tmp_path))
    async with pair(gate, tmp_path, config) as machines:
        for number in range(2):
            assert " 0 failed requests" in await machines.before.ask(f"blkfill {number} 4 7")
        await machines.go()
        await machines.there.reset()
        status = await machines.here.moves.wait_migration()
        assert status.state == "completed", status.reason
        await machines.until("completed", "completed")
        assert not machines.missing
        await machines.there.wait_serial("built-in guest")
        await machines.shell.prompt()
        await check_disks(machines.shell)
        assert (await machines.here.wait()).kind == "migrated"


async def test_a_reset_while_nobody_brings_pages(gate: Gate, tmp_path: Path) -> None:
    """The source hears of it when it comes again."""
    config = MachineConfig.parse(memory="64M")
    async with pair(gate, tmp_path, config) as machines:
        await machines.go()
        assert "here" in await machines.shell.ask("echo here")
        machines.there.moves.pause_migration()
        await machines.until("postcopy-paused", "postcopy-paused")
        # It waits for a page, sooner or later.
        await machines.shell.order("check")
        await machines.there.reset()
        await machines.shell.prompt()
        assert "PVH" in await machines.shell.ask("info")
        assert machines.states[1] == "completed"
        status = await machines.here.moves.wait_migration()
        assert status.state == "completed", status.reason


async def write_from_missing_pages(machines: Pair, image: Path) -> bytes:
    """With the network cut, the disk is given one write of a MiB, most of which has not come; what the image has."""
    # The guest's own pages come with that, and the first of the data.
    assert " 0 errors" in await machines.shell.ask("blkbench 0 write 4096 1 1")
    before = image.read_bytes()
    machines.there.moves.pause_migration()
    await machines.until("postcopy-paused", "postcopy-paused")
    await machines.shell.order("blkbench 0 write 1048576 1 1")
    assert machines.there.board.devices is not None
    [disk] = machines.there.board.devices.disks.values()
    while not any(ring.state().in_flight for ring in disk.tracked.rings):
        await trio.sleep(0.002)
    return before


@pytest.mark.parametrize(
    ("how", "aio"),
    [
        ("reset", "threads"),
        *(
            pytest.param(how, aio, marks=pytest.mark.slow)
            for how, aio in [("quit", "io_uring"), ("reset", "io_uring"), ("guest", "io_uring"), ("crash", "threads")]
        ),
    ],
)
async def test_a_disk_that_waits_for_pages(
    gate: Gate, tmp_path: Path, aio: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the network down the machine is reset or ended all the same, and the image has none of that write."""
    monkeypatch.setattr(moves, "PAUSE_SECONDS", 0.1)
    image = tmp_path / "disk.img"
    image.write_bytes(b"\x11" * 8 * MIB)
    config = MachineConfig.parse(memory="64M", disk=[f"{image},aio={aio}"])
    async with pair(gate, tmp_path, config) as machines:
        await machines.go()
        there = machines.there
        before = await write_from_missing_pages(machines, image)
        with pytest.raises(UserError, match="cannot be paused before"):
            await there.pause()
        if how == "reset":
            await there.reset()
            await machines.shell.prompt()
        elif how == "guest":
            there.supervisor.from_guest(GuestRequest("reset"))
            await machines.shell.prompt()
        elif how == "crash":
            there.supervisor.crashed("report")
            assert (await there.wait()).kind == "crashed"
        else:
            there.quit()
            assert (await there.wait()).kind == "quit"
        if there.outcome is None:
            assert " 0 failed requests" in await machines.shell.ask("blkfill 0 1 7")
        else:
            assert image.read_bytes() == before


async def test_nobody_looks_whether_a_guest_that_waits_is_halted(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have to be stopped for that, which the kernel does not do for each access: then nothing would end it."""
    monkeypatch.setattr(halt, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(moves, "PAUSE_SECONDS", 0.1)
    looks = 0
    seconds = halt._cpu_seconds

    def looked(machine: Machine) -> list[float]:
        nonlocal looks
        looks += 1
        return seconds(machine)

    async with pair(gate, tmp_path, MachineConfig.parse(memory="64M")) as machines:
        await machines.go()
        there = machines.there
        there.moves.pause_migration()
        await machines.until("postcopy-paused", "postcopy-paused")
        await machines.shell.order("check")
        monkeypatch.setattr(halt, "_cpu_seconds", looked)
        while looks < 20:
            await trio.sleep(0.002)
        assert not there.motion.lock.locked()
        with suppress(UserError):
            await there.pause()
        there.quit()
        assert (await there.wait()).kind == "quit"


async def test_a_tap(gate: Gate, tmp_path: Path) -> None:
    """The host's own stack gets answers of a guest that has none of its memory."""
    with network_namespace():
        ip("link", "set", "lo", "up")
        mac = "52:54:00:12:34:56"
        configs = [
            MachineConfig.parse(memory="64M", net=[f"tap,ifname={name},mac={mac}"]) for name in ("tap-a", "tap-b")
        ]
        async with pair(gate, tmp_path, *configs) as machines:
            ip("addr", "add", f"{HOST}/24", "dev", "tap-a")
            await machines.before.ask(f"ip 0 {GUEST}/24")
            await machines.go()
            ip("addr", "del", f"{HOST}/24", "dev", "tap-a")
            ip("addr", "add", f"{HOST}/24", "dev", "tap-b")
            with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as echo:
                await echo.connect((GUEST, ECHO_PORT))
                for size in (1, 100, 1400):
                    await echo.send(b"x" * size)
                    assert await echo.recv(2000) == b"x" * size
            assert "3 sent, 3 received" in await machines.shell.ask(f"ping 0 {HOST} 3")
            await machines.finish()


async def test_a_pairing_code(gate: Gate, tmp_path: Path) -> None:
    """It is good for a recovery too, which comes long after it was used."""
    config = MachineConfig.parse(memory="64M", disk=images(tmp_path))
    async with pair(gate, tmp_path, config, paired=True) as machines:
        for number in range(2):
            assert " 0 failed requests" in await machines.before.ask(f"blkfill {number} 4 7")
        code = next(line.split()[-1] for line in machines.said if "pairing code" in line)
        await machines.go(NOW._replace(pair=code))
        await check_disks(machines.shell)
        machines.here.moves.pause_migration()
        await machines.until("postcopy-paused", "postcopy-paused")
        await machines.here.moves.recover_migration("")
        await machines.until("postcopy-active", "postcopy-active")
        await machines.finish()
        await check_disks(machines.shell)
