"""Two processes of one monitor, a guest that moves from one to the other, and their serial lines: for bench.migrate.

tvmm is driven by its command line, QEMU by QMP; both tell what they measured in the shape of QEMU's `query-migrate`.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.common import qemu_command, tvmm_command

__all__ = ["MEMORY", "Line", "Monitor", "Qemu", "Report", "Tvmm", "free_port"]

MEMORY = "1G"
START_SECONDS = 20.0
POLL_SECONDS = 0.005
MIGRATED_AWAY = 4

Report = dict[str, Any]
"""`query-migrate`'s answer when it is over."""


def free_port() -> int:
    """A TCP port on loopback that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def connect(path: Path) -> socket.socket:
    """To a unix socket that a process which was just started will make."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        end = socket.socket(socket.AF_UNIX)
        try:
            end.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            end.close()
            if time.monotonic() > deadline:
                raise SystemExit(f"nobody listens at {path}") from None
            time.sleep(POLL_SECONDS)
        else:
            return end


class Line:
    """A serial line."""

    def __init__(self, path: Path) -> None:
        self.socket = connect(path)
        self.text = ""

    def send(self, text: str) -> None:
        """Type something."""
        self.socket.sendall(text.encode())

    def expect(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        """Read until something matches; what is behind it is left for later. Ends the program if nothing does."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                more = self.socket.recv(65536)
            except TimeoutError:
                more = b""
            if not more:
                raise SystemExit(f"the guest did not print {pattern!r} but:\n{self.text[-2000:]}")
            self.text += more.decode(errors="replace")
        self.text = self.text[found.end() :]
        return found

    def prompt(self) -> None:
        """Have the guest show its prompt, whatever it printed before."""
        self.send("\n")
        self.expect("tvmm> ")


class Monitor:
    """One of the two programs. All processes end with the block that `pair()` is used in."""

    name = ""

    @contextmanager
    def pair(self, folder: Path) -> Iterator[tuple[Line, Line]]:
        """Source, at its prompt, and a destination that waits: their serial lines."""
        with ExitStack() as stack:
            self.port = free_port()
            self.processes: list[subprocess.Popen[bytes]] = []
            stack.callback(self._end)
            lines = []
            for side in ("source", "destination"):
                path = folder / f"{side}.serial"
                command = self.command(folder, side, path)
                with (folder / f"{side}.err").open("wb") as errors:
                    process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
                    )
                self.processes.append(process)
                lines.append(Line(path))
                stack.callback(lines[-1].socket.close)
            self.connect(folder, stack)
            lines[0].prompt()
            yield lines[0], lines[1]

    def words(self, folder: Path) -> str:
        """What both sides complained of."""
        return "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.err")))

    def _end(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def command(self, folder: Path, side: str, serial: Path) -> Sequence[str]:
        """What starts one side."""
        raise NotImplementedError

    def connect(self, folder: Path, stack: ExitStack) -> None:
        """Whatever else is needed once both run."""

    def migrate(self, seconds: float) -> Report:
        """Move the guest; returns when it is over."""
        raise NotImplementedError


class Tvmm(Monitor):
    """`tvmm run` twice, and `tvmm migrate`, with the user's options for that and for the one that waits."""

    name = "tvmm"

    def __init__(self, migrate_options: Sequence[str] = (), incoming_options: Sequence[str] = ()) -> None:
        self.migrate_options = list(migrate_options)
        self.incoming_options = list(incoming_options)

    def command(self, folder: Path, side: str, serial: Path) -> Sequence[str]:
        words = tvmm_command("", memory=MEMORY, serial=f"unix={serial}")
        words += ["--name", f"bench-{os.getpid()}-{side}"]
        if side == "source":
            return words
        return [*words, "--incoming", f"tcp:127.0.0.1:{self.port}", *self.incoming_options]

    def migrate(self, seconds: float) -> Report:
        program = tvmm_command("")[0]
        words = [program, "migrate", f"bench-{os.getpid()}-source", "--to", f"127.0.0.1:{self.port}", "--json"]
        done = subprocess.run(
            [*words, *self.migrate_options], capture_output=True, text=True, timeout=seconds, check=False
        )
        if done.returncode:
            raise SystemExit(f"tvmm migrate ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        status = self.processes[0].wait(10)
        if status != MIGRATED_AWAY:
            raise SystemExit(f"the source ended with {status}, not {MIGRATED_AWAY}")
        report: Report = json.loads(done.stdout.splitlines()[-1])
        return report


class Qmp:
    """A synchronous QMP client: one command at a time, events are dropped."""

    def __init__(self, path: Path) -> None:
        self.file = connect(path).makefile("rwb")
        self.file.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: object) -> Any:
        """The answer's `return`. Ends the program on an error."""
        self.file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline() or b'{"error": "no answer"}')
            if "error" in answer:
                raise SystemExit(f"QEMU: {command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]


class Qemu(Monitor):
    """QEMU with no bandwidth limit and a small downtime limit, its best for short pauses.

    With `postcopy` it is told to go on by post-copy once it has begun its pass of that number; the first one's is 1. A
    guest that rests may be there before the second one.
    """

    name = "QEMU"

    def __init__(self, downtime_ms: int = 30, *, postcopy: int = 0) -> None:
        self.downtime_ms = downtime_ms
        self.postcopy = postcopy

    def command(self, folder: Path, side: str, serial: Path) -> Sequence[str]:
        words = qemu_command("", memory=MEMORY, serial=f"unix:{serial},server=on,wait=off")
        words += ["-qmp", f"unix:{folder / side}.qmp,server=on,wait=off"]
        return words if side == "source" else [*words, "-incoming", f"tcp:127.0.0.1:{self.port}"]

    def connect(self, folder: Path, stack: ExitStack) -> None:
        self.qmp, self.target_qmp = Qmp(folder / "source.qmp"), Qmp(folder / "destination.qmp")
        stack.callback(self.qmp.file.close)
        stack.callback(self.target_qmp.file.close)
        self.qmp.ask("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        if self.postcopy:
            for side in (self.qmp, self.target_qmp):
                side.ask("migrate-set-capabilities", capabilities=[{"capability": "postcopy-ram", "state": True}])
        self.qmp.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 50, "downtime-limit": self.downtime_ms})

    def migrate(self, seconds: float) -> Report:
        deadline = time.monotonic() + seconds
        self.qmp.ask("migrate", uri=f"tcp:127.0.0.1:{self.port}")
        goes_on = not self.postcopy
        while True:
            report: Report = self.qmp.ask("query-migrate")
            passes = report.get("ram", {}).get("dirty-sync-count", 0)
            if not goes_on and report.get("status") == "active" and passes >= self.postcopy:
                self.qmp.ask("migrate-start-postcopy")
                goes_on = True
            # The status changes before the times are filled in.
            if report.get("status") in ("failed", "cancelled") or (
                report.get("status") == "completed" and report["total-time"]
            ):
                break
            if time.monotonic() > deadline:
                if report.get("status", "").startswith("postcopy"):
                    # Nobody can take the guest back.
                    break
                self.qmp.ask("migrate_cancel")
            time.sleep(POLL_SECONDS)
        if report["status"] == "completed":
            # What is typed before the destination has loaded its state would be lost.
            while self.target_qmp.ask("query-status")["status"] != "running":
                time.sleep(POLL_SECONDS)
        else:
            print(f"QEMU: migration {report['status']}: {report}", file=sys.stderr)
        return report
