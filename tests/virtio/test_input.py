"""The input device's model: what a driver reads, groups, what is dropped, lights, records."""

from __future__ import annotations

from struct import pack, unpack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.virtio.devices import make_keyboard, make_tablet
from tvmm.errors import ConfigError
from tvmm.state import decode, encode
from tvmm.virtio.device import ConfigState
from tvmm.virtio.features import Ring
from tvmm.virtio.input import GROUP_EVENTS, WAITING_GROUPS, Event, Group, Input, InputSettings, InputState

NAME, SERIAL, DEVIDS, PROPERTIES, BITS, RANGE = 1, 2, 3, 0x10, 0x11, 0x12
SYN, KEY, REL, ABS, LED, REP = 0, 1, 2, 3, 0x11, 0x14
END = (SYN, 0, 0)
A, B, LEFT = 30, 48, 0x110


def ask(model: Input, select: int, subsel: int = 0) -> bytes:
    """What a driver reads."""
    assert model.write_config(0, 1, select)
    assert model.write_config(1, 1, subsel)
    return bytes(model.read_config(8 + at, 1) for at in range(model.read_config(2, 1)))


def codes(bitmap: bytes) -> list[int]:
    """The bits that are set."""
    return [bit for bit in range(8 * len(bitmap)) if bitmap[bit // 8] >> bit % 8 & 1]


def take_all(model: Input) -> list[Group]:
    """Groups, as a driver with many buffers gets them."""
    got = []
    while group := model.next_group():
        model.group_taken(group)
        got.append(group)
        assert len(got) < 1000
    return got


def lights(model: Input, *events: Event) -> int:
    """What is on after status events."""
    for event in events:
        model.status(pack("<HHi", *event))
    return model.leds


def test_what_a_keyboard_says_it_is() -> None:
    """Name, serial number, ids, keys, lights, and that the guest is to repeat keys."""
    model = make_keyboard()
    assert ask(model, NAME) == b"tvmm virtio keyboard"
    assert ask(model, SERIAL) == b"key-1"
    assert unpack("<4H", ask(model, DEVIDS)) == (6, 0x0627, 1, 1)
    assert ask(model, PROPERTIES) == b""
    assert codes(ask(model, BITS, KEY)) == list(range(1, 249))
    assert codes(ask(model, BITS, LED)) == [0, 1, 2]
    assert (ask(model, BITS, REP), ask(model, BITS, ABS), ask(model, BITS, 0)) == (b"\0", b"", b"")
    assert ask(model, RANGE) == b""


def test_what_a_tablet_says_it_is() -> None:
    """Two axes with their range, two wheels, five buttons, no serial number."""
    model = make_tablet()
    assert ask(model, NAME) == b"tvmm virtio tablet"
    assert ask(model, SERIAL) == b""
    assert unpack("<4H", ask(model, DEVIDS)) == (6, 0x0627, 3, 1)
    assert codes(ask(model, BITS, KEY)) == list(range(0x110, 0x115))
    assert codes(ask(model, BITS, REL)) == [6, 8]
    assert codes(ask(model, BITS, ABS)) == [0, 1]
    assert [unpack("<5I", ask(model, RANGE, axis)) for axis in (0, 1)] == [(0, 32767, 0, 0, 0)] * 2
    assert ask(model, RANGE, 2) == b""


def test_only_the_choice_can_be_written() -> None:
    """Writes beyond are refused, and what was chosen stays."""
    model = make_keyboard()
    ask(model, NAME)
    assert not model.write_config(2, 1, 5)
    assert not model.write_config(8, 8, 0)
    assert model.write_config(0, 4, 0xFFFF_0001)
    assert model.read_config(2, 1) == len("tvmm virtio keyboard")
    assert ask(model, 0x77, 0x88) == b""


def test_groups() -> None:
    """Keys of a group come together, repeats and keys of other devices not at all."""
    model = make_keyboard()
    model.sync()
    model.press(A, True)
    model.press(A, True)
    model.press(LEFT, True)
    model.press(0, True)
    model.move(1, 1)
    model.wheel(1, 1)
    model.press(B, True)
    model.sync()
    model.press(A, False)
    model.press(A, False)
    model.sync()
    assert take_all(model) == [((KEY, A, 1), (KEY, B, 1), END), ((KEY, A, 0), END)]
    assert list(model.held()) == [B]


def test_tablet_groups() -> None:
    """Position, button and wheels; motion that nobody has taken is replaced by later motion."""
    model = make_tablet()
    for x in range(10):
        model.move(x, 5)
        model.sync()
    model.press(LEFT, True)
    model.sync()
    model.move(20, 6)
    model.sync()
    model.move(20, 6)
    model.wheel(-1, 2)
    model.press(A, True)
    model.sync()
    assert take_all(model) == [
        ((ABS, 0, 9), (ABS, 1, 5), END),
        ((KEY, LEFT, 1), END),
        ((ABS, 0, 20), (ABS, 1, 6), END),
        ((REL, 8, -1), (REL, 6, 2), END),
    ]


def test_a_group_is_never_too_large() -> None:
    """Whoever forgets to end groups gets them ended."""
    model = make_keyboard()
    for code in range(1, 200):
        model.press(code, True)
    model.sync()
    groups = take_all(model)
    assert max(map(len, groups)) <= GROUP_EVENTS
    assert [event for group in groups for event in group if event != END] == [(KEY, code, 1) for code in range(1, 200)]


def test_too_many_groups_become_a_difference() -> None:
    """All that waits is dropped; the driver is told what went up, where the pointer is, and what is down."""
    model = make_tablet()
    model.press(LEFT, True)
    model.sync()
    assert take_all(model) == [((KEY, LEFT, 1), END)]
    for turn in range(WAITING_GROUPS + 1):
        model.press(LEFT + 1, turn % 2 == 0)
        model.sync()
    model.press(LEFT, False)
    model.move(7, 8)
    model.sync()
    assert take_all(model) == [((KEY, LEFT, 0), (ABS, 0, 7), (ABS, 1, 8), (KEY, LEFT + 1, 1), END)]
    model.press(LEFT + 1, False)
    model.sync()
    assert take_all(model) == [((KEY, LEFT + 1, 0), END)]


def test_lights() -> None:
    """Lights by their codes; other events, other codes and a tablet have none; a reset puts them out."""
    model = make_keyboard()
    changes: list[int] = []
    model.on_leds = lambda: changes.append(model.leds)
    assert lights(model, (LED, 0, 1)) == 2
    assert lights(model, (LED, 1, 1), (LED, 2, 1), (LED, 0, 0), (LED, 0, 0)) == 5
    assert lights(model, (LED, 3, 1), (KEY, 0, 1), (LED, 0xFFFF, 1)) == 5
    assert changes == [2, 6, 7, 5]
    model.reset()
    assert changes[-1] == 0
    assert lights(make_tablet(), (LED, 0, 1)) == 0


def test_reset_forgets() -> None:
    """What waited is gone, and a key that was down is not told to be up: the new driver knows of none."""
    model = make_keyboard()
    model.press(A, True)
    model.sync()
    ask(model, NAME)
    model.reset()
    model.press(A, False)
    model.sync()
    assert take_all(model) == []
    assert model.read_config(0, 1) == 0


@pytest.mark.parametrize(
    "settings", [InputSettings("mouse"), InputSettings(serial="x" * 128), InputSettings(serial="é")]
)
def test_impossible_settings(settings: InputSettings) -> None:
    """They are refused in a line."""
    with pytest.raises(ConfigError):
        Input(settings)


def test_record() -> None:
    """Through the codec and into another device, which goes on; a group that has not ended becomes a difference."""
    first, second = make_keyboard(), make_keyboard()
    first.press(A, True)
    first.sync()
    first.status(pack("<HHi", LED, 1, 1))
    state = decode(encode(first.state()), (InputState, ConfigState))
    second.restore(state, Ring.VERSION_1)
    assert second.state() == first.state()
    assert take_all(second) == [((KEY, A, 1), END)]
    first.press(B, True)
    second.restore(first.state(), Ring.VERSION_1)
    assert take_all(second) == [((KEY, A, 1), (KEY, B, 1), END)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"groups": ((END,),)}, "groups"),
        ({"groups": (((KEY, A, 1),) * 20,)}, "groups"),
        ({"groups": (((9, A, 1), END),)}, "type"),
        ({"groups": (((KEY, 0x300, 1), END),)}, "code"),
        ({"groups": (((KEY, A, 1 << 20), END),)}, "value"),
        ({"groups": (((KEY, A), END),)}, "three numbers"),
        ({"groups": (((KEY, A, 1), END),) * (WAITING_GROUPS + 1)}, "groups"),
        ({"held": (LEFT,)}, "held"),
        ({"told": (B, A)}, "told"),
        ({"told": (A, A)}, "told"),
        ({"position": (1,)}, "position"),
        ({"told_position": (0, 0x8000)}, "told_position"),
        ({"behind": 2}, "behind"),
        ({"leds": 8}, "leds"),
    ],
)
def test_bad_records(change: dict[str, Any], field: str) -> None:
    """They are refused by the name of the field, and change nothing."""
    model = make_keyboard()
    before = model.state()
    with pytest.raises(ValueError, match=field):
        model.restore(before._replace(**change), Ring.VERSION_1)
    assert model.state() == before


