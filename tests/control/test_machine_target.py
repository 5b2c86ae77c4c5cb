"""A machine, which need not run for this, as its control clients see it."""

from __future__ import annotations

import pytest

from tests.control.fakes import FakeMachine
from tvmm.config.machine import MachineConfig
from tvmm.control.machine_target import MachineTarget
from tvmm.control.target import ChardevInfo
from tvmm.errors import UserError
from tvmm.machine import Machine


async def test_a_machine_without_virtio_devices() -> None:
    """It shows none, and refuses what names one."""
    target = MachineTarget(Machine(MachineConfig.parse(serial="file=x")))
    assert [*target.disks(), *target.nets(), *target.virtio()] == []
    assert target.chardevs() == [ChardevInfo("serial0", "file")]
    with pytest.raises(UserError, match="there is no disk 'disk0'; there are: none"):
        await target.resize_disk("disk0", 512)


async def test_virtio_devices_answer_for_themselves() -> None:
    """What clients ask and want of disks, networks and ports reaches the machine's virtio devices."""
    devices = FakeMachine()
    machine = Machine()
    machine.virtio = devices
    target = MachineTarget(machine)
    assert target.disks() == devices.disks()
    assert target.nets() == devices.nets()
    assert target.virtio() == devices.virtio()
    assert [device.label for device in target.chardevs()] == ["serial0", "console0.0"]
    await target.resize_disk("disk0", 4096)
    target.set_link("net0", False)
    target.announce([])
    assert devices.sizes["disk0"] == 4096
    assert devices.links == {"net0": False}
    assert devices.announced == ["net0"]
