"""``--device NAME[,property=value]``: the table of device types, and one configured device.

A type is data: a name, a summary and its properties. Whoever adds a device adds a row here and a line to
the wiring of the machine; parsing, ranges, ``--device help``, completion and configuration files follow
from the row.
"""

from __future__ import annotations

from typing import NamedTuple

from tvmm.config.options import choice_of, join_options, parse_bool, parse_options, unknown_name
from tvmm.config.units import format_size, parse_integer, parse_size
from tvmm.errors import ConfigError

__all__ = [
    "DEVICE_TYPES",
    "DeviceConfig",
    "DeviceType",
    "Property",
    "device_type",
    "help_request",
    "help_text",
]

Value = int | bool | str


class Property(NamedTuple):
    """One property of a device type.

    `type` is "integer", "size" (bytes), "boolean", "text" or "choice". `default` has that type; None means
    that the user must give a value. `minimum` and `maximum` (both included) bound integers and sizes.
    """

    name: str
    type: str
    default: Value | None
    meaning: str
    minimum: int = 0
    maximum: int = 0
    choices: tuple[str, ...] = ()

    def parse(self, text: str, device: str) -> Value:
        """The value that `text` spells. Raises `ConfigError` naming `device`."""
        what = f"{device} property {self.name}"
        if self.type == "integer":
            return parse_integer(text, what, self.minimum, self.maximum)
        if self.type == "size":
            return parse_integer(parse_size(text, what), what, self.minimum, self.maximum)
        if self.type == "boolean":
            return parse_bool(text, what)
        if self.type == "choice":
            return choice_of(text, what, self.choices)
        return text

    def spelling(self, value: Value) -> str:
        """How `value` is written on the command line."""
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, int):
            return format_size(value) if self.type == "size" else hex(value) if value > 255 else str(value)
        return value


class DeviceType(NamedTuple):
    """A kind of device that ``--device`` can add."""

    name: str
    summary: str
    properties: tuple[Property, ...]

    def property(self, name: str) -> Property | None:
        """The property called `name`, if there is one."""
        return next((known for known in self.properties if known.name == name), None)


DEVICE_TYPES: tuple[DeviceType, ...] = (
    DeviceType(
        "isa-debug-exit",
        "port that ends the machine when the guest writes to it, with exit status (value << 1) | 1",
        (
            Property("iobase", "integer", 0x501, "first I/O port", 0, 0xFFFF),
            Property("iosize", "integer", 2, "number of I/O ports", 1, 4),
        ),
    ),
)


def device_type(name: str) -> DeviceType:
    """The type called `name`. Raises `ConfigError` with the nearest name."""
    for known in DEVICE_TYPES:
        if known.name == name:
            return known
    raise unknown_name("device", name, [known.name for known in DEVICE_TYPES])


class DeviceConfig(NamedTuple):
    """One device: the name of its type, and a value for each of the type's properties."""

    name: str
    properties: tuple[tuple[str, Value], ...] = ()

    @classmethod
    def parse(cls, text: str) -> DeviceConfig:
        """From the value of ``--device``. Raises `ConfigError`."""
        name = text.partition(",")[0]
        if not name or "=" in name:
            raise ConfigError(
                f"device {text!r} has no name", "write NAME,property=value; --device help lists the names"
            )
        known = device_type(name)
        keys = [prop.name for prop in known.properties]
        given = parse_options(text, f"device {name}", ["name", *keys], first="name")
        properties = {prop.name: prop.parse(given[prop.name], name) for prop in known.properties if prop.name in given}
        return cls(name, tuple(properties.items())).check()

    def check(self) -> DeviceConfig:
        """The same device with every property filled in. Raises `ConfigError` for names that do not exist."""
        known = device_type(self.name)
        given = dict(self.properties)
        keys = [prop.name for prop in known.properties]
        for name in given:
            if name not in keys:
                raise unknown_name(f"device {self.name} option", name, keys)
        values: list[tuple[str, Value]] = []
        for prop in known.properties:
            value = given.get(prop.name, prop.default)
            if value is None:
                raise ConfigError(
                    f"device {self.name} needs {prop.name}",
                    f"write {self.name},{prop.name}=...: {prop.meaning}",
                )
            values.append((prop.name, value))
        return DeviceConfig(self.name, tuple(values))

    def value(self, name: str) -> Value:
        """The value of the property called `name`. Raises `KeyError` if there is none."""
        return dict(self.properties)[name]

    def number(self, name: str) -> int:
        """The value of an integer or size property. Raises `KeyError` if there is none of that name."""
        return int(dict(self.properties)[name])

    def spelling(self) -> str:
        """The command line's spelling of this device, with every property."""
        known = device_type(self.name)
        values = {"name": self.name}
        for name, value in self.properties:
            prop = known.property(name)
            values[name] = prop.spelling(value) if prop else str(value)
        return join_options(values, first="name")


def help_request(text: str) -> str | None:
    """The help text that ``help`` or ``NAME,help`` asks for; None if `text` asks for none.

    Raises `ConfigError` if NAME does not exist.
    """
    name, comma, rest = text.partition(",")
    if text in ("help", "?"):
        return help_text()
    if comma and rest in ("help", "?"):
        return help_text(name)
    return None


def help_text(name: str = "") -> str:
    """All types with their summaries, or type `name` with its properties; `ConfigError` if there is none."""
    if not name:
        width = max(len(known.name) for known in DEVICE_TYPES)
        rows = [f"  {known.name:{width}}  {known.summary}" for known in DEVICE_TYPES]
        return "\n".join(["devices:", *rows, "", "NAME,help lists the properties of one."]) + "\n"
    known = device_type(name)
    cells = [(f"{prop.name}=<{prop.type}>", prop) for prop in known.properties]
    width = max((len(cell) for cell, _ in cells), default=0)
    lines = [f"{known.name}: {known.summary}", "", "properties:" if cells else "no properties"]
    for cell, prop in cells:
        default = "required" if prop.default is None else f"default {prop.spelling(prop.default)}"
        limits = f", {prop.spelling(prop.minimum)} to {prop.spelling(prop.maximum)}" if prop.maximum else ""
        choices = f", one of {', '.join(prop.choices)}" if prop.choices else ""
        lines.append(f"  {cell:{width}}  {prop.meaning} ({default}{limits}{choices})")
    return "\n".join(lines) + "\n"
