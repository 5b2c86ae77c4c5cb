"""A program's way to a port of a guest through the machine's socket: plain system calls, for a thread or a verb."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tvmm.chardev.vsock_line import LINE_LIMIT, MAX_PORT, connect_line, parse_answer
from tvmm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_port", "dial"]

CONNECT_SECONDS = 5.0
"""How long the machine may take to accept."""
ANSWER_SECONDS = 10.0
"""And its guest to answer: a paused one does not."""


def check_port(port: int) -> int:
    """`port` if there is such a one. Raises `ConfigError`."""
    if not 0 <= port <= MAX_PORT:
        raise ConfigError(f"vsock port {port} is out of range", f"ports go from 0 to {MAX_PORT}")
    return port


def dial(path: str, port: int, *, clock: Callable[[], float] = time.monotonic) -> socket.socket:
    """A connection to the guest's `port` by the machine's socket `path`, blocking and without a timeout.

    Raises `HostError` if nobody listens at `path`, the guest refuses or does not answer; `ConfigError` for no port.
    """
    check_port(port)
    with ExitStack() as stack:
        connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(path)
        except OSError as error:
            raise HostError(
                f"cannot reach the vsock socket {path}: {error.strerror or error}", "is the machine running?"
            ) from None
        _await_answer(connection, port, clock)
        connection.settimeout(None)
        stack.pop_all()
        return connection


def _await_answer(connection: socket.socket, port: int, clock: Callable[[], float]) -> None:
    """Say which port is wanted and read the answer, and not a byte more: what follows is the stream's."""
    deadline = clock() + ANSWER_SECONDS
    answer = b""
    try:
        connection.sendall(connect_line(port))
        while not answer.endswith(b"\n") and len(answer) < LINE_LIMIT:
            connection.settimeout(max(deadline - clock(), 0.001))
            byte = connection.recv(1)
            if not byte:
                break
            answer += byte
    except TimeoutError:
        raise HostError(
            f"the guest does not answer at vsock port {port}", "it is paused, or its driver hangs"
        ) from None
    except OSError:
        answer = b""
    if not answer:
        raise HostError(
            f"the guest refuses vsock port {port}", "nobody listens there, or the guest has no vsock driver"
        )
    if parse_answer(answer) is None:
        raise HostError(f"the machine's vsock socket answers {answer[:LINE_LIMIT]!r}, which is no 'OK PORT'")
