"""Virtqueues as devices use them: take chains in batches, give them back, decide about notifications.

The walk over guest memory is C and runs without the interpreter lock (vring.c). Buffers are never copied: a batch has
an iovec for each piece, to be handed to readv(2), writev(2) or io_uring from C, or as memoryviews from Python.

How a device sleeps without losing a kick::

    while True:
        while ring.pop(batch):
            ...                          # use the chains
            ring.push_batch(batch)
            if ring.should_notify():
                ...                      # interrupt
        if ring.enable_kicks():          # False: something came in the meantime
            ...                          # wait for the kick
            ring.note_kick()
            ring.disable_kicks()

A ring belongs to one thread at a time. What the guest does wrong is no exception: the ring stops, `error` says why, and
every later `pop` is empty; the device then asks for a reset. Exceptions are for mistakes of the device.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.vring_records import (
    F_IN_ORDER,
    F_RING_PACKED,
    RING_FEATURES,
    InFlight,
    RingError,
    VringConfig,
    VringCounters,
    VringState,
    check_state,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tvmm.kvm.memory_map import MemoryMap

__all__ = ["IOVECS_MAX", "Batch", "Chain", "Vring"]

IOVECS_MAX = 65536
"""Pieces that a chain can be in: every descriptor of the longest queue, and each in two regions."""
CHAINS = 256
PACKED_IDS = int(lib.TVMM_RING_PACKED_IDS)
FREE, DONE = int(lib.TVMM_CHAIN_FREE), int(lib.TVMM_CHAIN_DONE)
IN_FLIGHT = int(lib.TVMM_CHAIN_IN_FLIGHT)

_CHAIN = Struct("<IIIIQQ")
_IN_FLIGHT = Struct("<QIHH")
_FREE_ENTRIES = bytes(CHAINS * _IN_FLIGHT.size)
# Pages of a batch that no chain reaches are never touched.
_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


class Chain(NamedTuple):
    """A descriptor chain. Its iovecs are `first` and on in the batch, first all readable ones, then the writable."""

    id: int
    first: int
    readable_count: int
    writable_count: int
    readable_bytes: int
    writable_bytes: int


class Batch:
    """Room for the chains of one pop, and for their iovecs.

    `raw` is the C record. A device that has requests under way while it pops again uses several batches; iovecs stay
    valid until their batch is popped into again. The iovecs and the memoryviews refer to guest RAM: not to be used when
    that is gone.
    """

    def __init__(self, chains: int = CHAINS, iovecs: int = IOVECS_MAX) -> None:
        """`chains`: most that one pop takes. `iovecs`: a chain in more pieces than that stops its ring."""
        if chains < 1 or not 1 <= iovecs <= IOVECS_MAX:
            raise ValueError("a batch has room for at least one chain, and for 1 to 65536 iovecs")
        self._arrays = (
            _new_uncleared("struct tvmm_chain[]", chains),
            _new_uncleared("struct tvmm_used[]", chains),
            _new_uncleared("struct iovec[]", iovecs),
        )
        fields = dict(zip(("chains", "used", "iovecs"), self._arrays, strict=True))
        self.raw = ffi.new("struct tvmm_batch *", {"chain_limit": chains, "iovec_limit": iovecs, **fields})

    def __len__(self) -> int:
        return int(self.raw.count)

    @property
    def chains(self) -> list[Chain]:
        """What the last pop gave, in the ring's order."""
        data = ffi.buffer(self._arrays[0], _CHAIN.size * self.raw.count) if self.raw.count else b""
        return [Chain._make(fields) for fields in _CHAIN.iter_unpack(data)]

    def readable(self, chain: Chain) -> list[memoryview]:
        """Guest RAM that the driver filled for the device; not to be written."""
        return self._views(chain.first, chain.readable_count)

    def writable(self, chain: Chain) -> list[memoryview]:
        """Guest RAM for the device to fill, from its beginning on without gaps, by `MemoryMap.fill`."""
        return self._views(chain.first + chain.readable_count, chain.writable_count)

    def set_length(self, index: int, length: int) -> None:
        """How many bytes the device wrote into chain number `index` of the batch, for `push_batch`; 0 if not said."""
        if not 0 <= index < self.raw.count:
            raise IndexError(f"the batch has {self.raw.count} chains")
        self.raw.used[index].length = length

    def _views(self, first: int, count: int) -> list[memoryview]:
        iovecs = self._arrays[2]
        return [
            memoryview(ffi.buffer(iovecs[index].iov_base, iovecs[index].iov_len))
            for index in range(first, first + count)
        ]


