"""Limits over the control socket: QEMU's command for disks, the same for network devices, and what is told of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.control.fakes import FakeMachine
from tvmm.config.limits import NO_LIMITS, Limits, Rate
from tvmm.control.qmp import CommandFailed
from tvmm.control.verbs import VERBS
from tvmm.errors import ConfigError

ZERO = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)


async def run(machine: FakeMachine, command: str, **arguments: Any) -> Any:
    """The answer."""
    return await VERBS[command].run(machine, arguments)


async def inserted(machine: FakeMachine) -> Any:
    """What query-block says of the first disk, as far as it is about limits."""
    block = (await run(machine, "query-block"))[0]["inserted"]
    return {name: value for name, value in block.items() if name.startswith(("bps", "iops", "group"))}


async def test_a_disk_as_qemu_does_it() -> None:
    """All limits at once; what is not named is not limited; query-block has QEMU's members."""
    machine = FakeMachine()
    assert await inserted(machine) == ZERO
    await run(machine, "block_set_io_throttle", id="disk0", **{**ZERO, "bps": 1 << 20, "iops_rd": 50},
              iops_rd_max=100, iops_rd_max_length=4, iops_size=4096)  # fmt: skip
    assert machine.limited()["disk0"].limits == Limits(
        bytes=Rate(1 << 20), operations_in=Rate(50, 100, 4), size=4096
    )
    assert await inserted(machine) == {
        **ZERO, "bps": 1 << 20, "iops_rd": 50, "iops_rd_max": 100, "iops_rd_max_length": 4, "iops_size": 4096,
        "group": "disk0",
    }  # fmt: skip
    await run(machine, "block_set_io_throttle", device="disk0", **{**ZERO, "iops": 7})
    assert machine.limited()["disk0"].limits == Limits(operations=Rate(7))
    assert machine.limited()["disk1"].limits == NO_LIMITS
    await run(machine, "block_set_io_throttle", device="disk0", group="disk0", **ZERO)
    assert await inserted(machine) == ZERO


async def test_network_devices() -> None:
    """The same; the receive filter's query shows them."""
    machine = FakeMachine()
    await run(machine, "x-net-set-throttle", id="net0", bps_rx=1000, pps=5, pps_max=10)
    assert machine.limited()["net0"].limits == Limits(bytes_in=Rate(1000), operations=Rate(5, 10))
    shown = (await run(machine, "query-rx-filter"))[0]["x-throttle"]
    assert (shown["bps_rx"], shown["pps"], shown["pps_max"], shown["bps"]) == (1000, 5, 10, 0)
    await run(machine, "x-net-set-throttle", id="net0")
    assert machine.limited()["net0"].limits == NO_LIMITS


async def test_query() -> None:
    """All devices in one list, or one of them."""
    machine = FakeMachine()
    machine.limited()["net0"].set_limits(Limits(bytes=Rate(5)))
    machine.limited()["net0"].limit_waits = 3
    found = await run(machine, "x-query-throttle")
    assert [(one["id"], one["kind"], one["waits"]) for one in found] == [
        ("disk0", "disk", 0), ("disk1", "disk", 0), ("net0", "net", 3)
    ]  # fmt: skip
    (one,) = await run(machine, "x-query-throttle", id="net0")
    assert one == found[2]
    assert {name: value for name, value in one["limits"].items() if value and not name.endswith("length")} == {"bps": 5}


@pytest.mark.parametrize(
    ("command", "arguments", "complaint"),
    [
        ("block_set_io_throttle", {**ZERO}, "name one disk"),
        ("block_set_io_throttle", {**ZERO, "id": "disk0", "device": "disk1"}, "name one disk"),
        ("block_set_io_throttle", {**ZERO, "id": "disk7"}, "no disk 'disk7'; there are: disk0, disk1"),
        ("block_set_io_throttle", {**ZERO, "id": "net0"}, "no disk 'net0'"),
        ("block_set_io_throttle", {**ZERO, "id": "disk0", "group": "all"}, "cannot be shared"),
        ("x-net-set-throttle", {"id": "disk0"}, "no network device 'disk0'; there are: net0"),
        ("x-query-throttle", {"id": "cdrom"}, "no disk or network device 'cdrom'"),
    ],
)
async def test_refused(command: str, arguments: dict[str, Any], complaint: str) -> None:
    """Devices that are not there, or not of that kind."""
    with pytest.raises(CommandFailed) as caught:
        await run(FakeMachine(), command, **arguments)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"bps": -1}, {"bps": 1 << 50}, {"iops": 10**9 + 1}, {"bps": 5, "bps_rd": 5}, {"bps_max": 5},
        {"iops": 5, "iops_max_length": 0}, {"iops": 5, "iops_max": 4}, {"iops_size": 512}, {"bps": 5, "iops_size": -1},
        {"bps": 1, "bps_max": 1 << 49, "bps_max_length": 1 << 31},
    ],
)  # fmt: skip
async def test_bad_values_change_nothing(values: dict[str, int]) -> None:
    """The old limits hold on."""
    machine = FakeMachine()
    old = Limits(operations=Rate(3))
    machine.limited()["disk0"].set_limits(old)
    with pytest.raises(ConfigError, match="disk0"):
        await run(machine, "block_set_io_throttle", id="disk0", **{**ZERO, **values})
    assert machine.limited()["disk0"].limits == old
