"""Programs that run during a test, the windows that they have on an X server, and what these show."""

from __future__ import annotations

import os
import struct
import subprocess
import termios
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from PIL.Image import Image

__all__ = [
    "QUIET_SECONDS",
    "Screen",
    "ViewerFailed",
    "answer_prompts",
    "process",
    "run",
    "settled",
    "x_server",
    "xwd_picture",
]

RUN_SECONDS = 40.0
QUIET_SECONDS = 0.4
"""A picture that has not changed for this long is taken to be all that comes."""
PATIENCE_SECONDS = 15.0
POLL_SECONDS = 0.05


class ViewerFailed(Exception):
    """A viewer ended without a picture; the message is what it has printed."""


def run(command: Sequence[str], *, stdin: bytes = b"", **environment: str) -> bytes:
    """What a command has printed. ViewerFailed if it fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            timeout=RUN_SECONDS,
            env={**os.environ, **environment},
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise ViewerFailed(f"{command[0]} took too long: {late.stderr!r}") from None
    if done.returncode:
        raise ViewerFailed(f"{command[0]} ended with {done.returncode}: {(done.stderr + done.stdout)[-2000:].decode()}")
    return done.stdout


def answer_prompts(command: Sequence[str], name: bytes, secret: bytes, **environment: str) -> bytes:
    """Run a command that may ask on a terminal for a name, and for a password; what it has printed there.

    It throws away what was typed before it turned the echo off for the password.
    """
    ours, theirs = os.openpty()
    output = bytearray()
    try:
        with subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **environment}
        ) as program:
            os.close(theirs)
            timer = threading.Timer(RUN_SECONDS, program.kill)
            timer.start()
            # A terminal whose last program has left gives an error in place of an end.
            with suppress(OSError):
                while part := os.read(ours, 4096):
                    output += part
                    if b"Username:" in part:
                        os.write(ours, name + b"\n")
                    if b"Password:" in part:
                        while termios.tcgetattr(ours)[3] & termios.ECHO and program.poll() is None:
                            time.sleep(POLL_SECONDS)
                        os.write(ours, secret + b"\n")
            status = program.wait()
            timer.cancel()
    finally:
        os.close(ours)
    if status:
        raise ViewerFailed(f"{command[0]} ended with {status}: {output[-2000:].decode()}")
    return bytes(output)


class Screen:
    """A program's window on an X server, found by a part of its title."""

    def __init__(self, display: str, title: str, program: subprocess.Popen[bytes]) -> None:
        self._display = display
        self._title = title
        self._program = program

    def picture(self) -> Image | None:
        """What the window shows, or None as long as there is none."""
        if self._program.poll() is not None:
            assert self._program.stderr
            raise ViewerFailed(f"the viewer has ended: {self._program.stderr.read()[-2000:].decode()}")
        if (window := self._window()) is None:
            return None
        dump = subprocess.run(
            ["xwd", "-silent", "-id", window, "-display", self._display], capture_output=True, check=False
        )
        return xwd_picture(dump.stdout) if dump.returncode == 0 else None

    def press(self, key: str) -> None:
        """Press and release a key in the window; it has to be there. There is no window manager to give it focus."""
        run(["xdotool", "windowfocus", self._window() or "", "key", key], DISPLAY=self._display)

    def click(self, x: int, y: int) -> None:
        """Click at a place of the window."""
        place = ["--window", self._window() or "", str(x), str(y)]
        run(["xdotool", "mousemove", *place, "click", "1"], DISPLAY=self._display)

    def _window(self) -> str | None:
        search = ["xdotool", "search", "--onlyvisible", "--name", self._title]
        found = subprocess.run(
            search, env={**os.environ, "DISPLAY": self._display}, capture_output=True, check=False
        ).stdout.split()
        return found[-1].decode() if found else None


def xwd_picture(data: bytes) -> Image:
    """The picture in an X window dump (XWDFile.h), 24 bits deep."""
    from PIL import Image

    fields = struct.unpack(">25I", data[:100])
    header, width, height, stride, colors = fields[0], fields[4], fields[5], fields[12], fields[19]
    start = header + 12 * colors
    return Image.frombytes("RGB", (width, height), data[start : start + stride * height], "raw", "BGRX", stride)


def settled(take: Callable[[], Image | None], until: Callable[[Image], bool] | None = None) -> Image:
    """The picture once there is one that `until` likes, or that has stayed the same for `QUIET_SECONDS`.

    A picture that `until` still does not like after `PATIENCE_SECONDS` is given as it is.
    """
    deadline = time.monotonic() + (PATIENCE_SECONDS if until else RUN_SECONDS)
    last: Image | None = None
    since = 0.0
    while time.monotonic() < deadline:
        picture = take()
        if until and picture:
            if until(picture):
                return picture
            last = picture
        elif picture is None or last is None or picture != last:
            last, since = picture, time.monotonic()
        elif time.monotonic() - since >= QUIET_SECONDS:
            return last
        time.sleep(POLL_SECONDS)
    if until and last:
        return last
    raise ViewerFailed("the picture did not come to rest")


@contextmanager
def process(command: Sequence[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs during the block."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **environment}
    ) as program:
        try:
            yield program
        finally:
            program.kill()  # vncviewer takes SIGTERM for a wish that it looks at when something comes


@contextmanager
def x_server() -> Iterator[str]:
    """An X server without a screen, on a display that nobody has; the display's name."""
    reader, writer = os.pipe()
    try:
        with subprocess.Popen(
            ["Xvfb", "-displayfd", str(writer), "-screen", "0", "2600x1700x24", "-nolisten", "tcp"],
            pass_fds=[writer],
            stderr=subprocess.DEVNULL,
        ) as server:
            try:
                os.close(writer)
                writer = -1
                number = b""
                while not number.endswith(b"\n") and (part := os.read(reader, 16)):
                    number += part
                if not number:
                    raise ViewerFailed("Xvfb did not start")
                yield f":{number.decode().strip()}"
            finally:
                server.terminate()
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
