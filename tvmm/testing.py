"""Virtual machines for tests: a pytest plugin, and the context managers that it is made of.

In a test suite's ``conftest.py`` (``pip install 'tvmm[testing]'`` has what it needs)::

    pytest_plugins = "tvmm.testing"

and in a test, with pytest-trio::

    @pytest.mark.vm(memory="128M", cpus=2)
    async def test_shell(vm):
        await vm.send_serial("info\\n")
        await vm.wait_serial("tvmm> ")

`vm` is a running machine, `vm_pair` a running one and one that waits for its guest, `migrated` a machine whose guest
was started elsewhere and moved here, and `any_vm` runs its test on a machine of each of the `HISTORIES` that a guest
can have: booted here, migrated here, gone before its memory (post-copy), handed over with its memory, restored from a
file, and a clone of another one. The marker has the options of `tvmm run`, with
underscores. Without a kernel it is the built-in guest, at its prompt.
"""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pytest
from pytest_trio import trio_fixture

from tvmm.config.machine import MachineConfig
from tvmm.machine import Machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from tvmm.migration.status import MigrationParameters

    History = Callable[[MachineConfig, MachineConfig | None], AbstractAsyncContextManager[Machine]]

T = TypeVar("T")

__all__ = [
    "HISTORIES",
    "VmPair",
    "any_vm",
    "booted",
    "from_file",
    "handed_over",
    "migrated",
    "moved",
    "pair",
    "postcopied",
    "vm",
    "vm_pair",
]

_fixture: Callable[[T], T] = trio_fixture

PROMPT = "tvmm> "
"""Of the built-in guest."""
LONGEST_PAUSE_MS = 20_000.0
"""Of a guest that moves, unless a test chooses one: a host that is busy with other tests is no reason to give up."""


class VmPair(NamedTuple):
    """A running machine, one like it that waits for a guest, and where that waits."""

    source: Machine
    destination: Machine
    uri: str

    async def migrate(self, parameters: MigrationParameters | None = None) -> Machine:
        """Move the guest; the machine that has it now. Raises `UserError` if that failed. Without `parameters` as the
        source is set, but for the pause: that may be as long as a busy host needs.
        """
        if parameters is None:
            parameters = self.source.moves.migration_parameters()._replace(max_downtime_ms=LONGEST_PAUSE_MS)
        await self.source.migrate(self.uri, parameters)
        await self.destination.wait_arrival()
        return self.destination


@asynccontextmanager
async def booted(config: MachineConfig, there: MachineConfig | None = None) -> AsyncIterator[Machine]:
    """A machine that runs; the built-in guest is at its prompt. It has `there` if that is given: see `HISTORIES`."""
    async with Machine(there or config) as machine:
        await machine.resume()
        if not machine.config.kernel.kernel:
            await machine.wait_serial(PROMPT)
        yield machine


@asynccontextmanager
async def pair(config: MachineConfig, there: MachineConfig | None = None) -> AsyncIterator[VmPair]:
    """A running machine and one that waits for it, in this process. `there` is what the latter has, with other paths
    of sockets and names of taps, where two machines at a time cannot have the same.
    """
    from tvmm.config.incoming import IncomingConfig

    with tempfile.TemporaryDirectory(prefix="tvmm-") as directory:
        uri = f"unix:{Path(directory) / 'migration'}"
        if there is None:
            there = config._replace(name=f"{config.name}-2" if config.name else "")
        waiting = there._replace(incoming=IncomingConfig(uri))
        async with booted(config) as source, Machine(waiting) as destination:
            yield VmPair(source, destination, uri)


@asynccontextmanager
async def moved(config: MachineConfig, there: MachineConfig | None = None) -> AsyncIterator[Machine]:
    """A machine whose guest was booted in another one, which is gone. `there`: as `pair`."""
    async with pair(config, there) as machines:
        yield await machines.migrate()


