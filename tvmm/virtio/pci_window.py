"""The PCI configuration access capability (virtio 1.3, 4.1.4.9): the BAR through the configuration space.

For firmware that has not mapped BARs yet. The driver writes bar, offset and length into the capability; an access to
the data register behind them is then an access to the BAR.

Offsets into the window, which begins 4 bytes into the capability:

====== ==== =====================
0      1    bar
4      4    offset in the BAR
8      4    length: 1, 2 or 4
12     4    data
====== ==== =====================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.records import check_record, check_uint

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.bus import Device

__all__ = ["WINDOW_LENGTH", "WINDOW_OFFSET", "PciWindow", "WindowState"]

WINDOW_OFFSET, WINDOW_LENGTH = 4, 16
DATA = 12
WRITABLE = bytes.fromhex("ff000000 ffffffff ffffffff")
WIDTHS = (1, 2, 4)


class WindowState(NamedTuple):
    """The registers in front of the data."""

    bar: int = 0
    offset: int = 0
    length: int = 0


class PciWindow:
    """A device of `WINDOW_LENGTH` bytes.

    `target` is the BAR, `reachable(bar, offset, length)` says whether there is a structure there: nothing else may be
    accessed this way. `mistake` counts attempts to.
    """

    def __init__(
        self, target: Device, reachable: Callable[[int, int, int], bool], mistake: Callable[[str], None]
    ) -> None:
        self._target = target
        self._reachable = reachable
        self._mistake = mistake
        self._registers = bytearray(DATA)

    def read(self, offset: int, size: int) -> int:
        """A register; or, where the data begins, what is in the BAR."""
        if offset < DATA:
            return int.from_bytes(self._registers[offset : min(offset + size, DATA)], "little")
        if offset != DATA or not self._usable():
            return 0
        place = self.state()
        return self._target.read(place.offset, place.length) & (1 << 8 * min(place.length, size)) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """A register; or, where the data begins, the BAR. There is nobody to hold: a reset is waited for by reading."""
        if offset < DATA:
            data = value.to_bytes(size, "little")
            for at, byte in enumerate(data[: DATA - offset], offset):
                self._registers[at] = byte & WRITABLE[at]
        elif offset == DATA and self._usable():
            place = self.state()
            self._target.write(place.offset, place.length, value & (1 << 8 * place.length) - 1)

    def _usable(self) -> bool:
        bar, offset, length = self.state()
        if length in WIDTHS and not offset % length and self._reachable(bar, offset, length):
            return True
        self._mistake("window")
        return False

    def reset(self) -> None:
        """To the state after power-on."""
        self._registers[:] = bytes(DATA)

    def state(self) -> WindowState:
        """The registers as a record."""
        words = [int.from_bytes(self._registers[at : at + 4], "little") for at in (0, 4, 8)]
        return WindowState(*words)

    def check(self, state: WindowState) -> None:
        """Raise `ValueError` with the name of a bad field for what `restore` would not take."""
        check_record(state, WindowState)
        check_uint("bar", state.bar, 0xFF)
        check_uint("offset", state.offset, 0xFFFF_FFFF)
        check_uint("length", state.length, 0xFFFF_FFFF)

    def restore(self, state: WindowState) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        self.check(state)
        self._registers[:] = b"".join(value.to_bytes(4, "little") for value in state)
