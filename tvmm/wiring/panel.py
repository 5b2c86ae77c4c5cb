"""A machine's counters for the web console's panel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.virtio.runner.net import NetRunner
from tvmm.vnc.web_panel import Figures, Move
from tvmm.wiring.proc import thread_times

if TYPE_CHECKING:
    from tvmm.machine import Machine

__all__ = ["figures"]

def figures(machine: Machine) -> Figures:
    """As they are now. Reads a file of /proc for each vCPU."""
    status = machine.moves.migration_status()
    move = None
    if status.under_way or status.error:
        ram = status.ram
        move = Move(status.phase, ram.transferred, ram.remaining, ram.total, ram.throughput, status.error)
    devices = machine.virtio
    servers = machine.viewers.vnc_servers() if machine.viewers is not None else ()
    return Figures(
        machine.name,
        machine.run_state(),
        vcpu_seconds=tuple(sum(thread_times(vcpu.native_id)) for vcpu in machine.vcpus),
        disks={disk.id: (disk.rd_bytes, disk.wr_bytes) for disk in devices.disks()} if devices else {},
        nets=_nets(machine),
        viewers=sum(len(server.clients) for server in servers),
        move=move,
    )


def _nets(machine: Machine) -> dict[str, tuple[int, int]]:
    """Bytes that the guest has received and sent, by device."""
    found = {}
    for slot in machine.board.devices.slots if machine.board.devices is not None else ():
        if isinstance(slot.runner, NetRunner):
            counted = slot.runner.info().counters
            found[slot.name] = sum(pair.rx_bytes for pair in counted), sum(pair.tx_bytes for pair in counted)
    return found
