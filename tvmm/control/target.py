"""What the control socket asks of a machine, and the records in which the machine answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol

from tvmm.control.input_target import InputTarget
from tvmm.control.limit_target import LimitTargets
from tvmm.control.metrics_verbs import MetricsTarget
from tvmm.control.migration_target import MigrationTarget
from tvmm.control.save_target import SaveTarget
from tvmm.control.vnc_target import NoVnc, VncTarget
from tvmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from tvmm.control.balloon_target import BalloonTarget
    from tvmm.control.limit_target import LimitTarget

    Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None

__all__ = [
    "ChardevInfo",
    "ControlTarget",
    "CpuInfo",
    "DiskInfo",
    "FlatRange",
    "MemorySummary",
    "NetInfo",
    "NoVirtio",
    "NoVnc",
    "QueueInfo",
    "ScreenTarget",
    "TaskInfo",
    "VirtioDevices",
    "VirtioInfo",
    "VncTarget",
    "no_such",
]


class CpuInfo(NamedTuple):
    """One vCPU."""

    cpu_index: int
    thread_id: int
    """The host thread it runs on, 0 while there is none."""
    state: str
    """`paused`, `running` or `finished`."""
    exits: int = 0
    """How often it came back from the guest to tvmm."""


class MemorySummary(NamedTuple):
    """Guest RAM, in bytes."""

    base: int
    """RAM the machine started with."""
    plugged: int = 0
    """RAM added since."""


class FlatRange(NamedTuple):
    """One run of guest-physical addresses that one thing answers."""

    start: int
    size: int
    block: str
    """The RAM block or device behind it."""
    owner: str
    """The part of the machine that put it there."""
    kind: str
    """`ram`, `rom`, `reserved` or `mmio`."""


class TaskInfo(NamedTuple):
    """One task of the machine."""

    name: str
    waits_for: str
    """The call it is suspended in and the function that made the call, as in `wait_readable in Pump.run`."""
    wakeups: int
    """How often it ran."""
    seconds: float
    """How long it ran, all in all. Time in worker threads that it waits for is not its own."""
    age_seconds: float


class ChardevInfo(NamedTuple):
    """One character device: where a serial line leads."""

    label: str
    filename: str
    """Its other end, spelled as on the command line (`pty:/dev/pts/3`)."""
    frontend_open: bool = True
    """Whether the guest's side is connected."""


class DiskInfo(NamedTuple):
    """One disk. Counts are the guest's requests since the machine started."""

    id: str
    file: str
    size_bytes: int
    readonly: bool = False
    cache: str = "writeback"
    direct: bool = False
    aio: str = "threads"
    """How requests wait: `io_uring` or `threads`, after the probe."""
    io_status: str = "ok"
    """`ok`, or what stopped the machine: `failed`, `nospace`."""
    rd_bytes: int = 0
    wr_bytes: int = 0
    unmap_bytes: int = 0
    """Discarded, and zeroed with leave to deallocate."""
    rd_operations: int = 0
    wr_operations: int = 0
    flush_operations: int = 0
    unmap_operations: int = 0
    failed_rd_operations: int = 0
    failed_wr_operations: int = 0
    failed_flush_operations: int = 0
    failed_unmap_operations: int = 0
    rd_total_time_ns: int = 0
    """What requests took, all together, from taken off the ring to shown as used."""
    wr_total_time_ns: int = 0
    flush_total_time_ns: int = 0
    unmap_total_time_ns: int = 0
    invalid_operations: int = 0
    """Requests that no driver should make: out of range, malformed."""
    format: str = "raw"
    """What the file is: `raw`, `qcow2` ..."""


class NetInfo(NamedTuple):
    """One network device, with the receive filter that its driver has set."""

    id: str
    ifname: str
    mac: bytes
    """The address in use: the driver may have changed it."""
    link_up: bool = True
    promiscuous: bool = False
    all_multicast: bool = False
    all_unicast: bool = False
    no_multicast: bool = False
    no_unicast: bool = False
    no_broadcast: bool = False
    unicast: tuple[bytes, ...] = ()
    multicast: tuple[bytes, ...] = ()
    unicast_overflow: bool = False
    """The driver named more addresses than are kept: all are let through."""
    multicast_overflow: bool = False
    vlans: tuple[int, ...] | None = None
    """None: frames of every VLAN pass."""


class QueueInfo(NamedTuple):
    """One virtqueue, with what happened to it since the machine started."""

    index: int  # type: ignore[assignment]  # hides the method of tuple, which has no use here
    size: int
    ready: bool
    pops: int = 0
    """How often the device looked for chains."""
    chains: int = 0
    """Requests or buffers that it found."""
    kicks: int = 0
    """Notifications by the driver that reached the device."""
    interrupts: int = 0
    """Notifications by the device."""
    suppressed: int = 0
    """Used buffers for which the driver wanted no interrupt."""
    exits: int = 0
    """Notifications that came as an exit of KVM_RUN, not through an eventfd."""
    errors: int = 0


class VirtioInfo(NamedTuple):
    """One virtio device."""

    name: str
    """Its id."""
    kind: str
    """`blk`, `net`, `console`, `rng` or `input`."""
    transport: str
    """`pci` or `mmio`."""
    place: str
    """Where the guest finds it: `00:03.0`, `0xfeb00000`."""
    status: tuple[str, ...] = ()
    """Words of the device status field, `ACKNOWLEDGE` to `FAILED` (virtio 1.3, 2.1)."""
    features: tuple[str, ...] = ()
    """Names of those that driver and device agreed on."""
    mistakes: int = 0
    """What the driver did against the specification."""
    last_error: str = ""
    queues: tuple[QueueInfo, ...] = ()
    counters: Mapping[str, int] = {}
    """Whatever else this kind of device counts, by names with dashes."""


