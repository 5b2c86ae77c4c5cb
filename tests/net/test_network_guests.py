"""Machines in a network of `tvmm net up`: the built-in guest, and machines of users without rights."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.net_state import need_programs
from tests.support.process import PROMPT, call, read_until, started

pytestmark = [pytest.mark.guest, pytest.mark.usefixtures("network_host")]


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Where machines and networks are registered, as the environment; networks that a failed test leaves go."""
    environment = {"TVMM_RUNTIME_DIR": str(tmp_path / "run")}
    yield environment
    for path in (tmp_path / "run/net").glob("*.json"):
        call("net", "down", path.stem, "--force", env=os.environ | environment)


def said(process: subprocess.Popen[bytes], command: str) -> str:
    """What the built-in guest answers."""
    assert process.stdin is not None
    process.stdin.write(f"{command}\n".encode())
    return read_until(process.stdout, PROMPT).decode()


@pytest.mark.parametrize("isolated", [False, True])
def test_machines_of_a_network(isolated: bool, runtime: dict[str, str]) -> None:
    """Two reach one another, but in an isolated network; both reach the host. One is in by a tap made beforehand."""
    environment = runtime

    def net(*words: str) -> str:
        status, out, err = call("net", *words, env=os.environ | environment)
        assert status == 0, err
        return out

    more = ["--isolated"] if isolated else []
    net("up", "lan", "--subnet", "10.9.8.0/24", "--no-dhcp", *more)
    assert net("create", "--user", "root", "--network", "lan") == "vt-root\n"
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(started("run", "--name", name, "--net", options, environment=environment))
            for name, options in (("a", "tap,network=lan"), ("b", "tap,ifname=vt-root"))
        )
        for process, number in ((one, 20), (two, 21)):
            read_until(process.stdout, PROMPT)
            assert "answers for" in said(process, f"ip 0 10.9.8.{number}/24")
            assert "2 sent, 2 received" in said(process, "ping 0 10.9.8.1 2")
        answer = said(one, "ping 0 10.9.8.21 2")
        assert ("10.9.8.21 does not answer ARP" in answer) == isolated
        assert ("2 sent, 2 received" in answer) != isolated
        shown = net("show", "lan")
        assert "port       machine a (vt-a)" in shown
        assert "port       machine b (vt-root)" in shown
        for process in (one, two):
            assert process.stdin is not None
            process.stdin.write(b"poweroff\n")
            assert process.wait(60) == 0
    net("down", "lan")
    net("delete", "vt-root")


def test_a_user_without_any_right(runtime: dict[str, str]) -> None:
    """A machine of nobody's, whose one group may open /dev/kvm: its guest is in the network all the same."""
    need_programs("setpriv")
    environment = runtime
    group = os.stat("/dev/kvm").st_gid
    under = ["setpriv", "--reuid=65534", f"--regid={group}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    look = "import os, tvmm.kvm; os.close(os.open('/dev/kvm', os.O_RDWR))"
    if subprocess.run([*under, sys.executable, "-c", look], capture_output=True, check=False).returncode:
        pytest.skip("user nobody can read neither this Python nor tvmm, or has no right to /dev/kvm by its group")
    for line in ("up lan --subnet 10.9.8.0/24 --no-dhcp", "create vt --user 65534 --network lan"):
        assert call("net", *line.split(), env=os.environ | environment)[0] == 0
    with tempfile.TemporaryDirectory(prefix="tvmm-") as own:
        os.chown(own, 65534, group)
        theirs = {"TVMM_RUNTIME_DIR": own, "HOME": own}
        with started("run", "--name", "a", "--net", "tap,ifname=vt", environment=theirs, under=under) as process:
            read_until(process.stdout, PROMPT)
            assert "answers for" in said(process, "ip 0 10.9.8.20/24")
            assert "2 sent, 2 received" in said(process, "ping 0 10.9.8.1 2")
            status, _, err = call("net", "down", "lan", env=os.environ | environment)
            assert status == 2
            assert f"network lan is in use by process {process.pid} (vt); stop them first" in err
            assert process.stdin is not None
            process.stdin.write(b"poweroff\n")
            assert process.wait(60) == 0
    for words in (("down", "lan"), ("delete", "vt")):
        assert call("net", *words, env=os.environ | environment)[0] == 0


def test_a_network_that_is_not_up(runtime: dict[str, str]) -> None:
    """The machine does not start, and says what to do."""
    status, _, err = call("run", "--net", "tap,network=lan", env=os.environ | runtime)
    assert status == 2
    assert "tvmm: network lan is not up; 'sudo tvmm net up lan' makes it" in err
