"""``tvmm restore --clones``: three machines of one file, from their start to their end."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cli.conftest import plain_environment, registry  # noqa: F401  # fixtures
from tvmm import Machine, MachineConfig
from tvmm.control.client import QmpClient
from tvmm.control.registry import machines
from tvmm.snapshot.status import SaveParameters

pytestmark = pytest.mark.guest

PATIENCE_S = 60
PROMPT = b"tvmm> "
MARKS = itertools.count()


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest that has used its source of entropy, and knows its generation ID."""
    path = tmp_path_factory.mktemp("clones") / "guest.snap"

    async def make() -> None:
        async with Machine(MachineConfig.parse(name="web", memory="64M", device=["virtio-rng"])) as vm:
            await vm.resume()
            await vm.wait_serial(PROMPT)
            for order in ("rng 0 64", "genid", "dirty 0 8M 1", "poke 0x3000000 0x12345678"):
                await vm.send_serial(f"{order}\n")
                await vm.wait_serial(PROMPT)
            await vm.save(str(path))

    trio.run(make)
    return path


class Clones:
    """The command, and what it said when all were there."""

    def __init__(self, process: subprocess.Popen[bytes], answer: dict[str, Any]) -> None:
        self.process = process
        self.answer = answer
        self.by_name = {clone["name"]: clone for clone in answer["clones"]}

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Status and messages, once a signal has ended all."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Status and messages, once all have ended."""
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, errors.decode()


@contextmanager
def clones(snapshot: Path, *options: str, count: int = 3) -> Iterator[Clones]:
    """`count` of them, all of them up, or not."""
    command = [sys.executable, "-m", "tvmm.cli", "restore", str(snapshot), "--clones", str(count), "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            text, depth = b"", 1
            while depth and (line := process.stdout.readline()):
                text += line
                depth = text.count(b"{") - text.count(b"}")
            yield Clones(process, json.loads(text or b'{"clones": []}'))
        finally:
            # It waits for what it has forked, which takes its names out of the registry.
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_S)
            process.kill()


def ask(clone: dict[str, Any], order: str) -> str:
    """What the guest prints for a command at its serial line, which begins with what it printed before."""
    begin, end = (f"mark{next(MARKS)}" for _ in range(2))
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(PATIENCE_S)
        console.connect(clone["console"])
        console.sendall(f"echo {begin}\n{order}\necho {end}\n".encode())
        text = b""
        while f"\n{end}\r".encode() not in text:
            part = console.recv(4096)
            assert part, text
            text += part
    return text.decode().partition(f"\n{begin}\r")[2].partition(f"echo {end}")[0]


def test_each_is_its_own(snapshot: Path, registry: Path) -> None:  # noqa: F811
    """Names, processes, IDs, entropy and what they write from now on differ; what they had in memory is the same."""
    with clones(snapshot) as found:
        assert list(found.by_name) == ["web-1", "web-2", "web-3"]
        all_of_them = list(found.by_name.values())
        assert [(entry.name, entry.pid) for entry in machines(registry)] == [
            (clone["name"], clone["pid"]) for clone in all_of_them
        ]
        ids, entropy = set(), set()
        for clone in all_of_them:
            told = re.search(r"genid: (\S+) at \S+ 1 notifications, 1 changes", ask(clone, "genid"))
            assert told
            assert told[1] == clone["generation-id"]
            with QmpClient(clone["control"]) as client:
                assert client.execute("query-vm-generation-id") == {"guid": told[1]}
                assert client.execute("query-name") == {"name": clone["name"]}
            ids.add(told[1])
            random = re.search(r"first (\w+)", ask(clone, "rng 0 64"))
            assert random
            entropy.add(random[1])
            assert "78 56 34 12" in ask(clone, "mem 0x3000000 4")
            ask(clone, f"poke 0x3000000 {clone['pid']}")
            assert ": 0 errors" in ask(clone, "check")
        assert len(ids) == len(entropy) == 3
        for clone in all_of_them:
            assert clone["pid"].to_bytes(4, "little").hex(" ") in ask(clone, "mem 0x3000000 4")
        status, words = found.end()
    assert status == 0
    assert "3 clones of" in words
    assert "web-1 to web-3" in words
    assert machines(registry) == []


