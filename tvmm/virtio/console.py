"""The console device (virtio 1.3, 5.3): ports with a pair of queues each, a size, an emergency output.

Queues: receive and transmit of port 0, then control to and from the driver, then two for each further port. Receive
is what the guest receives. Without MULTIPORT there are only the first two, and port 0 is a console that is open.

Offsets in the configuration space:

====== ==== ==========================================
0      2    columns
2      2    rows
4      4    max_nr_ports
8      4    emergency write: the low byte goes out
====== ==== ==========================================
"""

from __future__ import annotations

from struct import pack, unpack_from
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ConfigError
from tvmm.records import check_record
from tvmm.virtio.console_control import ControlState, Ports, PortSettings
from tvmm.virtio.device import ConfigState, VirtioDevice
from tvmm.virtio.features import CONSOLE_ID, DEFAULT_RING
from tvmm.virtio.features import Console as Feature

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Console", "ConsoleSettings", "ConsoleState"]

MAX_PORTS = 31
"""As many as QEMU has; each costs two queues."""

SIZE, EMERGENCY = 0, 8
CONTROL_TO_DRIVER, CONTROL_FROM_DRIVER = 2, 3
QUEUE_SIZE = 64


class ConsoleSettings(NamedTuple):
    """Port 0 is `ports[0]`. `max_ports` more than 1, or a port besides the first, offers MULTIPORT."""

    ports: tuple[PortSettings, ...] = (PortSettings(console=True),)
    max_ports: int = 1
    columns: int = 80
    rows: int = 25
    rows_first: bool = False


class ConsoleState(NamedTuple):
    """Configuration space and ports."""

    config: ConfigState
    control: ControlState


class Console(VirtioDevice):
    """A console's registers. `on_emergency` gets each byte that a guest writes past all queues, at any time; who
    serves the queues may set it later.

    Raises `ConfigError` for settings that make none.
    """

    device_id = CONSOLE_ID
    type_name = "virtio-console"

    def __init__(
        self,
        settings: ConsoleSettings,
        on_emergency: Callable[[int], None] = lambda byte: None,
        ring: int = DEFAULT_RING,
    ) -> None:
        self.max_ports = max(settings.max_ports, len(settings.ports))
        if not settings.ports or not 1 <= self.max_ports <= MAX_PORTS:
            raise ConfigError(f"virtio-console with {self.max_ports} ports: 1 to {MAX_PORTS} are possible")
        if not all(0 <= edge <= 0xFFFF for edge in (settings.columns, settings.rows)):
            raise ConfigError("virtio-console with a size of more than 16 bits")
        self.multiport = self.max_ports > 1
        features = Feature.SIZE | Feature.EMERG_WRITE | (Feature.MULTIPORT if self.multiport else 0)
        queues = 2 * self.max_ports + 2 if self.multiport else 2
        config = pack("<HHII", settings.columns, settings.rows, self.max_ports if self.multiport else 0, 0)
        super().__init__((QUEUE_SIZE,) * queues, features, config, b"\xff" * 4, ring)
        self.writable = bytes(EMERGENCY) + b"\xff" * 4
        self.ports = Ports(self.max_ports, settings.rows_first)
        self.ports.size = settings.columns, settings.rows
        try:
            for number, port in enumerate(settings.ports):
                self.ports.add(number, port)
        except ValueError as error:
            raise ConfigError(f"virtio-console: {error}") from None
        self.on_emergency = on_emergency

    # -- life --------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """The driver forgets all ports; they and the size are the host's and stay."""
        super().reset()
        self.ports.reset()

    def config_written(self, offset: int, size: int) -> None:
        """An emergency write: its low byte goes out and is not kept (5.3.5.1)."""
        if offset <= EMERGENCY < offset + size:
            byte = self._config[EMERGENCY]
            self._config[EMERGENCY:] = bytes(4)
            self.on_emergency(byte)
        else:
            self._config[EMERGENCY:] = bytes(4)

    # -- queues ------------------------------------------------------------------------------------------

    def queues_of(self, port: int) -> tuple[int, int]:
        """The queue that brings bytes to the guest and the one that brings them from it. Raises `IndexError`."""
        if not 0 <= port < self.max_ports:
            raise IndexError(port)
        return (2 * port + 2, 2 * port + 3) if port else (0, 1)

    @property
    def control_queues(self) -> tuple[int, int] | None:
        """The queue for messages to the driver and the one for messages from it, as negotiated."""
        return (CONTROL_TO_DRIVER, CONTROL_FROM_DRIVER) if self.accepted & Feature.MULTIPORT else None

    # -- the host's side ---------------------------------------------------------------------------------

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        columns, rows = unpack_from("<HH", self._config, SIZE)
        return columns, rows

    def resize(self, columns: int, rows: int) -> None:
        """The window has another size: a notification for port 0, a message for each console port."""
        self.change_config(SIZE, pack("<HH", columns & 0xFFFF, rows & 0xFFFF))
        self.ports.resize(*self.size)

    # -- state -------------------------------------------------------------------------------------------

    def state(self) -> ConsoleState:
        """Size and ports as a record."""
        return ConsoleState(self.config_state(), self.ports.state())

    def restore(self, state: ConsoleState, accepted: int) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        check_record(state, ConsoleState)
        config = self.check_config(state.config)
        self.ports.check(state.control)
        if state.control.driver_ready and not accepted & Feature.MULTIPORT:
            raise ValueError("driver_ready without a control queue")
        self.load_config(config)
        self.ports.restore(state.control)
        self.ports.size = self.size
        self.accepted = accepted
