"""The command line's QMP client, against the real server and against servers that misbehave."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.control.fakes import FakeMachine, serving
from tvmm.control.client import CommandError, LateError, QmpClient
from tvmm.errors import HostError, ProtocolError

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


@contextmanager
def answering(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Something that listens at `path`; `answer` deals with its one client in a thread."""

    def serve() -> None:
        client, _ = listening.accept()
        with client:
            answer(client)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


async def test_with_the_real_server(tmp_path: Path) -> None:
    """Values come back, refusals are raised, events are collected, hyphens are put in."""
    path = tmp_path / "qmp"

    def talk() -> None:
        with QmpClient(path) as client:
            assert client.execute("query-name") == {"name": "fake"}
            assert client.execute("stop") == {}
            assert client.execute("x-query-cpu-registers", cpu_index=1)["rip"] & 0xFFF == 1
            with pytest.raises(CommandError, match="no vCPU") as caught:
                client.execute("x-query-cpu-registers", cpu_index=5)
            assert caught.value.error_class == "DeviceNotFound"
            client.execute("cont")
            assert [event["event"] for event in client.events] == ["STOP", "RESUME"]
            event = client.wait_event("RESUME")
            assert event is not None
            assert event["event"] == "RESUME"
            assert not client.events
            client.execute("system_powerdown")
            assert (client.wait_event() or {})["event"] == "POWERDOWN"
            assert client.execute("quit") == {}
            shutdown = client.wait_event("SHUTDOWN")
            assert shutdown is not None
            assert shutdown["data"]["reason"] == "host-qmp-quit"

    machine = FakeMachine()
    async with serving(machine, path):
        await trio.to_thread.run_sync(talk)
        await machine.ended.wait()


async def test_patience_that_ends(tmp_path: Path) -> None:
    """Who waited in vain for an event has an error of its own, and a session that goes on."""

    def talk(path: str) -> None:
        with QmpClient(path) as client:
            with pytest.raises(LateError, match="does not answer"):
                client.wait_event("STOP", timeout=0.0)
            client.execute("stop")
            event = client.wait_event("STOP", timeout=0.0)
            assert event is not None
            assert event["event"] == "STOP"

    async with serving(FakeMachine(), tmp_path / "qmp"):
        await trio.to_thread.run_sync(talk, str(tmp_path / "qmp"))


async def test_machine_that_ends(tmp_path: Path) -> None:
    """Waiting for an event ends with None when the machine does; commands then fail with a hint."""
    path = tmp_path / "qmp"
    async with serving(FakeMachine(), path):
        client = await trio.to_thread.run_sync(QmpClient, path)
    with client:
        assert client.wait_event("SHUTDOWN") is None
        with pytest.raises(HostError, match="is gone") as caught:
            client.execute("query-name")
    assert "tvmm ps" in caught.value.hint


def test_nobody_there(tmp_path: Path) -> None:
    """A socket that is not there, or that nobody listens at, is a HostError."""
    path = tmp_path / "qmp"
    with pytest.raises(HostError, match="no machine answers"):
        QmpClient(path)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(HostError, match="no machine answers"):
        QmpClient(path)


def test_path_that_is_too_long(tmp_path: Path) -> None:
    """What the system says of an impossible path comes out as HostError."""
    with pytest.raises(HostError, match="cannot connect"):
        QmpClient(tmp_path / ("x" * 200))


@pytest.mark.parametrize(
    ("sent", "hint"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "not JSON"),
        (b"[1]\n", "not an object"),
        (b'{"a": 1}\n', "does not speak QMP"),
    ],
)
def test_peer_that_is_no_machine(tmp_path: Path, sent: bytes, hint: str) -> None:
    """Anything but a greeting is a ProtocolError."""
    path = tmp_path / "qmp"
    with answering(path, lambda peer: peer.sendall(sent)), pytest.raises(ProtocolError, match=hint):
        QmpClient(path)


@pytest.mark.parametrize("sent", [b"", GREETING, GREETING + b'{"return": '])
def test_peer_that_hangs_up(tmp_path: Path, sent: bytes) -> None:
    """A machine that goes away at any step of the session is gone."""
    path = tmp_path / "qmp"
    with answering(path, lambda peer: peer.sendall(sent)), pytest.raises(HostError, match="gone"):
        QmpClient(path)


def test_peer_that_refuses(tmp_path: Path) -> None:
    """A server that has no place for another client says so in its first line."""
    path = tmp_path / "qmp"
    refusal = b'{"error": {"class": "GenericError", "desc": "too many"}}\r\n'
    with answering(path, lambda peer: peer.sendall(refusal)), pytest.raises(CommandError, match="too many"):
        QmpClient(path)


def test_peer_that_says_nothing(tmp_path: Path) -> None:
    """A machine that does not answer in time is told apart from one that is gone."""
    path = tmp_path / "qmp"
    done = threading.Event()

    def answer(peer: socket.socket) -> None:
        done.wait(10)

    with answering(path, answer):
        with pytest.raises(HostError, match="does not answer"):
            QmpClient(path, timeout=0.05)
        done.set()


def test_answers_of_other_requests_are_skipped(tmp_path: Path) -> None:
    """An answer with another id is not taken for ours."""
    path = tmp_path / "qmp"
    answers = b'{"return": 1, "id": 77}\r\n{"return": {}, "id": 1}\r\n'
    answers += b'{"error": {}, "id": 9}\n{"return": 2, "id": 2}\n'

    def answer(peer: socket.socket) -> None:
        peer.sendall(GREETING + answers)
        while peer.recv(4096):
            pass

    with answering(path, answer), QmpClient(path) as client:
        assert client.execute("query-name") == 2
