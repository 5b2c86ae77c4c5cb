"""Which received frames a guest wants, by destination address (virtio 1.3, 5.1.6.5.1 and 5.1.6.5.2).

A filter may always let more pass than was asked for (the driver's kernel looks again), never less.
"""

from __future__ import annotations

from typing import NamedTuple

from tvmm.records import check_bits, check_bytes, check_flag, check_record
from tvmm.virtio.net_control import MAX_MAC_ENTRIES, RX_MODES

__all__ = ["FilterState", "RxFilter"]

BROADCAST = b"\xff" * 6
MODE_BITS = {mode: 1 << bit for bit, mode in enumerate(RX_MODES)}
TABLE_LIMIT = 6 * MAX_MAC_ENTRIES


class FilterState(NamedTuple):
    """`modes` has a bit for each of `RX_MODES`; tables are addresses one after the other, `any_` for tables that
    were too long.
    """

    modes: int = 0
    unicast: bytes = b""
    multicast: bytes = b""
    any_unicast: bool = False
    any_multicast: bool = False


class RxFilter:
    """The filter of one interface, whose own address is `own`.

    A driver that never sets a table has no wish: until it does, everything passes.
    """

    def __init__(self, own: bytes) -> None:
        self.own = own
        self._modes = 0
        self._unicast: frozenset[bytes] = frozenset()
        self._multicast: frozenset[bytes] = frozenset()
        self._any_unicast = self._any_multicast = True

    def reset(self, own: bytes) -> None:
        """As at first, for an interface with the address `own`."""
        self.own = own
        self._load(FilterState(any_unicast=True, any_multicast=True))

    def set_mode(self, mode: str, on: bool) -> None:
        """Turn one of `RX_MODES` on or off."""
        bit = MODE_BITS[mode]
        self._modes = self._modes & ~bit | (bit if on else 0)

    def set_table(self, unicast: tuple[bytes, ...] | None, multicast: tuple[bytes, ...] | None) -> None:
        """The addresses to let pass besides the own one; None for all of the kind."""
        self._any_unicast, self._any_multicast = unicast is None, multicast is None
        self._unicast = frozenset(unicast or ())
        self._multicast = frozenset(multicast or ())

    def _has(self, mode: str) -> bool:
        return bool(self._modes & MODE_BITS[mode])

    def passes(self, destination: bytes) -> bool:
        """Whether a frame to the six bytes `destination` is for this guest."""
        if self._has("promiscuous"):
            return True
        if destination == BROADCAST:
            return not self._has("no_broadcast")
        if destination[0] & 1:
            if self._has("no_multicast"):
                return False
            return self._has("all_multicast") or self._any_multicast or destination in self._multicast
        if self._has("no_unicast"):
            return False
        wide = self._has("all_unicast") or self._any_unicast
        return wide or destination == self.own or destination in self._unicast

    def state(self) -> FilterState:
        """The filter as a record, without the own address, which is in the configuration space."""
        return FilterState(
            self._modes,
            b"".join(sorted(self._unicast)),
            b"".join(sorted(self._multicast)),
            self._any_unicast,
            self._any_multicast,
        )

    def check(self, state: FilterState) -> None:
        """Raise `ValueError` with the name of a bad field for what `restore` would not take."""
        check_record(state, FilterState)
        check_bits("modes", state.modes, (1 << len(RX_MODES)) - 1)
        for field in ("unicast", "multicast"):
            table = check_bytes(field, getattr(state, field), 0, TABLE_LIMIT)
            if len(table) % 6 or _cut(table) != sorted(set(_cut(table))):
                raise ValueError(f"{field} is not a table of addresses in order")
            if check_flag(f"any_{field}", getattr(state, f"any_{field}")) and table:
                raise ValueError(f"{field} is not empty, and all pass")

    def restore(self, state: FilterState) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        self.check(state)
        self._load(state)

    def _load(self, state: FilterState) -> None:
        self._modes = state.modes
        self._unicast = frozenset(_cut(state.unicast))
        self._multicast = frozenset(_cut(state.multicast))
        self._any_unicast, self._any_multicast = bool(state.any_unicast), bool(state.any_multicast)


def _cut(table: bytes) -> list[bytes]:
    return [table[at : at + 6] for at in range(0, len(table), 6)]