def test_one_ends_and_one_is_killed(snapshot: Path, registry: Path) -> None:  # noqa: F811
    """The rest goes on; in the end the status tells that not all went well, and nothing is left behind."""
    with clones(snapshot, "--name", "w{n:02}") as found:
        with QmpClient(found.by_name["w01"]["control"]) as client:
            client.execute("system_powerdown")
        os.kill(found.by_name["w02"]["pid"], signal.SIGKILL)
        assert "here" in ask(found.by_name["w03"], "echo here")
        with QmpClient(found.by_name["w03"]["control"]) as client:
            client.execute("quit")
        status, words = found.wait()
    assert status == 128 + signal.SIGKILL
    assert "w02: its process was killed by SIGKILL" in words
    assert [entry.name for entry in machines(registry) if entry.alive] == []


def test_crash_of_a_guest(snapshot: Path) -> None:
    """Is told by name, with the status that it has everywhere."""
    with clones(snapshot, count=2) as found:
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(found.by_name["web-2"]["console"])
            console.sendall(b"crash\n")
            while console.recv(4096):
                pass
        status, words = found.end()
    assert status == 3
    assert "web-2: the guest crashed" in words


def test_in_one_process(snapshot: Path, registry: Path) -> None:  # noqa: F811
    """Each is its own all the same: one ends, the guest of one crashes, and a signal reaches the third."""
    with clones(snapshot, "--processes", "1") as found:
        assert len({clone["pid"] for clone in found.by_name.values()}) == 1
        assert [entry.name for entry in machines(registry)] == ["web-1", "web-2", "web-3"]
        assert len({clone["generation-id"] for clone in found.by_name.values()}) == 3
        for name, clone in found.by_name.items():
            ask(clone, f"poke 0x3000000 {name[-1]}")
        with QmpClient(found.by_name["web-1"]["control"]) as client:
            client.execute("quit")
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(found.by_name["web-2"]["console"])
            console.sendall(b"crash\n")
            while console.recv(4096):
                pass
        assert "03 00 00 00" in ask(found.by_name["web-3"], "mem 0x3000000 4")
        status, words = found.end()
    assert status == 3
    assert "web-2: the guest crashed" in words
    assert "web-3" not in words.partition("web-2: the guest crashed")[2]
    assert machines(registry) == []


def test_a_process_of_several_is_killed(snapshot: Path) -> None:
    """All of its clones are gone, and a line says each."""
    with clones(snapshot, "--processes", "2") as found:
        alone, *others = (found.by_name[f"web-{number}"] for number in (1, 2, 3))
        assert others[0]["pid"] == others[1]["pid"] != alone["pid"]
        os.kill(others[0]["pid"], signal.SIGKILL)
        assert "here" in ask(alone, "echo here")
        status, words = found.end()
    assert status == 128 + signal.SIGKILL
    assert [f"web-{n}: its process was killed by SIGKILL" in words for n in (1, 2, 3)] == [False, True, True]


def test_paused(snapshot: Path) -> None:
    """They wait, and can be asked and resumed."""
    with clones(snapshot, "--paused", count=2) as found:
        for clone in found.by_name.values():
            with QmpClient(clone["control"]) as client:
                assert client.execute("query-status")["status"] == "paused"
                client.execute("cont")
            assert "here" in ask(clone, "echo here")


def test_a_parent_that_is_killed(snapshot: Path, registry: Path) -> None:  # noqa: F811
    """Takes its clones along, in order: they take themselves off the registry."""
    with clones(snapshot) as found:
        watched = [os.pidfd_open(clone["pid"]) for clone in found.by_name.values()]
        found.process.kill()
        assert found.process.stderr is not None
        assert "Traceback" not in found.process.stderr.read().decode()  # ends with the last of them
    for descriptor in watched:
        os.close(descriptor)
    assert [entry.name for entry in machines(registry) if entry.alive] == []


