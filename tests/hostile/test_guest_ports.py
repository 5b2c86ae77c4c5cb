"""The built-in guest at random ports and memory holes."""

from __future__ import annotations

import pytest
import trio

from tests.support.vitals import own_vitals
from tvmm import Machine, MachineConfig

pytestmark = pytest.mark.guest

SECONDS = 30
DEVICES = ("virtio-rng", "virtio-rng-device", "virtio-console")
"""Configuration space, BARs and registers in memory to hit."""
GROWTH_LIMIT_KIB = 8 << 10


@pytest.mark.parametrize("cpus", [1, 4])
async def test_random_accesses_do_no_harm(cpus: int) -> None:
    """The machine can be paused meanwhile, answers its shell afterwards, and has not grown."""
    with trio.fail_after(SECONDS):
        async with Machine(MachineConfig.parse(memory="64M", cpus=cpus, device=DEVICES)) as vm:
            await vm.resume()
            await vm.wait_serial("tvmm> ")
            await vm.send_serial("cpus\n")
            await vm.wait_serial("tvmm> ")
            before = own_vitals().anonymous_kib
            await vm.send_serial(f"fuzz 1 {cpus}\n")
            for _ in range(3):
                async with vm.paused():
                    assert all(vcpu.registers.rip for vcpu in vm.vcpus[:1])
            await vm.wait_serial("left out, in ")
            await vm.wait_serial("tvmm> ")
            await vm.send_serial("echo still here\n")
            await vm.wait_serial("still here\r\n")
            assert own_vitals().anonymous_kib - before < GROWTH_LIMIT_KIB
            assert vm.board.ports.unclaimed_reads > 0
