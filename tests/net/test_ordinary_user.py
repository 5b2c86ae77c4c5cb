"""Networks for a user without any right: through passt, and on a tap that root has prepared."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.internet import SERVER, internet, need_passt
from tests.support.netns import ip, why_not
from tests.support.ordinary import USER, ordinary_user
from tests.support.process import PROMPT, call, read_until, started, until

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

HOST, GUEST = "10.0.2.2", "10.0.2.15"
SECONDS = 60


class Place(NamedTuple):
    """A network namespace, and the command that makes an ordinary user of who comes after it."""

    namespace: str
    under: Sequence[str]
    runtime: str

    def ip(self, *words: str) -> str:
        """iproute2 in there, as root."""
        return ip("-n", self.namespace, *words)

    def refused(self, *options: str) -> str:
        """What a machine that cannot be says."""
        status, _, errors = call("run", "--serial", "none", *options, under=self.under, env=self.environment())
        assert status == 2
        [line] = errors.splitlines()
        return line

    def ask_udp(self, port: int, text: str) -> str:
        """The answer of a port of its loopback."""
        program = (
            "import socket, sys; client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); client.settimeout(30);"
            " client.connect(('127.0.0.1', int(sys.argv[1]))); client.send(sys.argv[2].encode());"
            " print(client.recv(65536).decode())"
        )
        under = ("ip", "netns", "exec", self.namespace)
        done = subprocess.run(
            [*under, sys.executable, "-c", program, str(port), text], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def environment(self) -> dict[str, str]:
        """Of that user."""
        return {**os.environ, "TVMM_RUNTIME_DIR": self.runtime, "HOME": self.runtime}


@pytest.fixture
def place() -> Iterator[Place]:
    """With a loopback and nothing else."""
    if reason := why_not():
        pytest.skip(reason)
    name = f"tvmm-user-{os.getpid()}"
    ip("netns", "add", name)
    try:
        with tempfile.TemporaryDirectory(prefix="tvmm-") as directory:
            yield Place(name, ordinary_user(name, Path(directory)), directory)
    finally:
        ip("netns", "delete", name)


class Guest:
    """The built-in guest of a process, at its prompt."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        read_until(process.stdout, PROMPT, SECONDS)

    def ask(self, line: str) -> str:
        """What it prints for a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        return read_until(self.process.stdout, PROMPT, SECONDS).decode(errors="replace")

    def order(self, line: str, answer: bytes) -> None:
        """Up to a word of its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        read_until(self.process.stdout, answer + b"\n", SECONDS)


