"""Everything that a machine counts, at one moment: what QMP, Prometheus, `tvmm info` and `tvmm top` show.

Nothing is counted here. The parts of the machine count by themselves, all the time, and this reads them: on the event
loop, with the bus lock for the devices, so that nothing is half changed. What takes longer, a walk over the page tables
of guest RAM, is done in a thread, and not more often than is worth it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from tvmm import __version__
from tvmm.kvm.discard import resident_bytes
from tvmm.memory.ram import MAIN_BLOCK
from tvmm.metrics.catalog import metric
from tvmm.metrics.model import Reading, Sample
from tvmm.vcpu.exits import EXIT_NAMES
from tvmm.wiring.proc import process_resident_bytes, process_times, thread_times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvmm.board import Board
    from tvmm.machine import Machine
    from tvmm.vcpu.thread import Vcpu
    from tvmm.wiring.devices import Devices
    from tvmm.wiring.slot import Slot

__all__ = ["MachineMetrics"]

RESIDENT_SHARE = 0.01
"""Share of the time that may go into finding out what part of RAM is resident: it takes milliseconds per gigabyte."""

LAST_REASON = 63
"""Exits of this reason and of those above are counted as one."""


class MachineMetrics:
    """The numbers of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._measuring = trio.Lock()
        self._resident = 0
        self._resident_due = float("-inf")

    async def read(self) -> Reading:
        """All of them, as they are."""
        resident = await self._measure_resident()
        machine = self._machine
        found = [*_machine(machine), *_memory(machine, resident), *_processors(machine), *_board(machine.board)]
        if machine.board.devices is not None:
            found += _devices(machine.board.devices)
        return Reading(time.monotonic(), [*found, *_viewers(machine), *_migration(machine)])

    async def _measure_resident(self) -> int:
        """Resident bytes of guest RAM; not older than a hundred times what it takes to find out."""
        async with self._measuring:
            if trio.current_time() >= self._resident_due:
                began = time.perf_counter()
                block = self._machine.board.ram.blocks[MAIN_BLOCK]
                self._resident = await trio.to_thread.run_sync(resident_bytes, block)
                self._resident_due = trio.current_time() + (time.perf_counter() - began) / RESIDENT_SHARE
        return self._resident


def _machine(machine: Machine) -> Iterator[Sample]:
    state = machine.run_state()
    kernel = machine.config.kernel.kernel or "built-in"
    yield Sample(metric("tvmm_machine_info"), (__version__, machine.config.cpu.model, kernel), 1)
    yield Sample(metric("tvmm_machine_state"), (state,), 1)
    yield Sample(metric("tvmm_machine_running"), (), int(state == "running"))
    yield Sample(metric("tvmm_machine_start_time_seconds"), (), round(machine.made_at, 3))
    yield Sample(metric("tvmm_machine_uptime_seconds"), (), round(max(time.time() - machine.made_at, 0.0), 3))
    yield Sample(metric("tvmm_tasks"), (), len(machine.meter.snapshot()))
    yield Sample(metric("tvmm_control_clients"), (), machine.control_clients())


def _memory(machine: Machine, resident: int) -> Iterator[Sample]:
    yield Sample(metric("tvmm_memory_bytes"), (), machine.config.memory.size)
    yield Sample(metric("tvmm_memory_resident_bytes"), (), resident)
    yield Sample(metric("tvmm_process_resident_bytes"), (), process_resident_bytes())
    for mode, seconds in process_times()._asdict().items():
        yield Sample(metric("tvmm_process_cpu_seconds_total"), (mode,), seconds)


def _processors(machine: Machine) -> Iterator[Sample]:
    for vcpu in machine.vcpus:
        yield from _processor(vcpu)
    for name, count in machine.exits.assists.most_common():
        yield Sample(metric("tvmm_vcpu_assists_total"), (name,), count)


