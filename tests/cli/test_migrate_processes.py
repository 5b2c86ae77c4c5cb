"""Guests that move between two processes, and processes that are killed while they do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.process import PROMPT, call, command, read_until, started, until

pytestmark = pytest.mark.guest

MEMORY = ("--memory", "64M")


class Runner:
    """Machines by name, with their serial lines on their pipes."""

    def __init__(self, tmp_path: Path) -> None:
        self.names = {side: f"{side}-{os.getpid()}" for side in ("here", "there")}
        self.uri = f"unix:{tmp_path}/migration"

    @contextmanager
    def source(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """At its prompt."""
        with started("run", "--name", self.names["here"], *MEMORY, *options) as process:
            read_until(process.stdout, PROMPT)
            yield process

    @contextmanager
    def destination(self, *options: str, uri: str = "") -> Iterator[subprocess.Popen[bytes]]:
        """Waiting."""
        name = self.names["there"]
        with started("run", "--name", name, *MEMORY, "--incoming", uri or self.uri, *options) as process:
            until(lambda: self.status(name) == "inmigrate")
            yield process

    def status(self, name: str) -> str:
        """What `tvmm ps` says."""
        _, told, _ = call("ps", "--json")
        return next((str(row["status"]) for row in json.loads(told) if row["name"] == name), "")

    def migrate(self, *options: str, to: str = "") -> tuple[int, str, str]:
        """`tvmm migrate`; a busy host is no reason to give up."""
        return call("migrate", self.names["here"], "--to", to or self.uri, "--max-downtime", "20s", *options)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """Names that no other test run has."""
    return Runner(tmp_path)


def ask(process: subprocess.Popen[bytes], line: str) -> bytes:
    """What the guest prints for a command."""
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")
    return read_until(process.stdout, b"\n" + PROMPT)


def order(process: subprocess.Popen[bytes], line: str) -> None:
    """Begin a command."""
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")


def told_by(destination: subprocess.Popen[bytes]) -> str:
    """What it says until it waits, the address included."""
    said = read_until(destination.stderr, b"waiting for a guest at")
    return (said if said.endswith(b"\n") else said + read_until(destination.stderr, b"\n")).decode()


def test_a_guest_moves(runner: Runner) -> None:
    """The verb says so, the source ends with status 4, and the guest goes on at the other terminal."""
    with runner.source() as source, runner.destination() as destination:
        order(source, "dirty 5000 16M 60")
        read_until(source.stdout, b"\n")
        status, told, said = runner.migrate("--json")
        assert status == 0, said
        last = json.loads(told.splitlines()[-1])
        assert last["outcome"] == "moved"
        assert source.wait(30) == 4
        order(destination, "q")
        assert b" 0 errors" in read_until(destination.stdout, PROMPT)
        assert b" 0 errors" in ask(destination, "check")


def test_who_reads_that_it_waits_can_ask_it(runner: Runner) -> None:
    """Its control socket is there before it says so; a signal ends it, since there is no guest to be asked."""
    name = runner.names["there"]
    with started("run", "--name", name, *MEMORY, "--incoming", runner.uri) as destination:
        read_until(destination.stderr, b"waiting for a guest at")
        assert runner.status(name) == "inmigrate"
        destination.send_signal(signal.SIGINT)
        assert b"none to power off; ending the machine" in read_until(destination.stderr, b"ended by SIGINT")
        assert destination.wait(30) == 130


def test_the_destination_is_killed(runner: Runner) -> None:
    """In the middle of the pages: the guest goes on where it is, and the verb says why it did not move."""
    with runner.source() as source, runner.destination() as destination:
        order(source, "dirty 0 16M 1")
        read_until(source.stdout, PROMPT)
        verb = subprocess.Popen(
            [*command("migrate", runner.names["here"], "--to", runner.uri, "--bandwidth", "4M", "--json")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with verb:
            read_until(verb.stdout, b'"active"')
            destination.send_signal(signal.SIGKILL)
            assert verb.wait(30) == 2
        assert runner.status(runner.names["here"]) == "running"
        assert b" 0 errors" in ask(source, "check")


def test_the_source_is_killed(runner: Runner) -> None:
    """The destination says that no guest has come, and waits for the next one."""
    with runner.destination() as destination:
        with runner.source() as source:
            order(source, "dirty 0 16M 1")
            read_until(source.stdout, PROMPT)
            verb = subprocess.Popen(
                [*command("migrate", runner.names["here"], "--to", runner.uri, "--bandwidth", "4M", "--json")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            with verb:
                read_until(verb.stdout, b'"active"')
                source.send_signal(signal.SIGKILL)
                assert verb.wait(30) == 2
        read_until(destination.stderr, b"waiting again")
        until(lambda: runner.status(runner.names["there"]) == "inmigrate")
        with runner.source() as source:
            assert runner.migrate()[0] == 0
            assert source.wait(30) == 4
        assert b" 0 errors" in ask(destination, "check")


def test_a_pairing_code(runner: Runner) -> None:
    """Over TCP, with TLS that the code alone stands for; without it, and with another one, the guest stays."""
    with runner.source() as source, runner.destination("--pair", uri="tcp:127.0.0.1:0") as destination:
        said = told_by(destination)
        code = re.search(r"pairing code is (\S+)", said)
        where = re.search(r"tcp:127\.0\.0\.1:\d+", said)
        assert code, said
        assert where, said
        status, _, refused = runner.migrate(to=where[0])
        assert status == 2
        assert "--pair" in refused
        status, _, said = runner.migrate("--pair", code[1], to=where[0])
        assert status == 0, said
        assert source.wait(30) == 4


@pytest.mark.parametrize("connections", ["1", "3"])
def test_certificates(runner: Runner, tmp_path: Path, connections: str) -> None:
    """Made with `tvmm keys`, on both sides of TLS, on one connection for pages and on several."""
    keys = str(tmp_path / "keys")
    assert call("keys", "init", "--keys", keys, "--san", "127.0.0.1")[0] == 0
    options = ("--tls", "--keys", keys)
    with runner.source() as source, runner.destination(*options, uri="tcp:127.0.0.1:0") as destination:
        where = re.search(r"tcp:127\.0\.0\.1:\d+", told_by(destination))
        assert where
        status, _, said = runner.migrate(*options, "--connections", connections, to=where[0])
        assert status == 0, said
        assert source.wait(30) == 4


def test_a_network_wants_protection(runner: Runner) -> None:
    """Plain bytes to another host have to be asked for by name."""
    with runner.source():
        status, _, said = runner.migrate(to="tcp:192.0.2.1:4444")
        assert status == 2
        assert "--insecure" in said