class VirtioDevices(LimitTargets, Protocol):
    """The virtio devices of a machine, as control clients see them.

    An unknown id raises `UserError` (`no_such` makes it). Sequences are in the order of the configuration.
    """

    def virtio(self) -> Sequence[VirtioInfo]:
        """All of them."""

    def disks(self) -> Sequence[DiskInfo]:
        """The disks."""

    def nets(self) -> Sequence[NetInfo]:
        """The network devices."""

    def balloon(self) -> BalloonTarget | None:
        """The balloon, if there is one."""

    def ports(self) -> Sequence[ChardevInfo]:
        """The ports of the consoles, `frontend_open` if the guest has opened them."""

    async def resize_disk(self, disk_id: str, size_bytes: int) -> None:
        """Return when file and device have the size, and the guest has been told. Raises `UserError`."""

    def set_link(self, net_id: str, up: bool) -> None:
        """Plug the cable in or out. Raises `UserError`."""

    def announce(self, net_ids: Sequence[str]) -> None:
        """Have the guest tell the network where it is, through these devices or (empty) all. Raises `UserError`."""


def no_such(kind: str, wanted: str, there_are: Sequence[str]) -> UserError:
    """The error for a device called `wanted` that is none of `there_are`."""
    # A client chooses how long `wanted` is, not how long the answer is.
    shown = wanted if len(wanted) <= 64 else f"{wanted[:64]}..."
    return UserError(f"there is no {kind} {shown!r}", f"there are: {', '.join(there_are) or 'none'}")


class NoVirtio:
    """`VirtioDevices` of a machine that has none."""

    def virtio(self) -> Sequence[VirtioInfo]:
        """None."""
        return ()

    def disks(self) -> Sequence[DiskInfo]:
        """None."""
        return ()

    def nets(self) -> Sequence[NetInfo]:
        """None."""
        return ()

    def balloon(self) -> None:
        """None."""

    def limited(self) -> Mapping[str, LimitTarget]:
        """None."""
        return {}

    def ports(self) -> Sequence[ChardevInfo]:
        """None."""
        return ()

    async def resize_disk(self, disk_id: str, size_bytes: int) -> NoReturn:
        """Raise `UserError`."""
        raise no_such("disk", disk_id, ())

    def set_link(self, net_id: str, up: bool) -> NoReturn:
        """Raise `UserError`."""
        raise no_such("network device", net_id, ())

    def announce(self, net_ids: Sequence[str]) -> None:
        """Nothing to do; raises `UserError` for a name."""
        for net_id in net_ids:
            raise no_such("network device", net_id, ())


class ScreenTarget(Protocol):
    """The guest's screen, as control clients see it."""

    async def save_screen(self, path: Path, image_format: str) -> None:
        """Write what the guest shows to the file `path`, as ``ppm`` or ``png``. Raises `UserError`: there is no screen,
        or the file cannot be written.
        """


class ControlTarget(
    ScreenTarget, VirtioDevices, MigrationTarget, SaveTarget, VncTarget, InputTarget, MetricsTarget, Protocol
):
    """A machine, as its control clients see it: what follows, and the targets of its parts.

    A method raises a `UserError` when the machine is in no state to do what is asked; the client gets its
    text. Methods may be cancelled wherever they wait. The machine announces what happens to it, whoever
    caused it, through `ControlServer.emit`; the verbs emit nothing.
    """

    @property
    def name(self) -> str:
        """The machine's name."""

    def run_state(self) -> str:
        """A word of QEMU's RunState: `running`, `paused`, `prelaunch`, `shutdown`, ...

        `inmigrate`: it waits for a guest; `finish-migrate`: its guest is on the last step of its way out;
        `postmigrate`: its guest has moved, or may have; `save-vm`: it is written into a file."""

    async def pause(self) -> None:
        """Return when no vCPU runs. Nothing to do if none does."""

    async def resume(self) -> None:
        """Return when the vCPUs run. Nothing to do if they do."""

    def quit(self) -> None:
        """Begin to end the machine; returns at once."""

    def powerdown(self) -> None:
        """Press the power button; the guest may or may not heed it."""

    async def reset(self) -> None:
        """Return when the machine has been reset."""

    def cpus(self) -> Sequence[CpuInfo]:
        """The vCPUs, by index."""

    async def registers(self, cpu_index: int) -> Mapping[str, int]:
        """Register values of one vCPU by their lower-case names (`rip`, `rflags`, `cr0`)."""

    def generation_id(self) -> str:
        """As `tvmm.devices.generation_id.format_guid` writes it."""

    def memory_summary(self) -> MemorySummary:
        """How much RAM the guest has."""

    def memory_map(self) -> Sequence[FlatRange]:
        """The physical address space, by address, without overlaps."""

    def tasks(self) -> Sequence[TaskInfo]:
        """The tasks of this machine alone."""

    def chardevs(self) -> Sequence[ChardevInfo]:
        """The character devices, ports of consoles included."""

    def info(self) -> Mapping[str, Json]:
        """Anything else worth telling, for people to read."""
