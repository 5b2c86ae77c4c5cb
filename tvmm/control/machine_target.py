"""`ControlTarget` of a machine, and the sockets that serve it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tvmm.control.listener import unix_listener
from tvmm.control.machine_input import MachineInput
from tvmm.control.server import ControlServer
from tvmm.control.target import ChardevInfo, CpuInfo, FlatRange, MemorySummary, NoVirtio, NoVnc, TaskInfo
from tvmm.devices.generation_id import format_guid
from tvmm.errors import UserError
from tvmm.memory.layout import IOAPIC_BASE, LAPIC_BASE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvmm.board import Board
    from tvmm.control.input_target import InputTarget
    from tvmm.control.migration_target import MigrationTarget
    from tvmm.control.save_target import SaveTarget
    from tvmm.control.target import Json, VirtioDevices, VncTarget
    from tvmm.machine import Machine
    from tvmm.metrics.model import Reading

__all__ = ["MachineTarget", "memory_map", "serve_machine"]

_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "tr")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")


class MachineTarget:
    """A machine as its control clients see it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.pause = machine.pause
        self.resume = machine.resume
        self.reset = machine.reset
        self.quit = machine.quit
        self.powerdown = machine.powerdown
        self.run_state = machine.run_state
        devices: VirtioDevices = NoVirtio() if machine.virtio is None else machine.virtio
        self.virtio = devices.virtio
        self.disks = devices.disks
        self.nets = devices.nets
        self.ports = devices.ports
        self.balloon = devices.balloon
        self.limited = devices.limited
        self.resize_disk = devices.resize_disk
        self.set_link = devices.set_link
        self.announce = devices.announce
        people: InputTarget = MachineInput(lambda: machine.board.input)
        self.send_keys = people.send_keys
        self.send_input = people.send_input
        self.mice = people.mice
        moves: MigrationTarget = machine.moves
        self.migration_status = moves.migration_status
        self.migration_parameters = moves.migration_parameters
        self.set_migration_parameters = moves.set_migration_parameters
        self.start_migration = moves.start_migration
        self.cancel_migration = moves.cancel_migration
        self.start_postcopy = moves.start_postcopy
        self.pause_migration = moves.pause_migration
        self.recover_migration = moves.recover_migration
        self.listen_for_migration = moves.listen_for_migration
        saves: SaveTarget = machine.saves
        self.save_status = saves.save_status
        self.start_save = saves.start_save
        self.cancel_save = saves.cancel_save
        vnc: VncTarget = machine.viewers or NoVnc()
        self.vnc_servers = vnc.vnc_servers
        self.set_vnc_password = vnc.set_vnc_password
        self.expire_vnc_password = vnc.expire_vnc_password

    @property
    def name(self) -> str:
        """The machine's name."""
        return self._machine.name

    async def save_screen(self, path: Path, image_format: str) -> None:
        """See `ScreenTarget`."""
        from tvmm.wiring.picture import save_picture

        if self._machine.screen is None:
            raise UserError("this machine has no display", "start it with --display bochs-display, or --vnc")
        await save_picture(self._machine.screen, path, image_format)

    def cpus(self) -> Sequence[CpuInfo]:
        """The vCPUs, by index."""
        return [
            CpuInfo(vcpu.index, vcpu.native_id or 0, vcpu.state.value, vcpu.kvm.exits)
            for vcpu in self._machine.vcpus
        ]

    async def metrics(self) -> Reading:
        """Everything that is counted."""
        return await self._machine.metrics().read()

    async def registers(self, cpu_index: int) -> Mapping[str, int]:
        """General, control and segment registers of one vCPU; holds the guest for a moment."""
        vcpu = self._machine.vcpus[cpu_index]

        def look() -> dict[str, int]:
            sregs = vcpu.kvm.get_sregs()
            values = dict(vcpu.registers._asdict())
            values.update({name: int(getattr(sregs, name)) for name in _CONTROL})
            values.update({name: int(getattr(sregs, name).selector) for name in _SEGMENTS})
            return values

        return await self._machine.inspect(look)

    def generation_id(self) -> str:
        """See `ControlTarget`."""
        return format_guid(self._machine.board.generation.guid)

    def memory_summary(self) -> MemorySummary:
        """How much RAM the guest has."""
        return MemorySummary(self._machine.config.memory.size)

    def memory_map(self) -> Sequence[FlatRange]:
        """The physical address space, by address."""
        return memory_map(self._machine.board)

    def tasks(self) -> Sequence[TaskInfo]:
        """The tasks of this machine."""
        return self._machine.meter.snapshot()

    def chardevs(self) -> Sequence[ChardevInfo]:
        """The serial line and the ports of consoles, and where they lead."""
        kind, path = self._machine.config.serial.kind, self._machine.backend_path
        return [ChardevInfo("serial0", f"{kind}:{path}" if path else kind), *self.ports()]

    def info(self) -> Mapping[str, Json]:
        """Anything else worth telling."""
        machine = self._machine
        writes, reads = machine.board.serial.ring.fast_accesses
        return {
            "kernel": machine.config.kernel.kernel or "built-in guest",
            "entry": machine.board.loaded,
            "generation-id": self.generation_id(),
            "cpu-model": machine.config.cpu.model,
            "kernel-mode": "emulated" if machine.board.emulated_kernel else "native",
            "exits": sum(vcpu.kvm.exits for vcpu in machine.vcpus),
            "exits-in-c": sum(vcpu.kvm.exits_in_c for vcpu in machine.vcpus),
            "assists": dict(machine.exits.assists.most_common()),
            "serial-writes-in-c": writes,
            "serial-polls-in-c": reads,
            "serial-bytes-received": machine.board.serial.received,
            "unclaimed-port-reads": machine.board.ports.unclaimed_reads,
            "unclaimed-port-writes": machine.board.ports.unclaimed_writes,
            "unclaimed-mmio-reads": machine.board.mmio.unclaimed_reads,
            "unclaimed-mmio-writes": machine.board.mmio.unclaimed_writes,
            **_vsock(machine),
        }


