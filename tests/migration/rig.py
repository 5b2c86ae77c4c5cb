"""Key directories of a small group of hosts, and both ends of a connection."""

from __future__ import annotations

import datetime
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tvmm.migration.keys import KeyDirectory

DAY = datetime.timedelta(days=1)


def now() -> datetime.datetime:
    """The time as certificates have it; OpenSSL's own clock is the system's."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


class Group:
    """A CA's host ``alpha`` with its keys, and others that got theirs from it."""

    def __init__(self, base: Path, when: datetime.datetime | None = None) -> None:
        self.base = base
        self.alpha = KeyDirectory(base / "alpha")
        self.alpha.init("alpha", ["127.0.0.1"], when or now())

    def join(self, host: str, *names: str, when: datetime.datetime | None = None) -> KeyDirectory:
        """The keys of another host, issued at `when`."""
        keys = KeyDirectory(self.base / host)
        keys.import_bundle(self.alpha.issue(host, list(names), when or now()), when or now())
        return keys


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback: the one that connected, and the one that accepted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def both(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """What `first` and `second`, run at the same time, return or raise."""
    results: list[Any] = [None, None]

    def run(index: int, call: Callable[[], Any]) -> None:
        try:
            results[index] = call()
        except Exception as error:
            results[index] = error

    thread = threading.Thread(target=run, args=(1, second))
    thread.start()
    run(0, first)
    thread.join()
    return results[0], results[1]


class PipeWaker:
    """A waker made of a pipe, as the lanes take it."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def fileno(self) -> int:
        """Readable once woken."""
        return self._read

    def wake(self) -> None:
        """From any thread."""
        os.write(self._write, b"x")

    def close(self) -> None:
        """The thread must be out."""
        os.close(self._read)
        os.close(self._write)
