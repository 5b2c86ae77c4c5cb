"""What every register model keeps to, as checks that a test applies to each of them.

A device comes with a `Rig`: the outside world that it was built with, on fakes. The checks drive registers
and the rig at random and look at answers, at what the device told the outside, and at its record.

A new device gets a rig and a line in ``tests/devices/test_contract.py``.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ContractDevice",
    "Rig",
    "Subject",
    "check_accesses",
    "check_imports",
    "check_reset",
    "check_round_trip",
    "check_untrusted_state",
    "check_wrong_record",
    "mutated",
]

SIZES = (1, 2, 4, 8)
STIMULI = 8
"""How many kinds of event a rig may tell apart; the number that it gets is below."""


class ContractDevice(Protocol):
    """The one shape of a device."""

    def read(self, offset: int, size: int) -> int:
        """A guest's read."""

    def write(self, offset: int, size: int, value: int) -> object:
        """A guest's write."""

    def reset(self) -> None:
        """To power-on."""

    def state(self) -> Any:
        """The record."""

    def restore(self, state: Any) -> None:
        """From a record."""


class Rig(Protocol):
    """A device and the world around it."""

    @property
    def device(self) -> ContractDevice:
        """The device, new."""

    log: list[object]
    """What the device told the world: interrupts, requests, bytes."""

    def stimulate(self, choice: int, amount: int) -> None:
        """Something happens outside: time passes, a byte arrives. `choice` is below `STIMULI`."""

    def follow(self, other: Any) -> None:
        """Bring this world (clocks, room in sinks; not the device) to where that of `other` is."""


class Subject(NamedTuple):
    """A device under contract.

    `make` builds a rig, `length` is how many offsets the device has, `module` where it lives, `survivors` are
    the fields of the record that a reset leaves alone.
    """

    name: str
    make: Callable[[], Rig]
    length: int
    module: str
    survivors: frozenset[str] = frozenset()


class Step(NamedTuple):
    """One thing that happens: ``read``, ``write`` or ``stimulate``."""

    kind: str
    where: int
    size: int
    value: int


INTERESTING = (0x00, 0x01, 0x0B, 0x0F, 0x60, 0x80, 0xAA, 0xD4, 0xF0, 0xF2, 0xFE, 0xFF)
BYTES_PER_STEP = 4


def _decode(raw: bytes, length: int) -> list[Step]:
    """Steps out of random bytes: far cheaper for hypothesis to draw than records are."""
    steps = []
    for start in range(0, len(raw) - BYTES_PER_STEP + 1, BYTES_PER_STEP):
        what, where, value, more = raw[start : start + BYTES_PER_STEP]
        if what % 4 == 0:
            steps.append(Step("stimulate", where % STIMULI, 0, value))
            continue
        offset = where % length if where < 0xE0 else where % (length + 9)
        size = SIZES[what >> 4 & 3] if what >= 0xC0 else 1
        if size == 1:
            value = value if more < 0x80 else INTERESTING[value % len(INTERESTING)]
        else:
            value = int.from_bytes(bytes([value, more, value ^ 0xFF, more]) * 2, "little")
        steps.append(Step("read" if what % 4 == 1 else "write", offset, size, value))
    return steps


def _steps(subject: Subject, limit: int = 30) -> st.SearchStrategy[list[Step]]:
    return st.binary(max_size=limit * BYTES_PER_STEP).map(lambda raw: _decode(raw, subject.length))


def _play(rig: Rig, steps: list[Step]) -> list[int]:
    """Let `steps` happen; the answers of the reads, each checked to fit its size."""
    answers = []
    for step in steps:
        if step.kind == "stimulate":
            rig.stimulate(step.where, step.value)
        elif step.kind == "write":
            rig.device.write(step.where, step.size, step.value & (1 << 8 * step.size) - 1)
        else:
            answer = rig.device.read(step.where, step.size)
            assert type(answer) is int, step
            assert 0 <= answer < 1 << 8 * step.size, step
            answers.append(answer)
    return answers


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return type(value) in (int, bool, bytes)


def check_accesses(subject: Subject, examples: int = 100) -> None:
    """Any access of any size, anywhere, in any state, has an answer in range; the record stays plain."""

    @settings(max_examples=examples, deadline=None)
    @given(_steps(subject))
    def run(steps: list[Step]) -> None:
        rig = subject.make()
        _play(rig, steps)
        state = rig.device.state()
        assert isinstance(state, tuple)
        assert hasattr(state, "_fields")
        assert _is_plain(state)

    run()


