"""Ports of a multiport console, driven by messages in both directions (virtio 1.3, 5.3.6.2).

A pure machine: the driver's messages go in through `receive`, messages for it wait in `pending`, and what the host is
to know comes back as an event. Each port is in one of these states:

======= ==================== ======= =======================================
state   what happens         next    messages to the driver
======= ==================== ======= =======================================
absent  host adds            held
held    driver is ready      added   PORT_ADD
held    host removes         absent
added   driver: port ready   ready   CONSOLE_PORT, PORT_NAME, PORT_OPEN, RESIZE as far as they say something
added   driver: port failed  failed
added   host removes         absent  PORT_REMOVE; the same from ready and failed
======= ==================== ======= =======================================

Driver messages that the table does not have (a port that was not added, the same readiness twice) are counted and
change nothing. Only what the table sends is ever queued, and a message of one kind about one port replaces the one
before it, so a driver that sends but never reads does not make `pending` grow.
"""

from __future__ import annotations

from struct import Struct, pack
from typing import NamedTuple

from tvmm.records import check_bytes, check_flag, check_record, check_uint

__all__ = [
    "MESSAGE_LENGTH",
    "ControlState",
    "PortClosed",
    "PortEvent",
    "PortOpened",
    "PortReady",
    "PortSettings",
    "PortState",
    "Ports",
]

MESSAGE = Struct("<IHH")
MESSAGE_LENGTH = MESSAGE.size
MAX_NAME = 64

DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME = range(8)

ABSENT, HELD, ADDED, READY, FAILED = range(5)

TRANSITIONS = {
    (ABSENT, "add"): HELD,
    (HELD, "announce"): ADDED,
    (HELD, "remove"): ABSENT,
    (ADDED, "ready"): READY,
    (ADDED, "failed"): FAILED,
    (ADDED, "remove"): ABSENT,
    (READY, "remove"): ABSENT,
    (FAILED, "remove"): ABSENT,
    (READY, "open"): READY,
    (READY, "close"): READY,
}
"""(state, event) to state. Nothing else changes a port's state."""

MAX_PENDING_PER_PORT = 6
"""Add, remove, console, name, open, resize."""


class PortSettings(NamedTuple):
    """A port: the `name` that the guest sees, up to 64 bytes of UTF-8, and whether it is a console."""

    name: str = ""
    console: bool = False


class PortReady(NamedTuple):
    """The driver has the port."""

    port: int


class PortOpened(NamedTuple):
    """Somebody in the guest has opened it."""

    port: int


class PortClosed(NamedTuple):
    """Nobody in the guest has it open any more."""

    port: int


PortEvent = PortReady | PortOpened | PortClosed


class PortState(NamedTuple):
    """One port; `stage` as numbered in this module."""

    stage: int
    guest_open: bool = False
    host_open: bool = False


class ControlState(NamedTuple):
    """The machine: `pending` are messages that the driver has not had buffers for."""

    driver_ready: bool
    ports: tuple[PortState, ...]
    pending: tuple[bytes, ...]


