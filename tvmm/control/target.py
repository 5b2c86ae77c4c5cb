"""What the control socket asks of a machine, and the records in which the machine answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias

    Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None

__all__ = [
    "ChardevInfo",
    "ControlTarget",
    "CpuInfo",
    "FlatRange",
    "MemorySummary",
    "TaskInfo",
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


class ControlTarget(Protocol):
    """A machine, as its control clients see it.

    A method raises a `UserError` when the machine is in no state to do what is asked; the client gets its
    text. Methods may be cancelled wherever they wait. The machine announces what happens to it, whoever
    caused it, through `ControlServer.emit`; the verbs emit nothing.
    """

    @property
    def name(self) -> str:
        """The machine's name."""

    def run_state(self) -> str:
        """A word of QEMU's RunState: `running`, `paused`, `prelaunch`, `inmigrate`, `shutdown`, ..."""

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

    def memory_summary(self) -> MemorySummary:
        """How much RAM the guest has."""

    def memory_map(self) -> Sequence[FlatRange]:
        """The physical address space, by address, without overlaps."""

    def tasks(self) -> Sequence[TaskInfo]:
        """The tasks of this machine alone."""

    def chardevs(self) -> Sequence[ChardevInfo]:
        """The character devices."""

    def info(self) -> Mapping[str, Json]:
        """Anything else worth telling, for people to read."""