def check_round_trip(subject: Subject, examples: int = 150) -> None:
    """A fresh device with the state of another has the same state, tells nobody, and goes on the same way."""

    @settings(max_examples=examples, deadline=None)
    @given(_steps(subject), _steps(subject))
    def run(before: list[Step], after: list[Step]) -> None:
        first = subject.make()
        _play(first, before)
        second = subject.make()
        second.follow(first)
        heard = len(second.log)
        second.device.restore(first.device.state())
        assert second.device.state() == first.device.state()
        assert [entry for entry in second.log[heard:] if entry != "deadline"] == []
        first.log.clear()
        second.log.clear()
        assert _play(second, after) == _play(first, after)
        assert second.log == first.log
        assert second.device.state() == first.device.state()

    run()


def check_reset(subject: Subject, examples: int = 40) -> None:
    """After a reset the record is that of a new device, up to the fields that survive."""

    @settings(max_examples=examples, deadline=None)
    @given(_steps(subject))
    def run(steps: list[Step]) -> None:
        rig = subject.make()
        _play(rig, steps)
        fresh = subject.make()
        fresh.follow(rig)
        fresh.device.reset()
        rig.device.reset()
        for field, value in rig.device.state()._asdict().items():
            if field not in subject.survivors:
                assert value == getattr(fresh.device.state(), field), field

    run()


HOSTILE: tuple[Any, ...] = (
    -1, 0, 1, 2, 3, 7, 15, 16, 127, 128, 255, 256, 65535, 65536, -(1 << 63), 1 << 64, 10**5000, True, False,
    None, 0.0, float("nan"), "", "ier", b"", b"\0", bytes(16), bytes(127), bytes(128), bytes(10_000), (),
    (1,), (256,), (None,), tuple(range(16)), ((),), [], [1], {},
)  # fmt: skip


def _replacements(value: Any, seed: int) -> list[Any]:
    """What a field with `value` might be changed to."""
    wrong = list(HOSTILE)
    if isinstance(value, int):
        wrong += [value ^ 1 << bit for bit in range(64)] + [seed, -value, value + 1, value * seed]
    elif isinstance(value, bytes):
        wrong += [value[:-1], value + b"\0", value[::-1], bytes([seed]) * len(value), bytes(seed % 20)]
    elif hasattr(value, "_fields"):
        wrong += [mutated(value, bytes([seed, other])) for other in range(0, 256, 5)]
    elif isinstance(value, tuple):
        wrong += [value[1:], (*value, seed), (*value, seed << 8), tuple(range(seed % 20)), (seed << 8,)]
    return wrong


def mutated(state: Any, raw: bytes) -> Any:
    """`state` with a field changed for each two bytes of `raw`, inside of records in it as well."""
    for which, how in zip(raw[::2], raw[1::2], strict=False):
        if not state._fields:
            break
        field = state._fields[which % len(state._fields)]
        choices = _replacements(getattr(state, field), which)
        state = state._replace(**{field: choices[how % len(choices)]})
    return state


def _field_names(state: Any) -> set[str]:
    names = set(state._fields)
    for value in state:
        if hasattr(value, "_fields"):
            names |= _field_names(value)
    return names


def check_untrusted_state(subject: Subject, examples: int = 200) -> None:
    """A wrong record is refused by a field's name and changes nothing, or is what the device then has."""

    @settings(max_examples=examples, deadline=None)
    @given(_steps(subject, limit=12), st.binary(min_size=2, max_size=6), _steps(subject))
    def run(before: list[Step], changes: bytes, after: list[Step]) -> None:
        source = subject.make()
        _play(source, before)
        changed = mutated(source.device.state(), changes)
        target = subject.make()
        target.follow(source)
        untouched = target.device.state()
        try:
            target.device.restore(changed)
        except ValueError as error:
            text = str(error)
            assert any(name in text for name in (*_field_names(untouched), "state is not")), text
            assert len(text) < 200
            assert target.device.state() == untouched
        else:
            assert target.device.state() == changed
            _play(target, after)

    run()


def check_wrong_record(subject: Subject) -> None:
    """What is not the device's record at all is refused and changes nothing."""
    rig = subject.make()
    before = rig.device.state()
    for wrong in (None, 0, b"", (), (*before, 0), "state", object()):
        with pytest.raises(ValueError, match="state"):
            rig.device.restore(wrong)
        assert rig.device.state() == before


ALLOWED_IMPORTS = (
    *("__future__", "functools", "typing"),
    *("tvmm.bus", "tvmm.devices", "tvmm.errors", "tvmm.memory.layout", "tvmm.records", "tvmm.screen"),
)


def check_imports(module: str) -> None:
    """A model imports types, its like, and the layout of memory: no clock, thread, descriptor or loop."""
    path = importlib.import_module(module).__file__
    assert path is not None
    tree = ast.parse(Path(path).read_text())
    for statement in ast.walk(tree):
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            statement.body.clear()
    for statement in ast.walk(tree):
        names = []
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            names = [statement.module or "."]
        for name in names:
            assert name.startswith(ALLOWED_IMPORTS), f"{module} imports {name}"
