"""The server for viewers of one machine: who may come in, where it listens, and what control clients ask of it."""

from __future__ import annotations

import errno
import secrets
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tvmm.control.listener import unix_listener
from tvmm.control.vnc_target import VncClientInfo, VncEnd, VncServerInfo
from tvmm.control.vnc_verbs import event_data
from tvmm.devices.keys import evdev_of_xt, keystroke
from tvmm.errors import HostError, UserError
from tvmm.migration.keys import KeyDirectory
from tvmm.vnc.access import Access, open_access
from tvmm.vnc.server import End, Settings, VncServer
from tvmm.vnc.session import SessionOptions
from tvmm.vnc.viewer import MADE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from tvmm.config.vnc import VncAddress, VncConfig
    from tvmm.machine import Machine
    from tvmm.vnc.viewer import Viewer
    from tvmm.vnc.web_server import WebConsole
    from tvmm.wiring.screen import Screen

__all__ = ["Viewers", "follow_pointer", "lights_followed", "serve_viewers"]

SERVER_ID = "default"
"""QEMU's name of a server that was given none."""
BACKLOG = 16
EVERYWHERE = ("0.0.0.0", "::")
POINTER_POLL_S = 0.25
"""Between two looks at whether the guest has begun to use another pointer."""


class Viewers:
    """`VncTarget` of a machine with a server."""

    def __init__(self, machine: Machine, screen: Screen, config: VncConfig, access: Access) -> None:
        self._machine = machine
        self._access = access
        self._ends: tuple[VncEnd, ...] = ()
        options = SessionOptions(encodings=MADE)
        settings = Settings(
            machine.name or "tvmm",
            lambda: access.types,
            access.limits,
            keystroke,
            evdev_of_xt,
            config.share,  # type: ignore[arg-type]  # checked with the option
            config.lossy,
            options,
        )
        self.server = VncServer(screen, machine.board.input, settings, self._tell, machine.on_warning)
        self._announced: set[Viewer] = set()

    def listening(self, ends: Sequence[VncEnd]) -> None:
        """Where it can be found."""
        self._ends = (*self._ends, *ends)

    def _tell(self, event: str, viewer: Viewer) -> None:
        [info] = self.vnc_servers()
        self._machine.tell(event, dict(event_data(info, self._client(viewer))))

    # --- VncTarget ---

    def vnc_servers(self) -> Sequence[VncServerInfo]:
        """See `VncTarget`."""
        auth, vencrypt = self._access.auth
        clients = tuple(self._client(viewer) for viewer in self.server.viewers if viewer.session.running)
        return [VncServerInfo(SERVER_ID, self._ends, auth, vencrypt, clients)]

    @staticmethod
    def _client(viewer: Viewer) -> VncClientInfo:
        session = viewer.session
        return VncClientInfo(
            _end(viewer.end),
            session.user,
            session.security,
            session.view_only,
            time.monotonic() - viewer.since,
            viewer.bytes_sent,
            viewer.frames,
            viewer.end.relay,
        )

    def set_vnc_password(self, password: str, connected: str) -> None:
        """See `VncTarget`."""
        if connected == "fail" and self.server.viewers:
            raise UserError("there are viewers", "keep or disconnect them")
        self._access.set_password(password)
        if connected == "disconnect":
            self.server.drop(proved=False)

    def expire_vnc_password(self, time: str) -> None:
        """See `VncTarget`."""
        self._access.expire_password(time)


async def follow_pointer(server: VncServer) -> None:
    """Tell viewers when the guest takes to a tablet, or to a mouse. Ends by being cancelled."""
    told: bool | None = None
    while True:
        absolute = server.hub.absolute if server.viewers else told
        if absolute is not None and absolute != told:
            told = absolute
            server.set_absolute(absolute)
        await trio.sleep(POINTER_POLL_S)


@contextmanager
def lights_followed(machine: Machine, server: VncServer) -> Iterator[None]:
    """Within the block viewers are told of the guest's lock keys."""
    token = trio.lowlevel.current_trio_token()

    def leds(value: int) -> None:
        token.run_sync_soon(server.set_leds, value)

    machine.board.input.on_leds.append(leds)
    try:
        yield
    finally:
        machine.board.input.on_leds.remove(leds)


