"""The host's side of a serial port: one backend, any number of viewers, one guest.

::

    guest --receive_some--> pump --put--> Feed --+--> the backend (terminal, file, socket, pty)
                                                 +--> viewers (`tvmm console`)
    guest <--send-- one queue <------------------ all of them

The pump frees a byte of the guest's ring (`consumed`) only when everyone who holds the feed has taken it, so
a slow terminal slows the guest and nothing piles up here. Who holds is the backend's affair: stdio and file
always do, a pty while it is open, a server through its longest connected viewer, `none` never. Viewers that
are attached by `tvmm console` never do: looking at a machine must not slow it. They skip what they cannot
follow and are told how much that was.

Input goes through one bounded queue for all. Without it a guest that reads nothing would block the tasks that
read from terminals and viewers, and with them the escape that ends such a guest, and the news that a viewer
left. With a queue per viewer, leaving and coming back would buy a new one each time.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Protocol

import trio

from tvmm.chardev.feed import Feed, Follower
from tvmm.chardev.history import HISTORY_BYTES
from tvmm.errors import collapse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

__all__ = [
    "INPUT_CHUNK",
    "MAX_VIEWERS",
    "Actions",
    "Backend",
    "GuestEnd",
    "Line",
    "SerialHub",
    "skipped_note",
]

INPUT_CHUNK = 4096
"""Bytes read from a viewer at once: more would only wait here, the guest's FIFO takes 16 at a time."""

INPUT_PENDING = 256 * 1024
"""Input that waits for the guest. Who pastes more than this into a guest that hangs waits with it; a cap,
because whoever may type may also send without end to a guest that reads nothing."""

MAX_VIEWERS = 32
"""Viewers of one port at a time; each costs two tasks and a descriptor, and a client may open any number."""

BREAK = b""
"""A break condition among the queued input, which has no empty bytes otherwise."""

VIEWER_PIECE = 16 * 1024
"""What a viewer gets at once, and may get twice if its connection breaks in the middle."""


class GuestEnd(Protocol):
    """The guest's side of the port, as bytes."""

    async def receive_some(self) -> bytes:
        """Wait until the guest wrote something and return up to 64 KiB of it.

        The bytes keep their room in the ring until `consumed`. Empty bytes mean that the guest will write no
        more: `SerialHub.run` then passes on what is left and returns. A checkpoint in any case.
        """

    def consumed(self, count: int) -> None:
        """`count` received bytes were taken: the guest may write as many more."""

    async def send(self, data: bytes) -> None:
        """Give `data` to the guest, all of it, waiting for room as long as that takes."""

    async def send_break(self) -> None:
        """Let the guest see a break condition, after all that was sent before."""


class Actions(Protocol):
    """What a backend may ask of the machine it belongs to."""

    def quit(self) -> None:
        """End the machine now; the user typed the escape for it."""

    async def command(self, line: str) -> str:
        """Carry out a line typed at the control prompt and return the answer, lines ended by ``\\n``.

        An error in the command is an answer, too: a `TvmmError` that escapes is shown in its place.
        """

    def warn(self, message: str) -> None:
        """Tell the user, in one line, what went wrong while the machine goes on."""


class Line(Protocol):
    """What a backend sees of the hub it runs under."""

    @property
    def finished(self) -> trio.Event:
        """Set once the guest writes no more; followers still have what is left to take."""

    def follow(self, *, holding: bool, start: int | None = None) -> Follower:
        """A follower of the guest's output, for a `with` block."""

    async def send(self, data: bytes) -> None:
        """Queue input for the guest behind all that anyone sent before; waits while the queue is full."""

    async def send_break(self) -> None:
        """Queue a break for the guest, in order with `send`."""

    async def serve(self, stream: trio.abc.Stream, follower: Follower) -> None:
        """Pass output to `stream` and its input to the guest until either ends; closes the stream."""


class Backend(Protocol):
    """Where a port's bytes go to and come from.

    `async with` acquires what the backend needs (and raises `UserError` if it cannot) and undoes all of it.
    `run` is called at most once within that block.
    """

    @property
    def path(self) -> str:
        """What a viewer opens: a pty's name, a socket's path, host:port; empty if there is nothing."""

    @property
    def patience(self) -> float:
        """Seconds that the end of a machine should wait for this backend to take the guest's last bytes."""

    async def __aenter__(self) -> Self:
        """Acquire descriptors, terminal mode, names in the file system."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Undo `__aenter__`."""

    async def run(self, line: Line) -> None:
        """Carry bytes both ways until the line is finished and its rest is passed on.

        May return earlier if there is nothing to do.
        """


def skipped_note(count: int) -> bytes:
    """What a viewer reads in place of `count` bytes that it did not get."""
    return b"\r\n[... %d bytes skipped]\r\n" % count


