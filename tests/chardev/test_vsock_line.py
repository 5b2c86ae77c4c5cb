"""The words before a stream through the vsock socket, and the client that says them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.vsock_rig import listen_at
from tvmm.chardev.vsock_client import dial
from tvmm.chardev.vsock_line import LINE_LIMIT, MAX_PORT, connect_line, parse_answer, parse_connect
from tvmm.errors import ConfigError, HostError


@pytest.mark.parametrize("port", [0, 1, 52, MAX_PORT])
def test_what_is_written_is_read(port: int) -> None:
    """Both lines fit the limit."""
    assert parse_connect(connect_line(port)) == port
    assert parse_answer(b"OK %d\n" % port) == port
    assert len(connect_line(port)) <= LINE_LIMIT


@pytest.mark.parametrize("line", [b"connect 52\n", b"CONNECT 52\r\n", b"CONNECT  52 \n"])
def test_lines_that_others_take_too(line: bytes) -> None:
    """Case and blanks do not matter."""
    assert parse_connect(line) == 52


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"\n", b"CONNECT\n", b"CONNECT 52", b"CONNECT -1\n", b"CONNECT 4294967295\n", b"CONNECT 1 2\n"),
        *(b"CONNECT 0x10\n", b"GET / HTTP/1.1\r\n", b"CONNECT \xb2\n", b"CONNECT 99999999999\n", b"CONNECT +5\n"),
    ],
)
def test_lines_that_ask_for_nothing(line: bytes) -> None:
    """Are none."""
    assert parse_connect(line) is None
    assert parse_answer(line.replace(b"CONNECT", b"OK")) is None or line == b""


def serve(path: Path, talk: Callable[[socket.socket], None]) -> threading.Thread:
    """One client of a machine."""
    listener = listen_at(str(path))

    def run() -> None:
        with listener, listener.accept()[0] as client:
            talk(client)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_dial_leaves_the_stream_alone(tmp_path: Path) -> None:
    """What comes right behind the answer is the stream's."""

    def talk(client: socket.socket) -> None:
        assert client.recv(100) == b"CONNECT 7\n"
        client.sendall(b"OK 1073741824\nhello")

    thread = serve(tmp_path / "v", talk)
    with dial(str(tmp_path / "v"), 7) as connection:
        thread.join()
        assert connection.recv(100) == b"hello"
        assert connection.gettimeout() is None


@pytest.mark.parametrize(
    ("answer", "message"), [(b"", "refuses vsock port 7"), (b"NO\n", "no 'OK PORT'"), (b"x" * 100, "no 'OK PORT'")]
)
def test_dial_is_refused(tmp_path: Path, answer: bytes, message: str) -> None:
    """One line that says what happened."""

    def talk(client: socket.socket) -> None:
        client.recv(100)
        client.sendall(answer)

    thread = serve(tmp_path / "v", talk)
    with pytest.raises(HostError, match=message):
        dial(str(tmp_path / "v"), 7)
    thread.join()


def test_dial_gives_up(tmp_path: Path) -> None:
    """A guest that does not answer is not waited for without an end."""
    ends = threading.Event()

    def talk(client: socket.socket) -> None:
        ends.wait(10)

    thread = serve(tmp_path / "v", talk)
    times = iter([0.0, 9.9999, 20.0, 20.0])
    with pytest.raises(HostError, match="does not answer"):
        dial(str(tmp_path / "v"), 7, clock=lambda: next(times))
    ends.set()
    thread.join()


def test_dial_without_a_machine(tmp_path: Path) -> None:
    """Nobody is there, or the port is none."""
    with pytest.raises(HostError, match="cannot reach"):
        dial(str(tmp_path / "v"), 7)
    with pytest.raises(ConfigError, match="out of range"):
        dial(str(tmp_path / "v"), MAX_PORT + 1)
