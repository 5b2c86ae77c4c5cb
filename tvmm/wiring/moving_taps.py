"""Taps of a machine that moves on one host: named at the source, taken and used at the destination.

Only descriptors that are open have anything to do here; see `tvmm.net.late_tap` for who reads from them when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.errors import UserError
from tvmm.net import tun

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from tvmm.net.late_tap import LateTap
    from tvmm.wiring.devices import Devices

__all__ = ["begin_taps", "late_taps", "let_go_of_taps", "open_others", "own_taps", "passable_taps", "take_taps"]


def passable_taps(devices: Devices | None) -> dict[str, Sequence[int]]:
    """Descriptors of the queues of each tap that is here, by the interface's name."""
    found: dict[str, Sequence[int]] = {}
    for tap in devices.taps.values() if devices is not None else ():
        try:
            if tap.is_here and tun.describe(tap.fds[0]).name == tap.name:
                found[tap.name] = tap.fds
        except OSError:
            # It has been removed: the destination can make another one.
            continue
    return found


def let_go_of_taps(devices: Devices | None, names: Collection[str]) -> None:
    """Those of these names are the destination's; no device reads from them any more."""
    for tap in devices.taps.values() if devices is not None else ():
        if tap.name in names:
            tap.let_go()


def late_taps(devices: Devices | None) -> dict[str, LateTap]:
    """Those that are to come along with a guest, by their devices' names."""
    taps = devices.taps if devices is not None else {}
    return {name: tap for name, tap in taps.items() if not tap.is_here}  # type: ignore[misc]


def open_others(taps: Mapping[str, LateTap], coming: Collection[str]) -> list[str]:
    """Open those of `taps` that will not come along; why they cannot be, in sentences. On a thread."""
    problems = []
    for tap in taps.values():
        if not tap.is_here and tap.name not in coming:
            try:
                tap.open_without()
            except UserError as error:
                problems.append(error.message)
    return problems


def take_taps(taps: Mapping[str, LateTap], passed: Mapping[str, list[int]]) -> None:
    """Give each of `taps` what came along for it, out of the lists. On a thread. One that is of another network
    namespace than that of the same name here is opened. Raises `UserError` or `ProtocolError`.
    """
    for tap in taps.values():
        if not tap.is_here and not tap.take(passed.get(tap.name, [])):
            tap.open_without()


def begin_taps(taps: Mapping[str, LateTap]) -> None:
    """Use what came along: the guest runs here next. On a thread. Raises `HostError`."""
    for tap in taps.values():
        tap.begin()


def own_taps(taps: Mapping[str, LateTap], say: Callable[[str], None]) -> None:
    """Show whose they are. On a thread; the guest runs already, so that what goes wrong is only told."""
    for name, tap in taps.items():
        try:
            tap.own()
        except UserError as error:
            say(f"{name}: {error}")
