"""The tiny Linux with all virtio devices at once: a file system, a network, consoles, entropy; over PCI and in memory.

One boot proves many things, because a boot takes long where kernel mode is emulated. What does not depend on where the
registers are is shown over PCI alone.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.linux.shell import COMMAND_SECONDS, Shell, inside, linux_options
from tests.support.process import call, read_until, started

pytestmark = [pytest.mark.linux, pytest.mark.timeout(600)]

HOST, GUEST = "10.0.2.2", "10.0.2.15"
FILE_BYTES = 96 << 10


class Files:
    """What the devices of the guest are made of."""

    def __init__(self, directory: Path) -> None:
        self.data = random.Random(1).randbytes(FILE_BYTES)
        content = directory / "content"
        content.mkdir()
        (content / "data").write_bytes(self.data)
        self.image = directory / "disk.img"
        self.image.write_bytes(b"")
        self.image.open("r+b").truncate(24 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-d", content, self.image], check=True)
        self.entropy = directory / "entropy"
        self.entropy.write_bytes(random.Random(2).randbytes(1 << 20))
        self.console, self.agent = directory / "console", directory / "agent"

    def options(self, transport: str) -> list[str]:
        """For `tvmm run`."""
        return [
            *("--disk", f"{self.image},transport={transport},serial=tiny-disk"),
            *("--net", f"tap,ip={HOST}/24,transport={transport}"),
            *("--device", f"virtio-console,transport={transport},name=main,chardev=unix={self.console}"),
            *("--device", f"virtserialport,name=agent,chardev=unix={self.agent}"),
            *("--device", f"virtio-rng,transport={transport},filename={self.entropy}"),
        ]


@contextmanager
def linux(tiny: Path, namespace: str, directory: Path, options: list[str]) -> Iterator[Shell]:
    """The machine, in a namespace, up to its shell; it must end within the block."""
    with started(
        *("run", "--name", "tiny", *linux_options(tiny, f"ip={GUEST}::{HOST}:255.255.255.0::eth0:off"), *options),
        environment={"TVMM_RUNTIME_DIR": str(directory)},
        under=inside(namespace),
    ) as process:
        yield Shell(process)
        assert process.returncode == 0


ENTRIES = {"pci": ["--entry", "pvh"], "mmio": ["--entry", "linux64", "--no-reboot"]}


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_all(tiny: Path, namespace: str, transport: str) -> None:
    """Every device of a stock driver does its work, is kicked without exits, and leaves nothing behind.

    The kernel is entered in one way and in the other; the one powers off, a reset ends the other.
    """
    with tempfile.TemporaryDirectory(prefix="tvmm-") as name:
        directory = Path(name)
        files = Files(directory)
        with linux(tiny, namespace, directory, [*files.options(transport), *ENTRIES[transport]]) as shell:
            check_interrupts(shell, transport)
            check_disk(shell, files)
            check_pings(shell, namespace)
            if transport == "pci":
                check_files(shell, namespace, directory, files)
            shell.run("umount /mnt")
            check_console(shell, files.console)
            check_agent(shell, files.agent)
            check_entropy(shell, files)
            check_counters(directory, transport)
            shell.end("poweroff -f" if transport == "pci" else "reboot -f")
        check_image(files)
        links = subprocess.run(inside(namespace, "ip", "-br", "link"), capture_output=True, text=True, check=True)
        assert [line.split()[0] for line in links.stdout.splitlines()] == ["lo"]


def check_interrupts(shell: Shell, transport: str) -> None:
    """Queues over PCI have MSI-X vectors of their own; devices in memory have a line each."""
    lines = shell.run("cat /proc/interrupts").splitlines()
    vectors = [line.split()[-1] for line in lines if "PCI-MSI" in line]
    edges = [line.split()[-1] for line in lines if "IO-APIC" in line and "virtio" in line]
    if transport == "pci":
        assert not edges
        assert {"config", "req.0", "input.0", "output.0"} <= {vector.split("-", 1)[1] for vector in vectors}
    else:
        assert not vectors
        assert sorted(edges) == [f"virtio{number}" for number in range(4)]


def check_disk(shell: Shell, files: Files) -> None:
    """The image is mounted, read, written, and read back from the disk and not from memory; it stays at /mnt."""
    assert shell.read("/sys/block/vda/serial") == "tiny-disk"
    shell.run("mount -t ext4 /dev/vda /mnt && mkdir /mnt/made && echo hello > /mnt/made/greeting")
    shell.run("cp /mnt/data /mnt/copy && sync && echo 3 > /proc/sys/vm/drop_caches")
    sums = shell.run("sha256sum /mnt/data /mnt/copy").splitlines()
    assert [line.split()[0] for line in sums] == [hashlib.sha256(files.data).hexdigest()] * 2


def check_image(files: Files) -> None:
    """The host finds the file system whole, with what the guest wrote."""
    subprocess.run(["e2fsck", "-f", "-n", files.image], check=True, capture_output=True)
    for path, content in (("/copy", files.data), ("/made/greeting", b"hello\n")):
        shown = subprocess.run(["debugfs", "-R", f"cat {path}", files.image], check=True, capture_output=True)
        assert shown.stdout == content


def check_pings(shell: Shell, namespace: str) -> None:
    """Each side answers the other's."""
    assert "1 packets received" in shell.run(f"ping -c 1 {HOST}")
    pinged = subprocess.run(
        inside(namespace, "busybox", "ping", "-c", "2", "-W", "30", GUEST), capture_output=True, text=True, check=False
    )
    assert "2 packets received" in pinged.stdout, pinged.stdout


