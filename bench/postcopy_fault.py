"""Faults of post-copy: how long a touch of an absent page takes, over loopback, between two processes.

    python -m bench.postcopy_fault [--runs 3] [--mib 1024] [--lanes 0,1,2] [--family tcp,unix] [--awake]

The source has random bytes in every page. With lanes they push all of it as fast as it goes while one thread of the
destination touches pages at random that are not there yet; with 0 lanes only the touches bring pages, and those around
them. `service` is from the report of the fault to the page, `touch` is what the thread waits.

A touch wakes three threads in turn. Where nothing else runs each of them may wake a processor that sleeps, and in a
virtual machine that is the host's business: with `--awake` none sleeps, and what is left is tvmm's and the kernel's.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING

from tvmm.kvm.lanes import LaneGroup, LaneReceiver, LaneSender, set_lane_buffers
from tvmm.kvm.page_server import PREFETCH_PAGES, PageServer
from tvmm.kvm.pager import Pager
from tvmm.kvm.pages import PAGE, PageBitmap, RamPages
from tvmm.kvm.serve import Waker
from tvmm.memory.ram import RamBlock
from tvmm.migration.threads import yielding

if TYPE_CHECKING:
    from tvmm.kvm.lanes import LaneStop

QUIET_TOUCHES = 3000
"""Without lanes."""


def connect(address: tuple[str, int] | str) -> socket.socket:
    """A connection of either family."""
    connection = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    connection.connect(address)
    set_lane_buffers(connection)
    return connection


def source(control: Connection, address: tuple[str, int] | str, mib: int, options: argparse.Namespace) -> None:
    """The source's process; `control` says how many lanes, for each run, and 'done' when it is over."""
    block, waker = RamBlock("pc.ram", mib << 20, shared=False), Waker()
    with open("/dev/urandom", "rb", buffering=0) as noise:
        for start in range(0, block.size, 1 << 20):
            noise.readinto(block.view[start : start + (1 << 20)])
    ram = RamPages([("pc.ram", block.view)])
    control.send("ready")
    while (lanes := control.recv()) is not None:
        bitmap = PageBitmap.of(ram)
        bitmap.fill()
        group = LaneGroup(ram, bitmap)
        server = PageServer(group, prefetch=options.prefetch)
        connections = [connect(address) for _ in range(lanes + 1)]
        senders = [LaneSender(connection.fileno(), group, waker) for connection in connections[1:]]
        threads = [threading.Thread(target=server.serve, args=(connections[0].fileno(), waker))]
        for sender in senders:
            threads.append(threading.Thread(target=lane, args=(partial(sender.send_round, 1), not options.greedy)))
        control.recv()
        for thread in threads:
            thread.start()
        control.recv()
        waker.wake()
        for thread in threads:
            thread.join()
        waker.clear()
        control.send(server.counters)
        for connection in connections:
            connection.close()
    ram.close()
    block.close()
    waker.close()


def lane(work: Callable[[], LaneStop], nice: bool) -> None:
    """One end of a lane."""

    def run() -> None:
        # Woken at the end, a lane may lack the end of its round.
        work()

    if nice:
        yielding(run)
    else:
        run()


def turn() -> None:
    """Keep a processor from sleeping, and nobody from using it."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while True:
        pass


@contextmanager
def processors_awake(awake: bool) -> Iterator[None]:
    """Within the block, if `awake`."""
    turners = [get_context("spawn").Process(target=turn, daemon=True) for _ in range((os.cpu_count() or 1) * awake)]
    for turner in turners:
        turner.start()
    try:
        yield
    finally:
        for turner in turners:
            turner.kill()
            turner.join()


def run(control: Connection, listener: socket.socket, lanes: int, options: argparse.Namespace) -> str:
    """One migration: a line of figures."""
    control.send(lanes)
    connections = [listener.accept()[0] for _ in range(lanes + 1)]
    for connection in connections:
        set_lane_buffers(connection)
    block, waker = RamBlock("pc.ram", options.mib << 20, shared=options.shared), Waker()
    block.populate()
    ram = RamPages([("pc.ram", block.view)], fresh=True)
    pager = Pager(ram, [block])
    absent = PageBitmap.of(ram)
    absent.fill()
    started = time.perf_counter()
    pager.expect(absent)
    expected_ms = (time.perf_counter() - started) * 1e3
    receivers = [LaneReceiver(connection.fileno(), ram, waker) for connection in connections[1:]]
    serving = threading.Thread(target=pager.serve, args=(connections[0].fileno(), waker))
    threads = [serving]
    for receiver in receivers:
        receiver.pager = pager
        threads.append(threading.Thread(target=lane, args=(receiver.receive, not options.greedy)))
    waits: list[float] = []
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    control.send("go")
    pages = ram.pages[0]
    dice = random.Random(1)
    while pager.remaining and (lanes or len(waits) < QUIET_TOUCHES):
        page = dice.randrange(pages)
        if pager.received.test("pc.ram", page):
            continue
        at = time.perf_counter()
        pager.touch("pc.ram", page * PAGE, 1)
        waits.append((time.perf_counter() - at) * 1e6)
        if options.pause:
            time.sleep(options.pause / 1e6)
    took = time.perf_counter() - started
    control.send("done")
    if not lanes:
        waker.wake()
    for thread in threads:
        thread.join()
    counters, service, theirs = pager.counters, pager.service_times, control.recv()
    pager.close()
    ram.close()
    block.close()
    waker.close()
    for connection in connections:
        connection.close()
    cuts = quantiles(waits, n=100)
    return (
        f"touch median {cuts[49]:4.0f} us, p90 {cuts[89]:4.0f}, p99 {cuts[98]:5.0f} us of {len(waits)}; "
        f"service median {(service.quantile_ns(0.5) or 0) / 1e3:4.0f} us; "
        f"faults {counters.faults}, urgent {counters.urgent}, "
        f"prefetched {theirs.prefetched}, taken {theirs.taken}, twice {counters.duplicates}; "
        f"expect {expected_ms:.1f} ms, all {took:.2f} s"
    )


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description="faults of post-copy")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--lanes", default="0,1,2")
    parser.add_argument("--family", default="tcp,unix")
    parser.add_argument("--prefetch", type=int, default=PREFETCH_PAGES)
    parser.add_argument("--pause", type=int, default=0, help="us between two touches")
    parser.add_argument("--greedy", action="store_true", help="lanes do not leave the processors to others")
    parser.add_argument("--shared", action="store_true", help="the destination's memory is a memfd")
    parser.add_argument("--awake", action="store_true", help="no processor sleeps meanwhile")
    options = parser.parse_args()
    with processors_awake(options.awake):
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """All families and numbers of lanes."""
    context = get_context("spawn")
    for family in options.family.split(","):
        with tempfile.TemporaryDirectory() as folder, socket.socket(
            socket.AF_UNIX if family == "unix" else socket.AF_INET
        ) as listener:
            listener.bind(str(Path(folder, "socket")) if family == "unix" else ("127.0.0.1", 0))
            listener.listen()
            ours, theirs = context.Pipe()
            process = context.Process(target=source, args=(theirs, listener.getsockname(), options.mib, options))
            process.start()
            ours.recv()
            for lanes in options.lanes.split(","):
                for _ in range(options.runs):
                    print(f"{family} {lanes} lanes: {run(ours, listener, int(lanes), options)}", flush=True)
            ours.send(None)
            process.join()


if __name__ == "__main__":
    main()
