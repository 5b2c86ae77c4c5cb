"""The contract of every command of the control socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.control.fakes import FakeMachine
from tvmm.control.qmp import NEGOTIATE, Answer, CommandFailed, QmpSession, Request
from tvmm.control.verbs import EVENTS, SIGNATURES, VERBS
from tvmm.errors import UserError

SHAPES: dict[str, Any] = {
    NEGOTIATE: {},
    "cont": {},
    "query-chardev": [{"label": "serial0", "filename": "pty:/dev/pts/3", "frontend-open": True}],
    "query-commands": [{"name": name} for name in VERBS],
    "query-cpus-fast": [
        {
            "cpu-index": index,
            "qom-path": f"/machine/cpu[{index}]",
            "thread-id": 1000 + index,
            "target": "x86_64",
            "x-state": "paused",
            "x-exits": 7 * index,
        }
        for index in range(2)
    ],
    "query-events": [{"name": name} for name in EVENTS],
    "query-kvm": {"enabled": True, "present": True},
    "query-memory-size-summary": {"base-memory": 256 << 20, "plugged-memory": 0},
    "query-name": {"name": "fake"},
    "query-status": {"running": False, "status": "paused"},
    "query-version": {"qemu": {"major": 0, "minor": 1, "micro": 0}, "package": "tvmm"},
    "quit": {},
    "stop": {},
    "system_powerdown": {},
    "system_reset": {},
    "x-query-cpu-registers": {"rip": 0xFFFF_FFFF_8100_0000, "rflags": 2},
    "x-query-info": {"kernel": "built-in", "cpus": 2},
    "x-query-memory-map": [
        {"start": 0, "size": 256 << 20, "block": "ram", "owner": "machine", "kind": "ram"},
        {"start": 0xFEE0_0000, "size": 4096, "block": "lapic", "owner": "kvm", "kind": "mmio"},
    ],
    "x-query-tasks": [
        {"name": "vcpu/0", "waits-for": "a thread in run", "wakeups": 3, "seconds": 0.001, "age-seconds": 1.5}
    ],
}


def session() -> QmpSession:
    """A session with the real signatures."""
    new = QmpSession(SIGNATURES)
    new.receive(b'{"execute": "qmp_capabilities"}')
    assert isinstance(new.next_event(), Answer)
    return new


def test_every_verb_has_a_shape_here() -> None:
    """No command comes in without a line in this contract."""
    assert SHAPES.keys() == VERBS.keys()


@pytest.mark.parametrize("name", VERBS)
async def test_result(name: str) -> None:
    """The result of each command is the JSON value that its clients rely on."""
    machine = FakeMachine()
    await machine.pause()
    result = await VERBS[name].run(machine, {})
    assert json.loads(json.dumps(result, allow_nan=False)) == SHAPES[name]


@pytest.mark.parametrize("name", [name for name in VERBS if name != NEGOTIATE])
def test_unknown_argument(name: str) -> None:
    """Each command refuses an argument that it does not declare, before anything happens."""
    new = session()
    new.receive(json.dumps({"execute": name, "arguments": {"bogus": 1}}).encode())
    event = new.next_event()
    assert isinstance(event, Answer)
    assert "bogus" in json.loads(event.data)["error"]["desc"]


WRONG = {"string": 1, "integer": "1", "number": "1", "boolean": 1, "strings": "a", "object": []}


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, verb in VERBS.items() for argument in verb.arguments if name != NEGOTIATE],
)
def test_wrong_type_and_absence(name: str, argument: Any) -> None:
    """Each declared argument is refused with another type, and missed if it is required."""
    new = session()
    new.receive(json.dumps({"execute": name, "arguments": {argument.name: WRONG[argument.kind]}}).encode())
    event = new.next_event()
    assert isinstance(event, Answer)
    assert argument.name in json.loads(event.data)["error"]["desc"]
    new.receive(json.dumps({"execute": name}).encode())
    assert isinstance(new.next_event(), Answer if argument.required else Request)


async def test_verbs_do_what_they_say() -> None:
    """stop, cont, system_reset and system_powerdown reach the machine; quit only once the answer is out."""
    machine = FakeMachine()
    await VERBS["stop"].run(machine, {})
    assert machine.run_state() == "paused"
    await VERBS["cont"].run(machine, {})
    assert machine.run_state() == "running"
    await VERBS["system_reset"].run(machine, {})
    assert machine.resets == 1
    await VERBS["system_powerdown"].run(machine, {})
    assert machine.button_presses == 1
    await VERBS["quit"].run(machine, {})
    assert not machine.ended.is_set()
    after = VERBS["quit"].after
    assert after is not None
    after(machine)
    assert machine.ended.is_set()


async def test_registers_of_a_cpu_that_is_not_there() -> None:
    """A vCPU that the machine does not have is an error of its own class."""
    with pytest.raises(CommandFailed, match="no vCPU 9") as caught:
        await VERBS["x-query-cpu-registers"].run(FakeMachine(), {"cpu-index": 9})
    assert caught.value.error_class == "DeviceNotFound"


async def test_refusals_of_the_machine_pass_through() -> None:
    """What the machine refuses comes out as the machine's own error."""
    with pytest.raises(UserError, match="paused"):
        await VERBS["x-query-cpu-registers"].run(FakeMachine(), {})
