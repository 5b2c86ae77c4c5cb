"""Virtual machines for tests: a pytest plugin, and the context managers that it is made of.

In a test suite's ``conftest.py`` (``pip install 'tvmm[testing]'`` has what it needs)::

    pytest_plugins = "tvmm.testing"

and in a test, with pytest-trio::

    @pytest.mark.vm(memory="128M", cpus=2)
    async def test_shell(vm):
        await vm.send_serial("info\\n")
        await vm.wait_serial("tvmm> ")

`vm` is a running machine, `vm_pair` a running one and one that waits for its guest, `migrated` a machine whose guest
was started elsewhere and moved here, and `any_vm` runs its test twice: on a booted machine and on a migrated one. The
marker has the options of `tvmm run`, with underscores. Without a kernel it is the built-in guest, at its prompt.
"""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pytest
from pytest_trio import trio_fixture

from tvmm.config.machine import MachineConfig
from tvmm.machine import Machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

T = TypeVar("T")

__all__ = ["VmPair", "any_vm", "booted", "migrated", "moved", "pair", "vm", "vm_pair"]

_fixture: Callable[[T], T] = trio_fixture

PROMPT = "tvmm> "
"""Of the built-in guest."""


class VmPair(NamedTuple):
    """A running machine, one like it that waits for a guest, and where that waits."""

    source: Machine
    destination: Machine
    uri: str

    async def migrate(self) -> Machine:
        """Move the guest; the machine that has it now. Raises `UserError` if that failed."""
        await self.source.migrate(self.uri)
        await self.destination.wait_arrival()
        return self.destination


@asynccontextmanager
async def booted(config: MachineConfig) -> AsyncIterator[Machine]:
    """A machine that runs; the built-in guest is at its prompt."""
    async with Machine(config) as machine:
        await machine.resume()
        if not config.kernel.kernel:
            await machine.wait_serial(PROMPT)
        yield machine


@asynccontextmanager
async def pair(config: MachineConfig) -> AsyncIterator[VmPair]:
    """A running machine and one that waits for it, in this process."""
    from tvmm.config.incoming import IncomingConfig

    with tempfile.TemporaryDirectory(prefix="tvmm-") as directory:
        uri = f"unix:{Path(directory) / 'migration'}"
        waiting = config._replace(incoming=IncomingConfig(uri), name=f"{config.name}-2" if config.name else "")
        async with booted(config) as source, Machine(waiting) as destination:
            yield VmPair(source, destination, uri)


@asynccontextmanager
async def moved(config: MachineConfig) -> AsyncIterator[Machine]:
    """A machine whose guest was booted in another one, which is gone."""
    async with pair(config) as machines:
        yield await machines.migrate()


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


@pytest.fixture(params=("booted", "migrated"))
def vm_history(request: pytest.FixtureRequest) -> str:
    """What the machine of `any_vm` has been through."""
    return str(request.param)


@_fixture
async def any_vm(request: pytest.FixtureRequest, vm_history: str) -> AsyncIterator[Machine]:
    """A running machine, once booted and once migrated."""
    make = {"booted": booted, "migrated": moved}[vm_history]
    async with make(_config(request)) as machine:
        yield machine
