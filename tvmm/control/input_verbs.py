"""Commands of the control socket that type and point; `tvmm.control.verbs` has the table.

Shapes are QAPI's (qapi/ui.json). A command is read to its end before anything is pressed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.config.options import nearest
from tvmm.control.input_target import InputAction
from tvmm.control.qmp import CommandFailed
from tvmm.devices.keys import BUTTONS, evdev_of_qcode, evdev_of_xt, qcodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.control.target import ControlTarget, Json

__all__ = ["input_send_event", "key_codes", "query_mice", "send_key"]

MAX_KEYS = 16
"""In one combination; QEMU's clients send three."""
MAX_EVENTS = 1024
"""In one command: they are carried out without a pause, under the lock of the machine's devices."""
DEFAULT_HOLD_MS = 100
MAX_HOLD_MS = 60_000

POSITION_LIMIT = 0x7FFF
MOTION_LIMIT = 0x7FFF
WHEELS = {"wheel-up": (1, 0), "wheel-down": (-1, 0), "wheel-left": (0, -1), "wheel-right": (0, 1)}
AXES = ("x", "y")


async def send_key(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Press keys one after the other and let them go in the reverse order; answer when they are up again."""
    keys = arguments["keys"]
    if not 0 < len(keys) <= MAX_KEYS:
        raise CommandFailed("GenericError", f"argument 'keys' must be 1 to {MAX_KEYS} keys")
    hold_ms = arguments.get("hold-time", DEFAULT_HOLD_MS)
    if not 0 < hold_ms <= MAX_HOLD_MS:
        raise CommandFailed("GenericError", f"argument 'hold-time' must be 1 to {MAX_HOLD_MS} milliseconds")
    await target.send_keys([_key_value(key) for key in keys], hold_ms)
    return {}


async def input_send_event(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Keys, buttons, motion and positions, as one group. What goes down stays down until a client says otherwise.

    Devices and heads are taken, and not needed: the guest has one of each.
    """
    events = arguments["events"]
    if len(events) > MAX_EVENTS:
        raise CommandFailed("GenericError", f"argument 'events' must be at most {MAX_EVENTS} events")
    target.send_input([_action(event) for event in events])
    return {}


async def query_mice(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: a list of MouseInfo."""
    return [
        {"name": mouse.name, "index": mouse.number, "current": mouse.current, "absolute": mouse.absolute}
        for mouse in target.mice()
    ]


def key_codes(text: str) -> list[int]:
    """The evdev codes of a combination such as ``ctrl-alt-delete``. Raises `CommandFailed` with the nearest name."""
    return [_key_code(name) for name in text.split("-")]


# -- parsing -------------------------------------------------------------------------------------------------


def _member(value: object, name: str, kind: type, what: str) -> Any:
    """A member of an object. Raises `CommandFailed` if it is not there or of another type."""
    found = value.get(name) if type(value) is dict else None
    if type(found) is not kind:
        raise CommandFailed("GenericError", f"{what} needs {name!r}, {_KIND_NAMES[kind]}")
    return found


_KIND_NAMES = {str: "a string", int: "an integer", bool: "true or false", dict: "an object"}


def _key_code(name: str) -> int:
    code = evdev_of_qcode(name)
    if code is None:
        near = nearest(name[:32], list(qcodes()))
        hint = f"; did you mean {near!r}" if near else ""
        raise CommandFailed("GenericError", f"no key is called {name[:32]!r}{hint}")
    return code


def _key_value(value: object) -> int:
    """QAPI: KeyValue."""
    kind = _member(value, "type", str, "a key")
    if kind == "qcode":
        return _key_code(_member(value, "data", str, "a key of type 'qcode'"))
    if kind != "number":
        raise CommandFailed("GenericError", "a key's type is 'qcode' or 'number'")
    number = _member(value, "data", int, "a key of type 'number'")
    code = evdev_of_xt(number)
    if code is None:
        raise CommandFailed("GenericError", f"no key has the number {number}")
    return code


def _action(event: object) -> InputAction:
    """QAPI: InputEvent."""
    kind = _member(event, "type", str, "an event")
    data = _member(event, "data", dict, "an event")
    if kind == "key":
        code = _key_value(_member(data, "key", dict, "an event of type 'key'"))
        return InputAction("key", code, _member(data, "down", bool, "an event of type 'key'"))
    if kind == "btn":
        return _button(_member(data, "button", str, "an event of type 'btn'"), data)
    if kind not in ("rel", "abs"):
        raise CommandFailed("GenericError", "an event's type is 'key', 'btn', 'rel' or 'abs'")
    axis = _member(data, "axis", str, f"an event of type {kind!r}")
    value = _member(data, "value", int, f"an event of type {kind!r}")
    if axis not in AXES:
        raise CommandFailed("GenericError", "an axis is 'x' or 'y'")
    low, high = (0, POSITION_LIMIT) if kind == "abs" else (-MOTION_LIMIT, MOTION_LIMIT)
    if not low <= value <= high:
        raise CommandFailed("GenericError", f"the value of an event of type {kind!r} is from {low} to {high}")
    return InputAction(kind, AXES.index(axis), value)


def _button(name: str, data: object) -> InputAction:
    down = _member(data, "down", bool, "an event of type 'btn'")
    if name in WHEELS:
        # A notch is a press; its release says nothing.
        up, right = WHEELS[name] if down else (0, 0)
        return InputAction("wheel", up, right)
    if name not in BUTTONS:
        raise CommandFailed("GenericError", f"no button is called {name[:32]!r}: {', '.join([*BUTTONS, *WHEELS])}")
    return InputAction("button", BUTTONS[name], down)
