"""Migration through the control socket: what commands start, set, refuse and tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.control.fake_migration import COMPLETED, WHOLE, states
from tests.control.fakes import FakeMachine, Peer, connected, serving
from tvmm.control.verbs import VERBS
from tvmm.errors import TvmmError, UserError
from tvmm.migration.status import MigrationParameters


async def run(machine: FakeMachine, name: str, **arguments: Any) -> Any:
    """One command, with `_` for `-` in the names of its arguments."""
    return await VERBS[name].run(machine, {key.replace("_", "-"): value for key, value in arguments.items()})


async def test_migrate() -> None:
    """The machine gets the plain spelling of the address, and what was set before."""
    machine = FakeMachine()
    await run(machine, "migrate-set-parameters", max_bandwidth=1 << 30, x_timeout=1500)
    assert await run(machine, "migrate", uri="localhost:4444", detach=True, blk=False, inc=False, resume=False) == {}
    parameters = MigrationParameters(bandwidth=1 << 30, timeout_s=1.5)
    assert machine.migration.started == [("tcp:localhost:4444", parameters)]


async def test_parameters_of_one_migration() -> None:
    """x-parameters hold for one migration and leave nothing behind, a pairing code least of all."""
    machine = FakeMachine()
    await run(machine, "migrate", uri="tcp:10.0.0.2:4444", x_parameters={"x-pair": "7-a-b", "downtime-limit": 20.5})
    [(uri, parameters)] = machine.migration.started
    assert uri == "tcp:10.0.0.2:4444"
    assert parameters == MigrationParameters(pair="7-a-b", max_downtime_ms=20.5)
    assert machine.migration.parameters == MigrationParameters()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"uri": "unix:/tmp/a", "inc": True}, "copied whole, with"),
        ({"uri": "unix:/" + "a" * 300}, "has more than 300 characters"),
        ({"uri": "exec:cat"}, "neither an address of a kind that there is nor HOST:PORT"),
        ({"uri": "tcp:127.0.0.1:0"}, "uri port 0 is out of range"),
        ({"uri": "tcp:10.0.0.2:4444"}, "without TLS others can read"),
        ({"uri": "unix:/tmp/a", "x_parameters": {"nonsense": 1}}, "unknown member of x-parameters 'nonsense'"),
        ({"uri": "unix:/tmp/a", "x_parameters": {"x-verify": 1}}, "'x-verify' of x-parameters has the wrong type"),
        ({"uri": "unix:/tmp/a", "x_parameters": {"multifd-channels": 65}}, "connections 65 is out of range"),
        ({"uri": "unix:/tmp/a", "x_parameters": {"multifd-compression": "zlib"}}, "unknown multifd-compression 'zlib'"),
    ],
)
async def test_migrate_refused(arguments: dict[str, Any], complaint: str) -> None:
    """What means something that is not there, or is wrong, starts nothing."""
    machine = FakeMachine()
    with pytest.raises(TvmmError, match=complaint):
        await run(machine, "migrate", **arguments)
    assert machine.migration.started == []


@pytest.mark.parametrize("way", [{"tls-creds": "/keys"}, {"x-tls": True}, {"x-insecure": True}, {"x-pair": "1-a"}])
async def test_ways_over_a_network(way: dict[str, Any]) -> None:
    """TLS, a pairing code or leave to do without let a guest go to another host."""
    machine = FakeMachine()
    await run(machine, "migrate", uri="tcp:192.0.2.1:4444", x_parameters=way)
    assert len(machine.migration.started) == 1


async def test_post_copy() -> None:
    """Begun, cut and taken up again by QEMU's commands; the capability is QEMU's too, the parameter has more words."""
    machine = FakeMachine()
    await run(machine, "migrate-set-capabilities", capabilities=[{"capability": "postcopy-ram", "state": True}])
    assert machine.migration.parameters.postcopy == "allow"
    await run(machine, "migrate-set-parameters", x_postcopy="now")
    assert {"capability": "postcopy-ram", "state": True} in await run(machine, "query-migrate-capabilities")
    with pytest.raises(TvmmError, match="unknown x-postcopy 'never'"):
        await run(machine, "migrate-set-parameters", x_postcopy="never")
    with pytest.raises(TvmmError, match="leave one of them out"):
        await run(machine, "migrate-set-parameters", x_verify=True)
    await run(machine, "migrate-start-postcopy")
    await run(machine, "migrate-pause")
    await run(machine, "migrate-recover")
    await run(machine, "migrate-recover", uri="tcp:localhost:4444")
    await run(machine, "migrate", uri="unix:/tmp/b", resume=True)
    assert machine.migration.orders == [
        "start-postcopy", "pause", "recover", "recover tcp:localhost:4444", "recover unix:/tmp/b"
    ]  # fmt: skip


async def test_refusals_of_the_machine_pass_through() -> None:
    """A second migration is the machine's to refuse."""
    machine = FakeMachine()
    await run(machine, "migrate", uri="unix:/tmp/a")
    with pytest.raises(UserError, match="under way already"):
        await run(machine, "migrate", uri="unix:/tmp/a")


