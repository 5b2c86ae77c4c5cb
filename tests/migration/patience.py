"""How long the two ends of a migration wait for each other, where the peer is in the same process."""

from __future__ import annotations

import pytest

from tvmm.migration import commit, hand_over, incoming, intake, lane_arrival, rounds, senders, talk

__all__ = ["hurry"]


def hurry(monkeypatch: pytest.MonkeyPatch, answer_s: float) -> None:
    """Have both give up soon: `answer_s` is for the next word of a destination, while nothing is given up yet."""
    for module, name in ((rounds, "ROUND_SECONDS"), (hand_over, "TAKEN_SECONDS"), (talk, "GREETING_SECONDS")):
        monkeypatch.setattr(module, name, answer_s)
    for name in ("RUNNING_SECONDS", "ASK_AGAIN_SECONDS"):
        monkeypatch.setattr(commit, name, 0.3)
    monkeypatch.setattr(commit, "ASK_SECONDS", 1.5)
    for module, name in (
        (incoming, "HELLO_SECONDS"),
        (incoming, "ANSWER_SECONDS"),
        (lane_arrival, "LANES_SECONDS"),
        (intake, "COMMIT_SECONDS"),
        (intake, "SILENCE_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 2.0)
    monkeypatch.setattr(senders, "STALL_MS", 300)
