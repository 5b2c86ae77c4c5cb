"""Post-copy at the destination, up to Commit: which pages are missing, and a thread that fetches them.

Loading the guest's state reads its memory, so pages are fetched before there is a Commit, on a thread of its own: the
event loop may itself be what waits for one. When the connection for that is lost before Commit, that thread lets go of
all who wait, on the spot, and only then tells the event loop, which abandons the guest. After Commit it never does: a
guest that reads zeros in place of its memory would write them to its disks.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import trio

from tvmm.errors import ProtocolError
from tvmm.kvm.pager import Pager
from tvmm.kvm.pages import PAGE, PageBitmap
from tvmm.memory.ram import COMING, LOST, MAIN_BLOCK, PRESENT
from tvmm.migration.absent import difference, take_piece
from tvmm.migration.engine_end import engine_end
from tvmm.migration.link import LinkLost
from tvmm.migration.loop_thread import LoopThread
from tvmm.migration.messages import Absent, Absentees, Complete, Discarded, Partial
from tvmm.migration.page_threads import EngineThread
from tvmm.migration.status import PostcopyProgress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tvmm.memory.ram import GuestRam
    from tvmm.migration.link import Link
    from tvmm.migration.receivers import ReceiverLanes

__all__ = ["PartialArrival"]

ABSENT_MESSAGES_MAX = 1 << 16
"""Of one migration: 128 TiB of RAM. A source does not keep this side at it for ever."""
PATIENCE_SECONDS = 120.0
"""From Absentees to Commit. A source that is stopped in between keeps its connections, and all who wait."""
NANOSECONDS_PER_MS = 1e6


class PartialArrival:
    """A guest that comes before all of its memory. `lost` is called on the event loop when it cannot, and why."""

    def __init__(self, ram: GuestRam, lanes: ReceiverLanes, lost: Callable[[str], None]) -> None:
        self.pager: Pager | None = None
        self.thread: EngineThread | None = None
        self.on_end: Callable[[str, str], None] = self._ended_early
        """For news of the thread after Commit; called on it."""
        self.cuts = 0
        self._ram = ram
        self._lanes = lanes
        self._lost = lost
        self._token = trio.lowlevel.current_trio_token()
        self._requests: trio.abc.Stream | None = None
        self._requests_news = trio.Event()
        self._named = PageBitmap.of(lanes.pages)
        self._fresh = PageBitmap.of(lanes.pages)
        self._messages = 0
        self._pages_named = 0
        self._lock = threading.Lock()
        self._begun = self._kept = self._given_up = False
        self._patience: threading.Timer | None = None
        self._final = PostcopyProgress()
        self._loop_thread: LoopThread | None = None

    # --- messages, on the event loop ---

    @property
    def begun(self) -> bool:
        """Pages are missing, and fetched when they are touched."""
        return self._begun

    def take_requests(self, stream: trio.abc.Stream) -> None:
        """The connection for requests: it is this object's. Raises `ProtocolError` if there is one already."""
        if self._requests is not None or self.begun:
            raise ProtocolError("a second connection for page requests")
        self._requests = stream
        self._requests_news.set()

    async def take(
        self, message: Absent | Absentees | Partial, link: Link, populated: Callable[[], Awaitable[None]]
    ) -> None:
        """A message of the source, before State. Raises `ProtocolError`, `HostError` or `LinkLost`.

        `populated` returns when nobody allocates RAM in advance any more.
        """
        if self.begun:
            raise ProtocolError(f"the source sent {type(message).__name__} out of order")
        if self.pager is None:
            await populated()
            self.pager = Pager(self._lanes.pages, [self._ram.blocks[MAIN_BLOCK]])
        if isinstance(message, Absent):
            self._messages += 1
            if self._messages > ABSENT_MESSAGES_MAX:
                raise ProtocolError("the source names missing pages without an end")
            self._pages_named += int.from_bytes(message.bits, "little").bit_count()
            take_piece(message, self._fresh)
        elif isinstance(message, Absentees):
            if message.pages != self._pages_named:
                raise ProtocolError(f"the source has named {self._pages_named} pages and says {message.pages}")
            self._prepare()
            await self._discard()
            await link.send(Discarded(self.pager.remaining))
        else:
            await self._discard()
            if message.pages != self.pager.remaining:
                raise ProtocolError(f"{self.pager.remaining} pages are missing, and the source says {message.pages}")
            await self._begin()

    def _prepare(self) -> EngineThread:
        """While the guest runs at its source: what would take time in the pause. Starting a thread waits for it."""
        import tvmm.migration.postcopy_service  # noqa: F401

        assert self.pager is not None
        if self.thread is not None:
            return self.thread
        self.loop_thread()
        self.thread = EngineThread(self.pager, self._on_end, idle=True)
        self._patience = threading.Timer(PATIENCE_SECONDS, self._ended_early, ("LOST", "it does not go on"))
        self._patience.daemon = True
        self._patience.start()
        return self.thread

    def loop_thread(self) -> LoopThread:
        """That of the service, which comes with Commit."""
        if self._loop_thread is None:
            self._loop_thread = LoopThread("tvmm post-copy")
        return self._loop_thread

    async def _discard(self) -> None:
        """What was named and is not missing yet is thrown away."""
        assert self.pager is not None
        difference(self._fresh, self._named, self._fresh)
        self._named.merge(self._fresh)
        try:
            if self._fresh.count():
                await trio.to_thread.run_sync(self.pager.expect, self._fresh)
        except ValueError as error:
            raise ProtocolError(f"the source names pages that cannot be missing: {error}") from None
        self._fresh.clear()
        self._lanes.pager = self.pager

    async def _begin(self) -> None:
        assert self.pager is not None
        with trio.move_on_after(PATIENCE_SECONDS):
            await self._requests_news.wait()
        if self._requests is None:
            raise LinkLost("its connection for page requests did not come")
        self._begun = True
        self._ram.presence[0] = COMING
        self._ram.has = self._has
        self._ram.fetch = self.pager.touch
        self._ram.let_go = self.release
        self._prepare().connect(engine_end(self._requests))
        self._requests = None

    def _has(self, name: str, offset: int, length: int) -> bool:
        pager = self.pager
        if pager is None or not length:
            return True
        pages = range(offset // PAGE, (offset + length - 1) // PAGE + 1)
        return all(pager.received.test(name, page) for page in pages)

    # --- the end of it, one way or another ---

    def _on_end(self, stop: str, why: str) -> None:
        """On the engine's thread, which answers nobody from here on if all is here."""
        if stop == "COMPLETE":
            # Who is told of it may wait himself: at a page that came, and that the guest has given back since.
            self.release()
        self.on_end(stop, why)

    def _ended_early(self, stop: str, why: str) -> None:
        """On the engine's thread. Up to Commit who waits for a page gets zeros, since nothing of it will ever run."""
        if stop in ("COMPLETE", "RELEASED"):
            return
        with self._lock:
            if self._kept:
                return
            self._given_up = True
            if self.pager is not None:
                self.pager.release()
        self._token.run_sync_soon(self._lost, f"the connection for page requests broke: {why or 'it was closed'}")

    def keep(self) -> bool:
        """Commit has come: from now on nobody who waits is let go of. False: that has been done already."""
        with self._lock:
            self._kept = not self._given_up
        if self._patience is not None:
            self._patience.cancel()
        return self._kept

    def release(self) -> None:
        """Nobody needs what is missing: it is zeros from now on. From any thread."""
        if self.pager is not None:
            if self.begun and self.pager.remaining:
                self._ram.presence[0] = LOST
            self.pager.release()

    def give_up(self) -> None:
        """The guest is abandoned."""
        with self._lock:
            self._given_up = True
        if self._patience is not None:
            self._patience.cancel()
        self.release()

    def whole(self) -> None:
        """No page is missing: the memory is the guest's, as any."""
        self._ram.fetch = self._ram.has = self._ram.let_go = None
        self.release()
        if self._ram.presence[0] == COMING:
            self._ram.presence[0] = PRESENT

    async def close(self) -> None:
        """Give everything back. The guest is whole, or abandoned, or will not run again."""
        self._ram.fetch = self._ram.has = self._ram.let_go = None
        if self._patience is not None:
            self._patience.cancel()
        self.release()
        if self.thread is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.thread.close)
        if self._loop_thread is not None:
            self._loop_thread.close()
        self._lanes.pager = None
        if not self._kept:
            # Abandoned: nothing of it has run, and the next guest is another one.
            self._ram.presence[0] = PRESENT
        if self.pager is not None:
            self._final = self.progress()
            pager, self.pager = self.pager, None
            pager.close()
        if self._requests is not None:
            await trio.aclose_forcefully(self._requests)

    # --- figures ---

    def last_word(self) -> Complete:
        """To the source, when no page is missing."""
        progress = self.progress()
        return Complete(progress.faults, int(progress.median_fault_ms * NANOSECONDS_PER_MS))

    @property
    def remaining(self) -> int:
        """Pages that are missing."""
        return self.pager.remaining if self.pager is not None else 0

    def progress(self) -> PostcopyProgress:
        """As it is now."""
        if self.pager is None:
            return self._final
        counters, times = self.pager.counters, self.pager.service_times
        return PostcopyProgress(
            requests=counters.requests,
            faults=counters.faults,
            median_fault_ms=(times.quantile_ns(0.5) or 0.0) / NANOSECONDS_PER_MS,
            cuts=self.cuts,
        )
