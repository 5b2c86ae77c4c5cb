"""A tiny Linux that has booted once for several tests: a snapshot of it at its shell, from which each of them goes on.

A restore takes a second, a boot ten to forty where kernel mode is emulated. The guest has a network device, a vsock and
the program `vsock`. What it is connected to is each test's own; what the guest sees has to be the same, so the device
has no offloads: a stream has none.
"""

from __future__ import annotations

import fcntl
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.linux.initramfs import extended
from tests.linux.shell import COMMAND_SECONDS, Shell, linux_options
from tests.support.process import command, started

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CID", "GUEST_SEES", "NAME", "boot_and_save", "listening_stream", "make_once"]

NAME, CID = "web", 42
"""The machine's, from which its MAC address comes."""
GUEST_SEES = "mtu=1400,csum=off"
"""What every network device for it has to have."""
TOOL = Path(__file__).with_name("vsock_tool.c")
MOVED_AWAY = 5
"""How `tvmm run` ends when its guest is in a file."""


@contextmanager
def listening_stream() -> Iterator[str]:
    """A network device that is connected to nobody who says anything."""
    with tempfile.TemporaryDirectory(prefix="tvmm-") as name, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{name}/net")
        listener.listen()
        yield f"stream,path={name}/net,{GUEST_SEES}"


def make_once(place: Path, tiny: Path) -> Path:
    """The snapshot at `place`, which other processes want at the same time: the first one makes it."""
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            boot_and_save(place, tiny)
    return place


def boot_and_save(place: Path, tiny: Path) -> None:
    """Boot it, see its devices, and have it saved at `place`."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed: apt-get install gcc")
    with tempfile.TemporaryDirectory(prefix="tvmm-") as name, listening_stream() as net:
        directory = Path(name)
        program = directory / "vsock"
        subprocess.run(["gcc", "-O2", "-static", "-s", "-o", str(program), str(TOOL)], check=True)
        initrd = extended(tiny / "initrd.cpio", {"bin/vsock": program.read_bytes()}, directory / "initrd")
        environment = {"TVMM_RUNTIME_DIR": name}
        with started(
            *("run", "--name", NAME, *linux_options(tiny, initrd=initrd), "--net", net),
            *("--vsock", f"{directory}/socket,cid={CID}"),
            environment=environment,
        ) as process:
            Shell(process)
            subprocess.run(
                command("save", NAME, str(place), "--stop", "--quiet"),
                env={**environment, "PATH": "/bin"},
                check=True,
                timeout=COMMAND_SECONDS,
            )
            assert process.wait(COMMAND_SECONDS) == MOVED_AWAY