class Vring:
    """The device's half of one virtqueue, split or packed. A new one is not configured, and empty."""

    def __init__(self, memory: MemoryMap) -> None:
        self.memory = memory
        """Where its buffers are."""
        self.raw = _new_ring()
        self._one = ffi.new("struct tvmm_used *")

    def configure(self, config: VringConfig) -> RingError:
        """Start at position 0 with nothing in flight. An address or size that the driver chose badly stops the ring.

        Kicks are as the driver set them up: call `enable_kicks` (or `disable_kicks`) next.
        """
        self._configure(self.raw, config)
        return self.error

    def reset(self) -> None:
        """As new; the counters go on."""
        lib.tvmm_vring_reset(self.raw)

    @property
    def error(self) -> RingError:
        """NONE as long as the ring works."""
        return RingError(self.raw.error)

    @property
    def error_sentence(self) -> str:
        """Why it stopped, in words; empty if it did not."""
        return self.error.sentence(int(self.raw.error_value)) if self.raw.error else ""

    def pop(self, batch: Batch) -> int:
        """Take what the driver offers, as far as there is room in `batch`. How many chains that were.

        Python that looks at their buffers asks `missing` first; a server in C waits without the interpreter lock.
        """
        return int(lib.tvmm_vring_pop(self.raw, batch.raw))

    def missing(self, batch: Batch, chains: Iterable[Chain]) -> list[tuple[str, int, int]]:
        """Which buffers of these chains of `batch` are still on their way, for `MemoryMap.bring`."""
        return self.memory.missing(
            piece for chain in chains for pieces in (batch.readable(chain), batch.writable(chain)) for piece in pieces
        )

    def unpop(self, batch: Batch, count: int) -> None:
        """Put the last `count` chains of `batch` back, to be popped again later.

        Raises `ValueError` if `batch` is not what was popped last, or if one of them was pushed.
        """
        if count < 0 or lib.tvmm_vring_unpop(self.raw, batch.raw, count) < 0:
            raise ValueError(f"{count} chains cannot go back into the ring")

    def push(self, chain_id: int, length: int = 0) -> None:
        """Give one chain back, with `length` bytes written. Raises `ValueError`: see `push_many`."""
        try:
            self._one.id = chain_id
            self._one.length = length
        except OverflowError:
            raise ValueError(f"chain {chain_id} or its length {length} is not a number of 32 bits") from None
        self._push(self._one, 1)

    def push_many(self, used: Sequence[tuple[int, int]]) -> None:
        """Give chains back as (id, bytes written), in the order of their completion.

        The driver sees all of them at once; with IN_ORDER it sees those before which nothing is missing. Raises
        `ValueError`, and gives nothing back, if one is not in flight or has less room than that.
        """
        try:
            array = ffi.new("struct tvmm_used[]", list(used))
        except OverflowError:
            raise ValueError("a chain or a length is not a number of 32 bits") from None
        self._push(array, len(used))

    def push_batch(self, batch: Batch) -> None:
        """Give all chains of a batch back, with the lengths set in it. Raises `ValueError`: see `push_many`."""
        self._push(batch.raw.used, batch.raw.count)

    def _push(self, used: Any, count: int) -> None:
        result = lib.tvmm_vring_push(self.raw, used, count)
        if result < 0:
            wrong = used[-1 - result]
            raise ValueError(f"chain {wrong.id} is not in flight, or has no room for {wrong.length} bytes")

    def should_notify(self) -> bool:
        """Whether the driver is to be interrupted for what was pushed since the last call."""
        return bool(lib.tvmm_vring_should_notify(self.raw))

    def ready(self) -> bool:
        """Whether a pop would find something (or stop the ring)."""
        return bool(lib.tvmm_vring_ready(self.raw))

    def enable_kicks(self) -> bool:
        """Ask the driver for kicks. False: there is work already, the kicks are off again, and `pop` is next."""
        return bool(lib.tvmm_vring_enable_kicks(self.raw))

    def disable_kicks(self) -> None:
        """Tell the driver that the device looks by itself. A kick can still come."""
        lib.tvmm_vring_disable_kicks(self.raw)

    def note_kick(self, count: int = 1) -> None:
        """Count kicks that the device took."""
        self.raw.counters.kicks += count

    def note_error(self) -> None:
        """Count a chain that broke a rule of the device's."""
        self.raw.counters.errors += 1

    @property
    def counters(self) -> VringCounters:
        """Since the object was made."""
        return VringCounters(*(int(getattr(self.raw.counters, field)) for field in VringCounters._fields))

    # -- saving --------------------------------------------------------------------------------------------

    def state(self) -> VringState:
        """All of it but the counters. The guest must not run: the rings themselves are in its memory."""
        raw = self.raw
        if not raw.size and not raw.error:
            return VringState()
        config = VringConfig(raw.size, raw.descriptor_area, raw.driver_area, raw.device_area, raw.features)
        return VringState(
            config,
            raw.error,
            raw.error_value,
            raw.next_avail,
            bool(raw.avail_wrap),
            raw.next_used,
            bool(raw.used_wrap),
            raw.unsignalled,
            bool(raw.kicks_wanted),
            raw.kick_event,
            tuple(_in_flight(raw)),
        )

    def restore(self, state: VringState) -> None:
        """Go on from `state`. Raises `ValueError`, and changes nothing, if it is not one of a ring in this memory."""
        check_state(state)
        raw = _new_ring()
        if state.config:
            self._configure(raw, state.config)
            if raw.error and not state.error:
                raise ValueError(f"config: {RingError(raw.error).sentence(int(raw.error_value))}")
            if not raw.in_flight and state.in_flight:
                raise ValueError("in_flight: the ring has no place in this memory")
            for field in VringState._fields[1:-1]:
                setattr(raw, field, getattr(state, field))
            for position, chain in enumerate(state.in_flight):
                status = DONE if chain.done else IN_FLIGHT
                raw.in_flight[chain.id] = (chain.writable, chain.length, chain.slots, status)
                raw.order[position] = chain.id
            raw.in_flight_count = len(state.in_flight)
            raw.slots_in_flight = sum(chain.slots for chain in state.in_flight)
        raw.counters = self.raw.counters
        self.raw = raw

    def _configure(self, raw: Any, config: VringConfig) -> None:
        lib.tvmm_vring_reset(raw)
        raw.size, raw.descriptor_area, raw.driver_area, raw.device_area, _ = config
        raw.features = config.features & RING_FEATURES
        if lib.tvmm_vring_configure(raw, self.memory.raw) < 0:
            lib.tvmm_vring_reset(raw)
            raise HostError(f"the host has no memory for a queue of {config.size}", "free some and start again")


