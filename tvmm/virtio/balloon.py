"""The memory balloon (virtio 1.3, 5.5): the guest lends pages to the host, and says which ones it does not use.

Queues, in this order; the last three are there if the driver has taken their feature, and then the numbers that are
free before them are used up (as all drivers and devices have it, whatever 5.5.2 may be read to say):

========= ======================= ==================================================================================
inflate                           page numbers (le32) that go into the balloon: their content is lost
deflate                           page numbers that the driver takes back
stats     STATS_VQ                one buffer of statistics, which the device keeps until it wants newer ones
hint      FREE_PAGE_HINT          free pages, while the host asks for them: during the first pass of a migration
report    PAGE_REPORTING          free pages, at any time: their content is lost
========= ======================= ==================================================================================

The configuration space, of which there is as much as the features need:

====== ==== ========================================================================================
0      4    num_pages: how many pages the balloon is to have; the host's wish
4      4    actual: how many it has, written by the driver
8      4    free_page_hint_cmd_id: 0 stop, 1 done, or the number of the request for hints
12     4    poison_val: what free pages are filled with, written by the driver
====== ==== ========================================================================================

The host believes `actual` for what it shows, and for nothing else. Pages are 4 KiB, whatever the guest's are.
"""

from __future__ import annotations

from struct import iter_unpack
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ConfigError
from tvmm.records import check_record, check_uint
from tvmm.virtio.device import ConfigState, VirtioDevice
from tvmm.virtio.features import BALLOON_ID, DEFAULT_RING
from tvmm.virtio.features import Balloon as Feature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "CHAIN_BYTES",
    "COMMAND_BYTES",
    "MAX_PAGES",
    "PAGE_BYTES",
    "STATS",
    "STATS_BYTES",
    "TURN_PAGES",
    "Balloon",
    "BalloonSettings",
    "BalloonState",
    "Role",
    "merge_runs",
    "page_numbers",
]

QUEUE_SIZE = 128

PAGE_BYTES = 4096
MAX_PAGES = 0xFFFF_FFFF
"""The space has 32 bits for numbers of pages: 16 TiB."""

TURN_PAGES = 16384
"""Page numbers that are looked at before other queues have their turn: scattered ones cost a system call each."""
CHAIN_BYTES = 4 * TURN_PAGES
"""Of one buffer of page numbers; a driver sends 1 to 4 KiB. A buffer may be 4 GiB long, and only the first part of
such a one is heeded: the rest stays the guest's, which harms nobody."""

COMMAND_BYTES = 4
STOP, DONE = 0, 1
FIRST_COMMAND, LAST_COMMAND = 0x8000_0000, 0xFFFF_FFFF

STAT_BYTES = 10
STATS = (
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
    "stat-oom-kill",
    "stat-alloc-stall",
    "stat-async-scan",
    "stat-direct-scan",
    "stat-async-reclaim",
    "stat-direct-reclaim",
)
"""Names by tag (5.5.6.4, and what Linux has besides), as QEMU spells them. Others are ignored."""
STATS_BYTES = STAT_BYTES * 64
"""As much of a buffer of statistics as is looked at: a driver may know tags that are not known here."""
VALUE_LIMIT = (1 << 64) - 1

NUM_PAGES, ACTUAL, COMMAND, POISON = 0, 4, 8, 12


class Role:
    """What a queue is for."""

    INFLATE = "inflate"
    DEFLATE = "deflate"
    STATS = "stats"
    HINT = "hint"
    REPORT = "report"
    NONE = ""


OPTIONAL = (
    (Feature.STATS_VQ, Role.STATS),
    (Feature.FREE_PAGE_HINT, Role.HINT),
    (Feature.PAGE_REPORTING, Role.REPORT),
)


class BalloonSettings(NamedTuple):
    """`ram_pages` is what the guest has without a balloon. `deflate_on_oom`: the guest may take pages back when it has
    no others. `hinting` for migration, `reporting` at any time: of pages that are free.
    """

    ram_pages: int
    deflate_on_oom: bool = False
    hinting: bool = False
    reporting: bool = False


