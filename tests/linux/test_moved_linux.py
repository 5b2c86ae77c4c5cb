"""The tiny Linux moves between processes, in the middle of a `dd` to its disk and of pings from outside; twice."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.linux.shell import Shell, linux_options
from tests.support.bridged import BRIDGE, GUEST, HOST, Listener, Pinger, bridged
from tests.support.process import call, read_until, started

pytestmark = [pytest.mark.linux, pytest.mark.timeout(1200)]

ARP, RARP = 0x0806, 0x8035
FILE_BYTES = 192 << 10
PATIENCE_S = 400
"""For a command. It takes a second or two, and a hundred times as long on a host that has much else to do."""
PING_S = 0.1
"""More often, and a guest whose kernel is emulated on a busy host has time for nothing else."""
MARGIN_S = 0.3
"""A kernel whose every instruction may be emulated is slow to answer, with a disk to look after."""
CLOCKSOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
CLOCK_S = 2.0
"""How far a clock of the guest may have gone wrong: `date` has whole seconds."""


class Host:
    """What the machines share, and how they are started."""

    def __init__(self, tiny: Path, directory: Path) -> None:
        self.directory = directory
        self.environment = {"TVMM_RUNTIME_DIR": str(directory)}
        self.data = random.Random(1).randbytes(FILE_BYTES)
        self.image = directory / "disk.img"
        with self.image.open("wb") as file:
            file.truncate(61 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True)
        self.options = [
            *linux_options(tiny, f"ip={GUEST}::{HOST}:255.255.255.0::eth0:off"),
            *("--disk", f"{self.image}", "--net", f"tap,br={BRIDGE}", "--device", "virtio-rng"),
        ]

    def uri(self, name: str) -> str:
        """Where that machine waits."""
        return f"unix:{self.directory}/{name}.migration"

    @contextmanager
    def running(self, name: str, *, waiting: bool = False) -> Iterator[subprocess.Popen[bytes]]:
        """A machine that boots, or waits for a guest."""
        options = [*self.options, "--incoming", self.uri(name)] if waiting else self.options
        with started("run", "--name", name, *options, environment=self.environment) as process:
            if waiting:
                read_until(process.stderr, b"waiting for a guest")
            yield process

    def move(self, here: str, there: str) -> dict[str, Any]:
        """What `tvmm migrate` says at last."""
        status, told, said = call(
            *("migrate", here, "--to", self.uri(there), "--json", "--max-downtime", "20s"),
            env={**self.environment, "PATH": "/bin"},
        )
        assert status == 0, said
        return dict(json.loads(told.splitlines()[-1]))


class Feeder:
    """Sends `data` over the first connection to `port`: half of it at once, the rest when it is told to."""

    def __init__(self, data: bytes) -> None:
        self._parts = data[: len(data) // 2], data[len(data) // 2 :]
        self._go_on = threading.Event()
        self._server = socket.create_server((HOST, 0))
        self.port = int(self._server.getsockname()[1])
        self._thread = threading.Thread(target=self._run, name="feeder")

    def __enter__(self) -> Feeder:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        # Nobody may have connected.
        self._server.shutdown(socket.SHUT_RDWR)
        self.go_on()
        self._thread.join()
        self._server.close()

    def go_on(self) -> None:
        """Send the rest."""
        self._go_on.set()

    def _run(self) -> None:
        with suppress(OSError), self._server.accept()[0] as peer:
            peer.settimeout(PATIENCE_S)
            peer.sendall(self._parts[0])
            self._go_on.wait()
            peer.sendall(self._parts[1])


class Clocks:
    """The guest's uptime and date, as bounds of how far each is ahead of the host's: they were read in between."""

    def __init__(self, shell: Shell) -> None:
        before = time.monotonic(), time.time()
        # A process for each of them would take a second.
        text = shell.run(f"read up < /proc/uptime; date +%s; read source < {CLOCKSOURCE}; echo $up; echo $source")
        after = time.monotonic(), time.time()
        date, uptime, self.source = text.splitlines()
        read = float(uptime.split()[0]), float(date)
        self.most = [guest - host for guest, host in zip(read, before, strict=True)]
        self.least = [guest - host for guest, host in zip(read, after, strict=True)]

    def check(self, later: Clocks) -> None:
        """None has stopped or jumped."""
        assert later.source == self.source
        for clock in range(2):
            assert later.least[clock] - CLOCK_S < self.most[clock]
            assert later.most[clock] + CLOCK_S > self.least[clock]


@pytest.fixture
def host(tiny: Path) -> Iterator[Host]:
    """With a bridge of its own, on this thread and in the processes that it starts."""
    for tool in ("mkfs.ext4", "e2fsck", "debugfs"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed: apt-get install e2fsprogs")
    with bridged(), tempfile.TemporaryDirectory(prefix="tvmm-") as name:
        yield Host(tiny, Path(name))


def test_a_copy_and_pings_go_on(host: Host) -> None:
    """A file that comes over TCP is written whole, though half of it comes after the move; pings are lost for the
    pauses alone, the guest is announced, also by itself, clocks go on, the kernel has no complaint.
    """
    digest = hashlib.sha256(host.data).hexdigest()
    with (
        host.running("first") as first,
        host.running("second", waiting=True) as second,
        host.running("third", waiting=True) as third,
    ):
        shell = Shell(first, seconds=PATIENCE_S)
        # What is printed is slow where kernel mode is emulated: the boot's messages go nowhere.
        shell.run("mount -t ext4 /dev/vda /mnt && dmesg -c > /dev/null")
        clocks = Clocks(shell)
        with Feeder(host.data) as feeder, Pinger(PING_S) as pinger, Listener("vt-second") as listener:
            pinger.wait(10)
            shell.begin(f"nc {HOST} {feeder.port} < /dev/null | dd of=/mnt/copy bs=4k conv=fsync 2>&1")
            shell.wait_begun()
            moves = [host.move("first", "second")]
            assert first.wait(30) == 4
            shell.go_on_at(second)
            feeder.go_on()
            copied = shell.finish()
            assert shell.run("sha256sum /mnt/copy").split()[0] == digest, copied
            pinger.wait(10)
            listener.wait(RARP)
            arp = listener.wait(ARP, to=b"\xff" * 6).data
            assert arp[28:32] == arp[38:42] == bytes(map(int, GUEST.split(".")))
            clocks.check(Clocks(shell))
            sums = shell.run("echo 3 > /proc/sys/vm/drop_caches; sha256sum /mnt/copy")
            assert sums.split()[0] == digest

            moves.append(host.move("second", "third"))
            assert second.wait(30) == 4
            shell.go_on_at(third)
            pinger.wait(10)
        clocks.check(Clocks(shell))
        assert "1 packets received" in shell.run(f"ping -c 1 {HOST}")
        said = shell.run("cp /mnt/copy /mnt/again && dmesg && umount /mnt")
        assert [line for line in said.splitlines() if "drop_caches" not in line] == []
        pauses = [move["downtime"] for move in moves]
        print(f"clocksource {clocks.source}, paused for {pauses} ms, ", end="")
        print(f"{len(pinger.lost)} of {len(pinger.sent)} pings lost at {PING_S} s")
        assert len(pinger.lost) <= (sum(pauses) / 1e3 + len(pauses) * MARGIN_S) / PING_S
        shell.power_off()
    subprocess.run(["e2fsck", "-f", "-n", host.image], check=True, capture_output=True)
    for path in ("/copy", "/again"):
        shown = subprocess.run(["debugfs", "-R", f"cat {path}", host.image], check=True, capture_output=True)
        assert shown.stdout == host.data
