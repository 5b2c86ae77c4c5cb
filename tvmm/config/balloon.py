"""``--device virtio-balloon``: memory that the guest lends to the host, and what it tells of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.config.properties import ID, RING, Property, check_values, parse_device, spell_device, spelled, with_defaults
from tvmm.config.units import format_size
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from tvmm.config.machine import MachineConfig

__all__ = ["BALLOON_PROPERTIES", "BalloonConfig"]

MAX_INTERVAL_S = 0xFFFF_FFFF
MAX_MEMORY = 1 << 44
"""More has no page numbers of 32 bits."""


class BalloonConfig(NamedTuple):
    """A balloon. `deflate_on_oom`: the guest may take pages back when it has no others. `free_page_hint`: it tells
    which pages are free when it is migrated. `free_page_reporting`: it does so at any time, and these go back to the
    host. `interval_s`: seconds between requests for statistics, 0 for none.

    `id` is '' until `MachineConfig.check` gives it by position.
    """

    id: str = ""
    deflate_on_oom: bool = False
    free_page_hint: bool = False
    free_page_reporting: bool = False
    interval_s: int = 0
    transport: str = "pci"
    packed: bool = False
    in_order: bool = False
    event_idx: bool = True
    indirect_desc: bool = True

    @classmethod
    def parse(cls, text: str) -> BalloonConfig:
        """From ``virtio-balloon[,key=val]``. Raises `ConfigError`."""
        return cls(**parse_device(text, BALLOON_PROPERTIES)).check()

    def check(self) -> BalloonConfig:
        """The same record, if its fields are in range; raises `ConfigError` otherwise."""
        check_values(self, "virtio-balloon", BALLOON_PROPERTIES)
        return self

    def check_machine(self, config: MachineConfig) -> BalloonConfig:
        """The same record, if a machine of `config` can have it; raises `ConfigError` otherwise."""
        memory = config.memory
        if len(config.balloons) > 1:
            raise ConfigError("a machine has one virtio-balloon at most", "leave out all but one")
        if memory.hugepages:
            raise ConfigError(
                f"virtio-balloon cannot give parts of huge pages of {format_size(memory.hugepages)} back to the host",
                "leave out hugepages: ordinary memory has transparent huge pages, which it can",
            )
        if memory.prealloc and self.free_page_reporting:
            raise ConfigError(
                "free-page-reporting=on gives back what prealloc=on has allocated in advance", "leave out one of them"
            )
        if memory.size > MAX_MEMORY:
            raise ConfigError(f"virtio-balloon can have {format_size(MAX_MEMORY)} of memory at most")
        return self.check()

    def spelling(self) -> str:
        """The value of ``--device`` that gives this record, without options that have their default."""
        return spell_device("virtio-balloon", spelled(self, BALLOON_PROPERTIES))


BALLOON_PROPERTIES = with_defaults(
    BalloonConfig,
    ID,
    Property("deflate-on-oom", "boolean", None, "let the guest take memory back when it has no other"),
    Property("free-page-hint", "boolean", None, "have the guest tell, while it is migrated, which pages are free"),
    Property("free-page-reporting", "boolean", None, "have the guest give its free pages back at any time"),
    Property(
        "guest-stats-polling-interval", "integer", None, "seconds between requests for statistics, 0 for none",
        0, MAX_INTERVAL_S, field="interval_s",
    ),
    *RING,
)  # fmt: skip
"""What ``--device virtio-balloon`` takes."""
