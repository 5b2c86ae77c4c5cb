"""What a migration asks of the machine at either end; `tvmm.wiring.moving` answers for a real one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tvmm.kvm.pages import PAGE
from tvmm.migration.messages import Block, Image

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    import trio

    from tvmm.kvm.dirty_log import DirtyTracker
    from tvmm.memory.ram import GuestRam
    from tvmm.migration.disk_files import DiskOrigin, DiskTarget
    from tvmm.state import Section

__all__ = ["ArrivingGuest", "Guest", "LeavingGuest", "blocks_of"]


def blocks_of(ram: GuestRam) -> tuple[Block, ...]:
    """Its blocks as the greeting names them, in the order of the lanes' numbers."""
    return tuple(Block(name, block.size // PAGE) for name, block in ram.blocks.items())


class Guest(Protocol):
    """Either end. Methods may be cancelled wherever they wait."""

    name: str
    ram: GuestRam

    async def description(self) -> tuple[tuple[str, str], ...]:
        """What has to be the same on both sides, as (name, text)."""

    async def hashes(self) -> tuple[bytes, ...]:
        """Of each RAM block, in their order, for a guest that does not run."""


class LeavingGuest(Guest, Protocol):
    """At the source."""

    def cpu(self) -> bytes:
        """`CpuDescription`, encoded."""

    def tracker(self) -> DirtyTracker:
        """A new one, not started."""

    def begin_hints(self, spare: Callable[[str, Sequence[tuple[int, int]]], int]) -> None:
        """Ask the guest which of its pages are free, if it can tell: their content may be lost on the way, unless they
        are written from now on. `spare` gets them as they become known: block, and runs of pages as (first, count); it
        says how many it could make use of. The tracker has been started.
        """

    def stop_hints(self) -> None:
        """`spare` is not called any more; the guest keeps the pages that it has told of. Idempotent."""

    def end_hints(self) -> None:
        """The guest may use these pages again. Idempotent."""

    def on_reset(self, call: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """Within the block `call` is called when the guest's RAM has been zeroed behind the tracker's back."""

    def held(self) -> AbstractAsyncContextManager[bool]:
        """Within the block nothing of the guest runs and nobody else can start it; whether it ran before.

        After the block it does as before, unless `end` or `keep_paused` was called within.
        """

    async def save(self) -> tuple[Section, ...]:
        """The state, while it is held."""

    def throttle(self, percent: int) -> None:
        """From now on take that share of time from the vCPUs that write; 0: none."""

    def images(self) -> tuple[Image, ...]:
        """Disks whose files could be copied. Waits for the host's disks. Raises `UserError` if there are none."""

    def open_images(self, places: Sequence[int]) -> list[DiskOrigin]:
        """Those of them, opened and not tracked yet. Raises `UserError`."""

    def taps(self) -> Mapping[str, Sequence[int]]:
        """By interface the descriptors of its queues, which stay the guest's. Those that are of no use are left out."""

    def let_go_of_taps(self, names: Collection[str]) -> None:
        """These are the destination's: nothing comes from them here, and nothing is undone on them."""

    def let_go_of_memory(self) -> None:
        """It is the destination's own: whatever is done to it here from now on does not reach it. On a thread."""

    def release_disks(self) -> None:
        """Let go of the locks: what was written is stable, or as stable as the disk's options ask."""

    def take_disks(self) -> None:
        """Lock them again. Raises `UserError` if somebody else has one."""

    def end(self, peer: str, open_screen: Callable[[], Awaitable[trio.abc.Stream]]) -> int:
        """The guest lives at `peer` now. Returns how many look at its screen here, to whom it is to be shown further
        over the stream that `open_screen` makes, on which the other end is an RFB server. That raises any `TvmmError`.
        """

    def keep_paused(self) -> None:
        """It may be somebody else's: when it is not held any more it stays paused, for the user's `resume`."""

    def serve_pages(self, peer: str) -> None:
        """The guest runs at `peer`, and pages of it are here alone: nobody lets it go on here, nor touches its memory.

        After `keep_paused`. Undone by `keep_paused`, `go_on` or `end`.
        """

    def go_on(self) -> None:
        """Undo `keep_paused`."""


class ArrivingGuest(Guest, Protocol):
    """At the destination."""

    async def rehearse(self) -> None:
        """Go through the steps of `load` with a state that changes nothing, so that they are faster when they count."""

    def has_room(self) -> bool:
        """Whether the host can give all of the guest's RAM now."""

    def features(self) -> frozenset[str]:
        """What a source may want beyond rounds of pages, by name, and this side goes along with."""

    def copy_problems(self, images: tuple[Image, ...] | None) -> Sequence[str]:
        """Why disks cannot be filled from these, in sentences; None: the source copies none. Waits for the host."""

    def open_targets(self, images: tuple[Image, ...]) -> list[DiskTarget | None]:
        """The images to fill, of their size now; None for those that are shared. Raises `UserError`."""

    def cpu_problems(self, cpu: bytes) -> Sequence[str]:
        """Why a guest of that `CpuDescription` cannot go on here, in sentences. Raises `ProtocolError`."""

    def differences(self, theirs: tuple[tuple[str, str], ...], ours: tuple[tuple[str, str], ...]) -> Sequence[str]:
        """What differs, in sentences."""

    async def borrow_memory(self, files: dict[str, int]) -> None:
        """Have the RAM be that of the source, a memfd for each block, to look at: nothing that is written to it reaches
        the source before `start`, and what was written before then is lost. The descriptors are the guest's then, and
        taken out of `files`. Raises `HostError`.
        """

    async def tap_problems(self, coming: Collection[str]) -> Sequence[str]:
        """Open the taps that are not here and will not come along, if they are free now; why not, in sentences."""

    async def take_taps(self, taps: Mapping[str, list[int]]) -> None:
        """Queues of the source's taps have come along. Those that the guest needs it takes out of the lists, and uses
        them from `start` on. Raises `UserError` or `ProtocolError`.
        """

    async def load(self, sections: tuple[Section, ...], ran_at_ns: int) -> None:
        """Take over the state of a guest that still ran at that reading of `time.perf_counter_ns`: its pause has not
        been longer than since then. Raises `ProtocolError`.
        """

    async def loaded_otherwise(self, sections: tuple[Section, ...]) -> Sequence[str]:
        """Names of those that are not what was sent, after `load`."""

    def take_disks(self) -> None:
        """Lock them. Raises `UserError` if somebody else has one."""

    def release_disks(self) -> None:
        """Undo `take_disks`."""

    async def start(self, running: bool) -> None:
        """Let the guest go on, or have it paused as it was."""

    def show_screen(self, stream: trio.abc.Stream) -> None:
        """Begin to serve the guest's screen over RFB to those who look at it at its source; close `stream` in the end.

        Raises `UserError` if there is none.
        """

    def announce(self) -> None:
        """Tell the networks where the guest is now."""