@contextmanager
def running(place: Place, net: str) -> Iterator[Guest]:
    """A machine of that user, with its address set. It ends well."""
    with started(
        "run", "--name", "mine", "--memory", "64M", "--net", net,
        environment=place.environment(), under=place.under,
    ) as process:  # fmt: skip
        guest = Guest(process)
        rights = (Path("/proc") / str(process.pid) / "status").read_text().split("\n")
        wanted = {f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"}
        assert wanted <= set(rights)
        guest.ask(f"ip 0 {GUEST}/24")
        yield guest
        assert process.stdin is not None
        process.stdin.write(b"poweroff\n")
        _, errors = process.communicate(timeout=SECONDS)
        assert (process.returncode, errors) == (0, b"")


def passt_of(process: subprocess.Popen[bytes]) -> Path:
    """The one child of a machine, in /proc. It is that user's."""
    words = ["ps", "--ppid", str(process.pid), "-o", "pid=,uid=,comm="]
    told = subprocess.run(words, capture_output=True, text=True, check=True)
    [(pid, uid, name)] = [line.split() for line in told.stdout.splitlines()]
    assert (uid, name.partition(".")[0]) == (str(USER), "passt")
    return Path("/proc", pid)


def free_port() -> int:
    """Of any namespace's loopback: this one is not used here."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_passt(place: Place, tmp_path: Path) -> None:
    """The guest pings the internet, answers at a port of the host, is told about, and leaves nothing."""
    need_passt()
    port = free_port()
    with internet(tmp_path, inside=place.namespace):
        with running(place, f"user,hostfwd=udp:127.0.0.1:{port}-:7") as guest:
            assert "3 sent, 3 received" in guest.ask(f"ping 0 {SERVER} 3")
            passt = passt_of(guest.process)
            status, told, _ = call("info", "mine", "--json", under=place.under, env=place.environment())
            assert status == 0
            assert json.loads(told)
            guest.order("netecho 0", b"netecho 0\r")
            assert place.ask_udp(port, "hello") == "hello"
            guest.ask("\x03")
        assert not passt.exists()
        assert [path.name for path in Path(place.runtime).iterdir() if not path.name.startswith(".")] == []
        low = place.refused("--net", "user,hostfwd=tcp::80-:80")
        assert "cannot forward port tcp::80-:80: Permission denied; ports below 1024 are not for ordinary users" in low


def test_passt_ends_with_a_machine_that_is_killed(place: Place, tmp_path: Path) -> None:
    """However it ends."""
    need_passt()
    with internet(tmp_path, inside=place.namespace):
        with started(
            "run", "--memory", "64M", "--net", "user", environment=place.environment(), under=place.under
        ) as process:
            Guest(process)
            passt = passt_of(process)
            process.kill()
        until(lambda: not (passt / "stat").exists())


@pytest.mark.parametrize(
    ("made", "options"), [((), ""), (("multi_queue",), ""), (("multi_queue",), ",queues=2"), (("vnet_hdr",), "")]
)
def test_prepared_tap(place: Place, made: tuple[str, ...], options: str) -> None:
    """It is used as it is, and as it was afterwards."""
    place.ip("tuntap", "add", "dev", "mine0", "mode", "tap", "user", str(USER), *made)
    place.ip("address", "add", f"{HOST}/24", "dev", "mine0")
    place.ip("link", "set", "mine0", "up")
    before = place.ip("-o", "link", "show", "mine0").partition("mtu")[0]
    for _ in range(2):
        with running(place, f"tap,ifname=mine0{options}") as guest:
            assert "3 sent, 3 received" in guest.ask(f"ping 0 {HOST} 3")
        assert place.ip("-o", "link", "show", "mine0").partition("mtu")[0] == before
        assert "10.0.2.2" in place.ip("address", "show", "mine0")


def test_taps_that_cannot_be_used(place: Place) -> None:
    """Each is one line with what to do about it."""
    place.ip("tuntap", "add", "dev", "down0", "mode", "tap", "user", str(USER))
    place.ip("tuntap", "add", "dev", "other0", "mode", "tap", "user", str(USER + 1))
    place.ip("link", "set", "other0", "up")
    place.ip("tuntap", "add", "dev", "one0", "mode", "tap", "user", str(USER))
    place.ip("link", "set", "one0", "up")
    for net, told in {
        "tap": "this needs the right CAP_NET_ADMIN",
        "tap,ifname=none0": "cannot make tap none0: this needs the right CAP_NET_ADMIN",
        "tap,ifname=down0": "down0 (it is down): this needs the right CAP_NET_ADMIN; 'sudo ip link set down0 up' once",
        "tap,ifname=other0": "tap other0 belongs to another user",
        "tap,ifname=one0,queues=2": "tap one0 has one queue",
        "tap,ifname=one0,mtu=9000": "'sudo ip link set one0 mtu 9000'",
        "tap,ifname=one0,ip=10.0.0.1/8": "'sudo ip address add 10.0.0.1/8 dev one0'",
    }.items():
        line = place.refused("--net", net)
        assert told in line
        assert "sudo" in line
        if net in ("tap", "tap,ifname=none0"):
            assert "sudo tvmm net create" in line
            assert "--net user" in line
