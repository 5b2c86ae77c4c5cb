"""``--device virtio-keyboard`` and ``--device virtio-tablet``."""

from __future__ import annotations

from typing import NamedTuple

from tvmm.config.properties import ID, RING, Property, check_values, spell_device, spelled, with_defaults
from tvmm.errors import ConfigError

__all__ = ["INPUT_PROPERTIES", "InputConfig"]

SERIAL_LIMIT = 127


class InputConfig(NamedTuple):
    """One device of `kind` ``keyboard`` or ``tablet``.

    `id` is '' until `MachineConfig.check` gives it by position.
    """

    id: str = ""
    kind: str = "keyboard"
    serial: str = ""
    transport: str = "pci"
    packed: bool = False
    in_order: bool = False
    event_idx: bool = True
    indirect_desc: bool = True

    def check(self) -> InputConfig:
        """The same record, if its fields are in range; raises `ConfigError` otherwise."""
        if self.kind not in ("keyboard", "tablet"):
            raise ConfigError(f"an input device of kind {self.kind!r}", "it is a keyboard or a tablet")
        check_values(self, f"virtio-{self.kind}", INPUT_PROPERTIES)
        if len(self.serial) > SERIAL_LIMIT or not self.serial.isascii() or not self.serial.isprintable():
            raise ConfigError(
                f"virtio-{self.kind} property serial {self.serial[:SERIAL_LIMIT]!r} cannot be told to the guest",
                f"it has at most {SERIAL_LIMIT} printable ASCII characters",
            )
        return self

    def spelling(self) -> str:
        """The value of ``--device`` that gives this record, without options that have their default."""
        return spell_device(f"virtio-{self.kind}", spelled(self, INPUT_PROPERTIES))


INPUT_PROPERTIES = with_defaults(
    InputConfig, ID, Property("serial", "text", None, "serial number that the guest sees", otherwise="none"), *RING
)
"""What both take."""
