"""The page about the protocol says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvmm.migration.messages import FROM_DESTINATION, FROM_SOURCE
from tvmm.migration.tables import destination_table, postcopy_sequence, sequence, source_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migration-protocol.md"
PARTS = (sequence, postcopy_sequence, source_table, destination_table)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_the_page_has_the_tables(part: object) -> None:
    """Word for word: print them anew with `python -m tvmm.migration.tables`."""
    assert callable(part)
    assert part() in PAGE.read_text()


def test_the_page_has_every_message() -> None:
    """By name."""
    text = PAGE.read_text()
    for kind in (*FROM_SOURCE, *FROM_DESTINATION):
        assert kind.__name__ in text or kind.__name__ in ("Block", "Section")
