"""A machine's counters for the web console's panel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvmm.virtio.runner.net import NetRunner
from tvmm.vnc.web_panel import Figures, Move

if TYPE_CHECKING:
    from tvmm.machine import Machine

__all__ = ["figures"]

TICKS_PER_SECOND = 100
"""USER_HZ of x86 Linux, in which /proc counts (proc(5))."""


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
        vcpu_seconds=tuple(_seconds(vcpu.native_id) for vcpu in machine.vcpus),
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


def _seconds(thread: int | None) -> float:
    """CPU time of a thread of this process; 0 if there is none."""
    try:
        text = Path(f"/proc/self/task/{thread}/stat").read_text()
    except OSError:
        return 0.0
    # Behind the name, which may have anything in it: utime and stime are fields 14 and 15.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
