"""A guest that moves again and again with its disk, and is interrupted at random: no byte is ever wrong."""

from __future__ import annotations

import os
import random
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import trio

from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig
from tvmm.errors import GuestError, IncomingFailed, collapse
from tvmm.migration.status import MigrationParameters

pytestmark = pytest.mark.guest

MIB = 1 << 20
SLOW = 2 * MIB
"""Bytes a second, of migrations that are not to arrive."""
OPTIONS = ("aio=threads", "aio=io_uring", "cache=none,aio=io_uring", "cache=none,aio=threads", "cache=unsafe")


class Chain:
    """One guest, the machine that it is in, and the image that it has."""

    def __init__(self, folder: Path, chance: random.Random, stack: AsyncExitStack) -> None:
        self.folder, self.chance, self.stack = folder, chance, stack
        self.count = 0
        self.shell: GuestShell
        self.image = folder / "0.img"

    async def begin(self) -> None:
        """At its source."""
        size = self.chance.choice((24, 33, 64)) * MIB + 512 * self.chance.randrange(3)
        self.image.touch()
        os.truncate(self.image, size)
        options = self.chance.choice(OPTIONS)
        vm = Machine(MachineConfig.parse(memory="64M", disk=[f"{self.image},logical_block_size=512,{options}"]))
        await self.stack.enter_async_context(vm)
        self.shell = GuestShell(vm)
        await vm.resume()
        await vm.wait_serial(PROMPT)
        # As much as takes seconds at `SLOW`.
        await self.shell.ask("blkfill 0 16 7 0")

    def _next(self) -> tuple[Path, MachineConfig, str]:
        self.count += 1
        path, address = self.folder / f"{self.count}.img", f"unix:{self.folder}/{self.count}"
        disk = f"{path},copy=on,logical_block_size=512,{self.chance.choice(OPTIONS)}"
        return path, MachineConfig.parse(memory="64M", disk=[disk], incoming=address), address

    def _parameters(self) -> MigrationParameters:
        compress = self.chance.choice(("off", "off", "zstd"))
        verify = self.chance.random() < 0.5
        return MigrationParameters(max_downtime_ms=10_000, copy_storage=True, compress=compress, verify=verify)

    async def fail(self) -> None:
        """It does not arrive: cancelled at its source, or the destination ends, at a moment that nobody has chosen."""
        path, config, address = self._next()
        source = self.shell.vm
        with pytest.raises(IncomingFailed), collapse():
            await self._interrupted(source, config, address)
        assert not path.exists()
        assert source.run_state() == "running"

    async def _interrupted(self, source: Machine, config: MachineConfig, address: str) -> None:
        async with Machine(config) as destination:
            await source.moves.start_migration(address, self._parameters()._replace(bandwidth=SLOW))
            await trio.sleep(self.chance.random() * 0.5)
            if self.chance.random() < 0.5:
                destination.quit()
            source.moves.cancel_migration()
            await source.moves.wait_migration()
            # One that had not even heard of it would go on waiting.
            destination.quit()
            await destination.wait()
            raise IncomingFailed("it was ended")

    async def move(self) -> None:
        """While it writes, reads and compares."""
        path, config, address = self._next()
        source = self.shell.vm
        await self.shell.order(f"blkstress 0 16 {self.count} {self.chance.randrange(3000, 30000)}")
        destination = await self.stack.enter_async_context(Machine(config))
        await trio.sleep(self.chance.random() * 0.2)
        async with trio.open_nursery() as nursery:
            done = trio.Event()
            nursery.start_soon(self._result, source, done)
            await source.migrate(address, self._parameters())
            await destination.wait_arrival()
            # Nobody writes to this one any more.
            kept = self.image.read_bytes()
            nursery.start_soon(self._result, destination, done)
            await done.wait()
            nursery.cancel_scope.cancel()
        assert self.image.read_bytes() == kept
        self.shell = GuestShell(destination)
        assert "blkfill" in await self.shell.ask(f"blkfill 0 16 {self.count} 0")
        assert "0 errors, 0 unreadable" in await self.shell.ask(f"blkcheck 0 16 {self.count}")
        self.image = path


    @staticmethod
    async def _result(vm: Machine, done: trio.Event) -> None:
        """It is printed where the guest is at its end."""
        with suppress(GuestError):
            text = (await vm.wait_serial(PROMPT)).decode()
            assert "0 wrong, 0 failed requests, 0 unreadable" in text
            done.set()


async def rounds(folder: Path, seed: int, moves: int) -> None:
    """So many moves of one guest, with failures between them."""
    chance = random.Random(seed)
    with trio.fail_after(60 + 40 * moves):
        async with AsyncExitStack() as stack:
            chain = Chain(folder, chance, stack)
            await chain.begin()
            for _ in range(moves):
                if chance.random() < 0.5:
                    await chain.fail()
                await chain.move()


@pytest.mark.timeout(200)
async def test_a_move(tmp_path: Path) -> None:
    """The short version."""
    await rounds(tmp_path, 2, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10, 20))
async def test_many_moves(tmp_path: Path, seed: int) -> None:
    """A hundred of them, in ten lives."""
    await rounds(tmp_path, seed, 10)
