"""What tests with a real Linux need of the host: its files, and a network of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.linux.initramfs import INIT, UDHCPC, extended
from tests.linux.saved import make_once


@pytest.fixture(scope="session")
def stock_tiny() -> Path:
    """The folder with vmlinux, initrd.cpio and cmdline.txt."""
    guests = os.environ.get("TVMM_TEST_GUESTS")
    if not guests:
        pytest.skip("TVMM_TEST_GUESTS is not set: it names a folder that holds linux-tiny (see tests/guests/linux)")
    return Path(guests) / "linux-tiny"


@pytest.fixture(scope="session")
def tiny(stock_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the initramfs of `Shell`: a shell for programs, and /etc/udhcpc."""
    folder = tmp_path_factory.mktemp("linux-tiny")
    for name in ("vmlinux", "cmdline.txt"):
        (folder / name).symlink_to(stock_tiny / name)
    extended(stock_tiny / "initrd.cpio", {"init": INIT, "etc/udhcpc": UDHCPC}, folder / "initrd.cpio")
    return folder


@pytest.fixture(scope="session")
def saved_linux(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The snapshot of tests/linux/saved.py: one for all processes of a run, which goes with the run's other files."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return make_once(folder / "linux.snap", tiny)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace that has nothing but a loopback, and the tools to use it."""
    if os.geteuid():
        pytest.skip("network namespaces are made by root alone")
    for tool in ("ip", "busybox", "mkfs.ext4", "e2fsck", "debugfs"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed: apt-get install iproute2 busybox-static e2fsprogs")
    if not Path("/dev/net/tun").exists():
        pytest.skip("the kernel has no /dev/net/tun: modprobe tun")
    name = f"tvmm-test-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no network namespace: {made.stderr.strip()}")
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
