"""The built-in guest with devices, driven at its shell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tvmm import Machine, MachineConfig

PROMPT = "tvmm> "


class GuestShell:
    """A machine at its prompt."""

    def __init__(self, vm: Machine) -> None:
        self.vm = vm
        self.events: list[tuple[str, dict[str, object]]] = []
        self.news = trio.Event()
        vm.listeners.append(self._tell)

    def _tell(self, name: str, data: dict[str, object]) -> None:
        self.events.append((name, data))
        self.news.set()

    async def ask(self, line: str) -> str:
        """What the guest prints for a command, up to the next prompt."""
        await self.vm.send_serial(line + "\n")
        return (await self.vm.wait_serial(PROMPT)).decode(errors="replace")

    async def order(self, line: str) -> None:
        """Begin a command whose end is waited for elsewhere."""
        await self.vm.send_serial(line + "\n")

    async def prompt(self) -> str:
        """The rest of what an ordered command prints."""
        return (await self.vm.wait_serial(PROMPT)).decode(errors="replace")

    async def event(self, name: str) -> dict[str, object]:
        """Wait for a QMP event; those before it are forgotten."""
        while True:
            while self.events:
                found, data = self.events.pop(0)
                if found == name:
                    return data
            self.news = trio.Event()
            await self.news.wait()

    @property
    def exits(self) -> int:
        """Exits to user space so far, of all vCPUs."""
        return sum(vcpu.kvm.exits for vcpu in self.vm.vcpus)


@asynccontextmanager
async def guest(append: str = "", seconds: float = 60, **options: object) -> AsyncIterator[GuestShell]:
    """A running machine at its prompt; it has `seconds` for everything."""
    config = MachineConfig.parse(**{"memory": "64M", "append": append, **options})  # type: ignore[arg-type]
    with trio.fail_after(seconds):
        async with Machine(config) as vm:
            shell = GuestShell(vm)
            await vm.resume()
            await vm.wait_serial(PROMPT)
            yield shell