class BalloonState(NamedTuple):
    """`stats` are (tag, value), rising; `updated` when they came, in seconds since 1970, 0 for never. `command` is the
    last request for hints, `announced` what the driver has said that it answers.
    """

    config: ConfigState
    stats: tuple[tuple[int, int], ...] = ()
    updated: int = 0
    command: int = FIRST_COMMAND
    announced: int = STOP


class Balloon(VirtioDevice):
    """One balloon. Raises `ConfigError` for settings that make none."""

    device_id = BALLOON_ID
    type_name = "virtio-balloon"

    def __init__(self, settings: BalloonSettings, ring: int = DEFAULT_RING) -> None:
        if not 0 < settings.ram_pages <= MAX_PAGES:
            raise ConfigError(f"virtio-balloon with {settings.ram_pages} pages of memory", f"1 to {MAX_PAGES} can be")
        self.settings = settings
        features = Feature.MUST_TELL_HOST | Feature.STATS_VQ
        if settings.deflate_on_oom:
            features |= Feature.DEFLATE_ON_OOM
        length = COMMAND
        if settings.hinting:
            features |= Feature.FREE_PAGE_HINT | Feature.PAGE_POISON
            length = POISON + 4
        if settings.reporting:
            features |= Feature.PAGE_REPORTING | Feature.PAGE_POISON
            length = POISON + 4
        queues = 3 + settings.hinting + settings.reporting
        super().__init__((QUEUE_SIZE,) * queues, features, bytes(length), b"\xff" * length, ring)
        self.writable = (bytes(4) + b"\xff" * 4 + bytes(4) + b"\xff" * 4)[:length]
        self.on_actual: Callable[[], None] = _nobody_looks
        """Called under the bus lock when the driver has said how many pages there are now."""
        self.stats: dict[int, int] = {}
        """By tag."""
        self.updated = 0
        self._command = FIRST_COMMAND
        self._announced = STOP

    def role(self, index: int) -> str:
        """A word of `Role` for queue `index`, with the features that were agreed on."""
        there = [Role.INFLATE, Role.DEFLATE]
        there += [role for feature, role in OPTIONAL if self.accepted & feature]
        return there[index] if index < len(there) else Role.NONE

    def queue_of(self, role: str) -> int | None:
        """The number of the queue that has this role; None if the driver does without."""
        return next((index for index in range(len(self.queue_sizes)) if self.role(index) == role), None)

    # -- how many pages ----------------------------------------------------------------------------------

    def _field(self, offset: int) -> int:
        return int.from_bytes(self._config[offset : offset + 4], "little")

    @property
    def target(self) -> int:
        """Pages that the balloon is to have."""
        return self._field(NUM_PAGES)

    def set_target(self, pages: int) -> None:
        """Ask for so many, 0 to `ram_pages`. Under the bus lock; the driver is told."""
        self.change_config(NUM_PAGES, min(max(pages, 0), self.settings.ram_pages).to_bytes(4, "little"))

    @property
    def actual(self) -> int:
        """Pages that it has, as the driver says; never more than there are."""
        return min(self._field(ACTUAL), self.settings.ram_pages)

    @property
    def poison(self) -> int:
        """What the guest wants to find in its free pages; 0 if it does not care, or wants zeros."""
        return self._field(POISON) if self.accepted & Feature.PAGE_POISON else 0

    def config_written(self, offset: int, size: int) -> None:
        """The driver has written `actual` or `poison_val`."""
        if offset < ACTUAL + 4 and offset + size > ACTUAL:
            self.on_actual()

    # -- statistics --------------------------------------------------------------------------------------

    def take_stats(self, data: bytes, now_s: int) -> None:
        """A buffer of statistics, up to `STATS_BYTES` of it. Tags that are not known are ignored (5.5.6.3.2)."""
        whole = data[: len(data) // STAT_BYTES * STAT_BYTES]
        self.stats = {tag: value for tag, value in iter_unpack("<HQ", whole) if tag < len(STATS)}
        self.updated = now_s

    # -- hints -------------------------------------------------------------------------------------------

    @property
    def hinting(self) -> bool:
        """Whether a page that comes now is free at least since the host has asked (5.5.6.5.2)."""
        return self._announced >= FIRST_COMMAND and self._announced == self._field_of_command()

    def _field_of_command(self) -> int:
        return self._field(COMMAND) if len(self._config) > COMMAND else STOP

    def ask_for_hints(self) -> bool:
        """Begin a round, with a number that was not used lately. False: the driver does not give hints."""
        if not self.accepted & Feature.FREE_PAGE_HINT:
            return False
        self._command = self._command + 1 if self._command < LAST_COMMAND else FIRST_COMMAND
        self.change_config(COMMAND, self._command.to_bytes(4, "little"))
        return True

    def stop_hints(self) -> None:
        """End the round; the driver keeps the pages that it has told of."""
        if self._field_of_command() > DONE:
            self.change_config(COMMAND, STOP.to_bytes(4, "little"))

    def end_hints(self) -> None:
        """What was told is of no use any more: the driver may have its pages back. Nothing if nobody has asked."""
        self._announced = STOP
        if self._command != FIRST_COMMAND and self.accepted & Feature.FREE_PAGE_HINT:
            self.change_config(COMMAND, DONE.to_bytes(4, "little"))

    def hint_command(self, number: int) -> None:
        """The driver's word: which request the pages that follow belong to, or (0) that there are no more."""
        self._announced = number

    # -- life --------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """All pages are the guest's again. The host's wish stays."""
        super().reset()
        length = len(self._config)
        self._config[ACTUAL:length] = bytes(length - ACTUAL)
        self._announced = STOP
        self.stats, self.updated = {}, 0
        self.on_actual()

    def state(self) -> BalloonState:
        """All of it as a record."""
        stats = tuple(sorted(self.stats.items()))
        return BalloonState(self.config_state(), stats, self.updated, self._command, self._announced)

    def restore(self, state: BalloonState, accepted: int) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        check_record(state, BalloonState)
        config = self.check_config(state.config)
        if int.from_bytes(config.space[:4], "little") > self.settings.ram_pages:
            raise ValueError("space asks for more pages than there are")
        if type(state.stats) is not tuple or len(state.stats) > len(STATS):
            raise ValueError(f"stats is not a tuple of at most {len(STATS)}")
        for entry in state.stats:
            if type(entry) is not tuple or len(entry) != 2:
                raise ValueError("stats has an entry that is not two numbers")
            check_uint("stats: tag", entry[0], len(STATS) - 1)
            check_uint("stats: value", entry[1], VALUE_LIMIT)
        tags = [tag for tag, _ in state.stats]
        if tags != sorted(set(tags)):
            raise ValueError("stats has tags that do not rise")
        check_uint("updated", state.updated, VALUE_LIMIT)
        if check_uint("command", state.command, LAST_COMMAND) < FIRST_COMMAND:
            raise ValueError("command is none of this device")
        check_uint("announced", state.announced, LAST_COMMAND)
        self.load_config(config)
        self.stats, self.updated = dict(state.stats), state.updated
        self._command, self._announced = state.command, state.announced
        self.accepted = accepted


def page_numbers(data: bytes) -> list[int]:
    """The numbers in a buffer of the inflate or deflate queue; an incomplete one at the end is none."""
    return [number for (number,) in iter_unpack("<I", data[: len(data) // 4 * 4])]


def merge_runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Page numbers, in any order and any number of times, as (first, count) of neighbours, rising."""
    runs: list[tuple[int, int]] = []
    first = end = -1
    for number in sorted(set(numbers)):
        if number != end:
            if end > first:
                runs.append((first, end - first))
            first = number
        end = number + 1
    if end > first:
        runs.append((first, end - first))
    return runs


def _nobody_looks() -> None:
    """Before anybody wants to know."""
