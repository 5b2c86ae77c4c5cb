"""What a user at the terminal can ask of the machine: the escape key's quit, and the control prompt's
commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tvmm.machine import Machine

__all__ = ["MachineActions"]


class MachineActions:
    """`Actions` of a machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._commands: dict[str, tuple[str, Callable[[], Awaitable[str]]]] = {
            "status": ("what the machine is doing", self._status),
            "pause": ("stop the vCPUs", self._pause),
            "resume": ("let them run", self._resume),
            "reset": ("pull the reset line", self._reset),
            "powerdown": ("press the power button", self._powerdown),
            "quit": ("end the machine now", self._quit),
            "help": ("this list", self._help),
        }

    def quit(self) -> None:
        """The escape key's quit."""
        self._machine.quit()

    def warn(self, message: str) -> None:
        """Pass a backend's warning on to whoever runs the machine."""
        self._machine.on_warning(message)

    async def command(self, line: str) -> str:
        """Carry out one line of the control prompt; the answer ends with a newline."""
        word = line.strip()
        if not word:
            return ""
        if word not in self._commands:
            from difflib import get_close_matches

            near = get_close_matches(word, self._commands, 1)
            return f"unknown command {word!r}" + (
                f", did you mean {near[0]!r}?\n" if near else "; try 'help'\n"
            )
        return await self._commands[word][1]()

    async def _status(self) -> str:
        machine = self._machine
        exits = sum(vcpu.kvm.exits for vcpu in machine.vcpus)
        return (
            f"{machine.name or 'the machine'} is {machine.run_state()}: {machine.board.loaded}, "
            f"{len(machine.vcpus)} CPUs, {machine.config.memory.size >> 20} MiB, {exits} exits\n"
        )

    async def _pause(self) -> str:
        await self._machine.pause()
        return "paused\n"

    async def _resume(self) -> str:
        await self._machine.resume()
        return "running\n"

    async def _reset(self) -> str:
        await self._machine.reset()
        return "reset\n"

    async def _powerdown(self) -> str:
        self._machine.powerdown()
        return "power button pressed\n"

    async def _quit(self) -> str:
        self._machine.quit()
        return "ending\n"

    async def _help(self) -> str:
        return "".join(f"{name:<10} {text}\n" for name, (text, _) in self._commands.items())