def memory_map(board: Board) -> list[FlatRange]:
    """The flat view of guest-physical addresses, in their order: RAM blocks and devices."""
    view = [
        FlatRange(region.gpa, region.size, region.block, "machine", "rom" if region.read_only else "ram")
        for region in board.ram.regions
    ]
    view.append(FlatRange(IOAPIC_BASE, 0x1000, "ioapic", "kvm", "mmio"))
    view.append(FlatRange(LAPIC_BASE, 0x1000, "lapic", "kvm", "mmio"))
    moved = {region.gpa for region in board.ram.regions if region.moves}
    view += [
        FlatRange(claimed.start, claimed.length, claimed.name, "machine", "mmio")
        for claimed in board.mmio
        if claimed.start not in moved
    ]
    return sorted(view)


def _vsock(machine: Machine) -> dict[str, Json]:
    """Where programs reach the guest's ports, if they do."""
    devices = machine.board.devices
    return {"vsock": devices.vsock.info()} if devices is not None and devices.vsock is not None else {}


async def serve_machine(
    machine: Machine, control: str, console: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve QMP at the path `control` and the serial line at `console` ('' for none), until cancelled.

    Started when both listen. Raises `HostError` if one of them cannot.
    """
    server = ControlServer(MachineTarget(machine), Path(control))

    def tell(name: str, data: Mapping[str, object]) -> None:
        server.emit(name, data)  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        machine.listeners.append(tell)
        others = machine.control_clients
        machine.control_clients = lambda: others() + server.client_count
        if console:
            listener = await nursery.start(_listen, Path(console))
            nursery.start_soon(machine.hub.serve_viewers, [listener])
        machine.control_ready.set()
        task_status.started()


async def _listen(path: Path, *, task_status: trio.TaskStatus[trio.SocketListener]) -> None:
    """Keep a listening socket at `path` until cancelled."""
    async with unix_listener(path) as listener:
        task_status.started(listener)
        await trio.sleep_forever()
