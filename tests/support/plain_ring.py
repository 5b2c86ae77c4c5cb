"""The device's half of a virtqueue in plain Python: the oracle that the C one is compared with.

It shows the same outside as `tvmm.kvm.vring.Vring` but for chains, which are guest addresses here. Slow and simple: one
descriptor at a time, an exception for each broken rule, notifications decided by counting positions one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from tests.support.plain_walk import AVAIL, CHAIN_BYTES, LE16, LE32, USED, WRITE, Broken, Offer, PlainWalk
from tvmm.kvm.vring_records import (
    F_EVENT_IDX,
    F_IN_ORDER,
    InFlight,
    RingError,
    VringCounters,
    VringState,
    check_state,
)

__all__ = ["PlainChain", "PlainRing"]


class PlainChain(NamedTuple):
    """What the device is given: pieces as (address, length)."""

    id: int
    readable: tuple[tuple[int, int], ...]
    writable: tuple[tuple[int, int], ...]


class _NoRoom(Exception):
    pass


class PlainRing(PlainWalk):
    """One virtqueue; see the methods of `Vring` of the same names."""

    # -- taking --------------------------------------------------------------------------------------------

    def pop(self, chains: int, iovecs: int) -> list[PlainChain]:
        """At most so many chains, in at most so many pieces altogether."""
        result: list[PlainChain] = []
        if self.config is None or self.error:
            return result
        room = iovecs
        try:
            for offer in islice(self._offers(), chains):
                chain = self._map(offer, room, alone=not result, limit=iovecs)
                if chain.id in self.in_flight:
                    raise Broken(RingError.ID_IN_FLIGHT, chain.id)
                room -= len(chain.readable) + len(chain.writable)
                count = offer.slots[0]
                self.in_flight[chain.id] = InFlight(chain.id, count, sum(length for _, length in chain.writable))
                self.avail, self.avail_wrap = self._behind(self.avail, self.avail_wrap, count)
                result.append(chain)
        except Broken as broken:
            self._stop(broken)
        except _NoRoom:
            pass
        suppressed = not self.packed and self._has(F_EVENT_IDX) and not self.kicks_wanted
        if suppressed and self.avail - self.kick_event & 0xFFFF > 0x2000:
            self._write_kick_event(self.avail - 1)
        self.counts["pops"] += 1
        self.counts["empty_pops"] += not result
        self.counts["chains"] += len(result)
        return result

    def _map(self, offer: Offer, room: int, *, alone: bool, limit: int) -> PlainChain:
        """The chain in host pieces."""
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        total = 0
        for gpa, length, is_writable in offer.buffers:
            if not length:
                raise Broken(RingError.BUFFER_EMPTY, gpa)
            if writable and not is_writable:
                raise Broken(RingError.READABLE_AFTER_WRITABLE, gpa)
            if gpa + length > 1 << 64:
                raise Broken(RingError.BUFFER_WRAPS, gpa)
            total += length
            if total > CHAIN_BYTES:
                raise Broken(RingError.TOO_MANY_BYTES, gpa)
            at, left = gpa, length
            while left:
                run = self._run(at)
                if run is None:
                    raise Broken(RingError.BUFFER_OUTSIDE_RAM, at)
                if is_writable and run.read_only:
                    raise Broken(RingError.BUFFER_READ_ONLY, at)
                if len(readable) + len(writable) == room:
                    if alone:
                        raise Broken(RingError.TOO_MANY_IOVECS, limit)
                    raise _NoRoom
                part = min(left, run.end - at)
                (writable if is_writable else readable).append((at, part))
                at += part
                left -= part
        return PlainChain(offer.id[0], tuple(readable), tuple(writable))

    def unpop(self, chains: Sequence[PlainChain], count: int) -> None:
        """The last `count` of `chains`, which were popped last."""
        for chain in reversed(chains[len(chains) - count :]):
            steps = self.in_flight.pop(chain.id).slots
            self.counts["chains"] -= 1
            if self.packed:
                self.avail, self.avail_wrap = self._behind(self.avail, self.avail_wrap, 2 * self.size - steps)
            else:
                self.avail = self.avail - 1 & 0xFFFF

    # -- giving back ---------------------------------------------------------------------------------------

    def push_many(self, used: Sequence[tuple[int, int]]) -> None:
        """(id, bytes written) in the order of completion; all of them or `ValueError`."""
        seen = set()
        for number, length in used:
            known = self.in_flight.get(number)
            if known is None or known.done or number in seen or length > known.writable:
                raise ValueError(f"{number} with {length}")
            seen.add(number)
        self.counts["returned"] += len(used)
        for number, length in used:
            self.in_flight[number] = self.in_flight[number]._replace(done=True, length=length)
        if self.config is None or self.error or not used:
            return
        if not self._has(F_IN_ORDER):
            for number, _ in used:
                self._use([self.in_flight[number]])
        else:
            skipped: list[InFlight] = []
            done = list(self._done_prefix())
            for position, chain in enumerate(done):
                skipped.append(chain)
                if position + 1 == len(done) or chain.length != chain.writable:
                    self._use(skipped)
                    skipped = []
        if not self.packed:
            self._write16(self.config.device_area + 2, self.used)

    def _done_prefix(self) -> Iterator[InFlight]:
        for chain in self.in_flight.values():
            if not chain.done:
                return
            yield chain

    def _use(self, chains: list[InFlight]) -> None:
        """One used entry for all of them: in the first one's place, with the last one's id."""
        assert self.config is not None
        last, steps = chains[-1], sum(chain.slots for chain in chains)
        if self.packed:
            flags = (AVAIL | USED if self.used_wrap else 0) | (WRITE if last.length else 0)
            at = self.config.descriptor_area + 16 * self.used
            self.memory.write(at + 8, LE32.pack(last.length) + LE16.pack(last.id) + LE16.pack(flags))
        else:
            at = self.config.device_area + 4 + 8 * (self.used % self.size)
            self.memory.write(at, LE32.pack(last.id) + LE32.pack(last.length))
        self.used, self.used_wrap = self._behind(self.used, self.used_wrap, steps)
        self.unsignalled = min(self.unsignalled + steps, 65536)
        self.counts["used_entries"] += 1
        for chain in chains:
            del self.in_flight[chain.id]

    # -- notifications -------------------------------------------------------------------------------------

    def should_notify(self) -> bool:
        """Whether the driver is to be interrupted."""
        if self.config is None or self.error or not self.unsignalled:
            return False
        moved, self.unsignalled = self.unsignalled, 0
        wanted = self._packed_wants(moved) if self.packed else self._split_wants(moved)
        self.counts["interrupts" if wanted else "suppressed"] += 1
        return wanted

    def _split_wants(self, moved: int) -> bool:
        assert self.config is not None
        if not self._has(F_EVENT_IDX):
            return not self._read16(self.config.driver_area) & 1
        event = self._read16(self.config.driver_area + 4 + 2 * self.size)
        return any(self.used - step & 0xFFFF == event for step in range(1, moved + 1))

    def _packed_wants(self, moved: int) -> bool:
        assert self.config is not None
        event, mode = (self._read16(self.config.driver_area + at) for at in (0, 2))
        offset, wrap = event & 0x7FFF, bool(event & 0x8000)
        if mode & 3 == 1:
            return False
        if mode & 3 != 2 or not self._has(F_EVENT_IDX) or offset >= self.size:
            return True
        at = (self.used, self.used_wrap)
        for _ in range(min(moved, 2 * self.size)):
            at = self._behind(*at, 2 * self.size - 1)
            if at == (offset, wrap):
                return True
        return False

    def _write_kick_event(self, event: int) -> None:
        assert self.config is not None
        self.kick_event = event & 0xFFFF
        self._write16(self.config.device_area + 4 + 8 * self.size, event)

    def disable_kicks(self) -> None:
        """No kicks, as far as the format can say so."""
        if self.config is None or self.error:
            return
        self.kicks_wanted = False
        if self.packed:
            self.memory.write(self.config.device_area, LE32.pack(1 << 16))
        elif self._has(F_EVENT_IDX):
            self._write_kick_event(self.avail - 1)
        else:
            self._write16(self.config.device_area, 1)

    def enable_kicks(self) -> bool:
        """False: there is work already."""
        if self.config is None or self.error:
            return True
        if self.ready():
            # What the C side writes in between is overwritten by the second of its steps.
            self.disable_kicks()
            return False
        self.kicks_wanted = True
        if self.packed:
            event = 2 << 16 | self.avail_wrap << 15 | self.avail if self._has(F_EVENT_IDX) else 0
            self.memory.write(self.config.device_area, LE32.pack(event))
        elif self._has(F_EVENT_IDX):
            self._write_kick_event(self.avail)
        else:
            self._write16(self.config.device_area, 0)
        return True

    # -- saving --------------------------------------------------------------------------------------------

    @property
    def counters(self) -> VringCounters:
        """Since the object was made."""
        return VringCounters(**self.counts)

    def state(self) -> VringState:
        """All of it but the counters."""
        chains = tuple(self.in_flight.values())
        return VringState(
            self.config,
            int(self.error),
            self.error_value,
            self.avail,
            self.avail_wrap,
            self.used,
            self.used_wrap,
            self.unsignalled,
            self.kicks_wanted,
            self.kick_event,
            chains if self._has(F_IN_ORDER) else tuple(sorted(chains)),
        )

    def restore(self, state: VringState) -> None:
        """Go on from `state`."""
        check_state(state)
        self.reset()
        if state.config is None:
            return
        errors = self.counts["errors"]
        self.configure(state.config)
        self.counts["errors"] = errors
        self.error, self.error_value = RingError(state.error), state.error_value
        self.avail, self.avail_wrap, self.used, self.used_wrap = state[3:7]
        self.unsignalled, self.kicks_wanted, self.kick_event = state[7:10]
        self.in_flight = {chain.id: chain for chain in state.in_flight}
