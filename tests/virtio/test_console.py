"""The console: ports and their messages, size, emergency output."""

from __future__ import annotations

from struct import pack, unpack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.virtio_driver import Driver, make_driver
from tests.virtio.conformance_rules import both
from tests.virtio.devices import make_console
from tvmm.errors import ConfigError
from tvmm.virtio.console import Console, ConsoleSettings
from tvmm.virtio.console_control import (
    TRANSITIONS,
    PortClosed,
    PortEvent,
    PortOpened,
    PortReady,
    Ports,
    PortSettings,
)

READY, ADD, REMOVE, PORT_READY, CONSOLE, RESIZE, OPEN, NAME = range(8)


def message(port: int, event: int, value: int = 0) -> bytes:
    """As on the control queues."""
    return pack("<IHH", port, event, value)


def taken(ports: Ports) -> list[bytes]:
    """What the driver gets when it has buffers."""
    messages, ports.pending[:] = list(ports.pending), []
    return messages


def some_ports() -> Ports:
    """Three, with a console and an agent."""
    ports = Ports(3)
    ports.add(0, PortSettings("main", console=True))
    ports.add(1, PortSettings("agent"))
    ports.size = (80, 25)
    return ports


def test_linux() -> None:
    """The conversation that Linux has: ports are added, greeted when ready, and opened."""
    ports = some_ports()
    assert taken(ports) == []
    assert ports.receive(message(0xFFFF_FFFF, READY, 1)) is None
    assert taken(ports) == [message(0, ADD), message(1, ADD)]
    assert ports.receive(message(0, PORT_READY, 1)) == PortReady(0)
    assert taken(ports) == [
        message(0, CONSOLE, 1),
        message(0, NAME, 1) + b"main",
        message(0, RESIZE) + pack("<HH", 80, 25),
    ]
    ports.set_open(1, True)
    assert ports.receive(message(1, PORT_READY, 1)) == PortReady(1)
    assert taken(ports) == [message(1, NAME, 1) + b"agent", message(1, OPEN, 1)]
    assert ports.receive(message(0, OPEN, 1)) == PortOpened(0)
    assert ports.receive(message(0, OPEN, 1)) is None
    assert ports.receive(message(0, OPEN, 0)) == PortClosed(0)
    assert ports.mistakes == 0


def test_hot_plug() -> None:
    """Ports come and go; the driver hears of those that it knew, and nothing of a port it has not heard of."""
    ports = some_ports()
    ports.remove(1)
    ports.receive(message(0, READY, 1))
    assert taken(ports) == [message(0, ADD)]
    ports.add(2, PortSettings("late"))
    assert taken(ports) == [message(2, ADD)]
    ports.receive(message(2, PORT_READY, 1))
    ports.remove(2)
    assert taken(ports) == [message(2, REMOVE)]
    for wrong in (2, 0, 3):
        with pytest.raises(ValueError, match="port"):
            ports.add(wrong, PortSettings()) if wrong != 2 else ports.remove(wrong)
    with pytest.raises(ValueError, match="name"):
        ports.add(2, PortSettings("x" * 65))


def test_a_port_that_failed() -> None:
    """It is not greeted, and can be removed."""
    ports = some_ports()
    ports.receive(message(0, READY, 1))
    taken(ports)
    assert ports.receive(message(0, PORT_READY, 0)) is None
    assert ports.receive(message(0, OPEN, 1)) is None
    assert (taken(ports), ports.mistakes) == ([], 1)
    ports.remove(0)
    assert taken(ports) == [message(0, REMOVE)]


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        bytes(7),
        message(0, PORT_READY, 1),
        message(3, PORT_READY, 1),
        message(0xFFFF_FFFF, OPEN, 1),
        message(0, OPEN, 1),
        message(0, ADD),
        message(0, RESIZE),
        message(0, 0xFFFF),
    ],
)
def test_messages_out_of_order(wrong: bytes) -> None:
    """Before DEVICE_READY nothing else has a meaning: counted, and nothing changes."""
    ports = some_ports()
    before = ports.state()
    assert ports.receive(wrong) is None
    assert (ports.state(), ports.mistakes) == (before, 1)


def test_the_driver_is_ready_once() -> None:
    """Saying it again does not add the ports again; saying that it failed leaves them held."""
    ports = some_ports()
    ports.receive(message(0, READY, 0))
    assert taken(ports) == []
    ports.receive(message(0, READY, 1))
    ports.receive(message(0, READY, 1))
    assert (taken(ports), ports.mistakes) == ([message(0, ADD), message(1, ADD)], 1)


def test_a_driver_that_never_reads() -> None:
    """Messages of one kind replace each other: the newest is what the driver will see."""
    ports = some_ports()
    ports.receive(message(0, READY, 1))
    ports.receive(message(0, PORT_READY, 1))
    for step in range(1000):
        ports.set_open(0, step % 2 == 0)
        ports.resize(step, 25)
    assert len(ports.pending) <= 6
    assert ports.pending[-2:] == [message(0, OPEN, 0), message(0, RESIZE) + pack("<HH", 999, 25)]


def test_order_of_a_size() -> None:
    """Columns first, as the specification has it; rows first for drivers that took it the other way."""
    for rows_first, expected in ((False, (100, 30)), (True, (30, 100))):
        ports = Ports(1, rows_first)
        ports.add(0, PortSettings(console=True))
        ports.receive(message(0, READY, 1))
        ports.receive(message(0, PORT_READY, 1))
        ports.resize(100, 30)
        assert unpack("<HH", ports.pending[-1][8:]) == expected


