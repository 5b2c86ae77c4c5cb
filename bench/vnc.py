"""The VNC server beside QEMU's: the same guest animation, the same viewer, in turns.

    python -m bench.vnc [--runs N] [--seconds S] [--case zrle|tight|tight-jpeg]... [--only tvmm|qemu]

1280x800, text that scrolls and a moving region like a video. One local viewer over TCP asks for the next update as soon
as it has one. Printed for each: updates a second, processor seconds of the monitor for each update without its vCPU's
thread, bytes for each update. And the time from a key press in the viewer to the change of the picture there, the guest
echoing it at once.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import NamedTuple

from bench.common import Figures, have_qemu, tvmm_command
from bench.peers import Line, Qmp, free_port
from tvmm.kernel_files import builtin_guest_path

WIDTH, HEIGHT = 1280, 800
RAW, TIGHT, ZRLE = 0, 7, 16
DESKTOP_SIZE, LAST_RECT, EXTENDED_KEY = -223, -224, -258
QUALITY_6, COMPRESS_2 = -26, -254
CASES = {
    "zrle": (ZRLE, (ZRLE, COMPRESS_2)),
    "tight": (TIGHT, (TIGHT, COMPRESS_2)),
    "tight-jpeg": (TIGHT, (TIGHT, COMPRESS_2, QUALITY_6)),
}
PRESSES = 60
XK_A, XT_A = 0x61, 0x1E
FLASH = (64, 64, 64, 64)


class Viewer:
    """Reads updates without looking at the pixels."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(20)
        self.buffer, self.at, self.bytes = bytearray(), 0, 0
        self.take(12)
        self.socket.sendall(b"RFB 003.008\n")
        kinds = self.take(self.take(1)[0])
        assert 1 in kinds, "the server wants a password"
        self.socket.sendall(b"\1")
        assert self.take(4) == bytes(4)
        self.socket.sendall(b"\1")
        self.width, self.height = struct.unpack(">HH", self.take(4))
        self.take(16)
        self.take(struct.unpack(">I", self.take(4))[0])

    def take(self, count: int) -> bytes:
        """The next bytes."""
        while len(self.buffer) - self.at < count:
            if self.at:
                del self.buffer[: self.at]
                self.at = 0
            more = self.socket.recv(1 << 20)
            if not more:
                raise SystemExit("the server has closed the connection")
            self.bytes += len(more)
            self.buffer += more
        data = bytes(self.buffer[self.at : self.at + count])
        self.at += count
        return data

    def skip(self, count: int) -> None:
        """The same, for nothing."""
        while count:
            piece = min(count, 1 << 20)
            self.take(piece)
            count -= piece

    def set_encodings(self, numbers: Sequence[int]) -> None:
        """And what every viewer has."""
        numbers = [*numbers, DESKTOP_SIZE, LAST_RECT, EXTENDED_KEY]
        self.socket.sendall(struct.pack(f">BxH{len(numbers)}i", 2, len(numbers), *numbers))

    def request(self, rect: tuple[int, int, int, int] | None = None, *, incremental: bool = True) -> None:
        """Ask for an update."""
        self.socket.sendall(struct.pack(">BBHHHH", 3, incremental, *(rect or (0, 0, self.width, self.height))))

    def update(self) -> int:
        """One whole update: how many pixels were in it."""
        while (kind := self.take(1)[0]) != 0:
            assert kind == 2, f"message {kind}"  # bell
        _, count = struct.unpack(">BH", self.take(3))
        pixels = 0
        for _ in range(count):
            _, _, width, height, encoding = struct.unpack(">HHHHi", self.take(12))
            if encoding == LAST_RECT:
                break
            if encoding == DESKTOP_SIZE:
                self.width, self.height = width, height
            elif encoding == RAW:
                self.skip(4 * width * height)
            elif encoding == ZRLE:
                self.skip(struct.unpack(">I", self.take(4))[0])
            elif encoding == TIGHT:
                self._tight(width, height)
            elif encoding == 1:
                self.skip(4)
            else:
                assert encoding == EXTENDED_KEY, f"encoding {encoding}"
            pixels += width * height if encoding >= 0 else 0
        return pixels

    def _tight(self, width: int, height: int) -> None:
        control = self.take(1)[0] >> 4
        if control == 8:
            self.skip(3)
        elif control == 9:
            self.skip(self._compact())
        else:
            bits = 24
            if control & 4:
                kind = self.take(1)[0]
                if kind == 1:
                    colours = self.take(1)[0] + 1
                    self.skip(3 * colours)
                    bits = 1 if colours == 2 else 8
            size = (width * bits + 7) // 8 * height
            self.skip(size if size < 12 else self._compact())

    def _compact(self) -> int:
        value = 0
        for shift in (0, 7, 14):
            byte = self.take(1)[0]
            value |= (byte if shift == 14 else byte & 0x7F) << shift
            if not byte & 0x80:
                break
        return value

    def key(self, down: bool) -> None:
        """The A key."""
        self.socket.sendall(struct.pack(">BBHII", 255, 0, down, XK_A, XT_A))


