"""The generation ID: where and how it is in memory, when it is told of, and what its texts and records may be."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.memory import FakeMemory
from tvmm.devices.generation_id import (
    GUID_BYTES,
    GenerationId,
    GenerationIdState,
    format_guid,
    made_guid,
    parse_guid,
)
from tvmm.memory.layout import GENERATION_ID

FIRST, SECOND = bytes(range(16)), bytes(range(16, 32))


class Rig:
    """An ID, and what the guest had before it when it was told."""

    def __init__(self) -> None:
        self.memory = FakeMemory(2 << 20)
        self.told: list[bytes] = []
        self.model = GenerationId(self.memory, lambda: self.told.append(self.there()), FIRST)

    def there(self) -> bytes:
        """What the guest reads."""
        return self.memory.read(GENERATION_ID, GUID_BYTES)


def test_placed_without_a_word() -> None:
    """At power-on it is put there, as Windows keeps a GUID; nobody is told."""
    rig = Rig()
    rig.model.place()
    assert rig.there() == uuid.UUID(bytes=FIRST).bytes_le
    assert not rig.told


def test_renewed_before_it_is_told() -> None:
    """The guest that is told finds the new one."""
    rig = Rig()
    rig.model.renew(SECOND)
    assert rig.told == [uuid.UUID(bytes=SECOND).bytes_le]
    assert rig.model.state() == GenerationIdState(SECOND)


def test_restored_without_a_word() -> None:
    """The one that comes with a guest is in its memory already."""
    rig = Rig()
    rig.model.restore(GenerationIdState(SECOND))
    assert rig.model.guid == SECOND
    assert not rig.memory.writes
    assert not rig.told


@pytest.mark.parametrize("wrong", [b"", FIRST[:15], FIRST + b"x", "0" * 16, None])
def test_bad_records(wrong: Any) -> None:
    """16 bytes and nothing else; what was there stays."""
    rig = Rig()
    with pytest.raises(ValueError, match="guid"):
        rig.model.restore(GenerationIdState(wrong))
    with pytest.raises(ValueError, match="GenerationIdState"):
        rig.model.restore(wrong)
    assert rig.model.guid == FIRST


@given(st.binary(min_size=16, max_size=16))
def test_texts_and_versions(random: bytes) -> None:
    """As Python's own UUIDs."""
    made = uuid.UUID(bytes=made_guid(random))
    assert (made.version, made.variant) == (4, uuid.RFC_4122)
    assert format_guid(random) == str(uuid.UUID(bytes=random))
    assert parse_guid(str(uuid.UUID(bytes=random))) == random


@pytest.mark.parametrize(
    "text",
    ["", "auto", "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb8", "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fbxx",
     "324e6eafd1d1-4bf6-bf41-b9bb6c91fb87", "324e6eaf-d1 1-4bf6-bf41-b9bb6c91fb87", "x" * 1000],
)  # fmt: skip
def test_texts_that_are_none(text: str) -> None:
    """Refused, with as much of it as fits a line."""
    with pytest.raises(ValueError, match=r"^.{1,120}$"):
        parse_guid(text)
