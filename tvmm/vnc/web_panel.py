"""What the web console's live panel shows: a machine's counters made into rates. Pure; the wiring reads the counters.

The message, as JSON::

    {"name": "web1", "state": "running", "detail": "", "viewers": 2,
     "vcpus": [0.97, 0.02],                                    load of each, 1.0 is one host CPU
     "disks": [{"name": "disk0", "in": 0.0, "out": 81920.0}],  bytes a second: read and written by the guest
     "nets":  [{"name": "net0", "in": 1500.0, "out": 0.0}],    bytes a second: received and sent by the guest
     "migration": {"phase": "round 3", "fraction": 0.8, "transferred": 1, "remaining": 1, "throughput": 1.0,
                   "error": ""},                               null if there was none
     "moved": ""}                                              URL of the destination's console
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Figures", "Move", "Panel"]


class Move(NamedTuple):
    """A migration under way, or how the last one failed."""

    phase: str
    """For people, as `first pass`."""
    transferred: int = 0
    """Bytes on the wire so far."""
    remaining: int = 0
    """Bytes of RAM still to be sent."""
    total: int = 0
    """Bytes of RAM."""
    throughput: float = 0.0
    """Bytes a second on the wire, lately."""
    error: str = ""
    """Why it failed, in one sentence, or nothing."""


class Figures(NamedTuple):
    """A machine at one moment. Counters only grow."""

    name: str
    state: str
    detail: str = ""
    """More about the state for people, as why the guest was stopped."""
    vcpu_seconds: Sequence[float] = ()
    """CPU time that each vCPU has used."""
    disks: Mapping[str, tuple[int, int]] = {}
    """Bytes that the guest has read and written, by disk."""
    nets: Mapping[str, tuple[int, int]] = {}
    """Bytes that the guest has received and sent, by interface."""
    viewers: int = 0
    move: Move | None = None
    moved: str = ""
    """The destination's console, once the guest is there and if it has one."""


class Panel:
    """The message from `read`'s figures, with rates since the last message; the first message has rates of 0.

    ``clock`` counts seconds.
    """

    def __init__(self, read: Callable[[], Figures], clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock
        self._before: dict[tuple[str, str | int], float] = {}
        self._time = clock()

    def __call__(self) -> dict[str, Any]:
        """The message of this moment."""
        figures = self._read()
        now = self._clock()
        seconds = now - self._time
        counters: dict[tuple[str, str | int], float] = {}

        def rate(key: tuple[str, str | int], value: float) -> float:
            counters[key] = value
            # A counter that went back is another one: the device was taken out and another put in.
            return max(0.0, value - self._before.get(key, value)) / seconds if seconds > 0 else 0.0

        def pairs(kind: str, devices: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
            return [
                {"name": name, "in": rate((f"{kind} in", name), each[0]), "out": rate((f"{kind} out", name), each[1])}
                for name, each in devices.items()
            ]

        message = {
            "name": figures.name,
            "state": figures.state,
            "detail": figures.detail,
            "viewers": figures.viewers,
            "vcpus": [rate(("vcpu", index), each) for index, each in enumerate(figures.vcpu_seconds)],
            "disks": pairs("disk", figures.disks),
            "nets": pairs("net", figures.nets),
            "migration": None if figures.move is None else _move(figures.move),
            "moved": figures.moved,
        }
        self._before = counters
        self._time = now
        return message


def _move(move: Move) -> dict[str, Any]:
    done = 1 - min(move.remaining, move.total) / move.total if move.total else 0.0
    return {
        "phase": move.phase,
        "fraction": done,
        "transferred": move.transferred,
        "remaining": move.remaining,
        "throughput": move.throughput,
        "error": move.error,
    }
