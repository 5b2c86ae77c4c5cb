"""The device status field (virtio 1.3, 2.1 and 3.1.1): what a driver may do next, as a table.

A driver climbs four steps by adding bits, and starts over by writing zero. FAILED (the driver gave up) and
DEVICE_NEEDS_RESET (the device did) lie across the steps; after either only a reset leads on.

=============== ================= =============================================================
status          driver adds       what follows
=============== ================= =============================================================
0               ACKNOWLEDGE
1 ACKNOWLEDGE   DRIVER
3 + DRIVER      FEATURES_OK       the bit stays only if the device can do with the features
b + FEATURES_OK DRIVER_OK         the device is live: its queues are its own now
any             FAILED
any             writes 0          reset
=============== ================= =============================================================

Everything else a driver can write is a mistake. The specification has no error answer for it: the bit stays
unset, which a driver that reads the field back can see, and the mistake is counted.

One write may take several steps: firmware sets ACKNOWLEDGE and DRIVER at once. They are taken one after the
other, lowest step first, up to the first that is refused. A driver must not clear bits; bits that are
missing from a write stay set, since nothing but a reset can undo a step.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "ACKNOWLEDGE",
    "DRIVER",
    "DRIVER_OK",
    "FAILED",
    "FEATURES_OK",
    "NEEDS_RESET",
    "REACHABLE",
    "STEPS",
    "Outcome",
    "advance",
    "describe",
]

ACKNOWLEDGE = 0x01
DRIVER = 0x02
DRIVER_OK = 0x04
FEATURES_OK = 0x08
NEEDS_RESET = 0x40
FAILED = 0x80

NAMES = {
    ACKNOWLEDGE: "ACKNOWLEDGE",
    DRIVER: "DRIVER",
    FEATURES_OK: "FEATURES_OK",
    DRIVER_OK: "DRIVER_OK",
    NEEDS_RESET: "DEVICE_NEEDS_RESET",
    FAILED: "FAILED",
}

FOUND = ACKNOWLEDGE
DRIVEN = FOUND | DRIVER
NEGOTIATED = DRIVEN | FEATURES_OK
LIVE = NEGOTIATED | DRIVER_OK

STEPS: dict[tuple[int, int], tuple[int, str]] = {
    (0, ACKNOWLEDGE): (FOUND, ""),
    (FOUND, DRIVER): (DRIVEN, ""),
    (DRIVEN, FEATURES_OK): (NEGOTIATED, "negotiated"),
    (NEGOTIATED, DRIVER_OK): (LIVE, "live"),
}
"""(steps taken, bit added) to (steps then, event). What is not here is refused."""

ORDER = (ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK)
STEP_BITS = LIVE
NOT_THE_DRIVERS = ~(LIVE | FAILED)

REACHABLE = frozenset(
    steps | needs_reset | failed
    for steps in (0, FOUND, DRIVEN, NEGOTIATED, LIVE)
    for needs_reset in (0, NEEDS_RESET)
    for failed in (0, FAILED)
)
"""Every value that the field can have."""


class Outcome(NamedTuple):
    """What one write did.

    `events` are, in order, those of ``negotiated``, ``live``, ``failed`` and ``reset`` that happened. `mistakes`
    name what the driver must not do: ``status-order`` (a step too early, or after FAILED or NEEDS_RESET),
    ``status-cleared``, ``status-reserved``, ``features-refused``.
    """

    status: int
    events: tuple[str, ...] = ()
    mistakes: tuple[str, ...] = ()


def advance(status: int, written: int, features_fit: bool) -> Outcome:
    """What a driver's write of `written` does to `status`; `features_fit` answers for a step to FEATURES_OK."""
    if written == 0:
        return Outcome(0, ("reset",))
    events: list[str] = []
    mistakes: list[str] = []
    # NEEDS_RESET may have been set after the driver read the field: its absence from a write says nothing.
    if status & ~written & ~NEEDS_RESET:
        mistakes.append("status-cleared")
    added = written & ~status
    if added & NOT_THE_DRIVERS:
        mistakes.append("status-reserved")
    for bit in ORDER:
        if not added & bit:
            continue
        step = STEPS.get((status & STEP_BITS, bit))
        if step is None or status & (FAILED | NEEDS_RESET):
            mistakes.append("status-order")
            break
        if bit == FEATURES_OK and not features_fit:
            mistakes.append("features-refused")
            break
        status = status & ~STEP_BITS | step[0]
        if step[1]:
            events.append(step[1])
    if added & FAILED:
        status |= FAILED
        events.append("failed")
    return Outcome(status, tuple(events), tuple(mistakes))


def describe(status: int) -> str:
    """The names of the bits in `status`, for people; ``reset`` if there are none."""
    return " ".join(name for bit, name in NAMES.items() if status & bit) or "reset"
