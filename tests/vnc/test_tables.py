"""The page about the protocol says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvmm.vnc import (
    client_messages,
    clipboard,
    congestion,
    damage,
    handshake,
    keys,
    server_messages,
    session,
    tables,
    updates,
)
from tvmm.vnc.client_messages import CLIENT_MESSAGES
from tvmm.vnc.encodings import ENCODINGS, PSEUDO_ENCODINGS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vnc-protocol.md"


@pytest.mark.parametrize(
    "part", [tables.states_table, tables.messages_table, tables.encodings_table], ids=lambda part: part.__name__
)
def test_the_page_has_the_tables(part: object) -> None:
    """Word for word: print them anew with `python -m tvmm.vnc.tables`."""
    assert callable(part)
    assert part() in PAGE.read_text()


def test_numbers_are_said_once() -> None:
    """No two encodings share one, and no two messages a type."""
    numbers = [
        number for encoding in (*ENCODINGS, *PSEUDO_ENCODINGS) for number in range(encoding.first, encoding.last + 1)
    ]
    assert len(numbers) == len(set(numbers))
    assert all(0 <= number <= 255 for number in CLIENT_MESSAGES)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (client_messages, "ENCODINGS_MAX"),
        (client_messages, "CUT_TEXT_BYTES"),
        (clipboard, "TEXT_BYTES"),
        (server_messages, "FENCE_PAYLOAD_BYTES"),
        (server_messages, "CURSOR_SIDE"),
        (server_messages, "NAME_BYTES"),
        (handshake, "HANDSHAKE_BYTES"),
        (session, "OUTPUT_BYTES"),
        (updates, "SIZE_ANSWERS_MAX"),
        (updates, "UNSENT_BYTES"),
        (damage, "RECTS_MAX"),
        (congestion, "MARKS_MAX"),
        (keys, "HELD_MAX"),
    ],
)
def test_the_page_has_the_bounds(module: object, name: str) -> None:
    """With the values that they have."""
    assert f"| `{name}` | {getattr(module, name)} |" in PAGE.read_text()
