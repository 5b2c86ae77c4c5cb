"""Connections to an NBD server: made, secured and shaken hands on, ready to be handed to the engine.

The first ones are made while the board is built, in a worker thread and with a loop of their own (`run_now`), later
ones by the machine's loop. A `Connection` is of no loop: a plain socket, and for TLS what the records need. The engine
wants a stream socket without TLS, so between it and a secure connection goes a socketpair, which `Connection.pump`
fills.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import trio

from tvmm.errors import HostError, UserError
from tvmm.kvm.nbd import NbdTransmission
from tvmm.nbd.codec import Request, encode_request
from tvmm.nbd.constants import Command
from tvmm.nbd.handshake import Export, Handshake, Phase
from tvmm.nbd.tls import TlsLayer, explain, make_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tvmm.nbd.tls import Credentials
    from tvmm.nbd.uri import NbdAddress

    T = TypeVar("T")

__all__ = ["CONNECT_SECONDS", "Connection", "RemoteServer", "Server", "connect", "run_now"]

CONNECT_SECONDS = 10.0
"""For one attempt, from the name's resolution to the end of the handshake: whoever only listens must not keep it."""
BUFFER = 1 << 18
KEEPALIVE = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 25_000),
)
"""A host that has gone without a word is found out within 25 s, with requests under way and without."""


class Server(Protocol):
    """Something that gives connections to one export. Used by any loop, one at a time."""

    name: str
    """For messages and `tvmm info`."""

    async def connect(self) -> Connection:
        """A new connection. Raises `UserError`; takes no longer than `CONNECT_SECONDS`."""

    def close(self) -> None:
        """Nobody needs it any more; connections have been closed."""


