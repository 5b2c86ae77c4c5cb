"""Commands about the balloon, beyond their shapes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.control.fakes import FakeMachine
from tvmm.control.qmp import CommandFailed
from tvmm.control.verbs import VERBS

PATH = "/machine/peripheral/balloon0"
INTERVAL, STATS = "guest-stats-polling-interval", "guest-stats"


async def run(machine: FakeMachine, name: str, **arguments: Any) -> Any:
    """What a client gets."""
    return await VERBS[name].run(machine, arguments)


async def test_a_size_is_asked_for() -> None:
    """In bytes, above zero; more than there is means all."""
    machine = FakeMachine()
    assert await run(machine, "balloon", value=64 << 20) == {}
    assert (await run(machine, "query-balloon"))["actual"] == 64 << 20
    await run(machine, "balloon", value=1 << 40)
    assert (await run(machine, "query-balloon"))["x-target"] == 256 << 20
    for value in (0, -1):
        with pytest.raises(CommandFailed, match="above 0"):
            await run(machine, "balloon", value=value)


@pytest.mark.parametrize("name", ["balloon", "query-balloon", "x-query-balloon-stats"])
async def test_a_machine_without_one(name: str) -> None:
    """The class of the error is QEMU's."""
    machine = FakeMachine()
    machine.the_balloon = None
    with pytest.raises(CommandFailed, match="No balloon device") as caught:
        await run(machine, name, value=1)
    assert caught.value.error_class == "DeviceNotActive"
    with pytest.raises(CommandFailed, match="not found") as caught:
        await run(machine, "qom-get", path=PATH, property=STATS)
    assert caught.value.error_class == "DeviceNotFound"
    assert await run(machine, "qom-list", path="/machine/peripheral") == []


async def test_properties() -> None:
    """The interval can be read and written, statistics only read, and nothing else is there."""
    machine = FakeMachine()
    await run(machine, "qom-set", path=PATH, property=INTERVAL, value=5)
    assert await run(machine, "qom-get", path=PATH, property=INTERVAL) == 5
    assert await run(machine, "qom-get", path=PATH, property="type") == "virtio-balloon"
    names = [row["name"] for row in await run(machine, "qom-list", path=PATH)]
    assert names == ["type", STATS, INTERVAL]
    assert await run(machine, "qom-list", path="/machine") == [{"name": "peripheral", "type": "child<container>"}]
    for command, arguments, words in (
        ("qom-get", {"path": PATH, "property": "colour"}, "'virtio-balloon.colour' not found"),
        ("qom-set", {"path": PATH, "property": "colour", "value": 1}, "'virtio-balloon.colour' not found"),
        ("qom-set", {"path": PATH, "property": STATS, "value": 1}, "not writable"),
        ("qom-set", {"path": PATH, "property": INTERVAL, "value": -1}, "no interval"),
        ("qom-get", {"path": "/machine/peripheral/disk0", "property": "type"}, "not found"),
        ("qom-list", {"path": "x" * 1000}, r"'x{64}\.\.\.' not found"),
    ):
        with pytest.raises(CommandFailed, match=words):
            await run(machine, command, **arguments)


async def test_new_statistics() -> None:
    """The guest is asked if there is patience for its answer, within bounds."""
    machine = FakeMachine()
    assert machine.the_balloon is not None
    assert (await run(machine, "x-query-balloon-stats", patience=1))["fresh"]
    machine.the_balloon.answers = False
    assert not (await run(machine, "x-query-balloon-stats", patience=0.5))["fresh"]
    for patience in (-1, 61):
        with pytest.raises(CommandFailed, match="0 to 60 seconds"):
            await run(machine, "x-query-balloon-stats", patience=patience)
