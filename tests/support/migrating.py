"""A guest under load that moves from process to process, each a `tvmm run` of its own, over one disk and one bridge.

The processes are in the network namespace that the caller has entered. The host's own stack, at the bridge, answers
the guest's echo requests.
"""

from __future__ import annotations

import json
import os
import re
import select
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any, NamedTuple

from tests.support.churn import Summary, summary
from tests.support.netns import ip
from tests.support.process import PROMPT, SECONDS, call, read_until, started
from tests.support.vitals import Vitals, vitals

__all__ = ["WAYS", "Chain", "Figures", "Place", "Way", "bridged"]

HOST, GUEST, MAC = "10.0.2.2", "10.0.2.15", "52:54:00:12:34:56"
BRIDGE = "br0"
MIB = 1 << 20


class Way(NamedTuple):
    """How one move goes: over which kind of address, and with which options of `tvmm migrate`."""

    kind: str = "unix"
    options: tuple[str, ...] = ()
    tls: bool = False


WAYS = (
    Way(),
    Way("tcp", ("--connections", "2"), tls=True),
    Way("tcp", ("--compress", "zstd")),
    Way("unix", ("--connections", "2")),
    Way("tcp"),
    Way("tcp", tls=True),
    Way("unix", ("--compress", "zstd", "--connections", "2")),
    Way("tcp", ("--compress", "zstd", "--connections", "1"), tls=True),
    Way("tcp", ("--connections", "2", "--verify")),
)
"""Taken in turns, so that a few moves try all of them."""


class Figures(NamedTuple):
    """Of moves: milliseconds."""

    total_ms: list[float]
    downtime_ms: list[float]

    def __str__(self) -> str:
        return f"total {_spread(self.total_ms)}; downtime {_spread(self.downtime_ms)}"


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)]
    return f"median {statistics.median(ordered):.1f}, p95 {p95:.1f}, max {ordered[-1]:.1f} ms"


