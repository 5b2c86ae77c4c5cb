"""``--net user``: the built-in guest on the host's network through passt, in a namespace with its own internet."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.internet import SERVER, internet, need_passt
from tests.support.netns import ip, network_namespace
from tests.support.patience import PATIENT
from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig
from tvmm.board import Board
from tvmm.config.incoming import IncomingConfig
from tvmm.config.net import NetConfig
from tvmm.errors import HostError, UserError
from tvmm.net.passt import complaint, find_passt, may_ping

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

GUEST = "10.0.2.15"
PATIENCE_S = 30


@pytest.fixture(autouse=True)
def _namespace(tmp_path: Path) -> Iterator[None]:
    """A host with a default route, and nothing else."""
    need_passt()
    with network_namespace(), internet(tmp_path):
        yield


def children() -> list[int]:
    """Every passt of this process."""
    told = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="], capture_output=True, text=True, check=False
    )
    return [int(line.split()[0]) for line in told.stdout.splitlines() if "passt" in line.split()[1]]


@asynccontextmanager
async def machine(options: str, name: str, warnings: list[str], uri: str = "") -> AsyncIterator[Machine]:
    """One with passt, which runs, or waits for a guest at `uri`.

    The board is made on this thread: the namespace is the thread's.
    """
    config = MachineConfig.parse(name=name, memory="64M", net=[",".join(filter(None, ["user", options]))])
    if uri:
        config = config._replace(incoming=IncomingConfig(uri))
    async with Machine(config, board=Board(config, load=not uri)) as vm:
        vm.on_warning = warnings.append
        yield vm


@asynccontextmanager
async def networked(
    options: str = "", name: str = "web", warnings: list[str] | None = None
) -> AsyncIterator[GuestShell]:
    """A machine at its prompt."""
    with trio.fail_after(100):
        async with machine(options, name, [] if warnings is None else warnings) as vm:
            shell = GuestShell(vm)
            await vm.resume()
            await vm.wait_serial(PROMPT)
            await shell.ask(f"ip 0 {GUEST}/24")
            yield shell


def free_port() -> int:
    """One of the loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def echo(port: int, payload: bytes) -> bytes:
    """What comes back from a forwarded port."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as client:
        await client.connect(("127.0.0.1", port))
        await client.send(payload)
        return await client.recv(65536)


async def until(condition: Callable[[], object]) -> None:
    """Look now and then: what is waited for is another process's affair."""
    while not condition():
        await trio.sleep(0.01)


async def test_ping_and_a_forwarded_port() -> None:
    """The guest pings the internet, and answers at a port of the host."""
    port = free_port()
    async with networked(f"hostfwd=udp:127.0.0.1:{port}-:7") as shell:
        assert "3 sent, 3 received" in await shell.ask(f"ping 0 {SERVER} 3")
        await shell.order("netecho 0")
        await shell.vm.wait_serial("netecho")
        for payload in (b"x", b"hello" * 100):
            assert await echo(port, payload) == payload
        await shell.order("\x03")
        assert shell.vm.virtio is not None
        [net] = shell.vm.virtio.nets()
        assert (net.ifname, net.link_up) == ("passt", True)
        assert len(children()) == 1


async def test_cable_out_and_in() -> None:
    """As with a tap."""
    async with networked() as shell:
        assert shell.vm.virtio is not None
        shell.vm.virtio.set_link("net0", False)
        assert "0 received" in await shell.ask(f"ping 0 {SERVER} 1")
        shell.vm.virtio.set_link("net0", True)
        assert "3 sent, 3 received" in await shell.ask(f"ping 0 {SERVER} 3")
        shell.vm.virtio.announce(["net0"])
        assert "1 sent, 1 received" in await shell.ask(f"ping 0 {SERVER} 1")


async def test_passt_that_is_killed_is_started_again() -> None:
    """The link is down meanwhile, and the user hears of it."""
    warnings: list[str] = []
    async with networked(warnings=warnings) as shell:
        assert shell.vm.virtio is not None
        for _ in range(2):
            del warnings[:]
            [pid] = children()
            os.kill(pid, signal.SIGKILL)
            await until(lambda: len(warnings) == 2)
            assert warnings == [
                "net0: passt was ended by SIGKILL; its link is down", "net0: connected again; its link is up"
            ]  # fmt: skip
            assert shell.vm.virtio.nets()[0].link_up
            assert "2 sent, 2 received" in await shell.ask(f"ping 0 {SERVER} 2")
            assert children() != [pid]


