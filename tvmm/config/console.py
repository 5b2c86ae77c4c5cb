"""``--device virtio-console`` and its further ports, ``virtserialport`` and ``virtconsole``."""

from __future__ import annotations

from typing import NamedTuple

from tvmm.config.properties import (
    ID,
    RING,
    Codec,
    Property,
    check_values,
    parse_device,
    spell_device,
    spelled,
    with_defaults,
)
from tvmm.config.serial import SerialConfig
from tvmm.errors import ConfigError

__all__ = ["CONSOLE_PROPERTIES", "MAX_PORTS", "PORT_PROPERTIES", "ConsoleConfig", "PortConfig"]

MAX_PORTS = 31
"""As many as QEMU's virtio-serial has."""

PORT_NAME_LIMIT = 64
"""Characters in a port's name, which the guest may show as a path below /dev/virtio-ports."""


class PortConfig(NamedTuple):
    """One port: where its bytes come from and go to, and whether the guest is to take it for a console."""

    chardev: SerialConfig = SerialConfig()
    name: str = ""
    console: bool = False

    def check(self) -> PortConfig:
        """The same record, if its fields are possible; raises `ConfigError` otherwise."""
        check_values(self, "console port", PORT_PROPERTIES)
        self.chardev.check()
        if len(self.name) > PORT_NAME_LIMIT or not self.name.isprintable() or "/" in self.name:
            raise ConfigError(
                f"console port property name {self.name[:PORT_NAME_LIMIT]!r} cannot name a port",
                f"it has at most {PORT_NAME_LIMIT} printable characters, and no '/'",
            )
        return self


FIRST_PORT = PortConfig(console=True)


class ConsoleConfig(NamedTuple):
    """One console device. Port 0 is `ports[0]`.

    `id` is '' until `MachineConfig.check` gives it by position. `max_ports` 0: as many as there are `ports`;
    `check` fills it in. `cols` and `rows` of 0: those of the terminal behind it, if there is one.
    """

    id: str = ""
    max_ports: int = 0
    cols: int = 0
    rows: int = 0
    transport: str = "pci"
    packed: bool = False
    in_order: bool = False
    event_idx: bool = True
    indirect_desc: bool = True
    ports: tuple[PortConfig, ...] = (FIRST_PORT,)

    @classmethod
    def parse(cls, text: str) -> ConsoleConfig:
        """From ``virtio-console[,key=val]``, with its first port alone. Raises `ConfigError`."""
        return cls.of(parse_device(text, (*CONSOLE_PROPERTIES, *PORT_PROPERTIES)))

    @classmethod
    def of(cls, values: dict[str, object]) -> ConsoleConfig:
        """From fields of the device and of its first port; not checked yet, because more ports may follow."""
        names = {prop.attribute for prop in PORT_PROPERTIES}
        port = {name: value for name, value in values.items() if name in names}
        rest = {name: value for name, value in values.items() if name not in names}
        return cls(**rest, ports=(FIRST_PORT._replace(**port),))  # type: ignore[arg-type]

    def with_port(self, port: PortConfig) -> ConsoleConfig:
        """The same device with one more port.

        A console takes the place of a first port that nothing was said about, so that QEMU's
        ``virtio-serial-pci`` with one ``virtconsole`` has one port here too.
        """
        if port.console and self.ports == (FIRST_PORT,):
            return self._replace(ports=(port,))
        return self._replace(ports=(*self.ports, port))

    def check(self) -> ConsoleConfig:
        """The same record with `max_ports` filled in; raises `ConfigError` if its fields do not go together."""
        check_values(self, "virtio-console", CONSOLE_PROPERTIES)
        count = len(self.ports)
        if not 1 <= count <= MAX_PORTS or 0 < self.max_ports < count:
            raise ConfigError(
                f"virtio-console has {count} ports, {self.max_ports or MAX_PORTS} are possible",
                f"max_ports goes up to {MAX_PORTS}, and counts the first port too",
            )
        if not self.ports[0].console:
            raise ConfigError("the first port of a virtio-console is no console", "the guest takes it for one")
        if bool(self.cols) != bool(self.rows):
            raise ConfigError("virtio-console has cols or rows alone", "give both, or none")
        names = [name for name in (port.check().name for port in self.ports) if name]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two ports of a virtio-console are called {name!r}", "give them different names")
        return self._replace(max_ports=self.max_ports or count)

    def spelling(self) -> tuple[str, ...]:
        """The values of ``--device`` that give this record, without options that have their default."""
        first, *rest = self.ports
        words = ["virtio-console", *("virtconsole" if port.console else "virtserialport" for port in rest)]
        values = [{**spelled(self, CONSOLE_PROPERTIES), **_spelled_port(first)}, *map(_spelled_port, rest)]
        return tuple(map(spell_device, words, values))


def _spelled_port(port: PortConfig) -> dict[str, str]:
    return spelled(port, PORT_PROPERTIES)


def _read_chardev(text: str, what: str) -> SerialConfig:
    try:
        return SerialConfig.parse(text)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error.message}", error.hint) from None


CONSOLE_PROPERTIES = with_defaults(
    ConsoleConfig,
    ID,
    Property("max_ports", "integer", None, "ports that the guest makes room for", 1, MAX_PORTS, or_zero=True,
             otherwise="0: as many as there are"),
    Property("cols", "integer", None, "columns that the guest is told", 0, 0xFFFF, otherwise="0: the terminal's"),
    Property("rows", "integer", None, "rows that the guest is told", 0, 0xFFFF, otherwise="0: the terminal's"),
    *RING,
)  # fmt: skip
"""What ``--device virtio-console`` takes besides the properties of its first port."""

PORT_PROPERTIES = with_defaults(
    PortConfig,
    Property("chardev", "kind", None, "its other end, spelled as a value of --serial with ',,' for ','",
             codec=Codec(_read_chardev, SerialConfig.spelling)),
    Property("name", "text", None, "name that the guest is told"),
)  # fmt: skip
"""What a port takes."""
