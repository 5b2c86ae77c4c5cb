"""Pages of RAM over loopback TCP: lanes between two processes, against iperf3 with as many streams, in turns.

    python -m bench.lanes [--runs N] [--mib 1024] [--lanes 1,2]

Every page of the source is random. The destination allocated its memory in advance, as `tvmm run --incoming` does while
it waits, or begins to as the pages come, or leaves it to each page. iperf3 sends one warm buffer again and again;
without it a pair of threads with sendall and recv_into stands in. Last comes a round over 4 GiB with nothing dirty.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection

from bench.common import Figures, in_turns
from tvmm.kvm.lanes import LaneGroup, LaneReceiver, LaneSender, LaneStop, set_lane_buffers
from tvmm.kvm.pages import PageBitmap, RamPages
from tvmm.kvm.serve import Waker
from tvmm.memory.ram import RamBlock

GIB = 1 << 30
IPERF_PORT = "52017"
IPERF_TRIES, IPERF_RETRY_S = 50, 0.1
PLAIN_PIECE = 1 << 20


def receive(control: Connection, size: int, lanes: int, populate: str) -> None:
    """The destination's process: a listening socket, a lane for each connection, one round."""
    block, waker = RamBlock("pc.ram", size, shared=False), Waker()
    ram = RamPages([("pc.ram", block.view)], fresh=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if populate == "before":
            ram.populate(waker)
        control.send(listener.getsockname())
        connections = [listener.accept()[0] for _ in range(lanes)]
    for connection in connections:
        set_lane_buffers(connection)
    receivers = [LaneReceiver(connection.fileno(), ram, waker) for connection in connections]
    with ThreadPoolExecutor(lanes + 1) as pool:
        if populate == "beside":
            pool.submit(ram.populate, waker)
        stops = list(pool.map(LaneReceiver.receive, receivers))
    control.send((stops == [LaneStop.ROUND_END] * lanes, sum(item.counters.normal for item in receivers)))
    ram.close()
    block.close()
    waker.close()


def lanes_gib_s(block: RamBlock, lanes: int, populate: str) -> float:
    """GiB/s of one pass over all of `block`, from the first page looked at to the last one's arrival."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=receive, args=(theirs, block.size, lanes, populate))
    process.start()
    connections = [socket.create_connection(address) for address in [ours.recv()] * lanes]
    ram, waker = RamPages([("pc.ram", block.view)]), Waker()
    bitmap = PageBitmap.of(ram)
    bitmap.fill()
    group = LaneGroup(ram, bitmap)
    for connection in connections:
        set_lane_buffers(connection)
    senders = [LaneSender(connection.fileno(), group, waker) for connection in connections]
    started = time.perf_counter()
    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(lambda sender: sender.send_round(1), senders))
    good, pages = ours.recv()
    took = time.perf_counter() - started
    process.join()
    for connection in connections:
        connection.close()
    if not good or pages != ram.total:
        raise SystemExit(f"{pages} of {ram.total} pages arrived")
    ram.close()
    waker.close()
    return block.size / GIB / took


def iperf_gib_s(streams: int) -> float:
    """GiB/s of iperf3 over loopback within a second."""
    command = ["iperf3", "-c", "127.0.0.1", "-p", IPERF_PORT, "-P", str(streams), "-t", "1", "-J"]
    with subprocess.Popen(["iperf3", "-s", "-1", "-p", IPERF_PORT], stdout=subprocess.DEVNULL) as server:
        for _ in range(IPERF_TRIES):
            # Until the server listens.
            time.sleep(IPERF_RETRY_S)
            done = subprocess.run(command, capture_output=True, check=False, timeout=60)
            if not done.returncode:
                break
        else:
            server.kill()
            raise SystemExit(f"iperf3: {done.stdout!r}")
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 8 / GIB


def plain_gib_s(block: RamBlock) -> float:
    """GiB/s of sendall and recv_into over one loopback connection, between two threads, the same bytes each time."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        piece = block.view[:PLAIN_PIECE]

        def send() -> None:
            for _ in range(GIB // PLAIN_PIECE):
                ours.sendall(piece)

        with theirs:
            buffer, left = bytearray(PLAIN_PIECE), GIB
            sender = threading.Thread(target=send)
            started = time.perf_counter()
            sender.start()
            while left:
                left -= theirs.recv_into(buffer)
            sender.join()
            piece.release()
            return 1 / (time.perf_counter() - started)


def clean_round_ms(size: int) -> float:
    """Milliseconds of a round over a bitmap for `size` bytes in which nothing is set."""
    block, waker = RamBlock("pc.ram", size, shared=False), Waker()
    ram = RamPages([("pc.ram", block.view)])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = LaneSender(ours.fileno(), LaneGroup(ram, PageBitmap.of(ram)), waker)
        started = time.perf_counter()
        sender.send_round(1)
        took = time.perf_counter() - started
    ram.close()
    block.close()
    waker.close()
    return took * 1e3


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description="pages over loopback TCP")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--lanes", default="1,2")
    options = parser.parse_args()
    block = RamBlock("pc.ram", options.mib << 20, shared=False)
    with open("/dev/urandom", "rb", buffering=0) as random:
        for start in range(0, block.size, 1 << 20):
            random.readinto(block.view[start : start + (1 << 20)])
    reference = "iperf3" if shutil.which("iperf3") else "sendall and recv_into"
    for lanes in map(int, options.lanes.split(",")):
        other = partial(iperf_gib_s, lanes) if reference == "iperf3" else partial(plain_gib_s, block)
        ways = [partial(lanes_gib_s, block, lanes, populate) for populate in ("before", "beside", "never")]
        ours, beside, never, theirs = in_turns(options.runs, *ways, other)
        print(f"{lanes} lanes, {options.mib} MiB of random pages [GiB/s]")
        print(f"  populated before {ours}\n  while they come  {beside}\n  as they come     {never}")
        print(f"  {reference:16} {theirs}")
        print(f"  ratio of medians {ours.median / theirs.median:.2f}  (goal: at least 0.80)")
    clean = Figures(tuple(clean_round_ms(4 * GIB) for _ in range(9)))
    print(f"clean round over 4 GiB [ms]\n  lanes            {clean}  (goal: below 2)")


if __name__ == "__main__":
    main()