class Monitor:
    """One of the two with the guest at its prompt."""

    def __init__(self, name: str) -> None:
        self.name = name

    @contextmanager
    def running(self, folder: Path) -> Iterator[tuple[Line, int]]:
        """Its serial line, and the port for viewers."""
        port = free_port()
        serial, self._qmp_path = folder / "serial", folder / "qmp"
        if self.name == "tvmm":
            command = [*tvmm_command("", serial=f"unix={serial}"), "--vnc", f"127.0.0.1:{port}"]
            command += ["--control", str(self._qmp_path)]
        else:
            command = [
                *("qemu-system-x86_64", "-M", "pc,accel=kvm", "-cpu", "qemu64", "-bios", "qboot.rom", "-m", "256"),
                *("-nodefaults", "-no-user-config", "-device", "bochs-display", "-vnc", f"127.0.0.1:{port - 5900}"),
                *("-serial", f"unix:{serial},server=on,wait=off", "-qmp", f"unix:{self._qmp_path},server=on,wait=off"),
                *("-kernel", builtin_guest_path(), "-append", "quiet"),
            ]
        with ExitStack() as stack:
            self.process = stack.enter_context(Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL))
            stack.callback(self.process.kill)
            line = Line(serial)
            stack.callback(line.socket.close)
            line.prompt()
            line.send(f"screen mode {WIDTH}x{HEIGHT}x32\n")
            line.expect("screen mode: .*stride")
            line.expect("tvmm> ")
            yield line, port

    def cpu_s(self) -> float:
        """Of the process without its vCPU."""
        if not hasattr(self, "_vcpu"):
            self._vcpu = Qmp(self._qmp_path).ask("query-cpus-fast")[0]["thread-id"]
        ticks = [
            sum(map(int, Path(f"/proc/{self.process.pid}/{part}stat").read_text().rpartition(")")[2].split()[11:13]))
            for part in ("", f"task/{self._vcpu}/")
        ]
        return (ticks[0] - ticks[1]) / os.sysconf("SC_CLK_TCK")


class Result(NamedTuple):
    """One run."""

    updates_s: float
    cpu_ms: float
    kib: float


def animation(name: str, case: str, seconds: float) -> Result:
    """The viewer has updates in a row for so long."""
    _, numbers = CASES[case]
    with tempfile.TemporaryDirectory(prefix="tvmm-bench-") as scratch:
        monitor = Monitor(name)
        with monitor.running(Path(scratch)) as (line, port):
            viewer = Viewer(port)
            viewer.set_encodings(numbers)
            viewer.request(incremental=False)
            viewer.update()
            viewer.request(incremental=False)
            viewer.update()
            line.send(f"screen animate {seconds + 3:.0f} both fps=60\n")
            line.expect("animating")
            warm = time.monotonic() + 1
            count, started, cpu = 0, 0.0, 0.0
            while True:
                viewer.request()
                viewer.update()
                now = time.monotonic()
                if not started and now > warm:
                    started, count, cpu, viewer.bytes = now, 0, monitor.cpu_s(), 0
                count += 1
                if started and now - started > seconds:
                    break
            used = monitor.cpu_s() - cpu
            return Result(count / (now - started), used / count * 1e3, viewer.bytes / count / 1024)


def latency_ms(name: str) -> list[float]:
    """Times from a key press to its effect in the viewer."""
    with tempfile.TemporaryDirectory(prefix="tvmm-bench-") as scratch:
        monitor = Monitor(name)
        with monitor.running(Path(scratch)) as (line, port):
            viewer = Viewer(port)
            viewer.set_encodings([RAW])
            viewer.request(incremental=False)
            viewer.update()
            line.send("screen flash\n")
            line.expect("Ctrl-C here to end")
            viewer.request(incremental=False)
            viewer.update()
            times = []
            for _ in range(PRESSES):
                viewer.request(FLASH)
                started = time.monotonic()
                viewer.key(True)
                while not viewer.update():
                    viewer.request(FLASH)
                times.append((time.monotonic() - started) * 1e3)
                viewer.key(False)
                time.sleep(0.11)
            return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.vnc", description="the VNC server beside QEMU's")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--case", choices=(*CASES, "key"), action="append", help="may be repeated (default: all)")
    parser.add_argument("--only", choices=("tvmm", "qemu"))
    options = parser.parse_args()
    names = [options.only] if options.only else ["tvmm", *["qemu"] * have_qemu()]
    print(f"load average {os.getloadavg()[0]:.1f}; what else runs here shows in all figures")
    goals = {"updates_s": "at least 30, and 1.0", "cpu_ms": "at most 1.2", "kib": "at most 1.1"}
    for case in options.case or (*CASES, "key"):
        if case == "key":
            key_case(names, options.runs)
            continue
        rows: dict[str, list[Result]] = {name: [] for name in names}
        for _ in range(options.runs):
            for name in names:
                rows[name].append(animation(name, case, options.seconds))
        print(case)
        for field, what in (("updates_s", "updates/s"), ("cpu_ms", "CPU ms an update"), ("kib", "KiB an update")):
            medians = []
            for name in names:
                figures = Figures(tuple(getattr(result, field) for result in rows[name]))
                medians.append(figures.median)
                print(f"  {what:18}{name:5}{figures}", flush=True)
            if len(medians) > 1 and medians[1]:
                print(f"  {'':18}ratio {medians[0] / medians[1]:.2f}  (goal: {goals[field]})")


def key_case(names: Sequence[str], runs: int) -> None:
    """Print the times of key presses."""
    print(f"key press to picture, {PRESSES} in each of {runs} runs [ms]")
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            times[name] += latency_ms(name)
    for name, values in times.items():
        values.sort()
        print(f"  {name:5} median {statistics.median(values):.2f}, 95% {values[int(len(values) * 0.95)]:.2f}")
    if len(times) > 1:
        medians = [statistics.median(values) for values in times.values()]
        print(f"  ratio of medians {medians[0] / medians[1]:.2f}  (goals: below 20 ms, at most 1.0)")


if __name__ == "__main__":
    main()
