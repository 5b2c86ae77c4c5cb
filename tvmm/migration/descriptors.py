"""Descriptors on their way from one process to another, over a unix socket, and who may be at its other end.

One message, of `names`, goes in the first bytes of the connection and has a descriptor for each of them with it
(SCM_RIGHTS, unix(7)). Who gets one has the memory behind it as whoever sent it has it; so both sides look who the other
one is before, and the one that gets it looks at what it is.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING

import trio

from tvmm.errors import HostError, ProtocolError
from tvmm.memory.ram import SEALS
from tvmm.migration.link import LinkLost
from tvmm.migration.messages import Descriptors
from tvmm.migration.wire import Inbox, pack, readable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["check_memory", "is_trusted", "receive_descriptors", "send_descriptors"]

MAX_DESCRIPTORS = 128
"""In one message. A peer does not fill this process' table of them; the kernel's own limit is 253."""
MAX_NAMES_BYTES = 1 << 14
_CREDENTIALS = struct.Struct("=3i")
"""struct ucred: process, user, group."""
ROOT = 0
F_SEAL_FUTURE_WRITE = 0x10
_NO_WRITING = fcntl.F_SEAL_WRITE | F_SEAL_FUTURE_WRITE


def is_trusted(stream: trio.abc.Stream) -> bool:
    """Whether descriptors can go over `stream`, and are safe with who is at its other end: this user, or root.

    Of a connection that was made, that is who listens there; of one that was accepted, who has made it (SO_PEERCRED).
    """
    if not isinstance(stream, trio.SocketStream) or stream.socket.family != socket.AF_UNIX:
        return False
    data = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(data)
    return user in (ROOT, os.geteuid())


async def send_descriptors(stream: trio.abc.Stream, names: Sequence[str], fds: Sequence[int]) -> None:
    """One of `fds` for each name; they stay open here. Raises `LinkLost`, and `HostError` for more than can be sent."""
    if len(fds) > MAX_DESCRIPTORS:
        raise HostError(
            f"{len(fds)} descriptors cannot be handed over at once, {MAX_DESCRIPTORS} can",
            "let the new machine have taps of other names, in the same bridge",
        )
    assert isinstance(stream, trio.SocketStream)
    data = pack(Descriptors(tuple(names)))
    try:
        sent = await stream.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        await stream.send_all(data[sent:])
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise LinkLost(f"the connection for descriptors broke: {error}") from error


async def receive_descriptors(stream: trio.abc.Stream) -> dict[str, int]:
    """What `send_descriptors` sends, by name; all of them are the caller's to close.

    Raises `LinkLost`, or `ProtocolError` for anything that is not one message with as many descriptors as names.
    """
    assert isinstance(stream, trio.SocketStream)
    inbox = Inbox((Descriptors,), MAX_NAMES_BYTES)
    fds: list[int] = []
    try:
        message = None
        while message is None:
            data = await _receive(stream, inbox.wanted(), fds)
            inbox.receive(data)
            message = inbox.next_message()
        names = message.names
        if len(names) != len(fds) or len(set(names)) != len(names):
            raise ProtocolError(f"the source has sent {len(fds)} descriptors for {len(set(names))} names")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return dict(zip(names, fds, strict=True))


async def _receive(stream: trio.SocketStream, count: int, fds: list[int]) -> bytes:
    """Some bytes; descriptors that come with them are added to `fds`."""
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    try:
        data, ancillary, flags, _ = await stream.socket.recvmsg(count, space, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise LinkLost(f"the connection for descriptors broke: {error.strerror}") from error
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
            fds += numbers
    if flags & socket.MSG_CTRUNC or len(fds) > MAX_DESCRIPTORS:
        raise ProtocolError(f"the source has sent more than {MAX_DESCRIPTORS} descriptors")
    if not data:
        raise LinkLost("the source has closed the connection for descriptors")
    return bytes(data)


def check_memory(fd: int, name: str, size: int, page_size: int) -> None:
    """Raise `ProtocolError` unless `fd` is memory of `size` bytes in pages of `page_size` that can be mapped without
    fear: nobody can cut it short, which would end whoever touches it, and it can be written to.
    """
    shown = readable(name)
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        status, pages = os.fstat(fd), os.fstatvfs(fd).f_bsize
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        raise ProtocolError(f"what the source has sent for {shown} is no memory") from None
    if not stat.S_ISREG(status.st_mode) or seals & SEALS != SEALS or seals & _NO_WRITING or mode != os.O_RDWR:
        raise ProtocolError(f"the memory for {shown} is not sealed as tvmm seals it, and could be taken away again")
    if status.st_size != size:
        raise ProtocolError(f"the memory for {shown} has {status.st_size} bytes in place of {size}")
    if pages != page_size:
        raise ProtocolError(
            f"the memory for {shown} is in pages of {pages >> 10} KiB, here they have {page_size >> 10} KiB: "
            "start both sides with the same hugepages"
        )
