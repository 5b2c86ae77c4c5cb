"""The canvas that follows a display, without a guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.vnc.test_server import Display
from tvmm.wiring import screen as screen_module
from tvmm.wiring.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.kvm.scroll import Scroll


class Notes:
    """A watcher that writes down what it is told."""

    copies = False

    def __init__(self) -> None:
        self.tiles = 0
        self.sizes = 0

    def damaged(self, tiles: bytes, scrolls: Sequence[Scroll]) -> None:
        """See `Watcher`."""
        self.tiles += sum(tiles)

    def resized(self) -> None:
        """See `Watcher`."""
        self.sizes += 1


async def test_who_leaves_while_it_looks_takes_nothing_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the log had told it is looked at for those who stay."""
    monkeypatch.setattr(screen_module, "AT_ONCE_BYTES", 0)
    display, notes = Display(), Notes()
    screen = Screen(display)
    async with screen.watched(notes):
        notes.tiles = 0
        display.write(0, b"\xff\xff\xff\0")
        take = display.log.take
        with trio.CancelScope() as leaves:

            def take_and_leave() -> bytes | None:
                leaves.cancel()
                return take()

            monkeypatch.setattr(display.log, "take", take_and_leave)
            await screen.refresh()
        assert leaves.cancelled_caught
        monkeypatch.setattr(display.log, "take", take)
        await screen.refresh()
        assert notes.tiles == 1
        assert screen.canvas.pixels[:4] == b"\xff\xff\xff\0"


async def test_nobody_begins_to_read_while_the_screen_waits_to_change() -> None:
    """Readers that follow one another do not keep it as it is."""
    display, notes = Display(), Notes()
    screen = Screen(display)
    async with screen.watched(notes), trio.open_nursery() as nursery:
        display.write(0, b"\x01\x02\x03\0")

        async def read_next() -> None:
            async with screen.still():
                assert screen.canvas.pixels[:4] == b"\x01\x02\x03\0"

        async with screen.still():
            nursery.start_soon(screen.refresh)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(read_next)
            await trio.testing.wait_all_tasks_blocked()
            assert screen.canvas.pixels[:4] == bytes(4)