def _processor(vcpu: Vcpu) -> Iterator[Sample]:
    cpu = str(vcpu.index)
    for reason, count in vcpu.kvm.reasons.items():
        name = EXIT_NAMES.get(reason, "other" if reason >= LAST_REASON else f"reason-{reason}")
        yield Sample(metric("tvmm_vcpu_exits_total"), (cpu, name.lower()), count)
    yield Sample(metric("tvmm_vcpu_exits_in_c_total"), (cpu,), vcpu.kvm.exits_in_c)
    yield Sample(metric("tvmm_vcpu_pauses_total"), (cpu,), vcpu.pauses)
    for mode, seconds in thread_times(vcpu.native_id)._asdict().items():
        yield Sample(metric("tvmm_vcpu_cpu_seconds_total"), (cpu, mode), seconds)




def _board(board: Board) -> Iterator[Sample]:
    for bus, counted in (("pio", board.ports), ("mmio", board.mmio)):
        yield Sample(metric("tvmm_bus_unclaimed_total"), (bus, "read"), counted.unclaimed_reads)
        yield Sample(metric("tvmm_bus_unclaimed_total"), (bus, "write"), counted.unclaimed_writes)
    yield Sample(metric("tvmm_serial_received_bytes_total"), (), board.serial.received)


def _devices(devices: Devices) -> list[Sample]:
    found: list[Sample] = []
    with devices.host.bus_lock:
        for slot in devices.slots:
            found += _slot(slot)
    for measure in devices.measures.values():
        found += measure()
    return found


def _slot(slot: Slot) -> Iterator[Sample]:
    """What every virtio device has, of whatever kind it is."""
    from tvmm.virtio.runner.task import TaskRunner
    from tvmm.virtio.status import DRIVER_OK

    name, transport = slot.name, slot.transport
    kind = slot.device.type_name.removeprefix("virtio-")
    yield Sample(metric("tvmm_virtio_info"), (name, kind, slot.transport_name, slot.place), 1)
    yield Sample(metric("tvmm_virtio_driver_ok"), (name,), int(bool(transport.status & DRIVER_OK)))
    for mistake, count in sorted(transport.mistakes.items()):
        yield Sample(metric("tvmm_virtio_mistakes_total"), (name, mistake), count)
    for index, (ring, exits) in enumerate(zip(slot.runner.rings, slot.exits, strict=True)):
        counted = ring.counters
        for word, count in (
            ("chains", counted.chains),
            ("kicks", counted.kicks),
            ("kick_exits", exits),
            ("interrupts", counted.interrupts),
            ("suppressed", counted.suppressed),
            ("errors", counted.errors),
        ):
            yield Sample(metric(f"tvmm_virtio_queue_{word}_total"), (name, str(index)), count)
    if isinstance(slot.runner, TaskRunner):
        for index, histogram in enumerate(slot.runner.turns):
            yield Sample(metric("tvmm_virtio_turn_seconds"), (name, str(index)), histogram.read())


def _viewers(machine: Machine) -> Iterator[Sample]:
    if machine.viewers is not None:
        count = sum(len(server.clients) for server in machine.viewers.vnc_servers())
        yield Sample(metric("tvmm_vnc_viewers"), (), count)


def _migration(machine: Machine) -> Iterator[Sample]:
    """Of one that is under way, or of the last one."""
    status = machine.moves.migration_status()
    if status.state == "none":
        return
    direction = "in" if status.incoming else "out"
    yield Sample(metric("tvmm_migration_state"), (status.state, direction), 1)
    ram = status.ram
    for part, size in (("total", ram.total), ("transferred", ram.transferred), ("remaining", ram.remaining)):
        yield Sample(metric("tvmm_migration_ram_bytes"), (part,), size)
    yield Sample(metric("tvmm_migration_rounds"), (), ram.rounds)
    yield Sample(metric("tvmm_migration_throughput_bytes_per_second"), (), ram.throughput)
    yield Sample(metric("tvmm_migration_dirty_pages_per_second"), (), ram.dirty_pages_rate)
