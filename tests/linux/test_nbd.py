"""The tiny Linux on disks that are no raw images: an export whose server is killed and started again, and a qcow2."""

from __future__ import annotations

import hashlib
import random
import subprocess
import tempfile
from pathlib import Path

import pytest
import trio

from tests.linux.shell import Shell, linux_options
from tests.support.nbd_programs import RealServer, need
from tests.support.process import started

pytestmark = [pytest.mark.linux, pytest.mark.timeout(600)]


def file_system(folder: Path, name: str, data: bytes) -> Path:
    """An image with a file in it."""
    content = folder / f"content-{name}"
    content.mkdir()
    (content / "data").write_bytes(data)
    image = folder / f"{name}.img"
    image.write_bytes(b"")
    image.open("r+b").truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", content, image], check=True)
    return image


def test_file_systems(tiny: Path) -> None:
    """Both are mounted, read and written; a server that is killed in between is not noticed."""
    need("qemu-nbd", "qemu-img", "nbdkit", "mkfs.ext4", "e2fsck")
    data = random.Random(3).randbytes(100_000)
    with tempfile.TemporaryDirectory(prefix="tvmm-") as name:
        folder = Path(name)
        raw = file_system(folder, "export", data)
        qcow2 = folder / "disk.qcow2"
        subprocess.run(
            ["qemu-img", "convert", "-O", "qcow2", file_system(folder, "other", data), qcow2], check=True
        )
        server = RealServer("nbdkit", folder / "s", raw)
        trio.run(server.start)
        options = ["--disk", server.uri, "--disk", str(qcow2), "--net", "none"]
        try:
            with started(
                *("run", "--name", "tiny", *linux_options(tiny), *options),
                environment={"TVMM_RUNTIME_DIR": name},
            ) as process:
                shell = Shell(process)
                shell.run("mkdir -p /mnt /tmp/b; mount -t ext4 /dev/vda /mnt; mount -t ext4 /dev/vdb /tmp/b")
                wanted = hashlib.sha256(data).hexdigest()
                sums = shell.run("sha256sum /mnt/data /tmp/b/data")
                assert [line.split()[0] for line in sums.splitlines()] == [wanted, wanted]
                trio.run(server.kill)
                trio.run(server.start)
                # Read from the disks: a file system that is mounted again has nothing of it in memory.
                for disk, place in (("/dev/vda", "/mnt"), ("/dev/vdb", "/tmp/b")):
                    shell.run(f"cp {place}/data {place}/copy && umount {place} && mount -t ext4 {disk} {place}")
                sums = shell.run("sha256sum /mnt/copy /tmp/b/copy")
                assert [line.split()[0] for line in sums.splitlines()] == [wanted, wanted]
                shell.run("umount /mnt /tmp/b")
                shell.power_off()
        finally:
            server.end()
        subprocess.run(["e2fsck", "-f", "-n", raw], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["qemu-img", "check", "-q", qcow2], check=True)
        subprocess.run(["qemu-img", "convert", "-O", "raw", qcow2, folder / "back.img"], check=True)
        subprocess.run(["e2fsck", "-f", "-n", folder / "back.img"], check=True, stdout=subprocess.DEVNULL)
