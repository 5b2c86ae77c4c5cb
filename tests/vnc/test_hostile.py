"""Viewers that send anything."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rfb_hostile import PIECE_BYTES, hostile_run
from tests.support.rfb_pair import Pair
from tvmm.vnc.client_messages import SetEncodings
from tvmm.vnc.errors import RfbError
from tvmm.vnc.events import WantsIn
from tvmm.vnc.security_types import NoSecurity
from tvmm.vnc.session import Session


@given(st.lists(st.binary(max_size=60), max_size=10), st.booleans())
def test_any_bytes_are_events_or_an_error(pieces: list[bytes], inside: bool) -> None:
    """Nothing else comes out, at the door or inside."""
    session = Session([NoSecurity()])
    if inside:
        pieces = [b"RFB 003.008\n\x01\x01", *pieces]
    with contextlib.suppress(RfbError):
        for piece in pieces:
            session.receive(piece, 0)
            while (event := session.next_event()) is not None:
                if isinstance(event, WantsIn):
                    session.admit(100, 100, "")
    assert session.next_event() is None


def test_hostile_runs() -> None:
    """Sixty of them, which end in different ways. `python -m fuzz.rfb` makes more."""
    endings = Counter(hostile_run(seed) for seed in range(60))
    assert endings["running"]
    assert len(endings) > 3


@pytest.mark.parametrize("message", [SetEncodings(tuple(range(1000))).pack(), b"\x06\0\0\0\x7f\xff\xff\xff"])
def test_memory_does_not_grow_with_what_is_sent(message: bytes) -> None:
    """Neither with lists nor with a clipboard that never ends."""
    pair = Pair().running()
    tracemalloc.start()
    try:
        pair.session.receive(message, 0)
        pair.drain()
        before, _ = tracemalloc.get_traced_memory()
        flood = (message * (PIECE_BYTES // len(message) + 1))[:PIECE_BYTES] if len(message) > 8 else bytes(PIECE_BYTES)
        flood = flood[: PIECE_BYTES // len(message) * len(message)]
        for _ in range(50):
            pair.session.receive(flood, 0)
            pair.drain()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 256 << 10
