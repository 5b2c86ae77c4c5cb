"""Debian's stock cloud kernel with the modules of its package: it finds disk, network, console and entropy over PCI.

`TVMM_TEST_DEBIAN` names the directory that `tests/guests/linux/mkdebian.sh` has filled. Where kernel mode is emulated
a boot takes 6 to 20 minutes.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.linux.shell import PLAIN_SHELL, Shell, inside, linux_options
from tests.support.process import started

pytestmark = [pytest.mark.linux, pytest.mark.slow, pytest.mark.timeout(3600)]

BOOT_SECONDS, COMMAND_SECONDS = 3000, 600
HOST, GUEST = "10.0.2.2", "10.0.2.15"


@pytest.fixture(scope="session")
def debian() -> Path:
    """The directory with vmlinuz, initrd.cpio and cmdline.txt."""
    directory = os.environ.get("TVMM_TEST_DEBIAN")
    if not directory:
        pytest.skip("TVMM_TEST_DEBIAN is not set: it names a directory that tests/guests/linux/mkdebian.sh has filled")
    return Path(directory)


def test_stock_kernel(debian: Path, namespace: str) -> None:
    """Its drivers bind to all four devices with MSI-X, mount an ext4 image, and answer a ping; ACPI powers it off."""
    with tempfile.TemporaryDirectory(prefix="tvmm-") as name:
        image, console = Path(name) / "disk.img", Path(name) / "console"
        image.write_bytes(b"")
        os.truncate(image, 24 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        with started(
            *("run", "--no-reboot", *linux_options(debian, PLAIN_SHELL, memory="128M", kernel="vmlinuz")),
            *("--disk", f"{image},serial=debian-disk", "--net", f"tap,ip={HOST}/24"),
            *("--device", f"virtio-console,chardev=file={console}", "--device", "virtio-rng"),
            under=inside(namespace),
        ) as process:
            shell = Shell(process, BOOT_SECONDS, COMMAND_SECONDS)
            print(shell.boot_log)
            # Messages of the kernel are not to come in between.
            shell.run("dmesg -n 1")
            links = shell.run("ls -ld /sys/bus/virtio/devices/*/driver").splitlines()
            drivers = [line.rsplit("/", 1)[1] for line in links]
            assert drivers == ["virtio_blk", "virtio_net", "virtio_console", "virtio_rng"]
            interrupts = shell.run("cat /proc/interrupts")
            print(interrupts)
            assert {"virtio0-req.0", "virtio1-input.0", "virtio1-output.0"} <= set(interrupts.split())
            shell.run("mount -t ext4 /dev/vda /mnt && echo hello > /mnt/greeting && umount /mnt")
            assert shell.run("cat /sys/block/vda/serial") == "debian-disk"
            shell.run(f"ip address add {GUEST}/24 dev eth0 && ip link set eth0 up")
            assert "2 packets received" in shell.run(f"ping -c 2 {HOST}")
            pinged = subprocess.run(
                inside(namespace, "busybox", "ping", "-c", "3", "-W", "10", GUEST), capture_output=True, check=False
            )
            assert b"3 packets received" in pinged.stdout, pinged.stdout.decode()
            shell.run("echo from the guest > /dev/hvc0")
            assert len(shell.run("dd if=/dev/hwrng bs=16 count=1 2> /dev/null | busybox od -An -tx1").split()) == 16
            print(shell.run("dmesg | grep -i -e virtio -e vda -e eth0 -e 'pci 0000'"))
            shell.power_off()
        subprocess.run(["e2fsck", "-f", "-n", image], check=True, capture_output=True)
        shown = subprocess.run(["debugfs", "-R", "cat /greeting", image], check=True, capture_output=True)
        assert shown.stdout == b"hello\n"
        assert console.read_bytes() == b"from the guest\r\n"