async def test_parameters() -> None:
    """All that can be set is told again under the same names, but for the pairing code."""
    machine = FakeMachine()
    values = {
        "downtime-limit": 50,
        "max-bandwidth": 1 << 30,
        "max-cpu-throttle": 50,
        "multifd-channels": 4,
        "multifd-compression": "zstd",
        "tls-creds": "/etc/keys",
        "tls-hostname": "b.example",
        "x-copy-storage": True,
        "x-insecure": False,
        "x-postcopy": "off",
        "x-timeout": 2500.5,
        "x-tls": True,
        "x-verify": True,
    }
    assert await VERBS["migrate-set-parameters"].run(machine, {**values, "announce-rounds": 5}) == {}
    assert await run(machine, "query-migrate-parameters") == values
    assert machine.migration.parameters == MigrationParameters(
        50, 1 << 30, 4, 2.5005, "zstd", True, 50, True, "/etc/keys", "b.example", copy_storage=True
    )
    await run(machine, "migrate-set-parameters", tls_creds="", tls_hostname="", x_pair="1-a")
    assert "1-a" not in json.dumps(await run(machine, "query-migrate-parameters"))


@pytest.mark.parametrize("word", ["blk", "x_copy_storage"])
async def test_disks_are_copied(word: str) -> None:
    """For this migration alone."""
    machine = FakeMachine()
    await run(machine, "migrate", uri="unix:/tmp/a", **{word: True})
    assert machine.migration.started[-1][1].copy_storage
    assert not machine.migration.parameters.copy_storage


async def test_a_wrong_parameter_sets_none() -> None:
    """Values are taken together or not at all."""
    machine = FakeMachine()
    with pytest.raises(UserError, match="max downtime 2000001ms is out of range"):
        await run(machine, "migrate-set-parameters", max_bandwidth=7, downtime_limit=2_000_001)
    with pytest.raises(UserError, match="--tls-hostname has no meaning"):
        await run(machine, "migrate-set-parameters", max_bandwidth=7, tls_hostname="b")
    assert machine.migration.parameters == MigrationParameters()


async def capabilities(machine: FakeMachine) -> dict[str, bool]:
    """All of them, by name."""
    return {item["capability"]: item["state"] for item in await run(machine, "query-migrate-capabilities")}


async def test_capabilities() -> None:
    """Those with a parameter behind them switch it and keep its number; the others are as they are."""
    machine = FakeMachine()

    async def switch(**states: bool) -> None:
        items = [{"capability": name.replace("_", "-"), "state": state} for name, state in states.items()]
        await run(machine, "migrate-set-capabilities", capabilities=items)

    fixed = {"events": True, "return-path": True, "late-block-activate": True}
    assert await capabilities(machine) == {**fixed, "multifd": True, "auto-converge": True, "postcopy-ram": False}
    await switch(events=True, multifd=False, auto_converge=False, xbzrle=False, nonsense=False)
    assert await capabilities(machine) == {**fixed, "multifd": False, "auto-converge": False, "postcopy-ram": False}
    assert machine.migration.parameters == MigrationParameters(connections=1, max_throttle_percent=0)
    await run(machine, "migrate-set-parameters", multifd_channels=8, max_cpu_throttle=30)
    await switch(multifd=True, auto_converge=True)
    assert machine.migration.parameters == MigrationParameters(connections=8, max_throttle_percent=30)


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ({"capability": "rdma-pin-all", "state": True}, "unknown capability 'rdma-pin-all'; there are: auto-converge"),
        ({"capability": "events", "state": False}, "'events' is always on"),
        ({"capability": "multifd"}, "must have"),
        ({"capability": "multifd", "state": 1}, "must have"),
        ({"capability": 1, "state": True}, "must have"),
        ({"capability": "multifd", "state": True, "more": 1}, "must have"),
    ],
)
async def test_capabilities_that_are_not_there(item: dict[str, Any], complaint: str) -> None:
    """What cannot be had is refused, and what stood before it in the list has not happened."""
    machine = FakeMachine()
    first = {"capability": "multifd", "state": False}
    with pytest.raises(TvmmError, match=complaint):
        await run(machine, "migrate-set-capabilities", capabilities=[first, item])
    assert machine.migration.parameters == MigrationParameters()


