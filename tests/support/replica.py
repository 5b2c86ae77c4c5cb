"""RAM copied while it is written, as migration copies it: everything once, then what is marked, again and again."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.watch import take_marks
from tvmm.kvm.device_log import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvmm.kvm.device_log import DeviceLog
    from tvmm.memory.ram import GuestRam

__all__ = ["Replica"]


class Replica:
    """A copy of `ram`, whose owner's writes are marked like those of devices from now on."""

    def __init__(self, ram: GuestRam, log: DeviceLog) -> None:
        """Starts the log, then copies everything."""
        self._ram = ram
        self._log = log
        ram.dirty_log = log
        log.start()
        self._copies = {name: bytearray(block.view) for name, block in ram.blocks.items()}
        self.rounds = self.pages = 0

    def catch_up(self) -> None:
        """Copy what is marked."""
        marked = take_marks(self._ram, self._log)
        for name, page in marked:
            where = slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)
            self._copies[name][where] = self._ram.blocks[name].view[where]
        self.rounds += 1
        self.pages += len(marked)

    @contextmanager
    def copying(self) -> Iterator[None]:
        """A thread that catches up without a rest inside of the block."""
        done = threading.Event()

        def work() -> None:
            while not done.is_set():
                self.catch_up()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def is_equal(self) -> bool:
        """Whether it is what RAM is, byte for byte."""
        return all(copy == bytes(self._ram.blocks[name].view) for name, copy in self._copies.items())
