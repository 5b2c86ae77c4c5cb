"""``--device NAME[,property=value]``: the table of device types, and one configured device.

A type is data: a name, a summary and its properties. Whoever adds a device adds a row here and a line to
the wiring of the machine; parsing, ranges, ``--device help``, completion and configuration files follow
from the row. Virtio devices (`tvmm.config.virtio_types`) and displays have rows too, but records of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.config.options import join_options, parse_options, unknown_name
from tvmm.config.properties import Codec, Property, help_lines
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DEVICE_TYPES",
    "DeviceConfig",
    "DeviceType",
    "chosen_guid",
    "device_type",
    "device_types",
    "help_request",
    "help_text",
]

Value = int | bool | str


class DeviceType(NamedTuple):
    """A kind of device that ``--device`` can add."""

    name: str
    summary: str
    properties: tuple[Property, ...]

    def property(self, name: str) -> Property | None:
        """The property called `name`, if there is one."""
        return next((known for known in self.properties if known.name == name), None)


def _read_guid(text: str, what: str) -> str:
    """``auto`` or a UUID, in lower case."""
    if text == "auto":
        return text
    from tvmm.devices.generation_id import format_guid, parse_guid

    try:
        return format_guid(parse_guid(text.lower()))
    except ValueError as error:
        raise ConfigError(f"{what}: {error}", "leave it out, and the machine makes one") from None


DEVICE_TYPES: tuple[DeviceType, ...] = (
    DeviceType(
        "isa-debug-exit",
        "port that ends the machine when the guest writes to it, with exit status (value << 1) | 1",
        (
            Property("iobase", "integer", 0x501, "first I/O port", 0, 0xFFFF, hexadecimal=True),
            Property("iosize", "integer", 2, "number of I/O ports", 1, 4),
        ),
    ),
    DeviceType(
        "vmgenid",
        "generation ID, which tells a guest that it was restored or cloned; every machine has one, this says which",
        (Property("guid", "UUID", "auto", "the ID that it boots with", codec=Codec(_read_guid, str)),),
    ),
)


def device_types() -> tuple[DeviceType, ...]:
    """All that ``--device`` can name, virtio devices included."""
    # Not at the top of the file: few machines need it, and it needs this module.
    from tvmm.config.display import DISPLAY_TYPE
    from tvmm.config.virtio_types import VIRTIO_TYPES

    return (*DEVICE_TYPES, DISPLAY_TYPE, *(known.type for known in VIRTIO_TYPES.values()))


def device_type(name: str) -> DeviceType:
    """The type called `name`. Raises `ConfigError` with the nearest name."""
    for known in DEVICE_TYPES:
        if known.name == name:
            return known
    types = device_types()
    for known in types:
        if known.name == name:
            return known
    raise unknown_name("device", name, [known.name for known in types])


class DeviceConfig(NamedTuple):
    """One device: the name of its type, and a value for each of the type's properties.

    Virtio devices and displays are not configured in this way: they have records of their own.
    """

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
        if known not in DEVICE_TYPES:
            raise ConfigError(
                f"device {self.name} is none of a machine's other devices",
                "it belongs to the disks, nets, consoles, rngs, inputs, balloons or display of MachineConfig",
            )
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


def chosen_guid(devices: Sequence[DeviceConfig]) -> str:
    """The generation ID that a machine with these devices boots with, ``auto`` if nobody chose one.

    Raises `ConfigError` for more than one, or what is none.
    """
    given = [str(device.value("guid")) for device in devices if device.name == "vmgenid"]
    if len(given) > 1:
        raise ConfigError("a machine has one generation ID", "give vmgenid once")
    return _read_guid(given[0], "vmgenid property guid") if given else "auto"


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
        types = device_types()
        width = max(len(known.name) for known in types)
        rows = [f"  {known.name:{width}}  {known.summary}" for known in types]
        return "\n".join(["devices:", *rows, "", "NAME,help lists the properties of one."]) + "\n"
    known = device_type(name)
    lines = help_lines(known.properties)
    return "\n".join([f"{known.name}: {known.summary}", "", "properties:" if lines else "no properties", *lines]) + "\n"
