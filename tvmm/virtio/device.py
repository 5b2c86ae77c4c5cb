"""What every virtio device is to its transport: an id, queues, features, a configuration space, a record.

A device is a model without rings and without a backend. The transport negotiates for it and calls, in this
order over one life: `negotiated` (FEATURES_OK), `activate` (DRIVER_OK: the queues as the driver set them up),
`queue_reset` for a single queue, `reset`. What moves requests is a runner outside: it gets the same
`Activation`, takes chains off the rings and asks the device what they mean.

The configuration space is bytes with a mask of the bits that a driver may write. `change_config` is how the
host's side changes it; the driver hears of it by a notification, and finds torn reads by the generation: a
counter that moves on at the first read after a change (the way that 4.1.4.3.1 advises, since a plain count of
changes may wrap between two looks at it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tvmm.errors import ConfigError
from tvmm.records import check_bytes, check_flag, check_record, check_uint
from tvmm.virtio.features import DEFAULT_RING, check_offer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_QUEUE_SIZE", "Activation", "ConfigState", "QueueSetup", "VirtioDevice"]

MAX_QUEUE_SIZE = 32768
"""Entries in one queue, split or packed (2.7, 2.8.10.1)."""

GENERATION_LIMIT = 0xFFFF_FFFF


class QueueSetup(NamedTuple):
    """Queue number `queue` as the driver configured it: entries, guest-physical addresses of its three areas, and
    whether it may be used.
    """

    queue: int
    size: int
    desc: int
    driver: int
    device: int
    ready: bool


class Activation(NamedTuple):
    """What a device goes live with: the negotiated features and every queue, by index, those unused too."""

    features: int
    queues: tuple[QueueSetup, ...]


class ConfigState(NamedTuple):
    """The configuration space and how far the driver has read it."""

    space: bytes
    generation: int = 0
    changed: bool = False


class VirtioDevice:
    """Base of the devices, and complete for one without state of its own.

    `queue_sizes` are the most entries that each queue can have (powers of two: the split ring's rule, 4.1.4.3.1),
    `features` those of the device type, `ring` those of queues and transport. `config` is the configuration
    space at first and `changeable` a mask of the bits in it that may ever change: a record with others is
    another device's. Raises `ConfigError` for a set of features that may not be offered and for impossible
    queues.
    """

    device_id: ClassVar[int] = 0
    type_name: ClassVar[str] = ""

    def __init__(
        self,
        queue_sizes: tuple[int, ...],
        features: int = 0,
        config: bytes = b"",
        changeable: bytes = b"",
        ring: int = DEFAULT_RING,
    ) -> None:
        for size in queue_sizes:
            if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
                raise ConfigError(f"a queue of {size} entries: a power of two up to {MAX_QUEUE_SIZE} is needed")
        self.queue_sizes = queue_sizes
        self.features = check_offer(self.device_id, features | ring)
        self.accepted = 0
        """What the driver took of `features`; 0 before FEATURES_OK."""
        self.config_changed: Callable[[], None] = _nobody_listens
        self._first_config = config
        self._changeable = changeable.ljust(len(config), b"\0")
        self._config = bytearray(config)
        self.writable = bytes(len(config))
        self._generation = 0
        self._changed = False

    # -- life, called by the transport -------------------------------------------------------------------

    def negotiated(self, features: int) -> None:
        """The driver has chosen: `features` hold until the next reset."""
        self.accepted = features

    def activate(self, activation: Activation) -> None:
        """The driver is ready; from here on its requests may come."""

    def queue_reset(self, index: int) -> None:
        """The driver has taken queue `index` back; nothing of it is in flight any more."""

    def reset(self) -> None:
        """By the driver, or with the machine: forget what the driver said. What the host set stays."""
        self.accepted = 0
        self._changed = False

    # -- configuration space -----------------------------------------------------------------------------

    @property
    def config_length(self) -> int:
        """Bytes in the configuration space."""
        return len(self._config)

    @property
    def generation(self) -> int:
        """Another number whenever two reads may have seen different versions of the space."""
        return self._generation

    @property
    def unseen_change(self) -> bool:
        """The space has changed since the driver last read any of it."""
        return self._changed

    def read_config(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`, as the driver reads them; all ones behind the end."""
        if self._changed:
            self._changed = False
            self._generation = self._generation + 1 & GENERATION_LIMIT
        part = bytes(self._config[offset : offset + size])
        return int.from_bytes(part + b"\xff" * (size - len(part)), "little")

    def write_config(self, offset: int, size: int, value: int) -> bool:
        """The driver's write; bits that are not for it stay. False if there was none for it at all."""
        data = value.to_bytes(size, "little")
        mask = self.writable[offset : offset + size]
        if not any(mask):
            return False
        for at, (byte, bits) in enumerate(zip(data, mask, strict=False), offset):
            self._config[at] = self._config[at] & ~bits | byte & bits
        self.config_written(offset, size)
        return True

    def config_written(self, offset: int, size: int) -> None:
        """The driver has changed some of `size` bytes at `offset`. For devices that have such."""

    def change_config(self, offset: int, data: bytes) -> bool:
        """Change the space from the host's side; the driver is notified if it is another value. Under the bus lock."""
        if offset < 0 or offset + len(data) > len(self._config):
            raise ValueError(f"{len(data)} bytes at {offset} are not in a configuration space of {len(self._config)}")
        if self._config[offset : offset + len(data)] == data:
            return False
        self._config[offset : offset + len(data)] = data
        self._changed = True
        self.config_changed()
        return True

    def config_bytes(self) -> bytes:
        """The whole space as it is, unread by anybody."""
        return bytes(self._config)

    # -- state -------------------------------------------------------------------------------------------

    def state(self) -> Any:
        """The device as a record; `ConfigState` for one that has nothing else."""
        return self.config_state()

    def restore(self, state: Any, accepted: int) -> None:
        """Take over a record, for a driver with `accepted` features (0 before FEATURES_OK).

        Raises `ValueError` with the name of a bad field and then changes nothing.
        """
        self.load_config(self.check_config(state))
        self.accepted = accepted

    def config_state(self) -> ConfigState:
        """The configuration space as a record."""
        return ConfigState(bytes(self._config), self._generation, self._changed)

    def check_config(self, state: object) -> ConfigState:
        """`state` if it is a record of this configuration space; raises `ValueError` if not."""
        check_record(state, ConfigState)
        assert isinstance(state, ConfigState)
        space = check_bytes("space", state.space, len(self._config), len(self._config))
        for byte, first, bits in zip(space, self._first_config, self._changeable, strict=True):
            if (byte ^ first) & ~bits:
                raise ValueError("space is that of a device with another configuration")
        generation = check_uint("generation", state.generation, GENERATION_LIMIT)
        return ConfigState(space, generation, check_flag("changed", state.changed))

    def load_config(self, state: ConfigState) -> None:
        """Take over a record that was checked."""
        self._config[:] = state.space
        self._generation = state.generation
        self._changed = state.changed


def _nobody_listens() -> None:
    """Before a transport has the device, there is no driver to tell."""
