"""A socket device, from its options, and the unix socket by which programs on the host reach the guest's ports."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tvmm.chardev.vsock_client import dial
from tvmm.chardev.vsock_line import LINE_LIMIT, parse_connect
from tvmm.control.listener import unix_listener
from tvmm.virtio.runner.vsock import VsockRunner
from tvmm.virtio.vsock import SocketDevice, VsockSettings
from tvmm.wiring.measures import vsock_samples
from tvmm.wiring.ring import ring_features

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.config.vsock import VsockConfig
    from tvmm.control.target import Json
    from tvmm.wiring.devices import Devices

__all__ = ["VsockPart", "make_vsock"]

BACKLOG = 1024
"""Programs that connect at once: some are not prepared to be told to come again."""
MAX_HANDSHAKES = 256
"""Clients that have not said yet what they want; more are turned away, so that idle ones do not use up descriptors."""
HANDSHAKE_SECONDS = 10.0
"""For that word."""


class VsockPart:
    """The host's side of a socket device."""

    def __init__(self, options: VsockConfig, runner: VsockRunner, path: str) -> None:
        self.path = path
        self.id = options.id
        self._runner = runner
        self._handshakes = 0
        self._left = trio.Event()

    async def listen(self, stack: AsyncExitStack, nursery: trio.Nursery) -> None:
        """Listen until `stack` is closed or the guest has left. Raises `UserError` if that cannot be."""
        undo = await stack.enter_async_context(AsyncExitStack())
        listener = await undo.enter_async_context(unix_listener(Path(self.path), BACKLOG))
        nursery.start_soon(self._serve, listener, undo, name=self.id + " listener")

    async def _serve(self, listener: trio.SocketListener, undo: AsyncExitStack) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._meet, [listener])
            await self._left.wait()
            # The file goes first: nobody is to find a socket that is about to go.
            await undo.aclose()
            nursery.cancel_scope.cancel()

    async def _meet(self, stream: trio.SocketStream) -> None:
        """Hear which port a client wants, and have it connected. Whoever says anything else is cut off."""
        if self._handshakes >= MAX_HANDSHAKES:
            await trio.aclose_forcefully(stream)
            return
        self._handshakes += 1
        port = None
        try:
            with trio.move_on_after(HANDSHAKE_SECONDS):
                port = parse_connect(await _first_line(stream.socket))
        except OSError:
            pass
        finally:
            self._handshakes -= 1
            if port is None:
                await trio.aclose_forcefully(stream)
        if port is not None:
            self._runner.connect(stream.socket.detach(), port)

    async def dial(self, port: int) -> trio.SocketStream:
        """A stream to the guest's `port`. Raises `UserError`."""
        connection = await trio.to_thread.run_sync(dial, self.path, port)
        return trio.SocketStream(trio.socket.from_stdlib_socket(connection))

    def leave(self) -> None:
        """The guest has moved: nobody is let in any more, and everybody is told."""
        self._left.set()
        self._runner.close_connections()

    def counters(self) -> Mapping[str, int]:
        """For `tvmm info`, by names with dashes."""
        found = self._runner.info()
        counted = {name.replace("_", "-"): count for name, count in found.counters._asdict().items()}
        return {"connections": found.connections, **counted}

    def info(self) -> Mapping[str, Json]:
        """The device in a few words."""
        found = self._runner.info()
        return {"path": self.path, "guest-cid": found.guest_cid, "connections": found.connections}


async def _first_line(sock: trio.socket.SocketType) -> bytes:
    """Up to and with the first newline, and nothing behind it: that is the stream's already."""
    line = b""
    while not line.endswith(b"\n") and len(line) < LINE_LIMIT:
        there = await sock.recv(LINE_LIMIT - len(line), socket.MSG_PEEK)
        if not there:
            return b""
        end = there.find(b"\n") + 1
        line += await sock.recv(end or len(there))
    return line


def make_vsock(devices: Devices, options: VsockConfig) -> None:
    """Put it into a slot of `devices`. Raises `UserError`."""
    model = SocketDevice(VsockSettings(options.guest_cid, options.queue_size), ring_features(options))
    slot = devices.place(model, options)
    # Absolute, so that it is the same name for those whose working directory is another one.
    path = str(Path(options.path).absolute())
    runner = VsockRunner(options.id, model, slot.ends(), path=path, poll_ns=options.poll_us * 1000)
    devices.host.stack.callback(runner.close)
    slot.connect(runner)
    devices.measures[options.id] = lambda: vsock_samples(options.id, runner)
    devices.vsock = VsockPart(options, runner, path)
