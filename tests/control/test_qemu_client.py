"""The PyPI package `qemu.qmp`, the client that other projects use, drives tvmm's control socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import trio

from tests.control.fakes import ARGUMENTS, FakeMachine, serving
from tvmm.control.qmp import NEGOTIATE
from tvmm.control.verbs import VERBS


async def _conversation(path: str) -> dict[str, Any]:
    """What a script written for QEMU would do; runs in asyncio."""
    from qemu.qmp import QMPClient
    from qemu.qmp.qmp_client import ExecuteError

    seen: dict[str, Any] = {}
    client = QMPClient("test")
    await client.connect(path)
    assert client.greeting is not None
    seen["package"] = client.greeting.QMP.version["package"]
    seen["status"] = await client.execute("query-status")
    with client.listener(("STOP", "RESUME")) as listener:
        await client.execute("stop")
        await client.execute("cont")
        seen["events"] = [(await listener.get())["event"] for _ in range(2)]
    await client.execute("stop")
    for name in VERBS:
        if name not in (NEGOTIATE, "quit"):
            seen[name] = await client.execute(name, ARGUMENTS.get(name))
    try:
        await client.execute("stop", {"nonsense": 1})
    except ExecuteError as error:
        seen["refusal"] = (error.error_class, str(error))
    try:
        await client.execute("nonsense")
    except ExecuteError as error:
        seen["unknown"] = error.error_class
    seen["quit"] = await client.execute("quit")
    await client.disconnect()
    return seen


async def test_qemu_client(tmp_path: Path) -> None:
    """It negotiates, hears events, gets answers and errors, and ends the machine."""
    machine = FakeMachine()
    async with serving(machine, tmp_path / "qmp"):
        seen = await trio.to_thread.run_sync(asyncio.run, _conversation(str(tmp_path / "qmp")))
        await machine.ended.wait()
    assert seen["package"] == "tvmm"
    assert seen["status"] == {"running": True, "status": "running"}
    assert seen["events"] == ["STOP", "RESUME"]
    assert seen["query-name"] == {"name": "fake"}
    assert seen["query-cpus-fast"][1]["cpu-index"] == 1
    assert seen["query-block"][0]["inserted"]["image"]["virtual-size"] == 4096
    assert seen["refusal"] == ("GenericError", "unknown argument 'nonsense'")
    assert seen["unknown"] == "CommandNotFound"
    assert seen["quit"] == {}
