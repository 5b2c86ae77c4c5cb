"""The input device (virtio 1.3, 5.8): a keyboard, or a tablet that tells positions.

Queue 0 brings events to the driver, one in each of its buffers; queue 1 brings the lights of the keyboard back. Events
come in groups that end with a report (EV_SYN): the driver gets a whole group or nothing of it.

Offsets in the configuration space; what is behind `size` depends on the two that the driver writes:

====== ==== ============================================================================================
0      1    select: name, serial, ids, properties, codes of a type of events, range of an axis
1      1    subsel: which type, which axis
2      1    size: bytes that there are, 0 for nothing
8      128  text, bitmap, ids or range
====== ==== ============================================================================================

Groups wait for a driver that is slow. When they are too many all of them are dropped; what the driver is told
next is the difference between what it knows and how things are: keys that have gone up, keys that are down,
where the pointer is. So nothing stays pressed.
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ConfigError
from tvmm.records import check_bits, check_flag, check_int, check_record, check_uint, check_uints
from tvmm.virtio.device import ConfigState, VirtioDevice
from tvmm.virtio.features import DEFAULT_RING, INPUT_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = [
    "EVENT_BYTES",
    "GROUP_EVENTS",
    "KINDS",
    "POSITION_LIMIT",
    "TEXT_LIMIT",
    "WAITING_GROUPS",
    "Event",
    "Group",
    "Input",
    "InputSettings",
    "InputState",
]

EVENTS_QUEUE_SIZE = STATUS_QUEUE_SIZE = 64

EVENT_BYTES = 8
WAITING_GROUPS = 64
"""Groups for a driver that does not offer buffers: a second of typing, not what happens to a guest that hangs."""
GROUP_EVENTS = 16
"""Events in a group, its end included: fewer than the queue has buffers, or it would never get through."""
POSITION_LIMIT = 0x7FFF
TEXT_LIMIT = 127

KINDS = ("keyboard", "tablet")

SELECT, SUBSEL, SIZE, CONTENT, LENGTH = 0, 1, 2, 8, 136
ID_NAME, ID_SERIAL, ID_DEVIDS, PROP_BITS, EV_BITS, ABS_INFO = 0x01, 0x02, 0x03, 0x10, 0x11, 0x12

# linux/input-event-codes.h
EV_SYN, EV_KEY, EV_REL, EV_ABS, EV_LED, EV_REP = 0x00, 0x01, 0x02, 0x03, 0x11, 0x14
REL_HWHEEL, REL_WHEEL = 0x06, 0x08
ABS_X, ABS_Y = 0x00, 0x01
LED_BITS = (2, 4, 1)
"""NUML, CAPSL and SCROLLL, as the bits of `leds`: 1 scroll, 2 num, 4 caps lock."""
KEYS = range(1, 249)
BUTTONS = range(0x110, 0x115)
CODE_LIMIT = 0x2FF
EVENT_TYPES = (EV_SYN, EV_KEY, EV_REL, EV_ABS)

BUS_VIRTUAL, VENDOR, VERSION = 0x06, 0x0627, 1
PRODUCTS = {"keyboard": 1, "tablet": 3}
"""As QEMU numbers them: drivers and desktops know these."""

NO_POSITION = -1

Event = tuple[int, int, int]
"""Type, code, value."""

Group = tuple[Event, ...]


class InputSettings(NamedTuple):
    """`kind` is one of `KINDS`; `serial` is told to the driver, up to `TEXT_LIMIT` bytes of ASCII."""

    kind: str = "keyboard"
    serial: str = ""


class InputState(NamedTuple):
    """`groups` wait for buffers. `held` is what is down, `told` what the driver knows of, both rising.

    `position` and `told_position` are (x, y), -1 for none yet. `behind`: groups were dropped.
    """

    config: ConfigState
    groups: tuple[Group, ...] = ()
    held: tuple[int, ...] = ()
    told: tuple[int, ...] = ()
    position: tuple[int, int] = (NO_POSITION, NO_POSITION)
    told_position: tuple[int, int] = (NO_POSITION, NO_POSITION)
    behind: bool = False
    leds: int = 0


class Input(VirtioDevice):
    """A keyboard or a tablet. `leds` has scroll, num and caps lock in bits 0, 1 and 2.

    Raises `ConfigError` for settings that make none.
    """

    device_id = INPUT_ID
    type_name = "virtio-input"

    def __init__(self, settings: InputSettings, ring: int = DEFAULT_RING) -> None:
        if settings.kind not in KINDS:
            raise ConfigError(f"virtio-input of kind {settings.kind!r}", f"it is one of {', '.join(KINDS)}")
        if len(settings.serial) > TEXT_LIMIT or not settings.serial.isascii() or not settings.serial.isprintable():
            raise ConfigError(f"virtio-{settings.kind} serial is not at most {TEXT_LIMIT} printable ASCII characters")
        self.settings = settings
        self._contents = _contents(settings)
        changeable = b"\xff" * 3 + bytes(CONTENT - 3) + b"\xff" * (LENGTH - CONTENT)
        super().__init__((EVENTS_QUEUE_SIZE, STATUS_QUEUE_SIZE), 0, self._space(0, 0), changeable, ring)
        self.writable = b"\xff\xff" + bytes(LENGTH - 2)
        self.on_leds: Callable[[], None] = _nobody_looks
        """Called under the bus lock when the driver has changed the lights."""
        self.leds = 0
        self._behind = False
        self._position = self._told_position = NO_POSITION, NO_POSITION
        self._load(InputState(self.config_state()))

    @property
    def absolute(self) -> bool:
        """Whether it is a tablet."""
        return self.settings.kind == "tablet"

    # -- configuration space -----------------------------------------------------------------------------

    def _space(self, select: int, subsel: int) -> bytes:
        content = self._contents.get((select, subsel), b"")
        return (bytes([select, subsel, len(content)]) + bytes(CONTENT - 3) + content).ljust(LENGTH, b"\0")

    def config_written(self, offset: int, size: int) -> None:
        """The driver has chosen what it wants to see (5.8.5.2)."""
        self._config[:] = self._space(self._config[SELECT], self._config[SUBSEL])

    # -- what happens ------------------------------------------------------------------------------------

    def press(self, code: int, down: bool) -> None:
        """A key or button of this device goes down or up. Repeats are the guest's affair."""
        if code not in (BUTTONS if self.absolute else KEYS) or (code in self._held) == down:
            return
        (self._held.add if down else self._held.discard)(code)
        self._add((EV_KEY, code, int(down)))

    def move(self, x: int, y: int) -> None:
        """The pointer is at (x, y), each 0 to `POSITION_LIMIT`."""
        if self.absolute and (x, y) != self._position:
            self._position = x, y
            self._add((EV_ABS, ABS_X, x), (EV_ABS, ABS_Y, y))

    def wheel(self, up: int, right: int) -> None:
        """Notches."""
        if self.absolute:
            turns = ((EV_REL, REL_WHEEL, up), (EV_REL, REL_HWHEEL, right))
            self._add(*(turn for turn in turns if turn[2]))

    def sync(self) -> None:
        """What has come since the last call happened at once."""
        if not self._open:
            return
        group = (*self._open, (EV_SYN, 0, 0))
        self._open.clear()
        if self._behind:
            return
        if self._groups and _only_moves(group) and _only_moves(self._groups[-1]):
            self._groups[-1] = group
        elif len(self._groups) < WAITING_GROUPS:
            self._groups.append(group)
        else:
            self._groups.clear()
            self._behind = True

    def _add(self, *events: Event) -> None:
        if len(self._open) + len(events) >= GROUP_EVENTS:
            self.sync()
        self._open += events

    def held(self) -> Collection[int]:
        """Keys and buttons that the driver knows, or will know, to be down."""
        return self._held

    # -- the driver's side -------------------------------------------------------------------------------

    def next_group(self) -> Group:
        """What the driver is to get next; empty for nothing. The same until `group_taken`, or until more happens."""
        if self._groups:
            return self._groups[0]
        return self._difference() if self._behind else ()

    def group_taken(self, group: Group) -> None:
        """The driver has it."""
        if self._groups:
            self._groups.pop(0)
        for kind, code, value in group:
            if kind == EV_KEY:
                (self._told.add if value else self._told.discard)(code)
            elif kind == EV_ABS:
                x, y = self._told_position
                self._told_position = (value, y) if code == ABS_X else (x, value)
        if self._behind and not self._groups and not self._difference():
            self._behind = False

    def _difference(self) -> Group:
        """The first part of what the driver does not know: releases first."""
        events = [(EV_KEY, code, 0) for code in sorted(self._told - self._held)]
        if self._position != self._told_position:
            x, y = self._position
            events += [(EV_ABS, ABS_X, x), (EV_ABS, ABS_Y, y)]
        events += [(EV_KEY, code, 1) for code in sorted(self._held - self._told)]
        return (*events[: GROUP_EVENTS - 2], (EV_SYN, 0, 0)) if events else ()

    def status(self, data: bytes) -> None:
        """An event of the driver: a light goes on or off. Others are ignored (5.8.6.2 has no more)."""
        kind, code, value = (int.from_bytes(data[at:to], "little") for at, to in ((0, 2), (2, 4), (4, 8)))
        if kind != EV_LED or self.absolute or code >= len(LED_BITS):
            return
        leds = self.leds | LED_BITS[code] if value else self.leds & ~LED_BITS[code]
        if leds != self.leds:
            self.leds = leds
            self.on_leds()

    def reset(self) -> None:
        """The driver forgets what is down, and so does this side: who holds a key presses it anew."""
        super().reset()
        self._load(InputState(self.config_state()))
        self._config[:] = self._space(0, 0)
        self.on_leds()

    # -- state -------------------------------------------------------------------------------------------

    def _load(self, state: InputState) -> None:
        self._groups = list(state.groups)
        self._open: list[Event] = []
        self._held = set(state.held)
        self._told = set(state.told)
        self._position = state.position
        self._told_position = state.told_position
        self._behind = bool(state.behind)
        self.leds = state.leds

    def state(self) -> InputState:
        """All of it as a record. A group that has not ended is left out, and its outcome is told as a difference."""
        held, told = tuple(sorted(self._held)), tuple(sorted(self._told))
        behind = self._behind or bool(self._open)
        groups = () if behind else tuple(self._groups)
        return InputState(
            self.config_state(), groups, held, told, self._position, self._told_position, behind, self.leds
        )

    def restore(self, state: InputState, accepted: int) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        check_record(state, InputState)
        config = self.check_config(state.config)
        if config.space != self._space(config.space[SELECT], config.space[SUBSEL]):
            raise ValueError("space is not what its select asks for")
        if type(state.groups) is not tuple or len(state.groups) > WAITING_GROUPS:
            raise ValueError(f"groups is not a tuple of at most {WAITING_GROUPS}")
        for group in state.groups:
            _check_group(group)
        self._check_codes("held", state.held)
        self._check_codes("told", state.told)
        for field, value in (("position", state.position), ("told_position", state.told_position)):
            _check_position(field, value)
        check_flag("behind", state.behind)
        check_bits("leds", state.leds, 0x07)
        self.load_config(config)
        self._load(state)
        self.accepted = accepted
        self.on_leds()

    def _check_codes(self, field: str, codes: object) -> None:
        there = BUTTONS if self.absolute else KEYS
        if type(codes) is not tuple or len(codes) > len(there):
            raise ValueError(f"{field} is not a tuple of codes")
        check_uints(field, codes, len(codes), CODE_LIMIT)
        if list(codes) != sorted(set(codes)) or not set(codes) <= set(there):
            raise ValueError(f"{field} has codes that this device has not, or not in their order")


