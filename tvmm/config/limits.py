"""Rate limits of disks and network devices, as options and control clients spell them.

Names and meanings are those of QEMU's throttling: ``bps=`` bounds the bytes a second of both directions together,
``bps_rd=`` and ``bps_wr=`` those of one; ``bps_max=`` allows more for ``bps_max_length=`` seconds. Operations are
``iops`` of a disk, and frames, ``pps``, of a network device, which has ``_rx`` and ``_tx`` in place of ``_rd`` and
``_wr``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.config.options import unknown_name
from tvmm.config.properties import Property
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "DISK_WORDS",
    "NET_WORDS",
    "NO_LIMITS",
    "Limits",
    "Rate",
    "Words",
    "change_limits",
    "limit_properties",
    "with_limits",
]

BYTES_LIMIT, OPERATIONS_LIMIT = 1 << 49, 10**9
"""A second."""

BURST_LIMIT = 10**15
"""Tokens of a burst, all in all: as in QEMU."""

LENGTH_LIMIT = (1 << 31) - 1
"""Seconds of a burst."""

SIZE_LIMIT = 1 << 40
"""Bytes of one operation."""


class Rate(NamedTuple):
    """Tokens a second, 0 for no limit. `burst` a second are allowed for `seconds`; 0: what 100 ms of `rate` have."""

    rate: int = 0
    burst: int = 0
    seconds: int = 1


class Limits(NamedTuple):
    """What a device may do in a second: bytes and operations, in both directions together, into the guest, out of it.

    Operations of more than `size` bytes count as so many times one, 0: each is one.
    """

    bytes: Rate = Rate()
    operations: Rate = Rate()
    bytes_in: Rate = Rate()
    operations_in: Rate = Rate()
    bytes_out: Rate = Rate()
    operations_out: Rate = Rate()
    size: int = 0

    @property
    def rates(self) -> tuple[Rate, ...]:
        """In the order of the fields."""
        return self[:6]

    def check(self, device: str, words: Words) -> Limits:
        """The same record, if its fields are in range and go together; raises `ConfigError` naming `device` otherwise.

        What goes together is what QEMU says goes together.
        """
        for prop in limit_properties(words):
            prop.check(_value(self, prop.attribute), device)
        for place, name in zip(_PLACES, words.names, strict=True):
            _check_rate(getattr(self, place), f"{device} {name}")
        for unit in _UNITS:
            both, into, out = (getattr(self, f"{unit}{end}") for end in ("", "_in", "_out"))
            names = [words.name_of(f"{unit}{end}") for end in ("", "_in", "_out")]
            if both.rate and (into.rate or out.rate):
                one = names[1] if into.rate else names[2]
                raise ConfigError(
                    f"{device} {names[0]} and {one} do not go together",
                    f"limit both together by {names[0]}, or each by {names[1]} and {names[2]}; 0 is no limit",
                )
        if self.size and not (self.operations.rate or self.operations_in.rate or self.operations_out.rate):
            unit = words.operations
            raise ConfigError(f"{device} {words.size} has no {unit} to go with", f"add {unit}=N")
        return self

    def spelled(self, words: Words) -> dict[str, int]:
        """All values by their names."""
        return {prop.name: _value(self, prop.attribute) for prop in limit_properties(words)}


class Words(NamedTuple):
    """How one kind of device spells its limits, and explains them.

    `meanings` are of bytes and operations in both directions, in, out; `size` is '' where operations have none.
    """

    operations: str
    into: str
    out: str
    size: str
    meanings: tuple[tuple[str, str, str], tuple[str, str, str]]

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of the fields of `Limits`."""
        ends = ("", self.into, self.out)
        return tuple(f"{unit}{end}" for end in ends for unit in ("bps", self.operations))

    def name_of(self, place: str) -> str:
        """The name of a field of `Limits`."""
        return self.names[_PLACES.index(place)]


NO_LIMITS = Limits()
DISK_WORDS = Words(
    "iops", "_rd", "_wr", "iops_size",
    (
        ("bytes read and written a second", "bytes read a second", "bytes written a second"),
        ("requests a second", "reads a second", "writes, flushes and discards a second"),
    ),
)  # fmt: skip
NET_WORDS = Words(
    "pps", "_rx", "_tx", "",
    (
        ("bytes received and sent a second", "bytes that the guest receives a second", "bytes that it sends a second"),
        ("frames a second", "frames that the guest receives a second", "frames that it sends a second"),
    ),
)  # fmt: skip

_UNITS = ("bytes", "operations")
_PLACES = Limits._fields[:6]
_QEMU_ENDS = {"": "-total", "_rd": "-read", "_wr": "-write", "_rx": "", "_tx": ""}


