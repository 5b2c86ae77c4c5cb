"""Streams between guest and host: tvmm's vsock beside QEMU's virtio-console, with the built-in guest, in turns.

    python -m bench.vsock [--runs N] [--mib N] [--trips N]

QEMU has no vsock without the kernel's vhost-vsock, so its stream is a port of a virtio-console that leads to a unix
socket; what reads on the host is the same program for both. Round trips are tvmm's alone: a program in C on the host
that gives back what it reads. CPU seconds are those of the monitor's process, its start and end included.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import statistics
import subprocess
import sys
import threading
from pathlib import Path

from bench.common import Figures, children_cpu_s, free_folder, have_qemu, in_turns, qemu_command, report, tvmm_command

ECHO = r"""
#include <sys/socket.h>
#include <sys/un.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **words)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    static char data[65536];
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(address.sun_path, words[count - 1], sizeof address.sun_path - 1);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16))
        return 1;
    for (;;) {
        int client = accept(listener, 0, 0);
        long length;
        while ((length = read(client, data, sizeof data)) > 0)
            if (write(client, data, length) != length)
                break;
        close(client);
    }
}
"""


class Sink:
    """Reads what comes at a path, and counts."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(16)
        self.bytes = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        buffer = bytearray(1 << 20)
        while True:
            client, _ = self._listener.accept()
            with client:
                while count := client.recv_into(buffer):
                    self.bytes += count


def guest_line(command: list[str], pattern: str) -> re.Match[str]:
    """What the guest printed before it powered off."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300)
    found = re.search(pattern, done.stdout)
    if not found:
        raise SystemExit(f"{command[0]} printed:\n{done.stdout}\n{done.stderr}")
    return found


def rate(match: re.Match[str]) -> float:
    """MiB/s of bytes in microseconds."""
    return int(match[1]) / (1 << 20) / (int(match[2]) / 1e6)


class Streams:
    """One guest for each measurement: it sends so many bytes, waits until they are taken, and powers off."""

    def __init__(self, folder: Path, mib: int) -> None:
        self._folder, self._mib = folder, mib
        self.cpu: dict[str, list[float]] = {"tvmm": [], "QEMU": []}
        self._vsock_sink = Sink(str(folder / "v_9"))
        self._console_sink = Sink(str(folder / "console"))

    def tvmm(self) -> float:
        """By vsock, MiB/s."""
        append = f"run=vsock,send,9,{self._mib}M then=poweroff quiet"
        command = [*tvmm_command(append), "--vsock", str(self._folder / "v")]
        return self._measure("tvmm", command, r"vsock send 9: (\d+) bytes in (\d+) us")

    def qemu(self) -> float:
        """By a port of a virtio-console, MiB/s."""
        append = f"run=vcon,pump,1,{self._mib}M then=poweroff quiet"
        command = [
            *qemu_command(append),
            *("-global", "virtio-mmio.force-legacy=false", "-chardev", f"socket,id=c,path={self._folder / 'console'}"),
            *("-device", "virtio-serial-device", "-device", "virtserialport,chardev=c,name=bench,nr=1"),
        ]
        return self._measure("QEMU", command, r"vcon pump 1: (\d+) bytes in (\d+) us")

    def _measure(self, name: str, command: list[str], pattern: str) -> float:
        before = children_cpu_s()
        value = rate(guest_line(command, pattern))
        self.cpu[name].append(children_cpu_s() - before)
        return value


def round_trips(folder: Path, trips: int, runs: int, words: str) -> None:
    """tvmm's, to a program in C."""
    compiler = shutil.which("gcc")
    if compiler is None:
        print("no gcc for the program that answers: round trips are left out", file=sys.stderr)
        return
    program = folder / "echo"
    subprocess.run([compiler, "-O2", "-x", "c", "-", "-o", str(program)], input=ECHO.encode(), check=True)
    path = folder / "v_7"
    echo = subprocess.Popen([str(program), str(path)])
    try:
        found = []
        append = f"run=vsock,ping,7,{trips},1{words} then=poweroff quiet"
        for _ in range(runs):
            path_there = rf"{trips} round trips of 1 bytes, ns: min (\d+), median (\d+), p99 (\d+)"
            found.append(guest_line([*tvmm_command(append), "--vsock", str(folder / "v")], path_there))
        for number, name in ((1, "minimum"), (2, "median"), (3, "99th percentile")):
            values = Figures(tuple(int(match[number]) / 1e3 for match in found))
            print(f"  {name:15} {values}")
    finally:
        echo.kill()
        echo.wait()
        path.unlink(missing_ok=True)


def main() -> None:
    """Everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--mib", type=int, default=512, help="bytes of a stream")
    parser.add_argument("--trips", type=int, default=20000)
    options = parser.parse_args()
    folder = free_folder("vsock")
    try:
        streams = Streams(folder, options.mib)
        if have_qemu():
            ours, theirs = in_turns(options.runs, streams.tvmm, streams.qemu)
            report("stream guest to host", "MiB/s", ours, theirs, "at least 1.00")
        else:
            (ours,) = in_turns(options.runs, streams.tvmm)
            report("stream guest to host", "MiB/s", ours, None, "at least 1.00 of QEMU's virtio-console")
        for name, values in streams.cpu.items():
            if values:
                print(f"  {name} CPU seconds, start and end included: {statistics.median(values):.2f}")
        for words, how in (("", "the guest polls"), (",irq", "the guest sleeps")):
            print(f"round trip of one byte, {how} [us]  (goal: a median below 100)")
            round_trips(folder, options.trips, options.runs, words)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