def check_files(shell: Shell, namespace: str, directory: Path, files: Files) -> None:
    """A file goes each way without a wrong byte."""
    received = directory / "received"
    with listening(namespace, RECEIVE, received) as (peer, port):
        shell.run(f"nc {HOST} {port} < /mnt/data")
        assert peer.wait(COMMAND_SECONDS) == 0
    assert received.stat().st_size == FILE_BYTES
    assert received.read_bytes() == files.data
    with listening(namespace, SEND, received) as (peer, port):
        summed = shell.run(f"nc {HOST} {port} < /dev/null > /received; sha256sum /received")
        assert peer.wait(COMMAND_SECONDS) == 0
    assert hashlib.sha256(files.data).hexdigest() in summed, summed


LISTEN = """
import socket, sys
with socket.create_server(("0.0.0.0", 0)) as server:
    print(server.getsockname()[1], flush=True)
    peer, _ = server.accept()
"""
RECEIVE = LISTEN + "open(sys.argv[1], 'wb').write(peer.makefile('rb').read())"
SEND = LISTEN + "peer.sendall(open(sys.argv[1], 'rb').read())"


@contextmanager
def listening(namespace: str, program: str, path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process of the host's in the namespace that moves `path` over one connection, and the port of that."""
    command = inside(namespace, sys.executable, "-c", program, str(path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as peer:
        try:
            yield peer, int(read_until(peer.stdout, b"\n"))
        finally:
            peer.kill()


def connect(path: Path) -> socket.socket:
    """A viewer at a unix socket."""
    viewer = socket.socket(socket.AF_UNIX)
    viewer.connect(str(path))
    return viewer


def check_console(shell: Shell, path: Path) -> None:
    """/dev/hvc0 is a terminal: lines go both ways, and it echoes as terminals do."""
    with connect(path) as viewer:
        shell.run("echo from the guest > /dev/hvc0")
        assert read_until(viewer, b"\n", COMMAND_SECONDS) == b"from the guest\r\n"
        shell.begin("head -n 1 < /dev/hvc0")
        viewer.sendall(b"from the host\n")
        assert read_until(viewer, b"\n", COMMAND_SECONDS) == b"from the host\r\n"
        assert shell.finish() == "from the host"


def check_agent(shell: Shell, path: Path) -> None:
    """The second port has its name, waits until somebody is there, and then carries bytes as they are."""
    assert shell.run("cat /sys/class/virtio-ports/vport*p1/name") == "agent"
    shell.begin("exec 3<>$(ls /dev/vport*p1); echo from the guest >&3; head -n 1 <&3; exec 3>&-")
    with connect(path) as viewer:
        assert read_until(viewer, b"\n", COMMAND_SECONDS) == b"from the guest\n"
        viewer.sendall(b"from the host\n")
        assert shell.finish() == "from the host"


def check_entropy(shell: Shell, files: Files) -> None:
    """/dev/hwrng gives what the host's source has."""
    assert shell.read("/sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
    data = bytes.fromhex(shell.run("dd if=/dev/hwrng bs=64 count=1 2> /dev/null | busybox od -An -tx1"))
    assert len(data) == 64
    assert data in files.entropy.read_bytes()


def check_counters(directory: Path, transport: str) -> None:
    """All that has happened was asked for by eventfd, nothing by an exit, and nothing went wrong."""
    environment = {"TVMM_RUNTIME_DIR": str(directory), "PATH": "/bin"}
    status, out, err = call("info", "tiny", "--virtio", "--json", env=environment)
    assert (status, err) == (0, "")
    devices = json.loads(out)
    assert [device["transport"] for device in devices] == [transport] * 4
    for device in devices:
        queues = device["queues"]
        assert sum(queue["exits"] for queue in queues) == 0, device
        assert sum(queue["errors"] for queue in queues) == 0, device
        assert sum(queue["kicks"] for queue in queues) > 0, device
        assert sum(queue["chains"] for queue in queues) > 0, device
