"""How long tests let things take that are not what they are about, and how both ends of a migration are hurried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.migration import (
    commit,
    disk_arrival,
    disk_departure,
    hand_over,
    incoming,
    intake,
    lane_arrival,
    link,
    plain_thread,
    postcopy_service,
    postcopy_source,
    reception,
    recovering,
    rounds,
    senders,
    talk,
    tls,
)
from tvmm.migration.status import MigrationParameters
from tvmm.testing import LONGEST_PAUSE_MS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PATIENT", "hurry"]

PATIENT = MigrationParameters(LONGEST_PAUSE_MS)
"""A migration whose pause may be as long as a busy host needs; it is as short as it can be all the same."""


def hurry(
    put: Callable[[Any, str, Any], None],
    *,
    answer_s: float = 0.5,
    running_s: float = 0.5,
    ask_s: float = 1.0,
    wait_s: float = 0.8,
) -> None:
    """What takes seconds for a real peer takes a moment: `put(module, name, value)` sets a limit.

    The source waits `answer_s` for the next word of a destination, `running_s` for the one that the guest runs there,
    and asks for `ask_s` what has become of it; the destination waits `wait_s` for a source.
    """
    for module, name in (
        (talk, "GREETING_SECONDS"),
        (rounds, "ROUND_SECONDS"),
        (hand_over, "TAKEN_SECONDS"),
        (disk_departure, "COPIES_SECONDS"),
        (disk_departure, "STORED_SECONDS"),
        (postcopy_source, "DISCARD_SECONDS"),
        (postcopy_source, "COMPLETE_SECONDS"),
        (recovering, "RECOVER_SECONDS"),
        (link, "CONNECT_SECONDS"),
        (tls, "HANDSHAKE_SECONDS"),
    ):
        put(module, name, answer_s)
    put(commit, "RUNNING_SECONDS", running_s)
    put(commit, "ASK_SECONDS", ask_s)
    put(commit, "ASK_AGAIN_SECONDS", 0.1)
    for module, name in (
        (incoming, "HELLO_SECONDS"),
        (incoming, "ANSWER_SECONDS"),
        (lane_arrival, "LANES_SECONDS"),
        (intake, "COMMIT_SECONDS"),
        (intake, "SILENCE_SECONDS"),
        (reception, "OPENING_SECONDS"),
        (hand_over, "MEMORY_SECONDS"),
        (disk_arrival, "STREAM_SECONDS"),
        (postcopy_service, "HELLO_SECONDS"),
        (postcopy_service, "REJOIN_SECONDS"),
    ):
        put(module, name, wait_s)
    for module in (incoming, talk, postcopy_service):
        put(module, "FAREWELL_SECONDS", 0.2)
    put(postcopy_source, "LAST_WORD_SECONDS", 0.1)
    put(postcopy_source, "AGAIN_SECONDS", 0.05)
    for module in (senders, plain_thread):
        put(module, "STALL_MS", int(answer_s * 1000))
