"""The tiny Linux of an ordinary user on the host's network: DHCP, ping, DNS, the web, and connections into it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.linux.saved import CID, GUEST_SEES, NAME
from tests.linux.shell import COMMAND_SECONDS, Shell, inside
from tests.support.internet import DNS_NAME, SERVER, WEB_PAGE, internet, need_passt
from tests.support.ordinary import USER, ordinary_user
from tests.support.process import started

pytestmark = [pytest.mark.linux, pytest.mark.timeout(900)]

GATEWAY, GUEST, DNS = "10.0.2.2", "10.0.2.15", "10.0.2.3"
PORT = 2222
"""Of a namespace of its own."""

TALK = """
import socket, sys, time
answer = ""
while not answer:  # passt listens before the guest does, and hangs up then
    try:
        with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60) as peer:
            peer.sendall(b"hello guest\\n")
            answer = peer.makefile().readline().strip()
    except ConnectionError:
        pass
    time.sleep(0.1)
print(answer)
"""


@pytest.fixture
def resolv(namespace: str) -> Iterator[None]:
    """What `ip netns exec` shows as /etc/resolv.conf: passt reads it for what `dns=` leads to."""
    directory = Path("/etc/netns", namespace)
    directory.mkdir(parents=True)
    try:
        (directory / "resolv.conf").write_text(f"nameserver {SERVER}\n")
        yield
    finally:
        (directory / "resolv.conf").unlink()
        directory.rmdir()


def own_copy(snapshot: Path, directory: Path) -> str:
    """One that the ordinary user may read: what was in a guest's memory is its owner's alone."""
    copy = directory / "linux.snap"
    shutil.copyfile(snapshot, copy)
    os.chown(copy, USER, USER)
    return str(copy)


def test_everything(saved_linux: Path, namespace: str, resolv: None, tmp_path: Path) -> None:
    """One machine proves it all, because its commands take long where kernel mode is emulated."""
    need_passt()
    with (
        tempfile.TemporaryDirectory(prefix="tvmm-") as name,
        internet(tmp_path, inside=namespace, servers=True),
        started(
            *("restore", own_copy(saved_linux, Path(name)), "--name", NAME, "--vsock", f"{name}/vsock,cid={CID}"),
            *("--net", f"user,dns={DNS},hostfwd=tcp:127.0.0.1:{PORT}-:22,{GUEST_SEES}"),
            environment={"TVMM_RUNTIME_DIR": name, "HOME": name},
            under=ordinary_user(namespace, Path(name)),
        ) as process,
    ):
        shell = Shell(process, restored=True)
        lease = shell.run("ip link set eth0 up && busybox udhcpc -i eth0 -n -q -f -s /etc/udhcpc 2>&1")
        assert os.stat(f"/proc/{process.pid}").st_uid == USER
        assert f"lease of {GUEST} obtained from {GATEWAY}" in lease
        assert "1 packets received" in shell.run(f"ping -c 1 {SERVER}")
        # It asks for an address of IPv6 as well, and ends with the status of that.
        assert f"Address: {SERVER}" in shell.run(f"busybox nslookup {DNS_NAME} {DNS}; true").splitlines()
        assert shell.run(f"busybox wget -q -O - http://{SERVER}/") == WEB_PAGE
        shell.begin("echo hello host | nc -l -p 22")
        shell.wait_begun()
        told = subprocess.run(
            inside(namespace, sys.executable, "-c", TALK, str(PORT)), capture_output=True, text=True, check=True,
            timeout=COMMAND_SECONDS,
        )  # fmt: skip
        assert told.stdout == "hello host\n"
        assert shell.finish() == "hello guest"
        shell.power_off()
