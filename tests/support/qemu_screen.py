"""QEMU with a display and the built-in guest, driven at its shell and through QMP: what tvmm's screen is compared with.

A PC with qboot in place of SeaBIOS, which takes ten seconds where KVM emulates kernel mode. qboot gives the display's
BARs no address, so the guest does.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from tvmm.kernel_files import builtin_guest_path

__all__ = ["QemuScreen", "have_qemu", "qemu_screen_command"]

QEMU = "qemu-system-x86_64"
PROMPT = b"tvmm> "


def have_qemu() -> bool:
    """Whether it is there, and KVM for it."""
    return shutil.which(QEMU) is not None and os.access("/dev/kvm", os.R_OK | os.W_OK)


def qemu_screen_command(append: str, *options: str, machine: str = "pc", display: str = "bochs-display") -> list[str]:
    """The built-in guest with a display and no window; `options` go in front of the serial line's."""
    return [
        QEMU,
        *("-M", f"{machine},accel=kvm", "-cpu", "qemu64", "-bios", "qboot.rom", "-m", "256"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-device", display, "-no-reboot"),
        *("-device", "isa-debug-exit,iobase=0x501,iosize=2", *options, "-serial", "stdio"),
        *("-kernel", builtin_guest_path(), "-append", append),
    ]


class QemuScreen:
    """A guest at its prompt, from `with` on; `folder` is for a socket and pictures."""

    def __init__(
        self, folder: Path, *options: str, append: str = "", machine: str = "pc", display: str = "bochs-display"
    ) -> None:
        self._folder = folder
        self._qmp_path = folder / "qmp"
        qmp = ("-qmp", f"unix:{self._qmp_path},server=on,wait=off")
        self._command = qemu_screen_command(f"quiet {append}", *qmp, *options, machine=machine, display=display)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self.wait(PROMPT)
            self._socket.connect(str(self._qmp_path))
            self._file = self._socket.makefile("r")
            self._file.readline()
            self.qmp("qmp_capabilities")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._socket.close()

    def wait(self, end: bytes, seconds: float = 30) -> str:
        """What the guest printed up to and with `end`."""
        assert self._process.stdout is not None
        limit = time.monotonic() + seconds
        while end not in self._buffer:
            if not select.select([self._process.stdout], [], [], max(limit - time.monotonic(), 0))[0]:
                raise AssertionError(f"no {end!r} in {self._buffer!r}")
            data = os.read(self._process.stdout.fileno(), 65536)
            assert data, f"QEMU ended after {self._buffer!r}"
            self._buffer += data
        before, _, self._buffer = self._buffer.partition(end)
        return (before + end).decode(errors="replace")

    def order(self, line: str) -> None:
        """Begin a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())

    def ask(self, line: str) -> str:
        """What the guest prints for a command."""
        self.order(line + "\n")
        return self.wait(PROMPT)

    def qmp(self, name: str, **arguments: object) -> Any:
        """One command's answer; events are passed over."""
        self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode())
        while True:
            answer = json.loads(self._file.readline())
            if "return" in answer or "error" in answer:
                assert "return" in answer, answer
                return answer["return"]

    def pixels(self, every: int = 1) -> list[list[int]]:
        """What is on the screen, as rows of 0xRRGGBB; `every` so manyth row."""
        path = self._folder / "screen.ppm"
        self.qmp("screendump", filename=str(path))
        kind, size, most, data = path.read_bytes().split(b"\n", 3)
        assert (kind, most) == (b"P6", b"255")
        width, height = map(int, size.split())
        return [
            [int.from_bytes(data[at : at + 3], "big") for at in range(y * width * 3, (y + 1) * width * 3, 3)]
            for y in range(0, height, every)
        ]

    def send(self, *events: tuple[str, dict[str, object]]) -> None:
        """Input events, as QMP's input-send-event has them."""
        self.qmp("input-send-event", events=[{"type": kind, "data": data} for kind, data in events])
