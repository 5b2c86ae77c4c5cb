"""Whether a state that was loaded is the one that was sent: the sections of both sides, compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvmm.state import Section, SectionType

__all__ = ["differing_sections"]

SKIPPED = ("chips", "clock")
"""Interrupts that may have been on their way are raised once more after loading, and time goes on."""
TIMES: dict[str, dict[str, Any]] = {
    "AcpiPmState": {"status": 0, "timer_ns": 0, "carries": 0},
    "VcpuState": {"lapic": b"", "events": b""},
    "TransportState": {"isr": 0},
}
"""What goes on while a machine rests, or takes up such an interrupt, by record: put to the same on both sides."""
COUNTING_MSRS = (0x10, 0x6E0)
"""The time stamp counter and the deadline that counts with it."""


def differing_sections(
    sent: Sequence[Section], again: Sequence[Section], known: Mapping[str, SectionType]
) -> list[str]:
    """Names of the sections whose records are not the same, but for what changes by itself.

    `again` is what the destination has saved of itself after loading `sent`.
    """
    ours = {section.name: section for section in again}
    found = []
    for section in sent:
        other = ours.get(section.name)
        if section.name in SKIPPED or other is None or section.data == other.data:
            continue
        kind = known[section.name]
        try:
            same = _timeless(kind.load(section)) == _timeless(kind.load(other))
        except ProtocolError:
            same = False
        if not same:
            found.append(section.name)
    return found


def _timeless(value: Any) -> Any:
    """`value` with those fields put to the same, all the way down."""
    if not hasattr(value, "_fields"):
        return value
    fields = {name: _timeless(field) for name, field in zip(value._fields, value, strict=True)}
    fields.update(TIMES.get(type(value).__name__, {}))
    if "msrs" in fields:
        fields["msrs"] = tuple(pair for pair in fields["msrs"] if pair[0] not in COUNTING_MSRS)
    return value._replace(**fields)
