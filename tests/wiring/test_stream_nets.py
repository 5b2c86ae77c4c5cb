"""``--net stream``: the built-in guest and a peer at a unix socket, which goes and comes back."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.echo_peer import ICMP_AT, checksum
from tests.support.plain_stream import framed, unframed
from tests.wiring.guests import GuestShell, guest
from tvmm import MachineConfig
from tvmm.board import Board
from tvmm.errors import UserError

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

GUEST, HOST = "10.0.2.15", "10.0.2.2"
MAC = bytes.fromhex("020000000001")
ARP, IPV4, RARP = b"\x08\x06", b"\x08\x00", b"\x80\x35"
PATIENCE_S = 30


def answer(frame: bytes) -> bytes | None:
    """What a host says to ARP for any address, and to pings."""
    kind = frame[12:14]
    if kind == ARP and frame[21] == 1:
        asked, sender = frame[38:42], frame[22:32]
        return frame[6:12] + MAC + frame[12:20] + struct.pack("!H", 2) + MAC + asked + sender
    if kind == IPV4 and frame[23] == 1 and frame[ICMP_AT] == 8:
        icmp = bytes(4) + frame[ICMP_AT + 4 :]
        icmp = icmp[:2] + checksum(icmp + b"\0" * (len(icmp) % 2)).to_bytes(2, "big") + icmp[4:]
        return frame[6:12] + MAC + frame[12:26] + frame[30:34] + frame[26:30] + icmp
    return None


class Peer:
    """Listens at a path, for one machine after the other. `kinds` are the types of frames that came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kinds: list[bytes] = []
        self.connected = trio.Event()
        self._stream: trio.SocketStream | None = None

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled: a new listener each time that `hang_up` is called."""
        with trio.socket.socket(trio.socket.AF_UNIX) as listener:
            await listener.bind(str(self.path))
            listener.listen()
            task_status.started()
            while True:
                connection, _ = await listener.accept()
                self._stream = trio.SocketStream(connection)
                self.connected.set()
                await self._talk(self._stream)

    async def _talk(self, stream: trio.SocketStream) -> None:
        rest = b""
        try:
            async with stream:
                async for data in stream:
                    frames, rest, _ = unframed(rest + data)
                    self.kinds += [frame[12:14] for frame in frames]
                    await stream.send_all(framed(*filter(None, map(answer, frames))))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def hang_up(self, last: bytes = b"") -> None:
        """After a last word."""
        assert self._stream is not None
        self.connected = trio.Event()
        await self._stream.send_all(last)
        await self._stream.aclose()


@asynccontextmanager
async def listening(path: Path) -> AsyncIterator[Peer]:
    """A peer that is there in this block."""
    peer = Peer(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.serve)
        yield peer
        nursery.cancel_scope.cancel()
    path.unlink()


async def until(condition: Callable[[], object]) -> None:
    """Look now and then."""
    with trio.fail_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0.01)


def is_up(shell: GuestShell) -> bool:
    """The cable, as control clients see it."""
    assert shell.vm.virtio is not None
    return shell.vm.virtio.nets()[0].link_up


@pytest.mark.parametrize("ring", ["", ",packed=on", ",transport=mmio,in_order=on"])
async def test_frames_both_ways(ring: str, tmp_path: Path) -> None:
    """The guest pings the peer, with small packets and large."""
    async with listening(tmp_path / "peer") as peer:
        words = "packed" if "packed" in ring else ""
        async with guest(words, net=[f"stream,path={peer.path},mtu=9000{ring}"]) as shell:
            await shell.ask(f"ip 0 {GUEST}/24")
            assert "20 sent, 20 received" in await shell.ask(f"ping 0 {HOST} 20")
            assert shell.vm.virtio is not None
            [net] = shell.vm.virtio.nets()
            assert (net.ifname, net.link_up) == (str(peer.path), True)


@pytest.mark.parametrize("last", [b"", struct.pack("!I", 1 << 24)], ids=["closed", "garbage"])
async def test_peer_that_comes_back(last: bytes, tmp_path: Path) -> None:
    """The link is down meanwhile; the user is told; the guest says where it is."""
    path, warnings = tmp_path / "peer", list[str]()
    async with trio.open_nursery() as nursery:
        async with listening(path) as peer:
            # The machine lives longer than its first peer.
            shells: list[GuestShell] = []
            ended = trio.Event()

            async def machine(task_status: trio.TaskStatus[None]) -> None:
                async with guest(net=[f"stream,path={path}"]) as shell:
                    shell.vm.on_warning = warnings.append
                    shells.append(shell)
                    task_status.started()
                    await ended.wait()

            await nursery.start(machine)
            [shell] = shells
            await shell.ask(f"ip 0 {GUEST}/24")
            assert "2 sent, 2 received" in await shell.ask(f"ping 0 {HOST} 2")
            # It comes back at once ...
            await peer.hang_up(last)
            await until(lambda: len(warnings) == 2 and is_up(shell))
            why = "sent a frame of 16777216 bytes, 65557 are possible" if last else "closed the connection"
            assert warnings == [
                f"net0: {path}: the peer {why}; its link is down", "net0: connected again; its link is up"
            ]  # fmt: skip
            await until(lambda: RARP in peer.kinds)
            assert "2 sent, 2 received" in await shell.ask(f"ping 0 {HOST} 2")
            del warnings[:]
        # ... and after a while.
        await until(lambda: len(warnings) == 2)
        assert "cannot connect" in warnings[1]
        assert not is_up(shell)
        assert "0 received" in await shell.ask(f"ping 0 {HOST} 1")
        async with listening(path) as peer:
            await until(lambda: is_up(shell))
            assert "2 sent, 2 received" in await shell.ask(f"ping 0 {HOST} 2")
            ended.set()


async def test_a_socket_that_was_handed_over() -> None:
    """It works, and cannot come back."""
    ours, theirs = socket.socketpair()
    async with trio.open_nursery() as nursery:
        peer = Peer(Path())
        nursery.start_soon(peer._talk, trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
        async with guest(net=[f"stream,fd={ours.detach()}"]) as shell:
            warnings: list[str] = []
            shell.vm.on_warning = warnings.append
            await shell.ask(f"ip 0 {GUEST}/24")
            assert "2 sent, 2 received" in await shell.ask(f"ping 0 {HOST} 2")
            nursery.cancel_scope.cancel()
            await until(lambda: warnings)
            assert "the peer closed the connection; its link is down" in warnings[0]


def test_nobody_to_connect_to(tmp_path: Path) -> None:
    """What is wrong, in words."""
    with socket.socket(socket.AF_UNIX) as dead, open(tmp_path / "file", "w") as file:
        dead.bind(str(tmp_path / "dead"))
        for net, told in {
            f"stream,path={tmp_path}/none": "there is no such socket; start its other end first",
            f"stream,path={tmp_path}/dead": "nobody listens there; start its other end first",
            f"stream,path={tmp_path}": "cannot connect to",
            "stream,fd=1000000": "net fd=1000000 is not open",
            f"stream,fd={file.fileno()}": "is no socket",
        }.items():
            with pytest.raises(UserError) as caught:
                Board(MachineConfig.parse(memory="64M", net=[net])).close()
            assert told in str(caught.value)
    assert not os.path.exists(tmp_path / "none")
