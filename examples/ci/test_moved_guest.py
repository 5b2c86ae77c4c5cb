"""Tests of a guest that moves to another tvmm: what a test suite does with tvmm's pytest plugin.

Run it with ``python -m pytest examples/ci``.
"""

from __future__ import annotations

import pytest

from tvmm import Machine
from tvmm.testing import VmPair

pytestmark = [pytest.mark.trio, pytest.mark.vm(memory="64M", cpus=2)]

PROMPT = "tvmm> "


async def test_the_shell_works(any_vm: Machine) -> None:
    """On a machine that was booted, and on those whose guest has come there in each of the ways that there are."""
    await any_vm.send_serial("echo hello\n")
    assert b"hello" in await any_vm.wait_serial(PROMPT)


async def test_memory_is_what_it_was(vm_pair: VmPair) -> None:
    """Pages that the guest wrote before it moved, and goes on writing while it does, are right after it."""
    await vm_pair.source.send_serial("dirty 1000 16M 60\n")
    there = await vm_pair.migrate()
    await there.send_serial("q")
    assert b" 0 errors" in await there.wait_serial(PROMPT)
