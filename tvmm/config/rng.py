"""``--device virtio-rng``: random bytes for the guest."""

from __future__ import annotations

from typing import NamedTuple

from tvmm.config.properties import ID, RING, Property, check_values, parse_device, spell_device, spelled, with_defaults
from tvmm.errors import ConfigError

__all__ = ["RNG_PROPERTIES", "RngConfig"]

MAX_PERIOD_MS = 86_400_000


class RngConfig(NamedTuple):
    """One source of entropy: the guest gets at most `max_bytes` (0: any number) of `filename` in `period_ms`.

    `id` is '' until `MachineConfig.check` gives it by position.
    """

    id: str = ""
    filename: str = "/dev/urandom"
    max_bytes: int = 0
    period_ms: int = 1000
    transport: str = "pci"
    packed: bool = False
    in_order: bool = False
    event_idx: bool = True
    indirect_desc: bool = True

    @classmethod
    def parse(cls, text: str) -> RngConfig:
        """From ``virtio-rng[,key=val]``. Raises `ConfigError`."""
        return cls(**parse_device(text, RNG_PROPERTIES)).check()

    def check(self) -> RngConfig:
        """The same record, if its fields are in range; raises `ConfigError` otherwise."""
        check_values(self, "virtio-rng", RNG_PROPERTIES)
        if not self.filename:
            raise ConfigError("virtio-rng property filename is empty", "write filename=/dev/urandom, or leave it out")
        return self

    def spelling(self) -> str:
        """The value of ``--device`` that gives this record, without options that have their default."""
        return spell_device("virtio-rng", spelled(self, RNG_PROPERTIES))


RNG_PROPERTIES = with_defaults(
    RngConfig,
    ID,
    Property("filename", "text", None, "where the random bytes come from"),
    Property("max-bytes", "size", None, "bytes that the guest gets in a period, 0 for any number", 0, 1 << 40),
    Property("period", "integer", None, "length of a period in milliseconds", 1, MAX_PERIOD_MS, field="period_ms"),
    *RING,
)
"""What ``--device virtio-rng`` takes."""