@asynccontextmanager
async def handed_over(config: MachineConfig, there: MachineConfig | None = None) -> AsyncIterator[Machine]:
    """A machine that has taken over the guest of another one with the very memory that it was booted in. Its memory
    is shared, whatever `config` says. `there`: as `pair`.
    """

    def shared(one: MachineConfig) -> MachineConfig:
        return one._replace(memory=one.memory._replace(shared=True))

    async with pair(shared(config), there and shared(there)) as machines:
        here = await machines.migrate()
        status = machines.source.moves.migration_status()
        assert (status.ram.handed_over, status.ram.transferred) == (status.ram.total, 0), "memory was copied"
        yield here


@asynccontextmanager
async def postcopied(config: MachineConfig, there: MachineConfig | None = None) -> AsyncIterator[Machine]:
    """A machine whose guest went before its memory. `there`: as `pair`. Skips where the host has no userfaultfd."""
    from tvmm.kvm.uffd import can_wait_for_pages
    from tvmm.memory.ram import MAIN_BLOCK
    from tvmm.migration.status import MigrationParameters

    async with pair(config, there) as machines:
        if not can_wait_for_pages(machines.destination.board.ram.blocks[MAIN_BLOCK]):
            pytest.skip("this host does not let a process wait for single pages of memory (userfaultfd)")
        yield await machines.migrate(MigrationParameters(LONGEST_PAUSE_MS, postcopy="now"))


@asynccontextmanager
async def from_file(
    config: MachineConfig, there: MachineConfig | None = None, *, clone: bool = False
) -> AsyncIterator[Machine]:
    """A machine whose guest was booted in another one, which is gone, and was a file since then; a `clone`: one that
    another one came from before. It has `there` if that is given.
    """
    from tvmm.wiring.restoring import restored

    with tempfile.TemporaryDirectory(prefix="tvmm-") as directory:
        path = Path(directory) / "machine.snap"
        async with booted(config, there) as before:
            await before.save(str(path))
        if clone:
            async with restored(path, load="demand") as sibling:
                await sibling.resume()
        # A sibling may have written to a disk.
        async with restored(path, load="demand" if clone else "lazy", force=clone) as machine:
            await machine.resume()
            yield machine


HISTORIES: Mapping[str, History] = {
    "booted": booted,
    "migrated": moved,
    "postcopied": postcopied,
    "handed-over": handed_over,
    "restored": from_file,
    "cloned": partial(from_file, clone=True),
}
"""What a guest can have been through, by name: each makes a running machine of a configuration.

A second configuration is for the last one of the guest's machines, if that has to have other paths and names.
"""


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "vm(**options): options of 'tvmm run' for the machine of a fixture")


def _config(request: pytest.FixtureRequest) -> MachineConfig:
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("vm"))):
        options.update(marker.kwargs)
    return MachineConfig.parse(**options)


@_fixture
async def vm(request: pytest.FixtureRequest) -> AsyncIterator[Machine]:
    """A running machine."""
    async with booted(_config(request)) as machine:
        yield machine


@_fixture
async def vm_pair(request: pytest.FixtureRequest) -> AsyncIterator[VmPair]:
    """A running machine and one that waits for its guest."""
    async with pair(_config(request)) as machines:
        yield machines


@_fixture
async def migrated(request: pytest.FixtureRequest) -> AsyncIterator[Machine]:
    """A machine whose guest has moved here."""
    async with moved(_config(request)) as machine:
        yield machine


@pytest.fixture(params=tuple(HISTORIES))
def vm_history(request: pytest.FixtureRequest) -> str:
    """What the machine of `any_vm` has been through."""
    return str(request.param)


@_fixture
async def any_vm(request: pytest.FixtureRequest, vm_history: str) -> AsyncIterator[Machine]:
    """A running machine, of each history in turn."""
    async with HISTORIES[vm_history](_config(request), None) as machine:
        yield machine
