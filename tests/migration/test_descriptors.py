"""Descriptors from a peer: what they may be, how many, and from whom."""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from tests.support.hostile_source import HELLO, waiting_for
from tests.support.moving_guests import RAM_BYTES, World
from tvmm.errors import ProtocolError
from tvmm.memory.ram import SEALS, RamBlock
from tvmm.migration.descriptors import MAX_DESCRIPTORS, check_memory, is_trusted, receive_descriptors, send_descriptors
from tvmm.migration.link import LinkLost
from tvmm.migration.messages import Descriptors, Failure, Grants, RoundDone, Wants, Welcome
from tvmm.migration.wire import Kind, Opening, Reply, pack

SIZE = 1 << 20
PAGE = mmap.PAGESIZE


def memfd(size: int = SIZE, seals: int = SEALS) -> int:
    """Of that size, sealed like that."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def read_only() -> int:
    """The right memory, not to be written to."""
    fd = memfd(RAM_BYTES)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


def plain_file() -> int:
    """On the disk."""
    fd = os.open("/tmp", os.O_RDWR | os.O_TMPFILE)
    os.ftruncate(fd, RAM_BYTES)
    return fd


WRONG: dict[str, tuple[Callable[[], int], str]] = {
    "a file": (plain_file, "no memory|not sealed"),
    "a pipe": (lambda: os.pipe()[0], "no memory"),
    "a folder": (lambda: os.open("/", os.O_RDONLY), "no memory"),
    "a socket": (lambda: socket.socketpair()[0].detach(), "no memory"),
    "not sealed": (lambda: memfd(RAM_BYTES, 0), "not sealed"),
    "may shrink": (lambda: memfd(RAM_BYTES, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL), "not sealed"),
    "more seals may follow": (lambda: memfd(RAM_BYTES, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK), "not sealed"),
    "no writing": (lambda: memfd(RAM_BYTES, SEALS | fcntl.F_SEAL_WRITE), "not sealed"),
    "no more writing": (lambda: memfd(RAM_BYTES, SEALS | 0x10), "not sealed"),
    "read-only": (read_only, "not sealed"),
    "too small": (lambda: memfd(RAM_BYTES - PAGE), "bytes in place of"),
    "too large": (lambda: memfd(RAM_BYTES + PAGE), "bytes in place of"),
    "empty": (lambda: memfd(0), "bytes in place of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_memory_that_is_refused(name: str) -> None:
    """Nothing that could be taken away from under its new owner, or is something else."""
    make, error = WRONG[name]
    fd = make()
    try:
        with pytest.raises(ProtocolError, match=error):
            check_memory(fd, "pc.ram", RAM_BYTES, PAGE)
    finally:
        os.close(fd)


def test_memory_of_a_block_is_taken() -> None:
    """And only in pages of the size that is in use here: huge ones lie at other addresses."""
    block = RamBlock("pc.ram", SIZE)
    try:
        check_memory(block.fd, "pc.ram", SIZE, PAGE)
        with pytest.raises(ProtocolError, match="pages of 4 KiB, here they have 2048 KiB"):
            check_memory(block.fd, "pc.ram", SIZE, 2 << 20)
    finally:
        block.close()


@contextmanager
def opened() -> Iterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """Both ends of a connection; no descriptor is left over."""
    before = set(os.listdir("/proc/self/fd"))
    near, far = socket.socketpair()
    ends = [trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in (near, far)]
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            end.socket.close()
    assert len(os.listdir("/proc/self/fd")) <= len(before)


async def test_there_and_back() -> None:
    """By name, closed on exec, and the same file."""
    with opened() as (near, far):
        files = {"one": memfd(), "two": memfd()}
        await send_descriptors(near, list(files), list(files.values()))
        there = await receive_descriptors(far)
        assert list(there) == ["one", "two"]
        for name, fd in there.items():
            assert os.fstat(fd).st_ino == os.fstat(files[name]).st_ino
            assert not os.get_inheritable(fd)
            os.close(fd)
            os.close(files[name])


def with_fds(fds: list[int]) -> list[Any]:
    """Ancillary data."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (("a",), 0),
        ((), 1),
        (("a", "b"), 1),
        (("a",), 2),
        (("a", "a"), 2),
        (tuple(map(str, range(MAX_DESCRIPTORS + 1))), MAX_DESCRIPTORS + 1),
        (("a",), 253),
    ],
)
async def test_as_many_as_there_are_names(names: tuple[str, ...], count: int) -> None:
    """And each once; what came is closed again."""
    fd = memfd()
    try:
        with opened() as (near, far):
            await near.socket.sendmsg([pack(Descriptors(names))], with_fds([fd] * count) if count else [])
            with pytest.raises(ProtocolError, match="descriptors"):
                await receive_descriptors(far)
    finally:
        os.close(fd)


