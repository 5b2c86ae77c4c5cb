"""Throughput of TLS lanes beside plain sockets: two processes over loopback, in turns.

    python -m bench.tls_lane [--runs N] [--size MIB] [--streams N]

Each stream is a thread on either side that sends or receives 1 MiB at a time, as lanes for RAM do. CPU seconds are
those of both processes for each GiB: where both processors are busy, these decide. Both ends encrypt on the same host
here; between two hosts each has its processors for itself.
"""

from __future__ import annotations

import argparse
import datetime
import os
import resource
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from tvmm.migration.keys import KeyDirectory
from tvmm.migration.plain_thread import prepare
from tvmm.migration.tls import destination, source

MIB = 1 << 20


class Lane(Protocol):
    """What both kinds have."""

    def send_all(self, data: memoryview) -> None:
        """Send all of it."""

    def recv_into(self, buffer: memoryview) -> int:
        """Receive what is there."""

    def close(self) -> None:
        """Close it."""


class Plain:
    """A blocking socket with the buffers of a lane."""

    def __init__(self, connection: socket.socket) -> None:
        prepare(connection)
        connection.setblocking(True)
        self.close = connection.close
        self.recv_into = connection.recv_into
        self.send_all = connection.sendall


class Result(NamedTuple):
    """One run."""

    bytes_per_s: float
    cpu_s_per_gib: float


def receive(lane: Lane, size: int) -> None:
    """Take `size` bytes, and say so."""
    buffer, left = memoryview(bytearray(MIB)), size
    while left:
        left -= lane.recv_into(buffer)
    lane.send_all(memoryview(b"x"))


def send(lane: Lane, size: int) -> None:
    """Give `size` bytes, and wait until they are taken."""
    data = memoryview(os.urandom(MIB))
    for _ in range(size // MIB):
        lane.send_all(data)
    lane.recv_into(memoryview(bytearray(1)))


def in_threads(work: Callable[[Lane, int], None], lanes: Sequence[Lane], size: int) -> None:
    """Each lane in a thread of its own."""
    threads = [threading.Thread(target=work, args=(lane, size // len(lanes))) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def cpu_s(who: int) -> float:
    """Processor time so far."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def run(keys: KeyDirectory, secure: bool, size: int, streams: int) -> Result:
    """Move `size` bytes from this process to a child."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if not child:
            try:
                accepted = [listener.accept()[0] for _ in range(streams)]
                far = destination(keys) if secure else None
                in_threads(receive, [far.lane(one, "source").stream if far else Plain(one) for one in accepted], size)
            finally:
                os._exit(0)
        connected = [socket.create_connection(listener.getsockname()) for _ in range(streams)]
    near = source(keys) if secure else None
    lanes: list[Lane] = [near.lane(one, "child", "127.0.0.1").stream if near else Plain(one) for one in connected]
    own, children, started = cpu_s(resource.RUSAGE_SELF), cpu_s(resource.RUSAGE_CHILDREN), time.monotonic()
    in_threads(send, lanes, size)
    seconds = time.monotonic() - started
    for lane in lanes:
        lane.close()
    os.waitpid(child, 0)
    used = cpu_s(resource.RUSAGE_SELF) - own + cpu_s(resource.RUSAGE_CHILDREN) - children
    return Result(size / seconds, used / (size / (1 << 30)))


def main() -> int:
    """Print the medians, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=2048, help="MiB in each run")
    parser.add_argument("--streams", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        keys = KeyDirectory(Path(base) / "keys")
        keys.init("localhost", ["127.0.0.1"], datetime.datetime.now(datetime.UTC))
        results: dict[bool, list[Result]] = {False: [], True: []}
        for _ in range(options.runs):
            for secure, found in results.items():
                found.append(run(keys, secure, options.size * MIB, options.streams))
    rates = {secure: statistics.median(one.bytes_per_s for one in found) for secure, found in results.items()}
    for secure, found in results.items():
        cpu = statistics.median(one.cpu_s_per_gib for one in found)
        best = max(one.bytes_per_s for one in found)
        name = "TLS" if secure else "plain"
        print(f"{name:6} {rates[secure] / 1e6:6.0f} MB/s (best {best / 1e6:.0f}), {cpu:.2f} CPU s/GiB")
    print(f"TLS/plain {rates[True] / rates[False]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
