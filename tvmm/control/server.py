"""The control socket: QMP for any number of clients, none of which can hold up the machine or another client.

::

    serve ── serve_listeners ── one task group per client
                                  ├── read    what it sends → session → verb → outbox, one command at a time
                                  └── write   outbox → socket
    emit ──> the outbox of each client that has negotiated; never waits

A client that does not read is dropped: when its outbox is full, or when the socket has taken nothing for
`SEND_SECONDS`. `read` waits until each answer has been sent before it reads on, so one that sends without
reading is held up by itself alone.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import trio

from tvmm.control.listener import unix_listener
from tvmm.control.qmp import Answer, CommandFailed, Hangup, QmpSession, Request, encode_error, encode_event
from tvmm.control.verbs import EVENTS, SIGNATURES, VERBS
from tvmm.errors import TvmmError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tvmm.control.target import ControlTarget, Json

__all__ = ["MAX_CLIENTS", "MAX_QUEUED", "ControlServer"]

MAX_CLIENTS = 16
"""Clients at a time. Each costs two tasks and what its session and outbox may keep."""
MAX_QUEUED = 256
"""Messages on their way to one client. A client that never reads would otherwise gather all events there ever
are."""
SEND_SECONDS = 30.0
"""How long a client may take nothing while it has something to read: it keeps a place that others want."""
LAST_SECONDS = 0.25
"""How long the end of the machine, or `quit`, waits for clients to take their last messages."""
READ_BYTES = 16384


class ControlServer:
    """Lets clients at the socket `path` command `target`.

    `report_bug` is called with an exception that is tvmm's own fault and that a verb ended with: the client
    gets an error, the guest lives on. By default it prints the traceback to standard error.
    """

    def __init__(
        self, target: ControlTarget, path: Path, report_bug: Callable[[Exception], None] | None = None
    ) -> None:
        self.path = path
        self._target = target
        self._report_bug = report_bug or _print_bug
        self._clients: set[_Client] = set()

    @property
    def client_count(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve clients until cancelled; started when the socket listens.

        What was emitted before the cancellation still goes out to clients that take it within `LAST_SECONDS`.
        Raises `HostError` if there can be no socket at the path.
        """
        async with unix_listener(self.path) as listener:
            task_status.started()
            await trio.serve_listeners(self._serve_client, [listener])

    def emit(self, name: str, data: Mapping[str, Json] | None = None) -> None:
        """Tell every client of something that happened to the machine just now. Called from the Trio thread.

        Raises ValueError for an event that is not in `verbs.EVENTS`.
        """
        if name not in EVENTS:
            raise ValueError(f"there is no event {name!r}")
        line = encode_event(name, data, time.time_ns() // 1000)
        for client in self._clients:
            client.tell(line)

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        async with stream:
            if len(self._clients) >= MAX_CLIENTS:
                refusal = encode_error("GenericError", f"there are {MAX_CLIENTS} control clients already")
                with trio.move_on_after(LAST_SECONDS):
                    await _Outbox(stream).send_now(refusal)
                return
            client = _Client(stream, self._target, self._report_bug)
            self._clients.add(client)
            try:
                await client.run()
            finally:
                self._clients.discard(client)


class _Queued(NamedTuple):
    """A message in an outbox."""

    line: bytes
    sent: trio.Event | None = None
    """Set once the system has taken the whole message."""


class _Outbox:
    """The messages on their way to one client, in order, MAX_QUEUED at most."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        self._sending = _Queued(b"")
        self._unsent = memoryview(b"")
        self._sender, self._queue = trio.open_memory_channel[_Queued](MAX_QUEUED)

    def put_nowait(self, line: bytes) -> bool:
        """Queue a message; whether there was room for it."""
        try:
            self._sender.send_nowait(_Queued(line))
        except (trio.WouldBlock, trio.BrokenResourceError):
            return False
        return True

    async def put(self, line: bytes) -> None:
        """Queue a message and wait until it has been sent or never will be."""
        sent = trio.Event()
        with suppress(trio.BrokenResourceError):
            await self._sender.send(_Queued(line, sent))
            await sent.wait()

    async def run(self) -> None:
        """Send what is queued; returns when the client is gone or has taken nothing for `SEND_SECONDS`.

        Cancelled, it still sends what was queued by then, unless the client keeps it from doing so.
        """
        try:
            async for queued in self._queue:
                with trio.move_on_after(SEND_SECONDS) as patience:
                    await self._send(queued)
                if patience.cancelled_caught:
                    return
        except OSError:
            return
        except trio.Cancelled:
            with trio.CancelScope(deadline=trio.current_time() + LAST_SECONDS, shield=True):
                await self._send_rest()
            raise
        finally:
            self._release()

    async def send_now(self, line: bytes) -> None:
        """Send the one message that this client will ever get."""
        with suppress(OSError):
            await self._send(_Queued(line))

    async def _send(self, queued: _Queued) -> None:
        self._sending = queued
        self._unsent = memoryview(queued.line)
        await self._drain()

    async def _drain(self) -> None:
        """Send what is left of the current message."""
        # Not send_all(): it does not tell how much was sent when it is cancelled, and then nothing may
        # follow.
        while self._unsent:
            count = await self._socket.send(self._unsent)
            self._unsent = self._unsent[count:]
        if self._sending.sent is not None:
            self._sending.sent.set()

    async def _send_rest(self) -> None:
        with suppress(OSError, trio.WouldBlock):
            await self._drain()
            while True:
                await self._send(self._queue.receive_nowait())

    def _release(self) -> None:
        """Let go of who waits for messages that will not be sent."""
        left = [self._sending]
        with suppress(trio.WouldBlock):
            while True:
                left.append(self._queue.receive_nowait())
        self._queue.close()
        for queued in left:
            if queued.sent is not None:
                queued.sent.set()


class _Client:
    """One connected client: its session, its outbox and the two tasks that serve it.

    A client is dropped by shutting its socket down and not by cancelling its tasks: what it asked for is
    carried out to the end even when it did not stay to hear of it. A machine is not left half reset because
    somebody hung up.
    """

    def __init__(
        self, stream: trio.SocketStream, target: ControlTarget, report_bug: Callable[[Exception], None]
    ) -> None:
        self._socket = stream.socket
        self._target = target
        self._report_bug = report_bug
        self._session = QmpSession(SIGNATURES)
        self._outbox = _Outbox(stream)

    def tell(self, line: bytes) -> None:
        """Queue an event, if the client wants any; drop the client if there is no room for it."""
        if self._session.wants_events and not self._outbox.put_nowait(line):
            self._drop()

    async def run(self) -> None:
        """Serve the client until it hangs up or is dropped."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            await self._read()
            nursery.cancel_scope.cancel()

    def _drop(self) -> None:
        """Make `_read` see the end of what the client says and `_write` an error."""
        with suppress(OSError):
            self._socket.shutdown(trio.socket.SHUT_RDWR)

    async def _write(self) -> None:
        await self._outbox.run()
        self._drop()

    async def _read(self) -> None:
        """Do what the client says, one thing after the other, until it hangs up or breaks the rules."""
        await self._outbox.put(self._session.greeting())
        while True:
            event = self._session.next_event()
            if isinstance(event, Request):
                await self._execute(event)
            elif isinstance(event, Answer):
                await self._outbox.put(event.data)
            elif isinstance(event, Hangup):
                return
            else:
                try:
                    data = await self._socket.recv(READ_BYTES)
                except OSError:
                    return
                if not data:
                    return
                self._session.receive(data)

    async def _execute(self, request: Request) -> None:
        """Carry out one request and answer it."""
        verb = VERBS[request.command]
        after = None
        try:
            answer = self._session.success(request, await verb.run(self._target, request.arguments))
            after = verb.after
        except CommandFailed as error:
            answer = self._session.failure(request, error.error_class, str(error))
        except TvmmError as error:
            answer = self._session.failure(request, "GenericError", str(error))
        except Exception as error:
            # A bug of ours in answering a question is no reason to take the guest down.
            self._report_bug(error)
            answer = self._session.failure(request, "GenericError", f"a bug in tvmm: {error!r}")
        if after is None:
            await self._outbox.put(answer)
            return
        try:
            with trio.move_on_after(LAST_SECONDS):
                await self._outbox.put(answer)
        finally:
            after(self._target)


def _print_bug(error: Exception) -> None:
    from traceback import print_exception

    print_exception(error)
