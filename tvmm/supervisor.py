"""What the guest asks its machine for, and the user, carried out one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tvmm.board import GuestRequest
from tvmm.outcome import STATUS_CRASHED, Outcome

if TYPE_CHECKING:
    from tvmm.machine import Machine

__all__ = ["Supervisor"]


class Supervisor:
    """Of one machine. A request is what is wanted of it, an outcome is its end."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._requests: list[tuple[int, GuestRequest | Outcome]] = []
        self._asked: list[GuestRequest | Outcome] = []
        """What vCPUs have asked for and nobody has carried out yet; they are held for it."""
        self._life_number = 0
        self._news = trio.Event()

    @property
    def vcpus_wait(self) -> bool:
        """A vCPU has asked for something and is held until it is done."""
        return bool(self._asked)

    @property
    def is_busy(self) -> bool:
        """Something has been asked for, by whomever, that is not done."""
        return bool(self._asked or self._requests)

    def from_guest(self, request: GuestRequest | Outcome) -> None:
        """On a vCPU's thread: stop all of them, so that nothing after the request runs, and see to it."""
        self._asked.append(request)
        self._machine.motion.hold_now()
        self._machine.token.run_sync_soon(self.post, request)

    def crashed(self, report: str) -> None:
        """On a vCPU's thread."""
        self.from_guest(Outcome("crashed", STATUS_CRASHED, report))

    def post(self, request: GuestRequest | Outcome) -> None:
        """Have it carried out after what was posted before."""
        self._requests.append((self._life_number, request))
        self._news.set()

    def begin_life(self) -> None:
        """The board has been reset: what the guest asked for before belongs to the life that is over."""
        self._life_number += 1

    async def run(self) -> None:
        """Until the machine has ended."""
        machine = self._machine
        while machine.outcome is None:
            await self._news.wait()
            self._news = trio.Event()
            while self._requests and machine.outcome is None:
                life, request = self._requests.pop(0)
                await self._carry_out(life, request)
                if request in self._asked:
                    self._asked.remove(request)

    async def _carry_out(self, life: int, request: GuestRequest | Outcome) -> None:
        machine = self._machine
        async with machine.motion.lock:
            if isinstance(request, Outcome):
                await machine.hold_for_good()
                machine.end(request)
            elif life != self._life_number:
                machine.motion.release()
            elif request.kind == "io-error":
                with trio.move_on_after(machine.moves.pause_seconds) as patience:
                    await machine.motion.stop(request.kind)
                if patience.cancelled_caught:
                    # A vCPU waits for a page. What the user wants meanwhile comes first.
                    self.post(request)
            elif request.kind == "reset" and machine.config.reboot:
                await machine.hold_without_memory()
                await machine.reset_board()
                machine.tell("RESET", {"guest": True, "reason": "guest-reset"})
            else:
                await machine.hold_for_good()
                machine.end(Outcome(request.kind, request.code))
