"""Threads in which the engines of post-copy are at work: one for a pager, or one for a page server."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from tvmm.errors import HostError, ProtocolError
from tvmm.kvm.serve import Waker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.migration.engine_end import EngineEnd

__all__ = ["Engine", "EngineThread"]

NO_CONNECTION = -1


class Engine(Protocol):
    """`Pager` or `PageServer`. `serve` returns a member of an enum with WOKEN and LOST."""

    @property
    def failure(self) -> str:
        """After LOST."""

    def serve(self, fd: int, waker: Waker) -> object:
        """See there."""


class EngineThread:
    """Serves on the connection that it is given, and on the next one.

    `on_end` is called on this thread with the name of what `serve` came back with, LOST also for what was refused, and
    why; for COMPLETE and RELEASED the thread ends with that. `idle`: once it has had a connection, it serves
    without one too.
    """

    def __init__(self, engine: Engine, on_end: Callable[[str, str], None], *, idle: bool) -> None:
        self._engine = engine
        self._on_end = on_end
        self._idle = idle
        self._waker = Waker()
        self._news = threading.Condition()
        self._end: EngineEnd | None = None
        self._stopping = self._begun = False
        self._thread = threading.Thread(target=self._run, name="tvmm pages on request", daemon=True)
        self._thread.start()

    def connect(self, end: EngineEnd | None) -> None:
        """Go on with this connection, or with none. The last one is closed; this one is the thread's."""
        with self._news:
            before, self._end = self._end, end
            self._begun = True
            self._waker.wake()
            self._news.notify()
        if before is not None:
            # The thread may still be at work on it, and has to find its number in use.
            before.break_off()

    def stop(self) -> None:
        """Return when the thread has ended. Idempotent."""
        with self._news:
            self._stopping = True
            self._waker.wake()
            self._news.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        end: EngineEnd | None = None
        while True:
            with self._news:
                while not self._stopping and self._end is None and not (self._idle and self._begun):
                    self._news.wait()
                self._waker.clear()
                if end is not None and end is not self._end:
                    end.close()
                end = self._end
                if self._stopping:
                    break
            stop, why = self._serve(NO_CONNECTION if end is None else end.fd)
            if stop == "WOKEN":
                continue
            with self._news:
                replaced = self._end is not end
                if not replaced:
                    self._end = None
            if replaced and stop == "LOST":
                # Of a connection that nobody counts on any more.
                continue
            if end is not None:
                end.close()
                end = None
            self._on_end(stop, why)
            if stop in ("COMPLETE", "RELEASED"):
                break
        for last in {end, self._end} - {None}:
            assert last is not None
            last.close()
        self._end = None
        with self._news:
            self._stopping = True

    def _serve(self, fd: int) -> tuple[str, str]:
        try:
            stop = self._engine.serve(fd, self._waker)
        except (ProtocolError, HostError) as error:
            return "LOST", str(error)
        name = str(getattr(stop, "name", stop))
        return name, self._engine.failure if name == "LOST" else ""

    def close(self) -> None:
        """`stop`, and give the descriptor back."""
        self.stop()
        self._waker.close()