class Connection:
    """A connected socket after the handshake. It belongs to its holder, who closes it."""

    def __init__(self, sock: socket.socket, export: Export, tls: TlsLayer | None = None) -> None:
        self.export = export
        self._socket = sock
        self._tls = tls
        self._ours: socket.socket | None = None
        if tls is not None:
            # The engine's end, and that of the pump.
            self._engine, self._ours = socket.socketpair()
            self._ours.setblocking(False)

    @property
    def transmission(self) -> NbdTransmission:
        """For the engine."""
        export = self.export
        return NbdTransmission(
            export.flags, export.structured, export.extended, export.minimum_block, export.maximum_payload
        )

    @property
    def needs_pump(self) -> bool:
        """Whether `pump` has to run for as long as the connection is used."""
        return self._tls is not None

    @property
    def fd(self) -> int:
        """What the engine is to send on and to receive from."""
        return self._engine.fileno() if self._tls is not None else self._socket.fileno()

    def given(self) -> None:
        """The engine has its own duplicate of `fd`; this one would keep the other end from seeing the end."""
        if self._tls is not None:
            self._engine.close()
        else:
            self._socket.close()

    def say_goodbye(self) -> None:
        """A word to the server that nothing follows; not waited for, and not needed."""
        if self._tls is None:
            with suppress(OSError):
                self._socket.send(encode_request(Request(Command.DISCONNECT, 0), extended=self.export.extended))

    def close(self) -> None:
        """Give all of it back."""
        self._socket.close()
        if self._tls is not None:
            self._engine.close()
        if self._ours is not None:
            self._ours.close()

    async def pump(self) -> None:
        """Carry bytes between the engine and the server until one of them ends it."""
        assert self._tls is not None
        assert self._ours is not None
        ours = trio.SocketStream(trio.socket.from_stdlib_socket(self._ours))
        theirs = trio.SocketStream(trio.socket.from_stdlib_socket(self._socket))
        lock = trio.Lock()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump_in, theirs, ours, lock, nursery.cancel_scope)
                nursery.start_soon(self._pump_out, theirs, ours, lock, nursery.cancel_scope)
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(ours)
                await trio.aclose_forcefully(theirs)

    async def _pump_in(
        self, theirs: trio.SocketStream, ours: trio.SocketStream, lock: trio.Lock, scope: trio.CancelScope
    ) -> None:
        assert self._tls is not None
        try:
            while data := await self._tls.receive_some(theirs, lock):
                await ours.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            pass
        scope.cancel()

    async def _pump_out(
        self, theirs: trio.SocketStream, ours: trio.SocketStream, lock: trio.Lock, scope: trio.CancelScope
    ) -> None:
        assert self._tls is not None
        try:
            while data := await ours.receive_some(BUFFER):
                await self._tls.send_all(theirs, lock, bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            pass
        scope.cancel()


class _Made(NamedTuple):
    export: Export
    tls: TlsLayer | None


async def connect(
    stream: trio.SocketStream, place: str, export: str, credentials: Credentials | None, context: ssl.SSLContext | None
) -> Connection:
    """Shake hands on a connected stream, which belongs to the connection then. Raises `UserError`, and closes it."""
    try:
        made = await _shake(stream, Handshake(place, export, tls=context is not None), credentials, context, place)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    plain = socket.socket(fileno=stream.socket.detach())
    return Connection(plain, made.export, made.tls)


async def _shake(
    stream: trio.SocketStream,
    handshake: Handshake,
    credentials: Credentials | None,
    context: ssl.SSLContext | None,
    place: str,
) -> _Made:
    tls: TlsLayer | None = None
    lock = trio.Lock()
    heard = False  # within TLS
    try:
        while handshake.phase is not Phase.DONE:
            if handshake.phase is Phase.WANTS_TLS:
                assert context is not None
                assert credentials is not None
                tls = await _secure(stream, context, credentials, place)
                out = handshake.tls_made()
            else:
                received = await (tls.receive_some(stream, lock) if tls else stream.receive_some(BUFFER))
                if not received:
                    if tls is not None and not heard:
                        raise _closed_in_tls(place)
                    handshake.closed()
                heard = tls is not None
                out = handshake.receive(bytes(received))
            if out:
                await (tls.send_all(stream, lock, out) if tls else stream.send_all(out))
    except (trio.BrokenResourceError, ssl.SSLError) as error:
        # Servers refuse a certificate, or the want of one, when TLS 1.3 has been made for the client.
        if tls is None:
            handshake.closed()
        cause = _cause(error)
        if not heard and not isinstance(cause, ssl.SSLError):
            raise _closed_in_tls(place) from error
        assert credentials is not None
        raise explain(cause, place, credentials.hostname) from error
    except UserError:
        with trio.move_on_after(1), suppress(trio.BrokenResourceError, ssl.SSLError):
            out = handshake.abort()
            if out:
                await (tls.send_all(stream, lock, out) if tls else stream.send_all(out))
        raise
    assert handshake.export is not None
    return _Made(handshake.export, tls)


def _closed_in_tls(place: str) -> HostError:
    return HostError(
        f"NBD server {place} closed the connection as soon as TLS was made",
        "it may want a certificate of this host: tls_cert=FILE and tls_key=FILE",
    )


async def _secure(
    stream: trio.SocketStream, context: ssl.SSLContext, credentials: Credentials, place: str
) -> TlsLayer:
    try:
        tls = TlsLayer(context, credentials.hostname)
        await tls.handshake(stream)
    except (ssl.SSLError, trio.BrokenResourceError, ValueError) as error:
        raise explain(_cause(error), place, credentials.hostname) from error
    return tls


def _cause(error: BaseException) -> BaseException:
    return error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error


class RemoteServer:
    """A `Server` that somebody else runs. `credentials` make it use TLS."""

    def __init__(self, address: NbdAddress, credentials: Credentials | None = None) -> None:
        """Raises `UserError` for credentials that are of no use."""
        self.name = address.spelling
        self._address = address
        self._credentials = credentials
        self._context = make_context(credentials) if credentials is not None else None

    async def connect(self) -> Connection:
        """See `Server`."""
        address, place = self._address, self._address.place
        try:
            with trio.fail_after(CONNECT_SECONDS):
                stream = await self._open()
                return await connect(stream, place, address.export, self._credentials, self._context)
        except trio.TooSlowError:
            raise HostError(
                f"NBD server {place} did not answer within {CONNECT_SECONDS:g} s", "look at the server, or the network"
            ) from None

    async def _open(self) -> trio.SocketStream:
        address = self._address
        try:
            if address.path:
                return await trio.open_unix_socket(address.path)
            stream = await trio.open_tcp_stream(address.host, address.port)
        except (OSError, ValueError) as error:
            raise _refused(error, address) from error
        for level, option, value in KEEPALIVE:
            stream.setsockopt(level, option, value)
        return stream

    def close(self) -> None:
        """See `Server`: it stays."""


def _refused(error: OSError | ValueError, address: NbdAddress) -> HostError:
    place = address.place
    if isinstance(error, socket.gaierror):
        return HostError(f"the name {address.host!r} of an NBD server is not known", "look at the address")
    number, hint = _reason(error)
    if number == errno.ENOENT:
        return HostError(f"NBD server {place} is not there: no such socket", "start it, or look at the path")
    if number == errno.ECONNREFUSED:
        return HostError(f"NBD server {place} is not there: connection refused", "start it, or look at the address")
    if number in (errno.EACCES, errno.EPERM):
        return HostError(f"NBD server {place} cannot be reached: {hint}", "get the right to use the socket")
    return HostError(f"NBD server {place} cannot be reached: {hint}", "look at the address and at the network")


def _reason(error: BaseException) -> tuple[int, str]:
    """The errno and its words; of several attempts those of the first."""
    while isinstance(error.__cause__, OSError | BaseExceptionGroup) or isinstance(error, BaseExceptionGroup):
        inner = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__
        assert inner is not None
        error = inner
    number = getattr(error, "errno", None) or 0
    return number, os.strerror(number) if number else str(error)


def run_now(make: Callable[[], Awaitable[T]]) -> T:
    """What `make` comes to, in a loop of its own: for callers that may be in one, or in none."""
    results: list[T] = []
    errors: list[BaseException] = []

    def main() -> None:
        async def run() -> T:
            return await make()

        try:
            results.append(trio.run(run))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=main, name="nbd connect")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