class Ports:
    """As many ports as `max_ports`; which exist is said by `add` and `remove`.

    `rows_first` is for guests whose driver has rows and columns of a RESIZE the wrong way round, as Linux had up to
    6.14.
    """

    def __init__(self, max_ports: int, rows_first: bool = False) -> None:
        self.max_ports = max_ports
        self.mistakes = 0
        self.pending: list[bytes] = []
        self._rows_first = rows_first
        self._settings = [PortSettings() for _ in range(max_ports)]
        self._ports = [PortState(ABSENT) for _ in range(max_ports)]
        self._driver_ready = False
        self.size = (0, 0)
        """Columns and rows of consoles, for those that get ready from now on."""

    def __getitem__(self, port: int) -> PortState:
        return self._ports[port]

    def described(self) -> list[tuple[int, PortSettings]]:
        """Number and settings of each port that is there."""
        return [(number, self._settings[number]) for number, port in enumerate(self._ports) if port.stage != ABSENT]

    # -- the host's side ---------------------------------------------------------------------------------

    def add(self, port: int, settings: PortSettings) -> None:
        """There is a port now. Raises `ValueError` if there was, or for a name that is too long."""
        if len(settings.name.encode()) > MAX_NAME:
            raise ValueError(f"the name of a port has more than {MAX_NAME} bytes")
        if not 0 <= port < self.max_ports or not self._step(port, "add"):
            raise ValueError(f"port {port} is there already, or is none of {self.max_ports}")
        self._settings[port] = settings
        if self._driver_ready:
            self._announce(port)

    def remove(self, port: int) -> None:
        """The port is gone. Raises `ValueError` if it was not there."""
        before = self._ports[port].stage
        if not self._step(port, "remove"):
            raise ValueError(f"port {port} is not there")
        self._ports[port] = PortState(ABSENT)
        self.pending = [message for message in self.pending if MESSAGE.unpack_from(message)[0] != port]
        if before != HELD:
            self._send(port, PORT_REMOVE)

    def set_open(self, port: int, is_open: bool) -> None:
        """Somebody on the host has opened or closed the other end."""
        state = self._ports[port]
        if state.host_open != is_open:
            self._ports[port] = state._replace(host_open=is_open)
            if state.stage == READY:
                self._send(port, PORT_OPEN, int(is_open))

    def resize(self, columns: int, rows: int) -> None:
        """Consoles have another size."""
        self.size = (columns, rows)
        for port, state in enumerate(self._ports):
            if state.stage == READY and self._settings[port].console:
                self._send_size(port)

    def reset(self) -> None:
        """By the driver: it knows of no port any more."""
        self._driver_ready = False
        self.pending.clear()
        self._ports = [
            PortState(ABSENT if state.stage == ABSENT else HELD, False, state.host_open) for state in self._ports
        ]

    # -- the driver's side -------------------------------------------------------------------------------

    def receive(self, message: bytes) -> PortEvent | None:
        """A message of the driver's; what the host is to know of it. Bytes behind the message do not count."""
        if len(message) < MESSAGE_LENGTH:
            self.mistakes += 1
            return None
        port, event, value = MESSAGE.unpack_from(message)
        if event == DEVICE_READY and not self._driver_ready:
            self._driver_ready = value == 1
            for number, state in enumerate(self._ports):
                if self._driver_ready and state.stage == HELD:
                    self._announce(number)
            return None
        if event == PORT_READY and self._step(port, "ready" if value == 1 else "failed"):
            return self._greet(port) if value == 1 else None
        if event == PORT_OPEN and value < 2 and self._step(port, "open" if value else "close"):
            was_open = self._ports[port].guest_open
            self._ports[port] = self._ports[port]._replace(guest_open=bool(value))
            if was_open != bool(value):
                return PortOpened(port) if value else PortClosed(port)
            return None
        self.mistakes += 1
        return None

    # -- inside ------------------------------------------------------------------------------------------

    def _step(self, port: int, event: str) -> bool:
        """Move a port through the table; false, and nothing, if the table has no such way."""
        if port >= self.max_ports:
            return False
        state = self._ports[port]
        stage = TRANSITIONS.get((state.stage, event))
        if stage is None:
            return False
        self._ports[port] = state._replace(stage=stage)
        return True

    def _announce(self, port: int) -> None:
        self._step(port, "announce")
        self._send(port, PORT_ADD)

    def _greet(self, port: int) -> PortReady:
        settings = self._settings[port]
        if settings.console:
            self._send(port, CONSOLE_PORT, 1)
        if settings.name:
            self._send(port, PORT_NAME, 1, settings.name.encode())
        if self._ports[port].host_open:
            self._send(port, PORT_OPEN, 1)
        if settings.console and any(self.size):
            self._send_size(port)
        return PortReady(port)

    def _send_size(self, port: int) -> None:
        columns, rows = self.size
        self._send(port, RESIZE, 0, pack("<HH", *((rows, columns) if self._rows_first else (columns, rows))))

    def _send(self, port: int, event: int, value: int = 0, more: bytes = b"") -> None:
        same = MESSAGE.pack(port, event, 0)[:6]
        self.pending = [message for message in self.pending if message[:6] != same]
        self.pending.append(MESSAGE.pack(port, event, value) + more)

    # -- state -------------------------------------------------------------------------------------------

    def state(self) -> ControlState:
        """The machine as a record; names and sizes are the host's."""
        return ControlState(self._driver_ready, tuple(self._ports), tuple(self.pending))

    def check(self, state: ControlState) -> None:
        """Raise `ValueError` with the name of a bad field for what `restore` would not take."""
        check_record(state, ControlState)
        ready = check_flag("driver_ready", state.driver_ready)
        if type(state.ports) is not tuple or len(state.ports) != self.max_ports:
            raise ValueError(f"ports is not a tuple of {self.max_ports} records")
        for own, port in zip(self._ports, state.ports, strict=True):
            check_record(port, PortState)
            check_uint("ports: stage", port.stage, FAILED)
            check_flag("ports: guest_open", port.guest_open)
            check_flag("ports: host_open", port.host_open)
            if (port.stage == ABSENT) != (own.stage == ABSENT):
                raise ValueError("ports are not those of this device")
            if port.stage not in ((ABSENT, ADDED, READY, FAILED) if ready else (ABSENT, HELD)):
                raise ValueError("ports: stage does not go with driver_ready")
            if port.guest_open and port.stage != READY:
                raise ValueError("ports: guest_open before the port is ready")
        if type(state.pending) is not tuple or len(state.pending) > self.max_ports * MAX_PENDING_PER_PORT:
            raise ValueError("pending is not a tuple, or too long")
        for message in state.pending:
            check_bytes("pending", message, MESSAGE_LENGTH, MESSAGE_LENGTH + MAX_NAME)

    def restore(self, state: ControlState) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        self.check(state)
        self._driver_ready = bool(state.driver_ready)
        self._ports = [
            PortState(port.stage, bool(port.guest_open), bool(port.host_open)) for port in state.ports
        ]
        self.pending = list(state.pending)