async def test_a_guest_that_moves_on_this_host(tmp_path: Path) -> None:
    """The destination has forwarded ports as soon as the source lets go of them; the guest's address is the same."""
    udp = free_port()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        tcp = probe.getsockname()[1]
    options = f"hostfwd=udp:127.0.0.1:{udp}-:7,hostfwd=tcp:127.0.0.1:{tcp}-:7"
    warnings: list[str] = []
    moved = trio.Event()

    async def source(task_status: trio.TaskStatus[GuestShell]) -> None:
        async with networked(options, "here") as here:
            task_status.started(here)
            await moved.wait()

    async with trio.open_nursery() as nursery:
        here = await nursery.start(source)
        await here.order("netecho 0")
        await here.vm.wait_serial("netecho")
        assert await echo(udp, b"before") == b"before"
        async with machine(options, "there", warnings, f"unix:{tmp_path}/there") as there:
            assert len(children()) == 1
            await here.vm.migrate(f"unix:{tmp_path}/there", PATIENT)
            await there.wait_arrival()
            assert there.virtio is not None
            with trio.fail_after(PATIENCE_S):
                await until(lambda: any("cannot forward port tcp" in line and "in use" in line for line in warnings))
                assert not there.virtio.nets()[0].link_up
                moved.set()
                await until(lambda: any("its link is up" in line for line in warnings))
                assert await echo(udp, b"after") == b"after"
    assert children() == []


def everywhere() -> socket.socket:
    """Listens at a port, for both versions."""
    return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)


def machine_of(net: str) -> None:
    """Make its devices, which fails."""
    config = MachineConfig.parse(memory="64M", net=[net])
    Board(config).close()


def test_what_cannot_be_forwarded() -> None:
    """A port in use, an address of another host: why, and what to do."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other, everywhere() as listener:
        other.bind(("127.0.0.1", 0))
        udp, tcp = other.getsockname()[1], listener.getsockname()[1]
        for net, told in {
            f"user,hostfwd=udp:127.0.0.1:{udp}-:7": f"port udp:127.0.0.1:{udp}-:7: Address already in use",
            f"user,hostfwd=tcp::{tcp}-:7": f"port tcp::{tcp}-:7: Address already in use; choose another, or end",
            "user,hostfwd=tcp:203.0.113.1:8080-:80": "Cannot assign requested address; this host does not have the",
        }.items():
            with pytest.raises(HostError, match=r"^net user: cannot forward") as caught:
                machine_of(net)
            assert told in str(caught.value)
    assert children() == []


def test_host_without_a_network() -> None:
    """passt cannot know what the guest is to see."""
    ip("link", "delete", "out")
    with pytest.raises(HostError, match="finds no interface with a default route on this host; connect the host"):
        machine_of("user")


def test_without_passt(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install, and what there is besides."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"needs passt, which is not installed; 'apt install passt', or --net tap"):
        machine_of("user")


@pytest.mark.parametrize(
    ("text", "allowed"), [("1\t0\n", False), ("0\t2147483647\n", True), ("100 200", True), ("7 99", False), ("", True)]
)
def test_who_may_ping(text: str, allowed: bool) -> None:
    """By what the kernel has for all groups."""
    assert may_ping(text, {5, 150}) is allowed


async def test_pings_that_go_nowhere() -> None:
    """The user hears of it once, with what helps."""
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("1 0")
    warnings: list[str] = []
    async with networked(warnings=warnings) as shell:
        assert "0 received" in await shell.ask(f"ping 0 {SERVER} 1")
        [line] = warnings
        assert "net0: pings of the guest go nowhere" in line
        assert "sudo sysctl net.ipv4.ping_group_range=" in line


def test_other_complaints_are_passed_on() -> None:
    """Without what is no news."""
    said = ["Failed to send 47 bytes to syslog", "Don't run as root. Changing to nobody...", "Strange thing", ""]
    assert "passt ended: Strange thing;" in str(complaint(said, NetConfig("user")))
    assert "without a word" in str(complaint([], NetConfig("user")))
    assert os.access(find_passt(), os.X_OK)