@pytest.mark.parametrize("data", [b"", b"\x05\0\0\0", pack(Descriptors(("a",)))[:-1], bytes(64), b"\xff" * 64])
async def test_bytes_that_are_no_message(data: bytes) -> None:
    """With a descriptor that comes with them."""
    fd = memfd()
    try:
        with opened() as (near, far):
            if data:
                await near.socket.sendmsg([data], with_fds([fd]))
            await near.send_eof()
            with pytest.raises((ProtocolError, LinkLost)):
                await receive_descriptors(far)
    finally:
        os.close(fd)


async def test_descriptors_drop_by_drop() -> None:
    """One with each byte, for ever: there is an end to it."""
    fd = memfd()
    try:
        with opened() as (near, far):

            async def drip() -> None:
                for byte in pack(Descriptors(("x" * 400,))):
                    await near.socket.sendmsg([bytes([byte])], with_fds([fd]))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(drip)
                with pytest.raises(ProtocolError, match="more than"):
                    await receive_descriptors(far)
                nursery.cancel_scope.cancel()
    finally:
        os.close(fd)


async def test_this_user_is_trusted_and_no_network_is() -> None:
    """Nobody knows who is at the other end of that; nor can descriptors go there."""
    with opened() as (near, _):
        assert is_trusted(near)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]) as stream:
        assert not is_trusted(stream)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is somebody whom only root can be")
async def test_another_user_is_not_trusted() -> None:
    """Asked of the kernel, not of the peer."""
    name = f"\0tvmm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        child = os.fork()
        if not child:
            with socket.socket(socket.AF_UNIX) as other:
                os.setresuid(65534, 65534, 65534)
                other.connect(name)
                other.recv(1)
            os._exit(0)
        accepted, _ = listener.accept()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
        assert not is_trusted(stream)
        stream.socket.close()
        assert os.waitpid(child, 0)[1] == 0


# --- a whole destination ---


@pytest.fixture
def world() -> Iterator[World]:
    """A destination that can take memory over."""
    made = World(shared=True)
    yield made
    made.close()


@pytest.mark.parametrize("name", [*WRONG, "other names", "nothing", "junk"])
async def test_a_hostile_source(world: World, hurried: None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told what is wrong, the guest stays its own, and no memory of it is here."""
    monkeypatch.setattr("tvmm.migration.hand_over.MEMORY_SECONDS", 0.3)
    async with waiting_for(world) as source:
        link = await source.control()
        await link.send(Wants(("memfd",)))
        await link.send(HELLO)
        assert await link.receive() == Grants(("memfd",))
        welcome = await link.receive()
        assert isinstance(welcome, Welcome)
        stream, reply = await source.open(Opening(Kind.RAM, token=welcome.token))
        assert reply is Reply.GO
        fd = WRONG[name][0]() if name in WRONG else memfd(RAM_BYTES)
        try:
            if name == "junk":
                await stream.socket.sendmsg([bytes(64)], with_fds([fd]))
            elif name != "nothing":
                await send_descriptors(stream, ["pc.ram" if name in WRONG else "pc.rom"], [fd])
        finally:
            os.close(fd)
        if name == "nothing":
            assert "did not come" in await source.until_over()
        else:
            assert isinstance(await link.receive(), Failure)
        assert not world.destination.lent


async def test_memory_that_nobody_has_asked_for(world: World, hurried: None) -> None:
    """Without the token, without the wish, or a second time."""
    async with waiting_for(world) as source:
        assert (await source.open(Opening(Kind.RAM)))[1] is Reply.NO_SUCH_TOKEN
        link, token = await source.greeted()
        stream, reply = await source.open(Opening(Kind.RAM, token=token))
        assert reply is Reply.GO
        assert await stream.receive_some(1) == b""
        assert "connection for memory has no place here" in source.said[-1]
    world.destination.lent.clear()
    async with waiting_for(world) as source:
        link = await source.control()
        await link.send(Wants(("memfd",)))
        await link.send(HELLO)
        assert await link.receive() == Grants(("memfd",))
        token = (await link.receive()).token
        first, second = [(await source.open(Opening(Kind.RAM, token=token)))[0] for _ in range(2)]
        assert await second.receive_some(1) == b""
        fd = memfd(RAM_BYTES)
        await send_descriptors(first, ["pc.ram"], [fd])
        os.close(fd)
        assert isinstance(await link.receive(), RoundDone)
