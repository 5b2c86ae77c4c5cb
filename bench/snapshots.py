"""A guest of 1 GiB into a file and out of it, beside QEMU's `migrate` to `exec:cat`, in turns, on the same disk.

    python -m bench.snapshots [--runs 5] [--folder .]

A plain writer and reader with O_DIRECT of as much data say what the disk gives. QEMU's files are flushed, as tvmm's
are; what is restored is not in the page cache, but for the last row. `first instruction` is from the call of `restored`
to the guest's running, within a process that is there; the others have a new process each, up to an answer of the
guest's shell.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import trio

from bench.common import Figures, have_qemu, qemu_command, tvmm_command
from bench.migrate import touch
from bench.peers import MEMORY, Line, Qmp
from tvmm.wiring.restoring import restored

DATA_MIB = 900
THREADS = 4
PIECE = 1 << 20


def direct_mib_s(path: Path, *, write: bool) -> float:
    """What `THREADS` threads with O_DIRECT move in a second."""
    flags = (os.O_CREAT | os.O_WRONLY if write else os.O_RDONLY) | os.O_DIRECT
    fd = os.open(path, flags)
    buffers = [mmap.mmap(-1, PIECE) for _ in range(THREADS)]
    for buffer in buffers:
        buffer[:] = os.urandom(PIECE)

    def work(number: int) -> None:
        for piece in range(number, DATA_MIB, THREADS):
            if write:
                os.pwrite(fd, buffers[number], piece * PIECE)
            else:
                os.preadv(fd, [buffers[number]], piece * PIECE)

    begun = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    os.fsync(fd)
    seconds = time.perf_counter() - begun
    os.close(fd)
    return DATA_MIB / seconds


def cached_mib_s(path: Path) -> float:
    """What one reader of a file that is not in the page cache gets through it."""
    forget(path)
    begun = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(PIECE):
            pass
    return path.stat().st_blocks / 2048 / (time.perf_counter() - begun)


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def start(command: list[str], serial: Path) -> tuple[subprocess.Popen[bytes], Line]:
    """A monitor, and its guest's line."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return process, Line(serial)


def save_tvmm(folder: Path) -> float:
    """Seconds."""
    name = f"bench-{os.getpid()}"
    process, line = start([*tvmm_command("", memory=MEMORY, serial=f"unix={folder}/s"), "--name", name], folder / "s")
    line.prompt()
    touch(line)
    program = tvmm_command("")[0]
    words = [program, "save", name, f"{folder}/tvmm.snap", "--stop", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    process.wait(30)
    line.socket.close()
    return float(json.loads(done.stdout.splitlines()[-1])["total-time"]) / 1000


def restore_tvmm(folder: Path, *options: str) -> float:
    """Seconds from the process's start to the guest's answer."""
    program = tvmm_command("")[0]
    words = [program, "restore", f"{folder}/tvmm.snap", "--serial", f"unix={folder}/r", *options]
    begun = time.perf_counter()
    process, line = start(words, folder / "r")
    line.prompt()
    seconds = time.perf_counter() - begun
    process.terminate()
    process.wait(30)
    line.socket.close()
    return seconds


def first_instruction(folder: Path) -> tuple[float, float]:
    """Seconds to the guest's running, and until all of the file was read."""

    async def main() -> tuple[float, float]:
        begun = time.perf_counter()
        async with restored(folder / "tvmm.snap", options={"serial": "none"}) as vm:
            loaded = trio.Event()
            vm.listeners.append(lambda name, data: loaded.set() if name == "X_RESTORE" else None)
            await vm.resume()
            first = time.perf_counter() - begun
            await loaded.wait()
            return first, time.perf_counter() - begun

    return trio.run(main)


def save_qemu(folder: Path) -> float:
    """Seconds, with the file flushed."""
    words = qemu_command("", memory=MEMORY, serial=f"unix:{folder}/q,server=on,wait=off")
    process, line = start([*words, "-qmp", f"unix:{folder}/qmp,server=on,wait=off"], folder / "q")
    qmp = Qmp(folder / "qmp")
    line.prompt()
    touch(line)
    qmp.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 50})
    begun = time.perf_counter()
    qmp.ask("stop")
    qmp.ask("migrate", uri=f"exec:cat > {folder}/qemu.snap")
    while qmp.ask("query-migrate").get("status") != "completed":
        time.sleep(0.005)
    fd = os.open(folder / "qemu.snap", os.O_RDONLY)
    os.fsync(fd)
    seconds = time.perf_counter() - begun
    os.close(fd)
    process.terminate()
    process.wait(30)
    line.socket.close()
    qmp.file.close()
    return seconds


def restore_qemu(folder: Path) -> float:
    """Seconds from the process's start to the guest's answer."""
    words = qemu_command("", memory=MEMORY, serial=f"unix:{folder}/q2,server=on,wait=off")
    words += ["-qmp", f"unix:{folder}/qmp2,server=on,wait=off", "-incoming", f"exec:cat {folder}/qemu.snap"]
    begun = time.perf_counter()
    process, line = start(words, folder / "q2")
    qmp = Qmp(folder / "qmp2")
    while qmp.ask("query-status")["status"] not in ("running", "paused"):
        time.sleep(0.002)
    qmp.ask("cont")
    line.prompt()
    seconds = time.perf_counter() - begun
    process.terminate()
    process.wait(30)
    line.socket.close()
    qmp.file.close()
    return seconds


def one_run(folder: Path, rows: dict[str, list[float]]) -> None:
    """Everything once."""

    def add(row: str, value: float) -> None:
        rows.setdefault(row, []).append(value)

    ours, theirs = folder / "tvmm.snap", folder / "qemu.snap"
    add("disk, writing [MiB/s]", direct_mib_s(folder / "plain", write=True))
    add("tvmm save [s]", save_tvmm(folder))
    add("tvmm save, written to the disk [MiB/s]", ours.stat().st_blocks / 2048 / rows["tvmm save [s]"][-1])
    add("disk, reading [MiB/s]", direct_mib_s(folder / "plain", write=False))
    (folder / "plain").unlink()
    add("file, reading [MiB/s]", cached_mib_s(ours))
    forget(ours)
    first, loaded = first_instruction(folder)
    add("tvmm, first instruction [ms]", first * 1000)
    add("tvmm, all read and checked [MiB/s]", ours.stat().st_blocks / 2048 / loaded)
    forget(ours)
    add("tvmm restore, to an answer [s]", restore_tvmm(folder))
    forget(ours)
    add("tvmm restore --eager, to an answer [s]", restore_tvmm(folder, "--eager"))
    if have_qemu():
        add("QEMU migrate to a file [s]", save_qemu(folder))
        forget(theirs)
        add("QEMU restore, to an answer [s]", restore_qemu(folder))
    add("tvmm restore, cached, to an answer [s]", restore_tvmm(folder))


def main() -> None:
    """All rounds, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="how many (default 5)")
    parser.add_argument("--folder", default=".", help="on the disk to be measured (default .)")
    chosen = parser.parse_args()
    rows: dict[str, list[float]] = {}
    for _ in range(chosen.runs):
        with tempfile.TemporaryDirectory(prefix="tvmm-bench-", dir=chosen.folder) as folder:
            one_run(Path(folder), rows)
    for row, values in rows.items():
        print(f"{row:42} {Figures(tuple(values))}")


if __name__ == "__main__":
    main()