def _new_ring() -> Any:
    raw = lib.tvmm_vring_new()
    if not raw:
        raise HostError("the host has no memory for a queue", "free some and start again")
    return ffi.gc(raw, lib.tvmm_vring_free)


def _in_flight(raw: Any) -> Iterable[InFlight]:
    """Oldest first if the ring has an order, by id if not."""
    if not raw.in_flight:
        return
    if raw.features & F_IN_ORDER:
        ids = [raw.order[(raw.order_head + index) % raw.size] for index in range(raw.in_flight_count)]
        entries: Iterable[tuple[int, tuple[int, ...]]] = ((number, _fields(raw.in_flight[number])) for number in ids)
    else:
        entries = _occupied(raw.in_flight, PACKED_IDS if raw.features & F_RING_PACKED else raw.size)
    left = int(raw.in_flight_count)
    for number, (writable, length, slots, status) in entries:
        if not left:
            return
        if status != FREE:
            yield InFlight(number, slots, writable, status == DONE, length)
            left -= 1


def _occupied(table: Any, count: int) -> Iterable[tuple[int, tuple[int, ...]]]:
    """Entries with their ids, but for stretches of free ones, which are zeros: packed rings have 65536 ids."""
    data = ffi.buffer(table, count * _IN_FLIGHT.size)
    for start in range(0, count, CHAINS):
        part = data[start * _IN_FLIGHT.size : (start + CHAINS) * _IN_FLIGHT.size]
        if part != _FREE_ENTRIES[: len(part)]:
            yield from enumerate(_IN_FLIGHT.iter_unpack(part), start)


def _fields(entry: Any) -> tuple[int, ...]:
    return entry.writable, entry.length, entry.slots, entry.status