@contextmanager
def bridged() -> Iterator[None]:
    """A bridge with the host's address, in the namespace that this thread is in."""
    ip("link", "set", "lo", "up")
    # With an address of its own: a bridge without one takes that of a port, and has another one when that port is gone.
    ip("link", "add", BRIDGE, "address", "52:54:00:00:00:02", "type", "bridge")
    ip("addr", "add", f"{HOST}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    try:
        yield
    finally:
        ip("link", "del", BRIDGE)


class Place:
    """A process that has the guest, or waits for it. `said` is what came on its serial line."""

    def __init__(self, name: str, *options: str) -> None:
        self.name = name
        self.said = b""
        self._read = 0
        self._stack = ExitStack()
        self.process: Popen[bytes] = self._stack.enter_context(started("run", "--name", name, *options))

    def close(self) -> None:
        """It ends, if it has not yet."""
        self._stack.close()

    def type(self, keys: bytes) -> None:
        """On the guest's serial line."""
        assert self.process.stdin is not None
        self.process.stdin.write(keys)

    def read_until(self, wanted: bytes) -> str:
        """The guest's serial line up to and including `wanted`, from where the last call left off."""
        while (at := self.said.find(wanted, self._read)) < 0:
            self.said += self._more()
        begin, self._read = self._read, at + len(wanted)
        return self.said[begin : self._read].decode(errors="replace")

    def _more(self) -> bytes:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        assert ready, f"{self.name} says nothing more; last was {self.said[-500:]!r}"
        data = os.read(self.process.stdout.fileno(), 4096)
        assert data, f"{self.name} has ended; last was {self.said[-500:]!r}"
        return data

    def ask(self, line: str) -> str:
        """What the guest prints for a command, with the prompt after it."""
        self.type(line.encode() + b"\n")
        return self.read_until(b"\n" + PROMPT)

    def status(self) -> str:
        """What `tvmm ps` says."""
        _, told, _ = call("ps", "--json")
        return next((str(row["status"]) for row in json.loads(told) if row["name"] == self.name), "")

    def listening(self) -> str:
        """Where it waits for a guest: it says so once it does."""
        told = read_until(self.process.stderr, b"waiting for a guest at ")
        told = told if told.endswith(b"\n") else told + read_until(self.process.stderr, b"\n")
        found = re.search(r"waiting for a guest at (\S+)", told.decode())
        assert found, told
        return found[1]

    def vitals(self) -> Vitals:
        """What the process holds."""
        return vitals(self.process.pid)

    def mark(self) -> None:
        """Have the load answer a key with a line: the guest runs here, and is not only said to."""
        self.type(b"m")
        self.read_until(b"longest pause ")
        self.read_until(b"\n")

    def summary(self) -> Summary:
        """What the load says so far."""
        self.type(b"s")
        return summary(self.read_until(b"s off, in ") + self.read_until(b"\n"))


class Chain:
    """One guest and the places that it has been at. A context manager; all processes end with it."""

    def __init__(self, directory: Path, transport: str, ring: str, load: str = "rate=2000 pages=16M mib=8") -> None:
        """`ring` is "" for split rings, or a ring option such as `packed=on`."""
        self._directory = directory
        self._load = load
        image = directory / "disk.img"
        with image.open("wb") as file:
            file.truncate(16 * MIB)
        self.image = image
        device = ",".join(filter(None, [f"transport={transport}", ring]))
        self._options = (
            *("--memory", "64M", "--disk", f"{image},{device}", "--net", f"tap,br={BRIDGE},mac={MAC},{device}"),
            *(("--append", "packed") if "packed" in ring else ()),
        )
        self._keys = directory / "keys"
        self._places: list[Place] = []
        self.here: Place
        self.moves = 0
        self.figures = Figures([], [])
        self.seen: list[Vitals] = []
        """Of each place, just after the guest had arrived."""
        self.complaints: list[str] = []
        """Lines of the guest that tell of an error."""

    def __enter__(self) -> Chain:
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """All processes end."""
        while self._places:
            self._places.pop().close()

    def _begin(self) -> None:
        assert call("keys", "init", "--keys", str(self._keys), "--san", "127.0.0.1")[0] == 0
        self.here = self.place("a")
        self.here.read_until(PROMPT)
        self.here.ask(f"ip 0 {GUEST}/24")
        self.here.type(f"churn {self._load} disk=0 peer={HOST}\n".encode())
        self.here.read_until(b"churning")

    def place(self, side: str, *options: str) -> Place:
        """A new process with the machine's options."""
        place = Place(f"{side}-{os.getpid()}", *self._options, *options)
        self._places.append(place)
        return place

    def waiting(self, side: str, way: Way = WAYS[0]) -> tuple[Place, str]:
        """A new process that waits for the guest, and where."""
        uri = f"unix:{self._directory}/{side}" if way.kind == "unix" else "tcp:127.0.0.1:0"
        place = self.place(side, "--incoming", uri, *self._tls(way))
        return place, place.listening()

    def _tls(self, way: Way) -> tuple[str, ...]:
        return ("--tls", "--keys", str(self._keys)) if way.tls else ()

    def order(self, to: str, way: Way = WAYS[0], *options: str) -> tuple[str, ...]:
        """Arguments of `tvmm` that move the guest from where it is. A host that is busy with other things too is no
        reason to give up: the pause is as short as it can be however long it may be.
        """
        limits = ("--max-downtime", "10s")
        return ("migrate", self.here.name, "--to", to, "--json", *limits, *way.options, *self._tls(way), *options)

    def drop(self, place: Place) -> None:
        """End a place, and look through what its guest said."""
        self._places.remove(place)
        rest = b""
        if place.process.poll() is not None:
            assert place.process.stdout is not None
            rest = place.process.stdout.read()
        self.complaints += [
            line for line in (place.said + rest).decode(errors="replace").splitlines() if "error:" in line
        ]
        place.close()

    def move(self, way: Way | None = None) -> None:
        """To a new process; the old one ends with status 4."""
        way = WAYS[self.moves % len(WAYS)] if way is None else way
        there, uri = self.waiting("ba"[self.moves % 2], way)
        status, told, said = call(*self.order(uri, way))
        assert status == 0, f"move {self.moves + 1}, {way}: {said}"
        self.note(json.loads(told.splitlines()[-1]))
        left, self.here = self.here, there
        ended = left.process.wait(30)
        assert ended == 4, f"move {self.moves}, {way}: the source ended with {ended}"
        self.drop(left)
        self.seen.append(there.vitals())

    def note(self, last: dict[str, Any]) -> None:
        """What `tvmm migrate --json` said last."""
        assert last["outcome"] == "moved", last
        self.moves += 1
        self.figures.total_ms.append(last["x-times-ms"]["total"])
        self.figures.downtime_ms.append(last["x-times-ms"]["downtime"])

    def finish(self) -> Summary:
        """End the load, which checks all of its pages and blocks, and the place."""
        self.here.type(b"q")
        self.here.read_until(PROMPT)
        said = summary(self.here.said.decode(errors="replace"))
        self.drop(self.here)
        return said
