"""A guest moved from one machine to another in the same process, through its sections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.support.cpu_parts import PlainCpuParts
from tests.wiring.guests import GuestShell
from tvmm import Machine, MachineConfig
from tvmm.board import Board
from tvmm.board_state import load_board, save_board
from tvmm.state import pack_sections, unpack_sections

__all__ = ["copy_ram", "destination", "move"]


@asynccontextmanager
async def destination(config: MachineConfig) -> AsyncIterator[GuestShell]:
    """A paused machine that waits for a state. Its board is made on this thread, for the namespace that it is in."""
    async with Machine(config, board=Board(config, load=False)) as vm:
        await vm.pause()
        yield GuestShell(vm)


def copy_ram(source: Machine, target: Machine) -> None:
    """All blocks."""
    for name, block in source.board.ram.blocks.items():
        target.board.ram.blocks[name].view[:] = block.view


async def move(source: Machine, target: Machine) -> None:
    """Pause, carry everything over, and let it run there."""
    parts = PlainCpuParts()
    await source.pause()
    data = pack_sections(await save_board(source.board, parts))
    copy_ram(source, target)
    with trio.fail_after(30):
        await load_board(target.board, unpack_sections(data), parts)
    await target.resume()