def test_a_record_whose_space_is_not_what_was_asked_for() -> None:
    """Content that belongs to another choice is another device's."""
    model = make_keyboard()
    ask(model, NAME)
    state = model.state()
    other = bytes([2]) + state.config.space[1:]
    with pytest.raises(ValueError, match="space"):
        model.restore(state._replace(config=state.config._replace(space=other)), Ring.VERSION_1)


EVENTS = st.one_of(
    st.tuples(st.just("press"), st.integers(0x10E, 0x116), st.booleans()),
    st.tuples(st.just("move"), st.integers(0, 0x7FFF), st.integers(0, 0x7FFF)),
    st.tuples(st.just("wheel"), st.integers(-9, 9), st.integers(-9, 9)),
    st.just(("sync",)),
    st.tuples(st.just("take"), st.integers(1, 5)),
    st.just(("save",)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.integers(1, 40)), max_size=60))
def test_the_driver_knows_how_things_are(events: list[tuple[tuple[object, ...], int]]) -> None:
    """However much is dropped and whenever it moves: at the end the driver has the buttons and the position."""
    model = make_tablet()
    down: set[int] = set()
    at = [-1, -1]

    def take(count: int) -> None:
        while count and (group := model.next_group()):
            model.group_taken(group)
            count -= 1
            for kind, code, value in group:
                if kind == KEY:
                    assert (code in down) != bool(value)
                    (down.add if value else down.discard)(code)
                elif kind == ABS:
                    at[code] = value

    for (what, *arguments), times in events:
        for turn in range(times):
            if what == "press":
                model.press(int(str(arguments[0])), bool(arguments[1]) ^ bool(turn & 1))
                model.sync()
            elif what == "take":
                take(int(str(arguments[0])))
            elif what == "save":
                state, model = model.state(), make_tablet()
                model.restore(state, Ring.VERSION_1)
            else:
                getattr(model, str(what))(*arguments)
    model.sync()
    take(1000)
    assert model.next_group() == ()
    assert down == set(model.held())
    assert tuple(at) == model.state().position