def refusal(snapshot: Path, *options: str) -> str:
    """What is said where nothing is started."""
    command = [sys.executable, "-m", "tvmm.cli", "restore", str(snapshot), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--clones", "0"), "clones"),
        (("--clones", "5000"), "1 to 4096"),
        (("--clones", "2", "--processes", "0"), "processes"),
        (("--processes", "2"), "without --clones"),
        (("--clones", "2", "--eager"), "--verify checks the whole file once"),
        (("--clones", "2", "--serial", "file=out"), "--serial none, or file=PATH-{n}"),
        (("--clones", "2", "--control", "/tmp/x"), "--control PATH-{n}"),
    ],
)
def test_what_is_refused(snapshot: Path, options: tuple[str, ...], words: str) -> None:
    """In a line, before anything is started."""
    assert words in refusal(snapshot, *options)


def test_names_that_are_taken(snapshot: Path) -> None:
    """Nothing is started beside what runs."""
    with clones(snapshot, count=2) as found:
        assert "machines named web-1, web-2 are running" in refusal(snapshot, "--clones", "3")
        assert "here" in ask(found.by_name["web-1"], "echo here")


def test_what_is_wrong_with_all_is_said_once(snapshot: Path, tmp_path: Path) -> None:
    """A directory that does not exist, for each of them."""
    with clones(snapshot, "--serial", f"file={tmp_path}/none/{{n}}") as found:
        assert not found.by_name
        assert len(found.answer["failed"]) == 3
        status, words = found.wait()
    assert status == 2
    assert "3 of 3 clones did not start" in words


def test_disks_that_are_laid_over_one(tmp_path: Path) -> None:
    """Each clone writes to its own; the image below, which a snapshot without `{n}` in it refuses, stays as it is."""
    if not shutil.which("qemu-img") or not shutil.which("qemu-nbd"):
        pytest.skip("qemu-img or qemu-nbd is not installed: apt-get install qemu-utils")
    base, path = tmp_path / "base.img", tmp_path / "disk.snap"
    with base.open("wb") as file:
        file.truncate(8 << 20)

    async def make() -> None:
        async with Machine(MachineConfig.parse(name="d", memory="64M", disk=[str(base)])) as vm:
            await vm.resume()
            await vm.wait_serial(PROMPT)
            await vm.send_serial("blkfill 0 1 7 0\n")
            await vm.wait_serial(PROMPT)
            await vm.save(str(path), SaveParameters(stop=True))

    trio.run(make)
    before = base.read_bytes()
    for number in (1, 2):
        over = f"{tmp_path}/over-{number}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", over], check=True)
    assert "would be that of several clones; give each an image" in refusal(path, "--clones", "2")
    with clones(path, "--disk", f"{tmp_path}/over-{{n}}.qcow2", count=2) as found:
        for clone in found.by_name.values():
            assert "256 blocks, 0 errors, 0 unreadable" in ask(clone, "blkcheck 0 1 7")
        assert "256 blocks" in ask(found.by_name["d-1"], "blkfill 0 1 9 0")
        assert "256 blocks, 0 errors, 0 unreadable" in ask(found.by_name["d-1"], "blkcheck 0 1 9")
        assert "256 blocks, 0 errors, 0 unreadable" in ask(found.by_name["d-2"], "blkcheck 0 1 7")
        status, _ = found.end()
    assert status == 0
    assert base.read_bytes() == before


@pytest.mark.slow
def test_fifty(snapshot: Path) -> None:
    """In less memory than three guests of 256 MiB have."""
    with clones(snapshot, count=50) as found:
        for clone in found.by_name.values():
            assert "here" in ask(clone, "echo here")
        resident = 0
        for pid in {clone["pid"] for clone in found.by_name.values()}:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            resident += int(re.search(r"^Rss: +(\d+) kB", rollup, re.MULTILINE)[1])  # type: ignore[index]
        assert len(found.by_name) == 50
        assert resident < 768 << 10