class SerialHub:
    """Joins one guest end, one backend and the viewers that come and go. Implements `Line`."""

    def __init__(self, guest: GuestEnd, backend: Backend, *, history_bytes: int = HISTORY_BYTES) -> None:
        self._guest = guest
        self._backend = backend
        self._feed = Feed(history_bytes)
        self._input: deque[bytes] = deque()
        self._input_size = 0
        self._input_news = trio.lowlevel.ParkingLot()
        self._input_room = trio.lowlevel.ParkingLot()
        self._delivered = trio.Event()
        self._viewers = 0

    @property
    def finished(self) -> trio.Event:
        """Set once the guest writes no more."""
        return self._feed.finished

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry bytes both ways until the guest writes no more and the backend has passed on the rest.

        To be called once, with the backend acquired. A single error of a backend is raised as it is, not as
        a group, so that a `UserError` remains one.
        """
        with collapse():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump)
                nursery.start_soon(self._pass_input)
                task_status.started()
                await self._backend.run(self)
                await self._feed.finished.wait()
                nursery.cancel_scope.cancel()
        self._delivered.set()

    async def drain(self, at_most: float = math.inf) -> None:
        """Wait until `run` has passed on everything, for the backend's patience or `at_most` seconds if less.

        For the end of a machine, after its guest end was told to report that nothing more will come.
        """
        with trio.move_on_after(min(self._backend.patience, at_most)):
            await self._delivered.wait()

    def watch_holders(self, callback: Callable[[bool], None]) -> None:
        """`callback` is told, now and at each change, whether somebody is there whom the guest waits for.

        For ports whose guest is to know: with a pty, unix or tcp backend that is who has it open. Terminal and file
        are always there, even when they let go for a while.
        """
        self._feed.on_held = callback
        callback(self._feed.held)

    def follow(self, *, holding: bool, start: int | None = None) -> Follower:
        """A follower of the guest's output, for a `with` block."""
        return self._feed.follow(holding=holding, start=start)

    async def send(self, data: bytes) -> None:
        """Queue input for the guest behind all that anyone sent before; waits while the queue is full."""
        if data:
            await self._enqueue(data)

    async def send_break(self) -> None:
        """Queue a break for the guest, in order with `send`."""
        await self._enqueue(BREAK)

    def queued_input(self) -> bytes:
        """Input that waits for the guest, but for what its end is sending; breaks in it do not count."""
        return b"".join(self._input)

    def put_back_input(self, data: bytes) -> None:
        """Queue input in front of all that waits: it came first, on another machine."""
        if data:
            self._input.appendleft(data)
            self._input_size += len(data)
            self._input_news.unpark_all()

    async def attach(self, stream: trio.abc.Stream) -> None:
        """Serve one viewer: the history first, then what comes. Never holds the guest; closes the stream.

        Returns when the viewer ends its side or breaks off, or when the guest writes no more.
        """
        if self._viewers >= MAX_VIEWERS:
            await trio.aclose_forcefully(stream)
            return
        self._viewers += 1
        try:
            with self.follow(holding=False) as follower:
                await self.serve(stream, follower)
        finally:
            self._viewers -= 1

    async def serve_viewers(
        self,
        listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """`attach` whoever connects to `listeners`, until cancelled; closes the listeners."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self.attach, list(listeners))
            task_status.started()

    async def serve(self, stream: trio.abc.Stream, follower: Follower) -> None:
        """Pass output to `stream` and its input to the guest until either ends; closes the stream.

        A viewer that ends its side has left, even if it could still read: the two cannot be told apart on
        TCP, and a viewer that is believed to be there could hold the guest.
        """
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(self._viewer_output, stream, follower, nursery.cancel_scope)
            nursery.start_soon(self._viewer_input, stream, nursery.cancel_scope)

    async def _pump(self) -> None:
        while data := await self._guest.receive_some():
            await self._feed.put(data)
            self._guest.consumed(len(data))
        self._feed.finish()

    async def _enqueue(self, item: bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._input_size >= INPUT_PENDING:
            await self._input_room.park()
        self._input.append(item)
        self._input_size += max(len(item), 1)
        self._input_news.unpark_all()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _pass_input(self) -> None:
        while True:
            while not self._input:
                await self._input_news.park()
            item = self._input.popleft()
            await (self._guest.send(item) if item else self._guest.send_break())
            self._input_size -= max(len(item), 1)
            self._input_room.unpark_all()

    async def _viewer_output(
        self, stream: trio.abc.SendStream, follower: Follower, scope: trio.CancelScope
    ) -> None:
        try:
            while (piece := await follower.wait(VIEWER_PIECE)) is not None:
                if piece.missed:
                    await stream.send_all(skipped_note(piece.missed))
                await stream.send_all(piece.data)
                follower.took(piece)
        except trio.BrokenResourceError:
            pass
        scope.cancel()

    async def _viewer_input(self, stream: trio.abc.ReceiveStream, scope: trio.CancelScope) -> None:
        try:
            while data := await stream.receive_some(INPUT_CHUNK):
                await self.send(bytes(data))
        except trio.BrokenResourceError:
            pass
        scope.cancel()
