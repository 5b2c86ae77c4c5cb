"""Properties of devices and options: one table for each group, and everything that follows from it.

A row says what a property is called, what values it takes and what it means. Reading ``key=value``, ranges,
help, completion and configuration files all come from the rows; a record (`DiskConfig` and its like) adds the
default values and what goes together.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.config.options import choice_of, join_options, parse_bool, parse_options
from tvmm.config.units import format_size, parse_integer, parse_size
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "ID",
    "POLL",
    "QUEUE_SIZE",
    "RING",
    "Codec",
    "Property",
    "check_values",
    "help_lines",
    "parse_device",
    "parse_values",
    "spell_device",
    "spelled",
    "with_defaults",
]

ID_LIMIT = 64
"""Characters in the id of a device: it is told to the guest's ACPI tables, to clients and in messages."""

_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class Codec(NamedTuple):
    """How a value that is more than a word or a number is read and written."""

    read: Callable[[str, str], Any]
    """The value of a text; the second argument names the property in the `ConfigError`."""
    write: Callable[[Any], str]


class Property(NamedTuple):
    """One property of a device or an option.

    `type` is "integer", "size" (bytes), "boolean", "text" or "choice", or any word if there is a `codec`.
    `default` has that type; None without words in `otherwise` means that the user must give a value.
    `minimum` and `maximum` (both included) bound integers and sizes; `or_zero` allows 0 besides.
    `otherwise` says in words what holds while no value is given. `field` is the name in the record, if it is
    not that of the property; ``a.b`` is field ``b`` of the record in field ``a``. `alias` is another name. One that
    `repeats` may be given several times, as if with '+' between the values.
    """

    name: str
    type: str
    default: Any
    meaning: str
    minimum: int = 0
    maximum: int = 0
    choices: tuple[str, ...] = ()
    otherwise: str = ""
    or_zero: bool = False
    power_of_two: bool = False
    hexadecimal: bool = False
    codec: Codec | None = None
    field: str = ""
    alias: str = ""
    repeats: bool = False

    @property
    def attribute(self) -> str:
        """The name of the record's field."""
        return self.field or self.name.replace("-", "_")

    @property
    def required(self) -> bool:
        """Whether there is nothing to fall back to."""
        return self.default is None and not self.otherwise

    def parse(self, text: str, device: str) -> Any:
        """The value that `text` spells. Raises `ConfigError` naming `device`."""
        what = f"{device} property {self.name}"
        if self.codec:
            return self.codec.read(text, what)
        if self.type == "integer":
            return self._number(text, what)
        if self.type == "size":
            return self._number(parse_size(text, what), what)
        if self.type == "boolean":
            return parse_bool(text, what)
        if self.type == "choice":
            return choice_of(text, what, self.choices)
        return text

    def check(self, value: Any, device: str) -> None:
        """Raise `ConfigError` naming `device` unless `value`, which somebody may have made by hand, is possible."""
        what = f"{device} property {self.name}"
        if self.codec or (value is None and self.otherwise):
            return
        kind = {"integer": int, "size": int, "boolean": bool}.get(self.type, str)
        fits = type(value) is kind  # not isinstance: True is an int
        if not fits:
            raise ConfigError(f"{what} {value!r} is no {self.type}")
        if kind is int:
            self._number(value, what)
        elif self.type == "choice":
            choice_of(value, what, self.choices)
        elif kind is str and "\0" in value:
            raise ConfigError(f"{what} holds a NUL character")

    def spelling(self, value: Any) -> str:
        """How `value` is written on the command line."""
        if self.codec:
            return self.codec.write(value)
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, int):
            return format_size(value) if self.type == "size" else hex(value) if self.hexadecimal else str(value)
        return str(value)

    def limits(self) -> str:
        """The values that are possible, in words; empty if that goes without saying."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if not self.maximum:
            return ""
        words = f"{self.spelling(self.minimum)} to {self.spelling(self.maximum)}"
        return f"{'a power of two, ' if self.power_of_two else ''}{words}{' or 0' if self.or_zero else ''}"

    def _number(self, value: str | int, what: str) -> int:
        lowest = 0 if self.or_zero else self.minimum
        number = parse_integer(value, what, lowest, self.maximum)
        if number and (number < self.minimum or (self.power_of_two and number & (number - 1))):
            raise ConfigError(f"{what} {value} is not possible", f"it is {self.limits()}")
        return number


def _read_id(text: str, what: str) -> str:
    """An id as QEMU takes them: a letter, then letters, digits, '-', '.' and '_'."""
    if not text or len(text) > ID_LIMIT or not _ID_CHARACTERS.issuperset(text) or not text[0].isalpha():
        raise ConfigError(
            f"{what} {text[:ID_LIMIT]!r} is no id",
            f"use a letter, then letters, digits, '-', '.' and '_', {ID_LIMIT} at most",
        )
    return text


ID = Property(
    "id", "id", "", "name for 'tvmm info', 'tvmm resize' and control clients", otherwise="by position",
    codec=Codec(_read_id, str),
)  # fmt: skip
QUEUE_SIZE = Property("queue-size", "integer", 256, "entries of each queue", 16, 32768, power_of_two=True)
POLL = Property(
    "poll-us", "integer", 32, "microseconds to look for more requests before sleeping", 0, 1000, field="poll_us"
)
RING = (
    Property("transport", "choice", "pci", "how the guest finds the device", choices=("pci", "mmio")),
    Property("packed", "boolean", False, "offer the packed ring"),
    Property("in_order", "boolean", False, "use buffers in the order in which they came"),
    Property("event_idx", "boolean", True, "offer notification suppression by event index"),
    Property("indirect_desc", "boolean", True, "offer indirect descriptors"),
)
"""What all virtio devices take."""


def with_defaults(record: type[tuple[Any, ...]], *rows: Property) -> tuple[Property, ...]:
    """`rows` with the defaults of the fields of `record`, so that each default stands in one place."""
    defaults: Mapping[str, Any] = record._field_defaults  # type: ignore[attr-defined]  # those of a NamedTuple
    return tuple(
        row if "." in row.attribute else row._replace(default=defaults.get(row.attribute)) for row in rows
    )


def parse_values(text: str, group: str, properties: Sequence[Property], first: str = "") -> dict[str, Any]:
    """The fields that ``first,key=value,...`` gives, by their names in the record.

    Raises `ConfigError` naming `group`, also for a property that is required and not there.
    """
    aliases = {prop.alias: prop.name for prop in properties if prop.alias}
    names, repeated = [prop.name for prop in properties], [prop.name for prop in properties if prop.repeats]
    given = parse_options(text, group, names, first, repeated, aliases) if text or first else {}
    for prop in properties:
        if prop.required and not given.get(prop.name):
            raise ConfigError(f"{group} needs {prop.name}", f"write {prop.name}=...: {prop.meaning}")
    device = group.removeprefix("device ")
    return {prop.attribute: prop.parse(given[prop.name], device) for prop in properties if prop.name in given}


def parse_device(text: str, properties: Sequence[Property]) -> dict[str, Any]:
    """As `parse_values`, for ``NAME,key=value,...``: one of the properties may be called name."""
    name, comma, rest = text.partition(",")
    if comma and not rest:
        raise ConfigError(f"device {text!r} has an empty option", "write a literal comma as ',,'")
    return parse_values(rest, f"device {name}", properties)


def check_values(record: tuple[Any, ...], group: str, properties: Sequence[Property]) -> None:
    """Raise `ConfigError` naming `group` unless each property's field holds what is possible."""
    for prop in properties:
        value = attrgetter(prop.attribute)(record)
        if prop.required and not value:
            raise ConfigError(f"{group} needs {prop.name}", f"write {prop.name}=...: {prop.meaning}")
        prop.check(value, group)
        if prop.name == "id" and value:
            _read_id(value, f"{group} property id")


def spelled(record: tuple[Any, ...], properties: Sequence[Property]) -> dict[str, str]:
    """The values of `record` that are required or differ from their defaults, as `join_options` takes them."""
    values = {prop: attrgetter(prop.attribute)(record) for prop in properties}
    return {
        prop.name: prop.spelling(value)
        for prop, value in values.items()
        if prop.required or value != prop.default
    }


def spell_device(name: str, values: Mapping[str, str]) -> str:
    """The value of ``--device`` that `parse_device` reads."""
    return f"{name},{join_options(values)}" if values else name


def help_lines(properties: Sequence[Property]) -> list[str]:
    """One line for each property: type, meaning, default and range."""
    cells = [(f"{prop.name}=<{prop.type}>", prop) for prop in properties]
    width = max((len(cell) for cell, _ in cells), default=0)
    lines = []
    for cell, prop in cells:
        default = prop.otherwise or ("" if prop.required else prop.spelling(prop.default) or "none")
        facts = filter(None, [f"default {default}" if default else "required", prop.limits()])
        lines.append(f"  {cell:{width}}  {prop.meaning} ({', '.join(facts)})")
    return lines
