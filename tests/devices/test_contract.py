"""Every device through the contract suite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tvmm.devices
from tests.devices import display_parts, pci_parts
from tests.devices.uart_parts import Sink
from tests.support import device_contract as contract
from tests.support.device_contract import ContractDevice, Subject
from tvmm.devices import acpi_gpe, acpi_pm, uart16550
from tvmm.devices.acpi_gpe import AcpiGpe
from tvmm.devices.acpi_pm import AcpiPm
from tvmm.devices.i8042 import I8042
from tvmm.devices.misc import DebugExit, PostPort, SystemControl
from tvmm.devices.rtc import Rtc
from tvmm.devices.uart16550 import Uart16550

if TYPE_CHECKING:
    from collections.abc import Callable


class UartRig:
    """A serial port whose line brings bytes and breaks, and whose sink drains."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.sink = Sink(20)
        self.device = Uart16550(self.sink, lambda: self.log.append("irq"), lambda: self.log.append("room"))

    def stimulate(self, choice: int, amount: int) -> None:
        """Receive, break, or send."""
        if choice < 3:
            self.log.append(self.device.receive(bytes(range(amount % 20))))
        elif choice == 3:
            self.log.append(self.device.receive_break())
        else:
            self.sink.drain(amount % 24)
            self.device.tx_room_changed()

    def follow(self, other: UartRig) -> None:
        """The sink as full as the other's."""
        self.sink.backlog = other.sink.backlog


class KeyboardRig:
    """A keyboard that somebody types on, and a mouse that is moved."""

    KEYS = tuple(map(bytes.fromhex, ("1c", "f01c", "e075", "e0f075", "e11477e1f014f077", "f0", "83", "")))

    def __init__(self) -> None:
        self.log: list[object] = []
        self.device = I8042(self.says("irq1"), self.says("irq12"), self.says("reset"))

    def says(self, what: str) -> Callable[[], None]:
        """A callback that notes `what`."""
        return lambda: self.log.append(what)

    def stimulate(self, choice: int, amount: int) -> None:
        """A key, by its codes or by its name, or the mouse."""
        if amount % 3 == 0:
            self.log.append(self.device.key(self.KEYS[choice]))
        elif amount % 3 == 1:
            self.log.append(self.device.press(amount, bool(choice & 1)))
        else:
            self.device.move(amount * (choice - 3), amount * (3 - choice), choice & 1, amount & 0x1F)

    def follow(self, other: KeyboardRig) -> None:
        """There is nothing outside."""


class RtcRig:
    """A clock whose time passes, now and then also backwards, and a shell that keeps its deadlines."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.now = 1_700_000_000.25
        self.device = Rtc(256 << 20, lambda: self.log.append("irq8"), lambda: self.now, self.deadline)

    def deadline(self) -> None:
        """The shell hears of another deadline."""
        self.log.append("deadline")

    def stimulate(self, choice: int, amount: int) -> None:
        """Time passes, by steps from a millisecond to an hour."""
        step = (0.001, 0.01, 0.1, 1.0, 60.0, 3600.0, -1.0, 0.0)[choice] * amount
        deadline = self.device.next_deadline()
        self.now += step
        if deadline is not None and self.now >= deadline:
            self.device.tick(self.now)

    def follow(self, other: RtcRig) -> None:
        """The same time."""
        self.now = other.now


class PmRig:
    """A power button, a clock, and a shell that keeps the deadlines."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.now_ns = 10**12
        self.device = AcpiPm(
            lambda: self.log.append("sci"),
            lambda kind: self.log.append(("sleep", kind)),
            lambda: self.now_ns,
            lambda: self.log.append("deadline"),
        )

    def stimulate(self, choice: int, amount: int) -> None:
        """Press, or let up to a quarter of a minute pass."""
        if choice == 0:
            self.device.press_power_button()
            return
        self.now_ns += amount * 10 ** (choice + 1)
        deadline = self.device.next_deadline_ns()
        if deadline is not None and self.now_ns >= deadline:
            self.device.tick()

    def follow(self, other: PmRig) -> None:
        """The same time."""
        self.now_ns = other.now_ns


class GpeRig:
    """Events that happen."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.device = AcpiGpe(lambda: self.log.append("sci"))

    def stimulate(self, choice: int, amount: int) -> None:
        """One of them."""
        self.device.signal(choice)

    def follow(self, other: GpeRig) -> None:
        """There is nothing outside."""


class OutputRig:
    """A device that is written to and tells; nothing happens outside."""

    def __init__(self, build: Callable[[Callable[..., None]], ContractDevice]) -> None:
        self.log: list[object] = []
        self.device = build(lambda *told: self.log.append(told))

    def stimulate(self, choice: int, amount: int) -> None:
        """Nothing can happen."""

    def follow(self, other: OutputRig) -> None:
        """There is nothing outside."""


BATTERY = frozenset(
    {"cmos", "register_a", "register_b", "offset_us", "weekday_shift", "stopped"}
    | {"seconds_seen", "periods_seen"}
)
"""What the clock keeps over a reset. Register B is in it for its modes; its interrupt bits have a test."""

SUBJECTS = [
    Subject("uart16550", UartRig, uart16550.PORT_COUNT, "tvmm.devices.uart16550"),
    Subject("i8042", KeyboardRig, 5, "tvmm.devices.i8042"),
    Subject("rtc", RtcRig, 2, "tvmm.devices.rtc", BATTERY),
    Subject("acpi_pm", PmRig, acpi_pm.LENGTH, "tvmm.devices.acpi_pm"),
    Subject("acpi_gpe", GpeRig, acpi_gpe.LENGTH, "tvmm.devices.acpi_gpe"),
    Subject("post", lambda: OutputRig(lambda tell: PostPort()), 1, "tvmm.devices.misc"),
    Subject("debug_exit", lambda: OutputRig(DebugExit), 2, "tvmm.devices.misc"),
    Subject("system_control", lambda: OutputRig(SystemControl), 2, "tvmm.devices.misc"),
    *pci_parts.SUBJECTS,
    *display_parts.SUBJECTS,
]
STEMS = {path.stem for path in Path(tvmm.devices.__path__[0]).glob("*.py")} - {"__init__"}
MODULES = sorted(f"tvmm.devices.{stem}" for stem in STEMS)

each_device = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)


@each_device
def test_accesses(subject: Subject) -> None:
    """Any access has an answer in range."""
    contract.check_accesses(subject)


@each_device
def test_round_trip(subject: Subject) -> None:
    """A restored device goes on as the saved one."""
    contract.check_round_trip(subject)


@each_device
def test_reset(subject: Subject) -> None:
    """Reset is power-on."""
    contract.check_reset(subject)


@each_device
def test_untrusted_state(subject: Subject) -> None:
    """A bad record is refused by name, or is a state like any other."""
    contract.check_untrusted_state(subject)


@each_device
def test_wrong_record(subject: Subject) -> None:
    """Something else than the record is refused."""
    contract.check_wrong_record(subject)


@pytest.mark.parametrize("module", MODULES)
def test_imports(module: str) -> None:
    """Models are pure."""
    contract.check_imports(module)


def test_every_device_is_here() -> None:
    """Each module with a device in it is under contract."""
    parts = {"common", "edid", "generation_id", "input_hub", "key_tables", "keys", "pci_mapper"}
    parts |= {"ps2_keyboard", "ps2_mouse", "ps2_sinks", "rtc_calendar", "rtc_cmos", "uart16550_registers"}
    assert {subject.module for subject in SUBJECTS} == {f"tvmm.devices.{name}" for name in STEMS - parts}
