"""Puts the BARs of all functions onto the buses, where there is room for them.

A guest writes what addresses it likes into BARs: on top of each other, of other devices, of RAM. None of it may raise,
and none may take away what is not PCI's. A BAR is on its bus if it lies wholly in a window of the root bridge and
overlaps neither a range that somebody else has claimed nor a BAR of lower rank; else it is refused, counted, and
tried again with every change.

So who is mapped depends on the registers of all functions alone and not on the order of the writes. With first come,
first served, a record would have to say who came first, and a guest that moves A to where B is and then B away
would end with A nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices.pci_bars import IO

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.bus import MmioBus, PortBus
    from tvmm.devices.pci_bars import Bar
    from tvmm.memory.layout import Range

__all__ = ["BarMapper"]


class _Wish(NamedTuple):
    bar: Bar
    address: int

    @property
    def end(self) -> int:
        return self.address + self.bar.size

    def overlaps(self, start: int, end: int) -> bool:
        return self.address < end and start < self.end


class BarMapper:
    """Maps BARs on `ports` inside of `io_window` and on `mmio` inside of `memory_windows`.

    `on_change` is called after a BAR has been put at an address, and with None after it has been taken away: for
    what moves with it, such as ioeventfds. `refusals` counts the addresses that a BAR was wanted at and could not
    be put.
    """

    def __init__(
        self,
        ports: PortBus,
        mmio: MmioBus,
        io_window: Range,
        memory_windows: Sequence[Range],
        on_change: Callable[[Bar, int | None], None] | None = None,
    ) -> None:
        self.refusals = 0
        self._ports = ports
        self._mmio = mmio
        self._io_windows = (io_window,)
        self._memory_windows = tuple(memory_windows)
        self._on_change = on_change or _nobody_asked
        self._wishes: dict[int, _Wish] = {}
        self._mapped: dict[int, _Wish] = {}
        self._refused: dict[int, _Wish] = {}

    def want(self, rank: int, bar: Bar, address: int | None) -> None:
        """Have `bar` at `address`, or nowhere. `rank` is the BAR's own; where two overlap, the lower one is served."""
        if address is None:
            self._wishes.pop(rank, None)
        else:
            self._wishes[rank] = _Wish(bar, address)
        self._settle()

    def address(self, rank: int) -> int | None:
        """Where the BAR of that rank is on its bus."""
        mapped = self._mapped.get(rank)
        return mapped.address if mapped else None

    def _bus(self, bar: Bar) -> PortBus | MmioBus:
        return self._ports if bar.kind == IO else self._mmio

    def _settle(self) -> None:
        chosen: dict[int, _Wish] = {}
        refused: dict[int, _Wish] = {}
        others = {bus: self._ranges_of_others(bus) for bus in (self._ports, self._mmio)}
        for rank, wish in sorted(self._wishes.items()):
            bus = self._bus(wish.bar)
            if self._in_window(wish) and not any(wish.overlaps(start, end) for start, end in others[bus]):
                chosen[rank] = wish
                others[bus].append((wish.address, wish.end))
            else:
                refused[rank] = wish
                self.refusals += self._refused.get(rank) != wish
        self._refused = refused
        for rank, wish in list(self._mapped.items()):
            if chosen.get(rank) != wish:
                del self._mapped[rank]
                self._bus(wish.bar).remove(wish.address)
                self._on_change(wish.bar, None)
        for rank, wish in chosen.items():
            if rank not in self._mapped:
                self._mapped[rank] = wish
                self._bus(wish.bar).add(wish.address, wish.bar.size, wish.bar.device, wish.bar.name)
                self._on_change(wish.bar, wish.address)

    def _in_window(self, wish: _Wish) -> bool:
        windows = self._io_windows if wish.bar.kind == IO else self._memory_windows
        return any(window.start <= wish.address and wish.end <= window.end for window in windows)

    def _ranges_of_others(self, bus: PortBus | MmioBus) -> list[tuple[int, int]]:
        ours = {wish.address for wish in self._mapped.values() if self._bus(wish.bar) is bus}
        return [(claimed.start, claimed.end) for claimed in bus if claimed.start not in ours]


def _nobody_asked(bar: Bar, address: int | None) -> None:
    """For a machine where nothing moves with a BAR."""
