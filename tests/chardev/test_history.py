"""The byte history against a model that keeps everything."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.chardev.history import History


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 20),
    st.lists(st.binary(max_size=30), max_size=20),
    st.floats(0, 1),
    st.integers(1, 40),
)
def test_reading_tells_what_is_missed(capacity: int, chunks: list[bytes], where: float, limit: int) -> None:
    """From any position a read gives the bytes that are kept and the number of those that are not."""
    history = History(capacity)
    for chunk in chunks:
        history.append(chunk)
    everything = b"".join(chunks)
    position = int(where * len(everything))
    piece = history.read(position, limit)
    kept_from = max(len(everything) - capacity, 0)
    assert (history.start, history.end) == (kept_from, len(everything))
    assert piece.missed == max(kept_from - position, 0)
    assert piece.position == position + piece.missed
    assert piece.data == everything[piece.position : piece.position + limit]


@pytest.mark.parametrize("position", [-1, 4])
def test_position_that_never_was_is_refused(position: int) -> None:
    """A position outside of what was appended raises."""
    history = History()
    history.append(b"abc")
    with pytest.raises(ValueError, match="not within"):
        history.read(position)


def test_capacity_must_be_positive() -> None:
    """A history that could hold nothing is refused."""
    with pytest.raises(ValueError, match="at least one"):
        History(0)