def _check_rate(rate: Rate, name: str) -> None:
    option = name.rpartition(" ")[2]
    if rate.burst and not rate.rate:
        raise ConfigError(f"{name}_max has no {option} to go with", f"add {option}=RATE")
    if rate.burst and rate.burst < rate.rate:
        raise ConfigError(f"{name}_max {rate.burst} is less than {option} {rate.rate}", "a burst is faster, not slower")
    if rate.seconds > 1 and not rate.burst:
        raise ConfigError(f"{name}_max_length has no {option}_max to go with", f"add {option}_max=RATE")
    if rate.burst * rate.seconds > BURST_LIMIT:
        raise ConfigError(f"{name}_max for {rate.seconds} seconds is too much", f"a burst has {BURST_LIMIT} at most")


def _value(limits: Limits, attribute: str) -> int:
    value: Any = limits
    for name in attribute.split(".")[1:]:
        value = getattr(value, name)
    return int(value)


class _Row(NamedTuple):
    """Where three properties come from: a rate, its burst, and how long that is."""

    name: str
    field: str
    alias: str
    kind: str
    limit: int
    meaning: str


def _stems(words: Words) -> Iterator[_Row]:
    for stem, unit, kind, limit, meanings in zip(
        ("bps", words.operations), _UNITS, ("size", "integer"), (BYTES_LIMIT, OPERATIONS_LIMIT), words.meanings,
        strict=True,
    ):  # fmt: skip
        for end, place, meaning in zip(("", words.into, words.out), ("", "_in", "_out"), meanings, strict=True):
            alias = f"throttling.{stem}{_QEMU_ENDS[end]}" if words.size else ""
            yield _Row(stem + end, f"limits.{unit}{place}", alias, kind, limit, meaning)


def _rows(words: Words) -> Iterator[Property]:
    """Rates, then bursts, then their lengths."""
    stems = tuple(_stems(words))
    for row in stems:
        yield Property(
            row.name, row.kind, 0, row.meaning, 0, row.limit, field=f"{row.field}.rate", alias=row.alias,
            otherwise="0: any",
        )  # fmt: skip
    for row in stems:
        yield Property(
            f"{row.name}_max", row.kind, 0, f"{row.name} during a burst", 0, row.limit, field=f"{row.field}.burst",
            alias=row.alias and f"{row.alias}-max", otherwise=f"0: a burst is 100 ms of {row.name}",
        )  # fmt: skip
    for row in stems:
        yield Property(
            f"{row.name}_max_length", "integer", 1, f"seconds that a burst of {row.name}_max lasts", 1, LENGTH_LIMIT,
            field=f"{row.field}.seconds", alias=row.alias and f"{row.alias}-max-length",
        )  # fmt: skip
    if words.size:
        yield Property(
            words.size, "size", 0, "bytes of one request; what has more counts as more", 0, SIZE_LIMIT,
            field="limits.size", alias="throttling.iops-size", otherwise="0: each counts as one",
        )  # fmt: skip


_TABLES: dict[Words, tuple[Property, ...]] = {}


def limit_properties(words: Words) -> tuple[Property, ...]:
    """The rows of a device that can be limited, for its table of properties."""
    if words not in _TABLES:
        _TABLES[words] = tuple(_rows(words))
    return _TABLES[words]


def with_limits(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as `parse_values` has them, with those of limits (``limits.bytes.rate`` ...) put together in one."""
    plain = {name: value for name, value in values.items() if not name.startswith("limits.")}
    parts = {name: value for name, value in values.items() if name not in plain}
    return {**plain, "limits": _put(NO_LIMITS, parts)} if parts else plain


def _put(limits: Limits, parts: Mapping[str, int]) -> Limits:
    """With the values of `parts`, by attribute, in the place of its own."""
    for attribute, value in parts.items():
        _, place, *field = attribute.split(".")
        inner: Any = getattr(limits, place)._replace(**{field[0]: value}) if field else value
        limits = limits._replace(**{place: inner})
    return limits


def change_limits(limits: Limits, values: Mapping[str, int | str], device: str, words: Words) -> Limits:
    """`limits` with some `values` by name, as texts or as numbers. Raises `ConfigError`; checked as a whole."""
    rows = {prop.name: prop for prop in limit_properties(words)}
    aliases = {prop.alias: prop for prop in rows.values() if prop.alias}
    parts: dict[str, int] = {}
    for name, value in values.items():
        prop = rows.get(name) or aliases.get(name)
        if prop is None:
            raise unknown_name(f"limit of {device}", name, list(rows))
        if isinstance(value, str):
            value = prop.parse(value, device)
        else:
            prop.check(value, device)
        parts[prop.attribute] = value
    return _put(limits, parts).check(device, words)
