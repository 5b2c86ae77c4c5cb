"""A Linux that runs as a `tvmm` process with a shell on its serial line."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.support.process import read_until

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BOOT_SECONDS", "COMMAND_SECONDS", "Shell", "inside"]

BOOT_SECONDS = 200
"""Where kernel mode is emulated a boot with all devices takes about 20 s on a free processor."""

COMMAND_SECONDS = 120
PROMPT = b"# "


class Shell:
    """The shell of the initramfs, after it has come up. `seconds`: most that one command may take."""

    def __init__(
        self, process: subprocess.Popen[bytes], boot_seconds: float = BOOT_SECONDS, seconds: float = COMMAND_SECONDS
    ) -> None:
        self._process = process
        self._seconds = seconds
        self._count = 0
        self._rest = b""
        self.boot_log = self._until(b"HELLO FROM GUEST", boot_seconds).decode(errors="replace")
        self.boot_log += self._until(PROMPT, boot_seconds).decode(errors="replace")

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
        # The echo of the command, which the shell breaks into lines, is not to look like its beginning or end.
        self._process.stdin.write(f"echo BEGIN''-{self._count}; {command}; echo END''-{self._count} $?\n".encode())

    def wait_begun(self) -> None:
        """Until the command that was typed last is under way: its echo takes time. `finish` still has all it prints."""
        begun = f"BEGIN-{self._count}\r\n".encode()
        self._until(begun)
        self._rest = begun + self._rest

    def finish(self) -> str:
        """What the command has printed; it must end with status 0."""
        self._until(f"BEGIN-{self._count}\r\n".encode())
        text = self._until(f"END-{self._count} ".encode())
        status = self._until(PROMPT)
        output = text.decode(errors="replace").replace("\r\n", "\n").strip("\n")
        assert status.startswith(b"0\r\n"), output
        return output

    def run(self, command: str) -> str:
        """`begin` and `finish`."""
        self.begin(command)
        return self.finish()

    def go_on_at(self, process: subprocess.Popen[bytes]) -> None:
        """The guest has moved to `process`; the one that had it ends by itself."""
        assert self._process.stdout is not None
        self._rest += self._process.stdout.read()
        self._process = process

    def power_off(self) -> None:
        """Until the process has ended well."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"poweroff -f\n")
        _, errors = self._process.communicate(timeout=self._seconds)
        assert self._process.returncode == 0, errors


def inside(namespace: str, *command: str) -> Sequence[str]:
    """A command in a network namespace."""
    return ["ip", "netns", "exec", namespace, *command]