STEPS = st.lists(
    st.tuples(st.sampled_from(["message", "add", "remove", "open", "resize", "take", "reset"]), st.integers(0, 0x7FF)),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_any_conversation(steps: list[tuple[str, int]]) -> None:
    """Random hosts and drivers: queues stay short, records stay whole, events tell what the ports say."""
    ports = some_ports()
    is_open = [False] * 3
    for what, value in steps:
        port = value % 3
        exists = ports[port].stage != 0
        match what:
            case "message":
                event = ports.receive(message(value % 4, value >> 2 & 7, value >> 5 & 3))
                _note(event, is_open)
            case "add" if not exists:
                ports.add(port, PortSettings("x", console=bool(value & 4)))
            case "remove" if exists:
                ports.remove(port)
                is_open[port] = False
            case "open":
                ports.set_open(port, bool(value & 4))
            case "resize":
                ports.resize(value, port)
            case "take":
                taken(ports)
            case "reset":
                ports.reset()
                is_open = [False] * 3
        assert [state.guest_open for state in (ports[0], ports[1], ports[2])] == is_open
        assert len(ports.pending) <= 18
        state = ports.state()
        ports.restore(state)
        assert ports.state() == state


def _note(event: PortEvent | None, is_open: list[bool]) -> None:
    if isinstance(event, (PortOpened, PortClosed)):
        assert is_open[event.port] != isinstance(event, PortOpened)
        is_open[event.port] = isinstance(event, PortOpened)


def test_the_table_has_no_dead_end() -> None:
    """From each state but the first there is a way back to it."""
    stages = {stage for stage, _ in TRANSITIONS} | set(TRANSITIONS.values())
    assert {stage for stage in stages if TRANSITIONS.get((stage, "remove")) == 0} == stages - {0}


# -- the device ------------------------------------------------------------------------------------------


def test_queues() -> None:
    """Two for each port, and two for control between the first and the second port; two alone without MULTIPORT."""
    console = make_console()
    assert len(console.queue_sizes) == 8
    assert [console.queues_of(port) for port in range(3)] == [(0, 1), (4, 5), (6, 7)]
    with pytest.raises(IndexError):
        console.queues_of(3)
    assert console.control_queues is None
    console.negotiated(console.features)
    assert console.control_queues == (2, 3)
    assert len(Console(ConsoleSettings(), lambda byte: None).queue_sizes) == 2


@both
def test_size(transport: str) -> None:
    """The window's size in the configuration space and in messages; a reset keeps it."""
    driver = make_driver(transport, make_console)
    console = driver.device
    assert isinstance(console, Console)
    assert unpack("<HHII", driver.stable_config(12)) == (80, 25, 3, 0)
    driver.initialise()
    console.ports.receive(message(0, READY, 1))
    console.ports.receive(message(0, PORT_READY, 1))
    taken(console.ports)
    driver.shell.log.clear()
    console.resize(132, 43)
    assert driver.shell.interrupts() == [(None, 2)]
    assert taken(console.ports) == [message(0, RESIZE) + pack("<HH", 132, 43)]
    driver.reset()
    assert (console.size, driver.config(0, 4)) == ((132, 43), 43 << 16 | 132)


@both
def test_emergency_output(transport: str) -> None:
    """The low byte goes out whatever the state of the device, and reads back as zero (5.3.5.1)."""
    out: list[int] = []
    driver: Driver = make_driver(transport, lambda: Console(ConsoleSettings(), out.append))
    driver.write_config(8, 4, 0x1234_5641)
    driver.write_config(8, 1, 0x42)
    driver.write_config(9, 1, 0x43)
    driver.initialise()
    driver.write_config(8, 4, 0x44)
    driver.transport.needs_reset("broken")
    driver.write_config(8, 2, 0x45)
    assert bytes(out) == b"ABDE"
    assert driver.config(8, 4) == 0
    driver.write_config(0, 4, 0)
    assert driver.config(0, 4) == 25 << 16 | 80


def test_a_reset_forgets_the_conversation() -> None:
    """The next driver is told of all ports again; what the host has open stays open."""
    driver = make_driver("mmio", make_console)
    console = driver.device
    assert isinstance(console, Console)
    driver.initialise()
    console.ports.set_open(1, True)
    for port in (0, 1):
        console.ports.receive(message(port, READY, 1))
        console.ports.receive(message(port, PORT_READY, 1))
    driver.reset()
    assert console.ports.pending == []
    driver.initialise()
    console.ports.receive(message(0, READY, 1))
    console.ports.receive(message(1, PORT_READY, 1))
    assert message(1, OPEN, 1) in console.ports.pending


def test_a_restored_console_goes_on() -> None:
    """Its size is that of the record, also for ports that get ready later."""
    console, copy = make_console(), make_console()
    console.negotiated(console.features)
    console.ports.receive(message(0, READY, 1))
    console.resize(100, 50)
    copy.restore(console.state(), console.accepted)
    copy.ports.receive(message(0, PORT_READY, 1))
    assert copy.ports.pending[-1] == message(0, RESIZE) + pack("<HH", 100, 50)


@pytest.mark.parametrize(
    "wrong",
    [
        ConsoleSettings(ports=()),
        ConsoleSettings(max_ports=32),
        ConsoleSettings(columns=65536),
        ConsoleSettings((PortSettings("x" * 65),)),
    ],
)
def test_impossible_consoles(wrong: ConsoleSettings) -> None:
    """Settings that make no console are refused."""
    with pytest.raises(ConfigError):
        Console(wrong, lambda byte: None)
