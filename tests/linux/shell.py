"""A Linux that runs as a `tvmm` process with a shell on its serial line, which reads that as it would a script."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.linux.initramfs import READY
from tests.support.process import read_until

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BOOT_SECONDS", "COMMAND_SECONDS", "PLAIN_SHELL", "Shell", "inside", "linux_options"]

BOOT_SECONDS = 200
"""Where kernel mode is emulated a boot with all devices takes about 20 s on a free processor."""

COMMAND_SECONDS = 120
PLAIN_SHELL = f"run=busybox,stty,-echo;echo,{READY.replace(' ', ',')};exec,sh,/dev/console"
"""For the command line of an initramfs with the stock /init, which takes commas for blanks."""


def linux_options(
    folder: Path, words: str = "", *, memory: str = "64M", kernel: str = "vmlinux", initrd: Path | None = None
) -> list[str]:
    """For `tvmm run`: the Linux of a folder. `words` are more of its command line."""
    append = f"{(folder / 'cmdline.txt').read_text().strip()} {words}".strip()
    return [
        *("--memory", memory, "--kernel", f"{folder / kernel}", "--initrd", f"{initrd or folder / 'initrd.cpio'}"),
        *("--append", append),
    ]


class Shell:
    """The shell that /init of the guest is, after it has come up. `seconds`: most that one command may take."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        boot_seconds: float = BOOT_SECONDS,
        seconds: float = COMMAND_SECONDS,
        *,
        restored: bool = False,
    ) -> None:
        """`restored`: it had come up before it was saved."""
        self._process = process
        self._seconds = seconds
        self._count = 0
        self._rest = b""
        self.boot_log = ""
        if restored:
            return
        self.boot_log = self._until(b"HELLO FROM GUEST", boot_seconds).decode(errors="replace")
        self.boot_log += self._until(f"{READY}\r\n".encode(), boot_seconds).decode(errors="replace")

    def _until(self, wanted: bytes, seconds: float = 0) -> bytes:
        """The output up to `wanted`, which is taken too; what has come behind it is kept."""
        while wanted not in self._rest:
            self._rest += read_until(self._process.stdout, wanted[-1:], seconds or self._seconds)
        text, _, self._rest = self._rest.partition(wanted)
        return text

    def begin(self, command: str) -> None:
        """Type a command, without waiting for its end."""
        self._count += 1
        assert self._process.stdin is not None
        self._process.stdin.write(f"echo BEGIN-{self._count}; {command}; echo END-{self._count} $?\n".encode())

    def wait_begun(self) -> None:
        """Until the command that was typed last is under way. `finish` still has all it prints."""
        begun = f"BEGIN-{self._count}\r\n".encode()
        self._until(begun)
        self._rest = begun + self._rest

    def finish(self) -> str:
        """What the command has printed; it must end with status 0."""
        self._until(f"BEGIN-{self._count}\r\n".encode())
        text = self._until(f"END-{self._count} ".encode())
        status = self._until(b"\r\n")
        output = text.decode(errors="replace").replace("\r\n", "\n").strip("\n")
        assert status == b"0", output
        return output

    def run(self, command: str) -> str:
        """`begin` and `finish`."""
        self.begin(command)
        return self.finish()

    def read(self, path: str) -> str:
        """The first line of a file, without a process for it."""
        return self.run(f"read line < {path}; echo \"$line\"")

    def go_on_at(self, process: subprocess.Popen[bytes]) -> None:
        """The guest has moved to `process`; the one that had it ends by itself."""
        assert self._process.stdout is not None
        self._rest += self._process.stdout.read()
        self._process = process

    def power_off(self) -> None:
        """Until the process has ended well."""
        self.end("poweroff -f")

    def end(self, command: str) -> None:
        """`command` ends the machine, and the process with it, well."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        _, errors = self._process.communicate(timeout=self._seconds)
        assert self._process.returncode == 0, errors


def inside(namespace: str, *command: str) -> Sequence[str]:
    """A command in a network namespace."""
    return ["ip", "netns", "exec", namespace, *command]