def _end(end: End) -> VncEnd:
    if not end.host:
        return VncEnd("", "", "unix", end.websocket)
    return VncEnd(end.host, str(end.port), "ipv6" if ":" in end.host else "ipv4", end.websocket)


@asynccontextmanager
async def serve_viewers(
    machine: Machine, screen: Screen, config: VncConfig, nursery: trio.Nursery
) -> AsyncIterator[Viewers]:
    """Within the block viewers come in, in tasks of `nursery`. Raises `UserError`; says where, and with what."""
    say = machine.on_warning
    access = await trio.to_thread.run_sync(_open_access, config)
    for line in access.lines:
        say(line)
    viewers = Viewers(machine, screen, config, access)
    async with AsyncExitStack() as stack:
        listeners, where = await stack.enter_async_context(_listen(config.address, config.to))
        stack.enter_context(lights_followed(machine, viewers.server))
        viewers.listening(_ends_of(listeners, config.address))
        say(f"viewers find the screen at {where}")
        nursery.start_soon(partial(viewers.server.run, listeners), name="vnc")
        nursery.start_soon(follow_pointer, viewers.server, name="vnc pointer")
        if config.web.kind != "none":
            web, _ = await stack.enter_async_context(_listen(config.web))
            console = _web_console(machine, viewers, config.web, web, access)
            nursery.start_soon(partial(console.run, web), name="web console")
        yield viewers


def _open_access(config: VncConfig) -> Access:
    if config.keys:
        KeyDirectory(Path(config.keys)).check()
    return open_access(config, time.time, [socket.gethostname()])


@asynccontextmanager
async def _listen(address: VncAddress, last: int = 0) -> AsyncIterator[tuple[list[trio.SocketListener], str]]:
    if address.kind == "unix":
        async with unix_listener(Path(address.path)) as listener:
            yield [listener], f"unix:{address.path}"
        return
    port = address.port
    while True:
        try:
            listeners = await trio.open_tcp_listeners(port, host=address.host, backlog=BACKLOG)
            break
        except socket.gaierror as error:
            raise HostError(f"{address.host} is no address of this host: {error.strerror}") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE and port < last:
                port += 1
                continue
            hint = "choose another port, or a range of them with to=PORT" if error.errno == errno.EADDRINUSE else ""
            text = address._replace(port=port).text
            raise HostError(f"cannot listen at {text} for viewers: {error.strerror or error}", hint) from error
    try:
        yield listeners, address._replace(port=listeners[0].socket.getsockname()[1]).text
    finally:
        for listener in listeners:
            listener.socket.close()


def _ends_of(listeners: Sequence[trio.SocketListener], address: VncAddress) -> list[VncEnd]:
    if address.kind == "unix":
        return [VncEnd(address.path, "", "unix")]
    names = [listener.socket.getsockname() for listener in listeners]
    return [_end(End(name[0], name[1])) for name in names]


def _web_console(
    machine: Machine,
    viewers: Viewers,
    address: VncAddress,
    listeners: Sequence[trio.SocketListener],
    access: Access,
) -> WebConsole:
    """The page for browsers, on a port of its own; says where."""
    from tvmm.vnc.web import page_files
    from tvmm.vnc.web_panel import Panel
    from tvmm.vnc.web_rules import Rules, console_url
    from tvmm.vnc.web_server import WebConsole
    from tvmm.wiring.panel import figures

    port = listeners[0].socket.getsockname()[1]

    def peer_end(peer: str) -> End:
        host, _, port = peer.rpartition(":")
        return End(host.strip("[]"), int(port), websocket=True)

    async def serve(stream: trio.abc.Stream, peer: str) -> None:
        await viewers.server.serve(stream, peer_end(peer))

    tls = access.certificate.context if access.certificate is not None else None
    token = secrets.token_urlsafe(24)
    names = [name for name in (address.host, socket.gethostname()) if name]
    rules = Rules(token, page_files(), names, secure=tls is not None)
    viewers.listening([_end(End(address.host, port, websocket=True))])
    # Who listens everywhere is not to be called by that address.
    host = socket.gethostname() if address.host in EVERYWHERE else address.host
    machine.on_warning(f"browsers find it at {console_url(host, port, token, secure=tls is not None)}")
    return WebConsole(rules, serve, Panel(partial(figures, machine), time.monotonic), tls=tls)
