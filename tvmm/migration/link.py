"""Connections between the two sides: where they lead, and messages over them.

A `Link` is the control connection. It ends in exceptions that say whose fault it was: `LinkLost` when bytes stop
coming or going, `ProtocolError` when they are wrong.
"""

from __future__ import annotations

import errno
import os
import socket as stdlib_socket
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio

from tvmm.control.listener import unix_listener
from tvmm.errors import HostError, TvmmError, UserError
from tvmm.migration.wire import OPENING_BYTES, REPLY_BYTES, Inbox, Opening, pack, read_reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

__all__ = ["Address", "Link", "LinkLost", "connect", "listen", "open_connection", "peer_name", "read_opening"]

RECEIVE_BYTES = 1 << 18
CONNECT_SECONDS = 10.0
BACKLOG = 64


class LinkLost(TvmmError):
    """The connection has ended, or does not move any more."""


class Address(Protocol):
    """Where a destination listens."""

    @property
    def kind(self) -> str:
        """``tcp`` or ``unix``."""

    @property
    def host(self) -> str:
        """Of tcp."""

    @property
    def port(self) -> int:
        """Of tcp."""

    @property
    def path(self) -> str:
        """Of unix."""

    @property
    def is_local(self) -> bool:
        """Nothing that is sent there leaves this host."""


class Link:
    """Messages of `types` in, any out, over one stream. One task sends and one receives."""

    def __init__(self, stream: trio.abc.Stream, types: Sequence[type[Any]]) -> None:
        self.stream = stream
        self.inbox = Inbox(types)
        self._sending = trio.Lock()

    async def send(self, message: Any) -> None:
        """Raises `LinkLost`."""
        data = pack(message)
        try:
            async with self._sending:
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkLost(f"the connection broke: {_cause(error)}") from error

    async def receive(self) -> Any:
        """The next message. Raises `LinkLost` or `ProtocolError`."""
        while True:
            message = self.inbox.next_message()
            if message is not None:
                return message
            try:
                data = await self.stream.receive_some(max(RECEIVE_BYTES, min(self.inbox.wanted(), 1 << 20)))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise LinkLost(f"the connection broke: {_cause(error)}") from error
            if not data:
                raise LinkLost("the other side has closed the connection")
            self.inbox.receive(bytes(data))

    async def close(self) -> None:
        """At once; whoever sends or receives finds it lost."""
        await trio.aclose_forcefully(self.stream)


async def receive_exactly(stream: trio.abc.Stream, count: int) -> bytes:
    """`count` bytes and no more. Raises `LinkLost`."""
    data = bytearray()
    while len(data) < count:
        try:
            part = await stream.receive_some(count - len(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkLost(f"the connection broke: {_cause(error)}") from error
        if not part:
            raise LinkLost("the other side has closed the connection")
        data += part
    return bytes(data)


async def connect(address: Address) -> trio.SocketStream:
    """Raises `UserError` with the reason when nobody is there within `CONNECT_SECONDS`."""
    name = peer_name(address)
    try:
        with trio.fail_after(CONNECT_SECONDS):
            if address.kind == "unix":
                stream = await trio.open_unix_socket(address.path)
                assert isinstance(stream, trio.SocketStream)
                return stream
            stream = await trio.open_tcp_stream(address.host, address.port)
    except trio.TooSlowError:
        raise UserError(f"nobody answers at {name} within {CONNECT_SECONDS:g}s", "check the address") from None
    except stdlib_socket.gaierror as error:
        raise UserError(f"{address.host} is no host that can be found: {error.strerror}") from error
    except OSError as error:
        raise UserError(f"{name} cannot be reached: {_connect_cause(error)}", _connect_hint(error)) from error
    with_nodelay(stream)
    return stream


def with_nodelay(stream: trio.SocketStream) -> None:
    """Small messages go at once, and a peer that is gone is found out."""
    if stream.socket.family != stdlib_socket.AF_UNIX:
        stream.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
        stream.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            stream.setsockopt(stdlib_socket.IPPROTO_TCP, getattr(stdlib_socket, option), value)


async def open_connection(address: Address, opening: Opening) -> trio.SocketStream:
    """`connect`, and exchange opening and reply. Raises `UserError`, `LinkLost` or `ProtocolError`."""
    stream = await connect(address)
    try:
        with trio.fail_after(CONNECT_SECONDS):
            await stream.send_all(opening.to_bytes())
            read_reply(await receive_exactly(stream, REPLY_BYTES))
    except trio.TooSlowError:
        await trio.aclose_forcefully(stream)
        raise LinkLost(f"{peer_name(address)} does not answer: is it a tvmm that waits for a machine?") from None
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        await trio.aclose_forcefully(stream)
        raise LinkLost(f"the connection broke: {_cause(error)}") from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def read_opening(stream: trio.abc.Stream) -> Opening:
    """What a connection begins with. Raises `LinkLost` or `ProtocolError`."""
    return Opening.from_bytes(await receive_exactly(stream, OPENING_BYTES))


@asynccontextmanager
async def listen(address: Address) -> AsyncIterator[list[trio.SocketListener]]:
    """Listening sockets. Raises `HostError` when the address is not to be had."""
    if address.kind == "unix":
        async with unix_listener(Path(address.path)) as listener:
            yield [listener]
        return
    name = peer_name(address)
    try:
        listeners = await trio.open_tcp_listeners(address.port, host=address.host or None, backlog=BACKLOG)
    except stdlib_socket.gaierror as error:
        raise HostError(f"{address.host} is no address of this host: {error.strerror}") from error
    except OSError as error:
        hint = "choose another port, or end what listens there" if error.errno == errno.EADDRINUSE else ""
        raise HostError(f"cannot listen at {name}: {_cause(error)}", hint) from error
    async with AsyncExitStack() as stack:
        for listener in listeners:
            await stack.enter_async_context(listener)
        yield listeners


def peer_name(address: Address) -> str:
    """For messages: ``tcp:HOST:PORT`` or ``unix:PATH``."""
    if address.kind == "unix":
        return f"unix:{address.path}"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"tcp:{host}:{address.port}"


def _cause(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if isinstance(cause, OSError):
        return cause.strerror or str(cause)
    return str(cause) or type(cause).__name__


def _attempts(error: OSError) -> list[int]:
    """Error numbers of all addresses of a host that were tried; Trio's own error has none."""
    each = getattr(error.__cause__, "exceptions", None) or [error.__cause__ or error]
    return list(dict.fromkeys(number for number in (getattr(one, "errno", None) for one in each) if number))


def _connect_cause(error: OSError) -> str:
    return ", ".join(map(os.strerror, _attempts(error))) or _cause(error)


def _connect_hint(error: OSError) -> str:
    if {errno.ECONNREFUSED, errno.ENOENT}.intersection(_attempts(error)):
        return "start the destination first: 'tvmm run --incoming ...' with the same options as here"
    return ""