async def test_incoming() -> None:
    """A machine that was told to wait for it listens where it is told, also at any free port."""
    machine = FakeMachine()
    with pytest.raises(UserError, match="has no host"):
        await run(machine, "migrate-incoming", uri="tcp::4444")
    await run(machine, "migrate-incoming", uri="tcp:127.0.0.1:0")
    assert machine.migration.listening == ["tcp:127.0.0.1:0"]
    assert (await run(machine, "query-migrate"))["socket-address"][0]["host"] == "127.0.0.1"
    with pytest.raises(UserError, match="listens for a guest already"):
        await run(machine, "migrate-incoming", uri="tcp:127.0.0.1:0")


async def test_the_last_event_comes_before_the_end(tmp_path: Path) -> None:
    """A client that only listens has the outcome with all its figures when the machine hangs up."""
    machine = FakeMachine()
    seen: list[dict[str, Any]] = []
    async with connected_to(machine, tmp_path) as peer:
        assert await peer.ask("migrate", arguments={"uri": "unix:/tmp/a"}) == {"return": {}}
        for _ in WHOLE:
            machine.migration.step()
        machine.ended.set()
        while (message := await peer.line()) is not None:
            seen.append(message)
    assert states(seen) == ["active", "device", "completed"]
    assert [event["data"]["pass"] for event in seen if event["event"] == "MIGRATION_PASS"] == [1, 3, 4]
    final = next(event for event in seen if event["data"].get("status") == "completed")
    assert final["data"]["x-info"]["x-times-ms"]["downtime"] == COMPLETED.downtime_ms


@asynccontextmanager
async def connected_to(machine: FakeMachine, folder: Path) -> AsyncIterator[Peer]:
    """A negotiated client of `machine`, which serves until it has ended."""

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        async with serving(machine, folder / "qmp"):
            task_status.started()
            await machine.ended.wait()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        async with connected(folder / "qmp") as peer:
            yield peer


async def _drive(path: str) -> dict[str, Any]:
    """What a script written for QEMU does to move a guest; runs in asyncio."""
    from qemu.qmp import QMPClient

    seen: dict[str, Any] = {"events": []}
    client = QMPClient("test")
    await client.connect(path)
    await client.execute(
        "migrate-set-capabilities",
        {"capabilities": [{"capability": name, "state": True} for name in ("events", "multifd", "auto-converge")]},
    )
    await client.execute("migrate-set-parameters", {"max-bandwidth": 0, "downtime-limit": 30, "multifd-channels": 2})
    seen["before"] = await client.execute("query-migrate")
    with client.listener(("MIGRATION", "MIGRATION_PASS")) as listener:
        await client.execute("migrate", {"uri": "unix:/tmp/peer"})
        while True:
            seen["info"] = await client.execute("query-migrate")
            if seen["info"]["status"] in ("completed", "failed", "cancelled"):
                break
        while not listener.empty():
            seen["events"].append(await listener.get())
    await client.execute("migrate_cancel")
    await client.execute("quit")
    await client.disconnect()
    return seen


async def test_qemu_client(tmp_path: Path) -> None:
    """The PyPI package `qemu.qmp` sets parameters, starts, follows and hears the end, as it does with QEMU."""
    machine = FakeMachine()
    async with serving(machine, tmp_path / "qmp"):
        seen = await trio.to_thread.run_sync(asyncio.run, _drive(str(tmp_path / "qmp")))
        await machine.ended.wait()
    assert seen["before"] == {}
    assert seen["info"]["status"] == "completed"
    assert seen["info"]["downtime"] == 6
    assert seen["info"]["ram"]["dirty-sync-count"] == 4
    assert states(seen["events"]) == ["setup", "active", "device", "completed"]
    assert machine.migration.started[0][1] == MigrationParameters(max_downtime_ms=30, connections=2)
