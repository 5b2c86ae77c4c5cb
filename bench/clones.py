"""Clones of one snapshot: how soon all of them answer, and what memory they take together.

    python -m bench.clones [COUNT]

A guest of 256 MiB that has written 64 MiB and waits at its prompt is saved; then COUNT (50) machines are made of the
file, by one command and in one process through the library. Memory is told in three ways, because each misses
something: Rss counts what is shared once for each process, Pss divides it among them and leaves the kernel's part
out, and what the host has less available has all of it, but also whatever else goes on there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import trio

from bench.common import free_folder
from tvmm import Machine, MachineConfig
from tvmm.wiring.restoring import restored

COUNT = 50
GUEST_MIB = 256
GOAL_S, GOAL_MIB = 10, 3 * GUEST_MIB
SETTLE_S = 2


class Memory(NamedTuple):
    """Of processes together, in MiB."""

    rss: float
    pss: float
    private: float
    available: float
    """What the host has less of."""


def available_mib() -> float:
    """As the kernel estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("the host does not tell how much memory is available")


def memory_of(pids: list[int], available_before: float) -> Memory:
    """Of these processes."""
    sums = {"Rss": 0.0, "Pss": 0.0, "Private_Dirty": 0.0, "Private_Clean": 0.0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in sums:
                sums[name] += int(rest.split()[0]) / 1024
    private = sums["Private_Dirty"] + sums["Private_Clean"]
    return Memory(sums["Rss"], sums["Pss"], private, available_before - available_mib())


async def make_snapshot(path: Path) -> None:
    """A guest at its prompt, with a quarter of its memory written."""
    async with Machine(MachineConfig.parse(memory=f"{GUEST_MIB}M", name="clone")) as vm:
        await vm.resume()
        await vm.wait_serial("tvmm> ")
        await vm.send_serial("dirty 0 64M 1\n")
        await vm.wait_serial("tvmm> ")
        await vm.save(str(path))


def ask_prompt(path: str) -> None:
    """Until the shell behind a console socket has answered."""
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(path)
        console.sendall(b"\n")
        text = b""
        while b"tvmm> " not in text:
            part = console.recv(4096)
            if not part:
                raise SystemExit(f"{path} is closed")
            text += part


def by_one_command(snapshot: Path, count: int) -> tuple[float, Memory]:
    """Seconds from the command to the last prompt, and the memory of all."""
    before = available_mib()
    environment = {**os.environ, "TVMM_RUNTIME_DIR": str(snapshot.parent / "run")}
    command = [sys.executable, "-m", "tvmm.cli", "restore", str(snapshot), "--clones", str(count), "--json"]
    begun = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        text, depth = "", 0
        for line in process.stdout:
            text += line.decode()
            depth += line.count(b"{") - line.count(b"}")
            if not depth:
                break
        clones = json.loads(text)["clones"]
        for clone in clones:
            ask_prompt(clone["console"])
        took = time.perf_counter() - begun
        time.sleep(SETTLE_S)
        memory = memory_of([process.pid, *{clone["pid"] for clone in clones}], before)
        process.send_signal(signal.SIGTERM)
        process.wait()
    if len(clones) != count:
        raise SystemExit(f"only {len(clones)} of {count} clones are there")
    return took, memory


async def in_this_process(snapshot: Path, count: int) -> tuple[float, Memory]:
    """The same with `restored`, whose machines are in one process."""
    before = available_mib()
    begun = time.perf_counter()
    async with AsyncExitStack() as stack:
        machines = [await stack.enter_async_context(restored(snapshot, load="demand")) for _ in range(count)]
        for machine in machines:
            await machine.resume()
        for machine in machines:
            await machine.send_serial("\n")
            await machine.wait_serial("tvmm> ")
        took = time.perf_counter() - begun
        await trio.sleep(SETTLE_S)
        return took, memory_of([os.getpid()], before)


def in_one_process(snapshot: Path, count: int) -> tuple[float, Memory]:
    """In a process that has done nothing else."""
    command = [sys.executable, "-m", "bench.clones", "--one-process", str(snapshot), str(count)]
    done = subprocess.run(command, check=True, capture_output=True)
    took, *memory = json.loads(done.stdout)
    return took, Memory(*memory)


def show(what: str, count: int, found: tuple[float, Memory]) -> None:
    """A line for each figure."""
    took, memory = found
    print(f"{count} clones of a {GUEST_MIB} MiB guest, {what}")
    print(f"  until all have answered       {took:8.2f} s    (goal for 50: {GOAL_S})")
    for name, value in (("Rss", memory.rss), ("Pss", memory.pss), ("private", memory.private),
                        ("less available on the host", memory.available)):  # fmt: skip
        print(f"  {name:28}  {value:8.0f} MiB  ({value / count:.1f} each; goal for 50: {GOAL_MIB} in all)")


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--one-process"]:
        took, memory = trio.run(in_this_process, Path(sys.argv[2]), int(sys.argv[3]))
        print(json.dumps([took, *memory]))
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    folder = free_folder("clones")
    try:
        snapshot = folder / "guest.snap"
        trio.run(make_snapshot, snapshot)
        show("a process each, by one command", count, by_one_command(snapshot, count))
        show("in one process", count, in_one_process(snapshot, count))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
