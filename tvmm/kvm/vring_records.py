"""What a virtqueue is configured with, what it counts, what is saved of it, and how it can break (no C here).

Section numbers are those of the OASIS specification Virtio 1.3.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

__all__ = [
    "F_EVENT_IDX",
    "F_INDIRECT_DESC",
    "F_IN_ORDER",
    "F_RING_PACKED",
    "RING_FEATURES",
    "InFlight",
    "RingError",
    "VringConfig",
    "VringCounters",
    "VringState",
    "check_state",
    "valid_size",
]

F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_RING_PACKED = 1 << 34
F_IN_ORDER = 1 << 35
RING_FEATURES = F_INDIRECT_DESC | F_EVENT_IDX | F_RING_PACKED | F_IN_ORDER
"""The feature bits (section 6) that a ring looks at."""

SIZE_LIMIT = 32768
INDEX_LIMIT = 0xFFFF
BYTES_LIMIT = 1 << 32
EVERYTHING = 1 << 16


class RingError(IntEnum):
    """Why a ring stopped, under the names that vring.h has for it. All but the first are the driver's doing."""

    NONE = 0
    QUEUE_SIZE = 1
    AREA_MISALIGNED = 2
    AREA_OUTSIDE_RAM = 3
    AREA_DIVIDED = 4
    AREA_READ_ONLY = 5
    AREAS_OVERLAP = 6
    INDEX_JUMP = 7
    HEAD_RANGE = 8
    ID_IN_FLIGHT = 9
    NEXT_RANGE = 10
    CHAIN_TOO_LONG = 11
    INDIRECT_REFUSED = 12
    INDIRECT_NESTED = 13
    INDIRECT_LINKED = 14
    INDIRECT_LENGTH = 15
    INDIRECT_TOO_LONG = 16
    INDIRECT_OUTSIDE_RAM = 17
    READABLE_AFTER_WRITABLE = 18
    BUFFER_EMPTY = 19
    BUFFER_WRAPS = 20
    BUFFER_OUTSIDE_RAM = 21
    BUFFER_READ_ONLY = 22
    TOO_MANY_IOVECS = 23
    TOO_MANY_BYTES = 24

    def sentence(self, value: int) -> str:
        """In words; `value` is the ring's `error_value`."""
        return _SENTENCES[self].format(value=value)


_SENTENCES = {
    RingError.NONE: "the ring works",
    RingError.QUEUE_SIZE: "a queue size of {value} is not one that this ring format has",
    RingError.AREA_MISALIGNED: "the ring's part at {value:#x} is not aligned as its format asks",
    RingError.AREA_OUTSIDE_RAM: "the ring's part at {value:#x} is not wholly in RAM",
    RingError.AREA_DIVIDED: "the ring's part at {value:#x} lies in two pieces of RAM",
    RingError.AREA_READ_ONLY: "the ring's part at {value:#x} is in read-only memory, and the device writes it",
    RingError.AREAS_OVERLAP: "the ring's part at {value:#x} overlaps another one",
    RingError.INDEX_JUMP: "the available index jumped by more than the queue size, to {value}",
    RingError.HEAD_RANGE: "the available ring names descriptor {value}, which the queue does not have",
    RingError.ID_IN_FLIGHT: "buffer {value} was made available while the device still had it",
    RingError.NEXT_RANGE: "a descriptor continues at {value}, behind the end of its table",
    RingError.CHAIN_TOO_LONG: "the chain at {value} has more descriptors than there can be: a loop",
    RingError.INDIRECT_REFUSED: "the chain at {value} uses an indirect table, which was not negotiated",
    RingError.INDIRECT_NESTED: "the chain at {value} has an indirect table inside an indirect table",
    RingError.INDIRECT_LINKED: "the chain at {value} links an indirect table with other descriptors",
    RingError.INDIRECT_LENGTH: "an indirect table of {value} bytes is not a whole number of descriptors, or none",
    RingError.INDIRECT_TOO_LONG: "an indirect table of {value} bytes has more descriptors than tvmm walks",
    RingError.INDIRECT_OUTSIDE_RAM: "the indirect table at {value:#x} is not wholly in RAM",
    RingError.READABLE_AFTER_WRITABLE: "the readable buffer at {value:#x} comes behind a writable one",
    RingError.BUFFER_EMPTY: "the buffer at {value:#x} has no bytes",
    RingError.BUFFER_WRAPS: "the buffer at {value:#x} goes over the end of the address space",
    RingError.BUFFER_OUTSIDE_RAM: "a buffer has address {value:#x}, which is not RAM",
    RingError.BUFFER_READ_ONLY: "a buffer to be written has address {value:#x}, which is read-only",
    RingError.TOO_MANY_IOVECS: "a chain is in more than {value} pieces, which is the device's limit",
    RingError.TOO_MANY_BYTES: "the buffer at {value:#x} makes its chain longer than 4 GiB",
}


class VringConfig(NamedTuple):
    """What the driver and the negotiation say of one queue.

    `size`: of the queue, in descriptors: split any power of two up to 32768, packed any number up to that.
    The areas are guest-physical addresses: descriptor table, available and used ring of a split ring (2.7);
    descriptor ring, driver's and device's event suppression of a packed one (2.8). `features`: negotiated
    feature bits; those outside of `RING_FEATURES` have no meaning here.
    """

    size: int
    descriptor_area: int
    driver_area: int
    device_area: int
    features: int = 0

    @property
    def packed(self) -> bool:
        """The format."""
        return bool(self.features & F_RING_PACKED)


