"""A listening TCP socket, without telnet's negotiation: `nc HOST PORT` is a viewer. See `server` for who gets
what.

Whoever can connect can type; there is no password. Listen on a loopback address unless the network is your
own.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import trio

from tvmm.chardev.server import FAREWELL_SECONDS, ViewerServer
from tvmm.errors import HostError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tvmm.chardev.port import Line

__all__ = ["TcpBackend"]


class TcpBackend:
    """`tcp=HOST:PORT`; port 0 takes a free one, which `path` then tells. Every address of HOST is listened
    on.

    Acquisition raises `HostError` if the name has no address or one of them cannot be listened on.
    """

    patience = FAREWELL_SECONDS

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self.path = ""
        self._listeners: list[trio.SocketListener] = []

    async def __aenter__(self) -> Self:
        where = _spelled(self._host, self._port)
        try:
            self._listeners = await _listen(self._host, self._port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise HostError(
                    f"cannot listen on {where}: the port is in use", "choose another port"
                ) from None
            raise HostError(f"cannot listen on {where}: {error.strerror or error}") from None
        for listener in self._listeners:
            # Accepted connections inherit it: a viewer whose host went away must not be waited for for ever.
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.path = _spelled(self._host, self._listeners[0].socket.getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listener in self._listeners:
            listener.socket.close()

    async def run(self, line: Line) -> None:
        """Serve viewers until the guest's output ends."""
        await ViewerServer(line).run(self._listeners)


def _spelled(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on every address of `host` that this system has, or on the first if any port will do.

    `localhost` often has an IPv6 address on systems that do without IPv6.
    """
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    listeners: list[trio.SocketListener] = []
    missing: OSError | None = None
    try:
        for address in addresses if port else addresses[:1]:
            try:
                listeners += await trio.open_tcp_listeners(port, host=address)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
        if missing and not listeners:
            raise missing
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners
