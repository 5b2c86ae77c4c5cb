"""`tvmm run` as a process, with the built-in guest's picture on a screen, and one way or another to come in.

All of this blocks.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from PIL import Image

from tests.support.guest_picture import picture
from tests.support.process import PROMPT, call, read_until, started
from tests.vnc.viewers import Target

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["PASSWORD", "SIZE", "USER", "TvmmScreen", "tvmm_screen", "wanted_picture"]

SIZE = 640, 480
USER, PASSWORD = "someone", "sesame"
INPUTS = ("--device", "virtio-keyboard", "--device", "virtio-tablet")
CTRL_C = b"\x03"
SERVER = re.compile(rb"viewers find the screen at 127\.0\.0\.1:(\d+)\n")
CONSOLE = re.compile(rb"browsers find it at (\S+)\n")


class TvmmScreen:
    """A running guest at its prompt."""

    def __init__(self, process: subprocess.Popen[bytes], target: Target, console: str) -> None:
        self.target = target
        self.console = console
        """The address of the page for browsers."""
        self._process = process

    def expect(self, wanted: str) -> str:
        """What the guest prints, up to and including `wanted`."""
        return read_until(self._process.stdout, wanted.encode()).decode()

    def type(self, text: bytes) -> None:
        """On its serial line."""
        assert self._process.stdin
        self._process.stdin.write(text)

    @contextmanager
    def listening(self, command: str) -> Iterator[None]:
        """The guest prints what comes from keyboards, or pointers, in the block."""
        self.type(f"{command}\n".encode())
        self.expect("to end\r\n")
        try:
            yield
        finally:
            self.type(CTRL_C)
            self.expect(PROMPT.decode())


@cache
def wanted_picture() -> Image.Image:
    """What every viewer should show, RGB."""
    pixels = b"".join(colour.to_bytes(3, "big") for row in picture(*SIZE) for colour in row)
    return Image.frombytes("RGB", SIZE, pixels)


@contextmanager
def tvmm_screen(folder: Path, security: str = "none", *options: str) -> Iterator[TvmmScreen]:
    """A server that offers what `security` (as `tests.vnc.viewers` spells it) needs; `options` are of ``--vnc``."""
    inside = security.rpartition("-")[2]
    words, authority = ["127.0.0.1:0", "web=127.0.0.1:0", *options], None
    if security.startswith("x509"):
        status, _, error = call("keys", "init", "--san", "localhost", "--keys", str(folder / "keys"))
        assert status == 0, error
        authority = folder / "keys" / "ca.pem"
        words.append(f"keys={folder / 'keys'}")
    words += ["tls=on"] if "-" in security else ["tls=off", "insecure=on"] if security == "plain" else []
    if inside == "vnc":
        words.append(f"password-file={secret(folder / 'password', PASSWORD)}")
    elif inside == "plain":
        words.append(f"users-file={secret(folder / 'users', f'{USER}:{PASSWORD}')}")
    orders = f"run=screen,mode,{SIZE[0]}x{SIZE[1]};screen,picture"
    with started("run", "--vnc", ",".join(words), "--append", orders, *INPUTS) as process:
        said = b""
        while not (console := CONSOLE.search(said)):
            said += read_until(process.stderr, b"\n")
        server = SERVER.search(said)
        assert server
        read_until(process.stdout, PROMPT)
        user, password = USER if inside == "plain" else "", "" if inside == "none" else PASSWORD
        yield TvmmScreen(process, Target("localhost", int(server[1]), user, password, authority), console[1].decode())


def secret(path: Path, text: str) -> Path:
    """A file for its owner alone."""
    path.touch(0o600)
    path.write_text(text + "\n")
    return path