class InFlight(NamedTuple):
    """A chain that the device has taken and the driver has not got back.

    `id`: head descriptor (split) or buffer id (packed). `slots`: how far the ring moves with it, 1 on a split
    ring. `writable`: bytes that the device may write. `done`: the device gave it back with `length`, which
    the driver does not know yet.
    """

    id: int
    slots: int = 1
    writable: int = 0
    done: bool = False
    length: int = 0


class VringState(NamedTuple):
    """One queue, to be saved.

    `config` is None for a queue that is not configured, and nothing else is then set. `next_avail`,
    `next_used`: free-running modulo 65536 on a split ring, positions with their wrap counters (2.8.1) on a
    packed one. `unsignalled`: ring positions used since the last decision about an interrupt, 65536 for that
    many or more. `kick_event`: what a split ring with EVENT_IDX has in avail_event. `in_flight`: oldest
    first with IN_ORDER, by rising id without.
    """

    config: VringConfig | None = None
    error: int = 0
    error_value: int = 0
    next_avail: int = 0
    avail_wrap: bool = False
    next_used: int = 0
    used_wrap: bool = False
    unsignalled: int = 0
    kicks_wanted: bool = False
    kick_event: int = 0
    in_flight: tuple[InFlight, ...] = ()


class VringCounters(NamedTuple):
    """What happened since the queue was made, resets included.

    `pops` calls on a working ring, of which `empty_pops` found nothing; `chains` taken; `returned` by the
    device; `used_entries` written, which can be fewer with IN_ORDER; `kicks` that the device took;
    `interrupts` sent and `suppressed` on the driver's wish, one decision each; `errors`: how often it stopped,
    or a chain was none of the device's.
    """

    pops: int
    empty_pops: int
    chains: int
    returned: int
    used_entries: int
    kicks: int
    interrupts: int
    suppressed: int
    errors: int


def valid_size(size: int, *, packed: bool) -> bool:
    """Whether the ring format has queues of that size."""
    return 1 <= size <= SIZE_LIMIT and (packed or not size & (size - 1))


def check_state(state: VringState) -> None:
    """Raise `ValueError` with the name of the field if no queue can be in `state`."""
    if not isinstance(state, VringState):
        raise ValueError("state is not a VringState")
    if state.config is None:
        if state != VringState():
            raise ValueError("config is missing")
        return
    config = _checked_config(state.config)
    _number("error", state.error, len(RingError) - 1)
    _number("error_value", state.error_value, (1 << 64) - 1)
    _number("unsignalled", state.unsignalled, EVERYTHING)
    _number("kick_event", state.kick_event, INDEX_LIMIT)
    for field in ("avail_wrap", "used_wrap", "kicks_wanted"):
        _flag(field, getattr(state, field))
    if state.error and state.error < RingError.INDEX_JUMP:
        if state.next_avail or state.next_used or state.in_flight:
            raise ValueError("a ring that was never configured well has moved")
        return
    if not valid_size(config.size, packed=config.packed):
        raise ValueError("size is not one that the ring format has")
    _check_positions(state, config)


def _checked_config(config: VringConfig) -> VringConfig:
    if not isinstance(config, VringConfig):
        raise ValueError("config is not a VringConfig")
    _number("size", config.size, (1 << 32) - 1)
    for field in ("descriptor_area", "driver_area", "device_area"):
        _number(field, getattr(config, field), (1 << 64) - 1)
    if _number("features", config.features, RING_FEATURES) & ~RING_FEATURES:
        raise ValueError("features has bits that are not the ring's")
    return config


def _check_positions(state: VringState, config: VringConfig) -> None:
    size, packed = config.size, config.packed
    last = size - 1 if packed else INDEX_LIMIT
    _number("next_avail", state.next_avail, last)
    _number("next_used", state.next_used, last)
    if not packed and (state.avail_wrap or state.used_wrap):
        raise ValueError("a split ring has no wrap counters")
    if type(state.in_flight) is not tuple or len(state.in_flight) > size:
        raise ValueError("in_flight is not a tuple that fits the queue")
    for chain in state.in_flight:
        _check_in_flight(chain, size, packed=packed)
    if len({chain.id for chain in state.in_flight}) < len(state.in_flight):
        raise ValueError("in_flight has an id twice")
    if not state.error:
        if not config.features & F_IN_ORDER:
            if any(chain.done for chain in state.in_flight):
                raise ValueError("in_flight has a chain that is done and nothing to wait for")
        elif state.in_flight and state.in_flight[0].done:
            raise ValueError("in_flight begins with a chain that is done")
    slots = sum(chain.slots for chain in state.in_flight)
    if packed:
        ahead = _position(state.next_avail, state.avail_wrap, size) - _position(state.next_used, state.used_wrap, size)
        if slots > size or ahead % (2 * size) != slots:
            raise ValueError("in_flight is not what lies between next_used and next_avail")
    elif state.next_avail - state.next_used & INDEX_LIMIT != slots:
        raise ValueError("in_flight is not what lies between next_used and next_avail")


def _check_in_flight(chain: InFlight, size: int, *, packed: bool) -> None:
    if not isinstance(chain, InFlight):
        raise ValueError("in_flight has something that is not an InFlight")
    _number("id", chain.id, INDEX_LIMIT if packed else size - 1)
    if not _number("slots", chain.slots, size if packed else 1):
        raise ValueError("slots is 0")
    _number("length", chain.length, min(_number("writable", chain.writable, BYTES_LIMIT), BYTES_LIMIT - 1))
    if not _flag("done", chain.done) and chain.length:
        raise ValueError("length is set before the chain is done")


def _position(index: int, wrap: bool, size: int) -> int:
    return index + (0 if wrap else size)


def _number(field: str, value: object, limit: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise ValueError(f"{field} is not a whole number from 0 to {limit:#x}")
    return value


def _flag(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{field} is not a flag")
    return value