def _check_group(group: object) -> None:
    if type(group) is not tuple or not 2 <= len(group) <= GROUP_EVENTS or group[-1] != (EV_SYN, 0, 0):
        raise ValueError(f"groups has one that is not up to {GROUP_EVENTS} events with an end")
    for event in group:
        if type(event) is not tuple or len(event) != 3:
            raise ValueError("groups has an event that is not three numbers")
        if check_uint("groups: type", event[0], EV_ABS) not in EVENT_TYPES:
            raise ValueError("groups: type is none of this device")
        check_uint("groups: code", event[1], CODE_LIMIT)
        check_int("groups: value", event[2], -POSITION_LIMIT - 1, POSITION_LIMIT)


def _check_position(field: str, value: object) -> None:
    if type(value) is not tuple or len(value) != 2:
        raise ValueError(f"{field} is not two numbers")
    for part in value:
        check_int(field, part, NO_POSITION, POSITION_LIMIT)


def _only_moves(group: Group) -> bool:
    return all(kind in (EV_ABS, EV_SYN) for kind, _, _ in group)


def _bitmap(codes: Collection[int]) -> bytes:
    """A bit for each code, without trailing zeroes."""
    return sum(1 << code for code in codes).to_bytes(max(codes) // 8 + 1, "little")


def _contents(settings: InputSettings) -> dict[tuple[int, int], bytes]:
    """What there is to see by select and subsel."""
    ids = pack("<HHHH", BUS_VIRTUAL, VENDOR, PRODUCTS[settings.kind], VERSION)
    found = {(ID_NAME, 0): f"tvmm virtio {settings.kind}".encode(), (ID_DEVIDS, 0): ids}
    if settings.serial:
        found[ID_SERIAL, 0] = settings.serial.encode()
    if settings.kind == "keyboard":
        found[EV_BITS, EV_KEY] = _bitmap(KEYS)
        found[EV_BITS, EV_LED] = _bitmap(range(len(LED_BITS)))
        # That there is a size says that the guest is to repeat keys; there are no codes.
        found[EV_BITS, EV_REP] = b"\0"
        return found
    found[EV_BITS, EV_KEY] = _bitmap(BUTTONS)
    found[EV_BITS, EV_REL] = _bitmap((REL_WHEEL, REL_HWHEEL))
    found[EV_BITS, EV_ABS] = _bitmap((ABS_X, ABS_Y))
    for axis in (ABS_X, ABS_Y):
        found[ABS_INFO, axis] = pack("<IIIII", 0, POSITION_LIMIT, 0, 0, 0)
    return found


def _nobody_looks() -> None:
    """Before anybody wants to know of lights."""
