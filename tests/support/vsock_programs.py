"""Programs on the host at the other ends of a guest's connections: an echo, one that counts, one that sends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PATTERN", "echo", "listening", "pattern"]

PATTERN = bytes((index ^ index >> 8) & 0xFF for index in range(65536))
"""What the built-in guest sends and expects, over and over."""


def pattern(length: int) -> bytes:
    """The beginning of a stream."""
    return (PATTERN * (length // len(PATTERN) + 1))[:length]


def echo(program: socket.socket) -> None:
    """All that comes goes back, and the end as well."""
    while data := program.recv(1 << 18):
        program.sendall(data)


@contextmanager
def listening(path: str, talk: Callable[[socket.socket], None], backlog: int = 512) -> Iterator[None]:
    """At a guest's port: a thread runs `talk` for each connection, and closes it behind."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(backlog)
    programs: list[threading.Thread] = []

    def run(program: socket.socket) -> None:
        with program:
            try:
                talk(program)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                program, _ = listener.accept()
            except OSError:
                return
            programs.append(threading.Thread(target=run, args=(program,), daemon=True))
            programs[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield
    finally:
        # Closing alone does not wake who waits in accept.
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        listener.close()
        Path(path).unlink()
        for program in programs:
            program.join(10)
