"""Viewers of a guest that moves: at the source they stay and are shown what the destination's server sends.

docs/vnc-relay.md is the whole of it in prose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tvmm.devices.keys import evdev_of_xt, keystroke, xt_of_evdev
from tvmm.errors import TvmmError, collapse
from tvmm.vnc.lockout import Limits
from tvmm.vnc.relay import Relay
from tvmm.vnc.server import End, Settings, VncServer
from tvmm.vnc.session import SessionOptions
from tvmm.vnc.viewer import MADE
from tvmm.wiring.viewers import Viewers, follow_pointer, lights_followed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tvmm.machine import Machine

__all__ = ["Relaying", "serve_relayed"]

CONNECT_SECONDS = 20.0
"""For the destination to take the connection for the screen. Viewers see a picture that stands still until then."""


class Relaying:
    """At the source, whose guest lives at `peer` now. `compressed`: what is sent goes over a network."""

    def __init__(
        self,
        machine: Machine,
        peer: str,
        open_screen: Callable[[], Awaitable[trio.abc.Stream]],
        *,
        compressed: bool,
    ) -> None:
        self._machine = machine
        self._peer = peer
        self._open_screen = open_screen
        self._relay = Relay(xt_of_evdev, compressed=compressed)
        self._server = _server_of(machine)
        self.viewers = sum(viewer.session.running for viewer in self._server.viewers) if self._server else 0
        """How many there are to be relayed."""
        if self._server is not None and self.viewers:
            # At once: what is typed before there is a connection is kept for it.
            self._server.redirect(self._relay.input)

    async def run(self) -> None:
        """Until the last viewer has left, or the other machine has ended; then all have left."""
        if self._server is None or not self.viewers:
            return
        server, say = self._server, self._machine.on_warning
        server.close("the guest has moved")
        try:
            with collapse():
                await self._carry(server)
        except (TvmmError, trio.TooSlowError, trio.BrokenResourceError, OSError) as error:
            say(f"the viewers could not go on looking: {str(error) or 'the destination does not answer'}")
        for viewer in list(server.viewers):
            viewer.leave("the guest has moved")

    async def _carry(self, server: VncServer) -> None:
        relay = self._relay

        with trio.fail_after(CONNECT_SECONDS):
            stream = await self._open_screen()

        async def follow(*, task_status: trio.TaskStatus[None]) -> None:
            await relay.run(stream, task_status=task_status)
            # The other machine has ended, or wants no viewers.
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            await nursery.start(follow)
            relay.input.on_leds.append(server.set_leds)
            await server.move(relay)
            # Pictures and recordings go on, too.
            self._machine.screen = relay
            count = len(server.viewers)
            self._machine.on_warning(
                f"the guest has moved to {self._peer}; {count} {'viewers are' if count != 1 else 'viewer is'} "
                "relayed until they leave"
            )
            await trio.to_thread.run_sync(self._give_back)
            await server.wait_empty()
            nursery.cancel_scope.cancel()

    def _give_back(self) -> None:
        """The guest's memory: nobody here looks at it any more."""
        for block in self._machine.board.ram.blocks.values():
            block.zero()


def _private_server(machine: Machine) -> VncServer:
    """Of a machine that was started without ``--vnc``: for those alone who come with their guest."""
    assert machine.screen is not None
    options = SessionOptions(encodings=MADE)
    settings = Settings(machine.name or "tvmm", lambda: (), Limits(), keystroke, evdev_of_xt, options=options)
    return VncServer(machine.screen, machine.board.input, settings)


async def serve_relayed(machine: Machine, stream: trio.abc.Stream) -> None:
    """At the destination: one viewer that stands for those at the source. Closes the stream."""
    server = _server_of(machine)
    end = _end_of(stream)
    if server is not None:
        await server.serve(stream, end)
        return
    server = machine.relayed = _private_server(machine)
    with lights_followed(machine, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow_pointer, server)
            await server.serve(stream, end)
            nursery.cancel_scope.cancel()


def _server_of(machine: Machine) -> VncServer | None:
    return machine.viewers.server if isinstance(machine.viewers, Viewers) else machine.relayed


def _end_of(stream: trio.abc.Stream) -> End:
    """Where the source is."""
    inner = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    try:
        name = inner.socket.getpeername() if isinstance(inner, trio.SocketStream) else ""
    except OSError:
        # It has gone already.
        name = ""
    return End(name[0], name[1], relay=True) if isinstance(name, tuple) else End(relay=True)
