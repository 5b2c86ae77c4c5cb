"""What of a machine moves, vCPUs and devices, and whether it does: one object that starts and stops all of it.

vCPUs stop first and start last, so that a device never finds itself without its guest, nor a guest without its devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.vcpu.thread import Vcpu
    from tvmm.wiring.devices import Devices

__all__ = ["RunControl"]


class RunControl:
    """`tell` gets the events STOP and RESUME, `go_on` is called before anything moves.

    Methods but `hold_now` want `lock` held, so that they do not overlap.
    """

    def __init__(
        self,
        vcpus: Sequence[Vcpu],
        devices: Devices | None,
        tell: Callable[[str], None],
        go_on: Callable[[], None] = lambda: None,
    ) -> None:
        self.lock = trio.Lock()
        self.running = False
        self.stage = ""
        """Where a migration has the machine, a word of RunState: ``inmigrate``, ``finish-migrate``, ``postmigrate``."""
        self._vcpus = vcpus
        self._devices = devices
        self._tell = tell
        self._go_on = go_on
        self._launched = False
        self._devices_held = False
        self._reason = ""

    @property
    def state(self) -> str:
        """A word of QEMU's RunState for a machine that has not ended."""
        if self.running:
            return "running"
        if self.stage:
            return self.stage
        return self._reason or "paused" if self._launched else "prelaunch"

    def start(self) -> None:
        """Let everything run."""
        if self.running:
            return
        self.running = self._launched = True
        self.stage = ""
        self._go_on()
        if self._devices_held and self._devices is not None:
            self._devices_held = False
            self._devices.release()
        self.release()
        self._tell("RESUME")

    async def stop(self, reason: str = "") -> None:
        """Return when no vCPU runs, no access of one is half done, and no device touches memory.

        `reason` is a word of RunState for a stop that nobody asked for, such as ``io-error``.
        """
        await self.hold()
        if self._devices is not None and not self._devices_held:
            try:
                await self._devices.hold()
            except BaseException:
                self.release()
                raise
            self._devices_held = True
        if self.running:
            self.running = False
            self._reason = reason
            self._tell("STOP")

    def arrive(self, *, running: bool) -> None:
        """What `stop` held has the state of a guest that has come from elsewhere: go on with it as it was."""
        self.stage = ""
        self._launched = True
        if running:
            self.start()

    def end(self) -> None:
        """Nothing will run again; the vCPUs are held."""
        self.running = False

    def hold_now(self) -> None:
        """Ask all vCPUs to stop. From any thread."""
        for vcpu in self._vcpus:
            vcpu.hold()

    async def hold(self) -> None:
        """Return when no vCPU runs, for a moment that nobody needs to hear of; `release` ends it."""
        self.hold_now()
        try:
            for vcpu in self._vcpus:
                await vcpu.wait_not_running()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Undo `hold`, if the machine is running."""
        if self.running:
            for vcpu in self._vcpus:
                vcpu.release()
