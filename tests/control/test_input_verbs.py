"""Commands that type and point: what they mean, and what they refuse before anything is pressed."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.control.fakes import FakeMachine
from tests.devices.ps2_driver import KeyboardDriver, MouseDriver
from tvmm.control.input_target import InputAction
from tvmm.control.input_verbs import input_send_event, key_codes, send_key
from tvmm.control.machine_input import MachineInput
from tvmm.control.qmp import CommandFailed
from tvmm.devices.input_hub import InputHub
from tvmm.devices.ps2_sinks import Ps2Keys, Ps2Pointer

CTRL, ALT, DELETE, A = 29, 56, 111, 30


def key(name: object) -> dict[str, Any]:
    """QAPI: KeyValue."""
    return {"type": "qcode", "data": name}


def event(kind: str, **data: Any) -> dict[str, Any]:
    """QAPI: InputEvent."""
    return {"type": kind, "data": data}


async def test_send_key() -> None:
    """Names and numbers, QEMU's holding time unless another is given."""
    machine = FakeMachine()
    await send_key(machine, {"keys": [key("ctrl"), key("alt"), key("delete")]})
    await send_key(machine, {"keys": [{"type": "number", "data": 0xD3}], "hold-time": 7})
    assert machine.typed == [([CTRL, ALT, DELETE], 100), ([DELETE], 7)]


async def test_input_send_event() -> None:
    """Each kind of event; a wheel's notch is its press."""
    machine = FakeMachine()
    events = [
        event("key", key=key("a"), down=True),
        event("btn", button="left", down=True),
        event("btn", button="wheel-down", down=True),
        event("btn", button="wheel-down", down=False),
        event("rel", axis="y", value=-5),
        event("abs", axis="x", value=0x7FFF),
    ]
    await input_send_event(machine, {"events": events})
    assert machine.typed == [
        InputAction("key", A, 1), InputAction("button", 0x110, 1), InputAction("wheel", -1, 0),
        InputAction("wheel", 0, 0), InputAction("rel", 1, -5), InputAction("abs", 0, 0x7FFF),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ([], "1 to 16 keys"),
        ([key("a")] * 17, "1 to 16 keys"),
        ([key("delte")], "no key is called 'delte'; did you mean 'delete'"),
        ([{"data": "a"}], "a key needs 'type', a string"),
        ([{"type": "qcode", "data": 5}], "needs 'data', a string"),
        ([{"type": "number", "data": True}], "needs 'data', an integer"),
        ([{"type": "number", "data": 0}], "no key has the number 0"),
        ([{"type": "x", "data": 0}], "'qcode' or 'number'"),
    ],
)
async def test_bad_keys(keys: list[Any], complaint: str) -> None:
    """A sentence that says what is wrong."""
    machine = FakeMachine()
    with pytest.raises(CommandFailed, match=complaint):
        await send_key(machine, {"keys": keys})
    with pytest.raises(CommandFailed, match="hold-time"):
        await send_key(machine, {"keys": [key("a")], "hold-time": 0})
    assert machine.typed == []


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (event("mtt"), "'key', 'btn', 'rel' or 'abs'"),
        ({"type": "key"}, "an event needs 'data', an object"),
        (event("key", key=key("a")), "needs 'down', true or false"),
        (event("key", key=5, down=True), "needs 'key', an object"),
        (event("btn", button="middel", down=True), "no button is called 'middel': left, right"),
        (event("btn", button="left", down=1), "needs 'down'"),
        (event("rel", axis="z", value=1), "an axis is 'x' or 'y'"),
        (event("abs", axis="x", value=0x8000), "from 0 to 32767"),
        (event("rel", axis="x", value=1 << 40), "from -32767 to 32767"),
    ],
)
async def test_bad_events(bad: dict[str, Any], complaint: str) -> None:
    """Nothing of the command is done, not even what came before."""
    machine = FakeMachine()
    with pytest.raises(CommandFailed, match=complaint):
        await input_send_event(machine, {"events": [event("key", key=key("a"), down=True), bad]})
    with pytest.raises(CommandFailed, match="at most 1024"):
        await input_send_event(machine, {"events": [bad] * 1025})
    assert machine.typed == []


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(("key", "btn", "abs", "x", "left", "qcode"))),
    lambda inner: st.dictionaries(st.sampled_from(("type", "data", "key", "down", "axis", "value", "button")), inner),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.sampled_from(("type", "data")), JSON), max_size=3))
def test_any_events(events: list[dict[str, Any]]) -> None:
    """Whatever a client sends is done or refused."""

    async def main() -> None:
        with suppress(CommandFailed):
            await input_send_event(FakeMachine(), {"events": events})

    trio.run(main)


def test_combinations() -> None:
    """As the command line spells them."""
    assert key_codes("ctrl-alt-delete") == [CTRL, ALT, DELETE]
    with pytest.raises(CommandFailed, match="no key is called ''"):
        key_codes("ctrl-")


class Desk:
    """A machine's input with PS/2 drivers behind it."""

    def __init__(self) -> None:
        self.keyboard = KeyboardDriver()
        chip = self.keyboard.chip
        chip.write(0, 1, 0xF4)
        self.keyboard.drain()
        self.hub = InputHub(nullcontext(), [Ps2Keys(chip)], [Ps2Pointer(chip)])
        self.input = MachineInput(lambda: self.hub)


async def test_a_combination_is_typed(autojump_clock: trio.testing.MockClock) -> None:
    """Down in turn, up in the reverse order; a second one waits for the first."""
    desk = Desk()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.input.send_keys, [CTRL, ALT, DELETE], 100)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(desk.input.send_keys, [A], 100)
    desk.keyboard.poll()
    assert desk.keyboard.log == [
        (CTRL, True), (ALT, True), (DELETE, True), (DELETE, False), (ALT, False), (CTRL, False), (A, True), (A, False)
    ]  # fmt: skip


async def test_who_hangs_up_leaves_nothing_pressed(autojump_clock: trio.testing.MockClock) -> None:
    """A combination that is cancelled goes up."""
    desk = Desk()
    with trio.move_on_after(1):
        await desk.input.send_keys([CTRL, A], 5000)
    desk.keyboard.poll()
    assert desk.keyboard.log[:2] == [(CTRL, True), (A, True)]
    assert desk.keyboard.down == set()


async def test_events_and_mice() -> None:
    """Keys stay down until they are let go; motion and positions reach the mouse, which is the current pointer."""
    desk = Desk()
    desk.input.send_input([InputAction("key", A, 1)])
    desk.keyboard.poll()
    assert desk.keyboard.down == {A}
    desk.input.send_input([InputAction("key", A, 0)])
    desk.keyboard.poll()
    mouse = MouseDriver(desk.keyboard.chip)
    mouse.talk(bytes.fromhex("f3c8f364f350f4"))
    desk.hub.screen = 0x8000, 0x8000
    desk.input.send_input(
        [
            InputAction("abs", 0, 0x3FFF + 10), InputAction("abs", 1, 0x3FFF + 5), InputAction("rel", 0, -3),
            InputAction("rel", 1, 1), InputAction("wheel", 1, 0), InputAction("button", 0x110, 1),
        ]
    )  # fmt: skip
    assert mouse.packets() == [(7, -6, -1, 0), (0, 0, 0, 1)]
    assert [tuple(mouse) for mouse in desk.input.mice()] == [("PS/2 mouse", 0, True, False)]
