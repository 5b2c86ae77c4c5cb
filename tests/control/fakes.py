"""A machine without a guest, and both ends of the control socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tests.control.fake_balloon import FakeBalloon
from tests.control.fake_limits import FakeThrottle, fake_limited
from tests.control.fake_migration import FakeMigration
from tests.control.fake_save import FakeSave
from tests.control.fake_vnc import FakeVnc
from tvmm.control.input_target import InputAction, MouseInfo
from tvmm.control.server import ControlServer
from tvmm.control.target import (
    ChardevInfo,
    CpuInfo,
    DiskInfo,
    FlatRange,
    MemorySummary,
    NetInfo,
    QueueInfo,
    TaskInfo,
    VirtioInfo,
    no_such,
)
from tvmm.errors import UserError
from tvmm.metrics.catalog import metric
from tvmm.metrics.histogram import Histogram
from tvmm.metrics.model import Metric, Reading, Sample

if TYPE_CHECKING:
    from tvmm.control.target import Json

TIMED = Metric("fake_seconds", "histogram", "Of a fake.", ("device", "queue"), "seconds")

NEGOTIATION = b'{"execute": "qmp_capabilities"}'


ARGUMENTS: dict[str, dict[str, Any]] = {
    "migrate": {"uri": "unix:/tmp/peer"},
    "migrate-incoming": {"uri": "unix:/tmp/here"},
    "migrate-set-capabilities": {"capabilities": [{"capability": "events", "state": True}]},
    "balloon": {"value": 64 << 20},
    "qom-get": {"path": "/machine/peripheral/balloon0", "property": "guest-stats"},
    "qom-list": {"path": "/machine/peripheral"},
    "qom-set": {
        "path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval", "value": 2,
    },
    "block_resize": {"device": "disk0", "size": 4096},
    "block_set_io_throttle": {
        "id": "disk0", **dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0), "iops_rd": 5,
    },
    "x-save": {"path": "/tmp/a.snap"},
    "x-net-set-throttle": {"id": "net0", "pps": 5},
    "change-vnc-password": {"password": "new"},
    "expire_password": {"protocol": "vnc", "time": "now"},
    "set_link": {"name": "net0", "up": False},
    "screendump": {"filename": "/nowhere/screen.ppm"},
    "set_password": {"protocol": "vnc", "password": "new"},
    "send-key": {"keys": [{"type": "qcode", "data": "ctrl"}, {"type": "number", "data": 0xD3}], "hold-time": 5},
    "input-send-event": {
        "events": [{"type": "key", "data": {"down": True, "key": {"type": "qcode", "data": "a"}}}],
        "head": 0,
    },
}
"""What a command that cannot do without is given."""


class FakeMachine:
    """Behaves towards control clients as a machine does: states, events, refusals."""

    def __init__(self, name: str = "fake", cpu_count: int = 2) -> None:
        self.name = name
        self.server: ControlServer | None = None
        self.ended = trio.Event()
        self.button_presses = 0
        self.resets = 0
        self.hold_reset: trio.Event | None = None
        self.bug: Exception | None = None
        self.sizes = {"disk0": 1 << 30, "disk1": 1 << 20}
        self.links = {"net0": True}
        self._limited = fake_limited()
        self.announced: list[str] = []
        self.typed: list[object] = []
        self.migration = FakeMigration(self.emit)
        self.migration_status = self.migration.migration_status
        self.migration_parameters = self.migration.migration_parameters
        self.set_migration_parameters = self.migration.set_migration_parameters
        self.start_migration = self.migration.start_migration
        self.cancel_migration = self.migration.cancel_migration
        self.start_postcopy = self.migration.start_postcopy
        self.pause_migration = self.migration.pause_migration
        self.recover_migration = self.migration.recover_migration
        self.listen_for_migration = self.migration.listen_for_migration
        self.saves = FakeSave()
        self.save_status = self.saves.save_status
        self.start_save = self.saves.start_save
        self.cancel_save = self.saves.cancel_save
        self.screens: list[tuple[str, str]] = []
        self.vnc = FakeVnc()
        self.the_balloon: FakeBalloon | None = FakeBalloon()
        self.vnc_servers = self.vnc.vnc_servers
        self.set_vnc_password = self.vnc.set_vnc_password
        self.expire_vnc_password = self.vnc.expire_vnc_password
        self._cpu_count = cpu_count
        self._state = "running"

    async def save_screen(self, path: Path, image_format: str) -> None:
        """See `ScreenTarget`."""
        self.screens.append((str(path), image_format))

    def emit(self, name: str, data: dict[str, Json] | None = None) -> None:
        """Tell the control clients, if there is a server."""
        if self.server is not None:
            self.server.emit(name, data)

    def run_state(self) -> str:
        return self._state

    async def pause(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._state == "running":
            self._state = "paused"
            self.emit("STOP")

    async def resume(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._state == "shutdown":
            raise UserError("the machine has shut down", "reset it first")
        if self._state == "paused":
            self._state = "running"
            self.emit("RESUME")

    def quit(self) -> None:
        self.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        self.ended.set()

    def powerdown(self) -> None:
        self.button_presses += 1
        self.emit("POWERDOWN")

    def shut_down(self) -> None:
        """What the guest does when it has heeded the power button."""
        self._state = "shutdown"
        self.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})

    async def reset(self) -> None:
        if self.hold_reset is not None:
            await self.hold_reset.wait()
        self.resets += 1
        self.emit("RESET", {"guest": False, "reason": "host-qmp-system-reset"})

    def cpus(self) -> list[CpuInfo]:
        if self.bug is not None:
            raise self.bug
        return [CpuInfo(index, 1000 + index, self._state, 7 * index) for index in range(self._cpu_count)]

    async def registers(self, cpu_index: int) -> dict[str, int]:
        await trio.lowlevel.checkpoint()
        if self._state == "running":
            raise UserError("registers can be read while the machine is paused", "'tvmm pause' it first")
        return {"rip": 0xFFFF_FFFF_8100_0000 + cpu_index, "rflags": 2}

    def generation_id(self) -> str:
        return "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"

    def memory_summary(self) -> MemorySummary:
        return MemorySummary(256 << 20)

    def memory_map(self) -> list[FlatRange]:
        return [
            FlatRange(0, 256 << 20, "ram", "machine", "ram"),
            FlatRange(0xFEE0_0000, 4096, "lapic", "kvm", "mmio"),
        ]

    def tasks(self) -> list[TaskInfo]:
        return [TaskInfo("vcpu/0", "a thread in run", 3, 0.001, 1.5)]

    def chardevs(self) -> list[ChardevInfo]:
        return [ChardevInfo("serial0", "pty:/dev/pts/3"), *self.ports()]

    def balloon(self) -> FakeBalloon | None:
        return self.the_balloon

    def limited(self) -> dict[str, FakeThrottle]:
        return self._limited

    def ports(self) -> list[ChardevInfo]:
        return [ChardevInfo("console0.0", "unix:/tmp/hvc", frontend_open=False)]

    def disks(self) -> list[DiskInfo]:
        return [
            DiskInfo("disk0", "a.img", self.sizes["disk0"], direct=True, cache="none", rd_bytes=4096, rd_operations=1),
            DiskInfo("disk1", "b.img", self.sizes["disk1"], readonly=True, cache="unsafe", invalid_operations=2),
        ]

    def nets(self) -> list[NetInfo]:
        mac, group = bytes.fromhex("525400123456"), bytes.fromhex("333300000001")
        return [NetInfo("net0", "tap0", mac, self.links["net0"], multicast=(group,), no_unicast=True, vlans=(1, 7))]

    def virtio(self) -> list[VirtioInfo]:
        busy = QueueInfo(0, 256, ready=True, pops=12, chains=100, kicks=10, interrupts=4, suppressed=96, exits=1)
        idle = QueueInfo(1, 256, ready=False)
        return [
            VirtioInfo("disk0", "blk", "pci", "00:02.0", ("ACKNOWLEDGE", "DRIVER_OK"), ("VERSION_1",), queues=(busy,)),
            VirtioInfo("net0", "net", "mmio", "0xfeb00000", mistakes=1, last_error="a\nloop", queues=(idle, idle)),
            VirtioInfo("rng0", "rng", "pci", "00:03.0", counters={"throttled": 3}),
        ]

    async def resize_disk(self, disk_id: str, size_bytes: int) -> None:
        await trio.lowlevel.checkpoint()
        if disk_id not in self.sizes:
            raise no_such("disk", disk_id, list(self.sizes))
        if disk_id == "disk1":
            raise UserError("disk1 is read-only")
        self.sizes[disk_id] = size_bytes

    def set_link(self, net_id: str, up: bool) -> None:
        self.links[net_id] = up

    def announce(self, net_ids: Sequence[str]) -> None:
        self.announced += net_ids or list(self.links)

    async def send_keys(self, codes: Sequence[int], hold_ms: int) -> None:
        await trio.lowlevel.checkpoint()
        self.typed.append((list(codes), hold_ms))

    def send_input(self, actions: Sequence[InputAction]) -> None:
        self.typed += actions

    async def metrics(self) -> Reading:
        times = Histogram()
        times.add(1000)
        exits = Sample(metric("tvmm_vcpu_exits_total"), ("0", "io"), 5)
        return Reading(7.5, [exits, Sample(metric("tvmm_tasks"), (), 3), Sample(TIMED, ("vda", "0"), times.read())])

    def mice(self) -> list[MouseInfo]:
        return [MouseInfo("tablet0", 0, True, True), MouseInfo("PS/2 mouse", 1, False, False)]

    def info(self) -> dict[str, Json]:
        return {"kernel": "built-in", "cpus": self._cpu_count}


@asynccontextmanager
async def serving(machine: FakeMachine, path: Path) -> AsyncIterator[ControlServer]:
    """A control server for `machine`, listening at `path`, for the length of the block."""
    server = ControlServer(machine, path)
    machine.server = server
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        yield server
        nursery.cancel_scope.cancel()


class Peer:
    """A control client that says what it is told to, bit by bit if need be."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._received = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def line(self) -> dict[str, Any] | None:
        """The next message of the server, None if it hung up."""
        while b"\r\n" not in self._received:
            data = await self.stream.receive_some()
            if not data:
                assert not self._received, "the server hung up in the middle of a message"
                return None
            self._received += data
        line, _, self._received = self._received.partition(b"\r\n")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    async def ask(self, command: str, **members: Any) -> dict[str, Any] | None:
        """Send one command; the next message that is not an event."""
        await self.send(json.dumps({"execute": command, **members}).encode())
        while (message := await self.line()) is not None and "event" in message:
            pass
        return message


@asynccontextmanager
async def connected(path: Path, negotiated: bool = True) -> AsyncIterator[Peer]:
    """A client of the socket at `path` that has read the greeting and, if so wished, has left negotiation."""
    async with await trio.open_unix_socket(path) as stream:
        peer = Peer(stream)
        greeting = await peer.line()
        assert greeting is not None
        assert "QMP" in greeting
        if negotiated:
            assert await peer.ask("qmp_capabilities") == {"return": {}}
        yield peer
