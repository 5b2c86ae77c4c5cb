"""Every device behind every transport through the contract suite of register models."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import tvmm.virtio
from tests.support import device_contract as contract
from tests.support.device_contract import Subject
from tests.support.virtio_driver import MmioDriver, PciDriver, RecordingShell
from tests.virtio.devices import MAKERS
from tvmm.virtio.queues import QueueState

if TYPE_CHECKING:
    from tests.support.device_contract import ContractDevice
    from tests.support.virtio_driver import Driver
    from tvmm.virtio.pci import VirtioPci
    from tvmm.virtio.transport import Transport


PAGES = ((0x00, 0x0000), (0x40, 0x1000), (0x44, 0x2000), (0x84, 0x3000))
FOLDED_LENGTH = 0xA4


class Folded:
    """The BAR of virtio-pci without the emptiness between its pages, so that random offsets hit registers."""

    def __init__(self, pci: VirtioPci) -> None:
        self._pci = pci
        self.reset, self.state, self.restore = pci.reset, pci.state, pci.restore

    @staticmethod
    def _place(offset: int) -> int:
        start, page = [entry for entry in PAGES if entry[0] <= offset][-1]
        return page + offset - start

    def read(self, offset: int, size: int) -> int:
        """At the place that the offset stands for."""
        return self._pci.read(self._place(offset), size)

    def write(self, offset: int, size: int, value: int) -> object:
        """At the place that the offset stands for."""
        return self._pci.write(self._place(offset), size, value)


class VirtioRig:
    """A device whose runner uses buffers, breaks, and takes its time with resets; its driver is somewhere in between.

    So that random accesses find more than a device that was never touched, one stimulus is a driver that goes all
    the way.
    """

    def __init__(self, transport: str, kind: str) -> None:
        shell = RecordingShell(prompt=False)
        device = MAKERS[kind]()
        self.driver: Driver
        self.device: ContractDevice
        if transport == "mmio":
            self.driver = driver = MmioDriver(device, shell)
            self.device = driver.mmio
        else:
            self.driver = pci_driver = PciDriver(device, shell)
            pci_driver.msix = kind in ("blk", "net")
            self.device = Folded(pci_driver.pci)
        self.transport: Transport = self.driver.transport
        self.log = shell.log

    def stimulate(self, choice: int, amount: int) -> None:
        """What happens outside, or a driver's longer way."""
        index = amount % len(self.transport.queues)
        match choice:
            case 0:
                self.transport.used(index)
            case 1:
                self.transport.reset_done()
            case 2:
                self.transport.queue_reset_done(index)
            case 3 if amount % 8 == 0:
                self.transport.needs_reset("a stimulus")
            case 4:
                self.driver.negotiate()
            case 5:
                self.driver.setup_queue(index)
            case 6:
                self.driver.add_status(0xF)
            case 7:
                self.driver.reset_queue(index)

    def follow(self, other: Any) -> None:
        """There is nothing outside that a device does not tell."""


def subject(transport: str, kind: str) -> Subject:
    """The device called `kind` behind `transport`."""
    length = 0x140 if transport == "mmio" else FOLDED_LENGTH
    return Subject(f"{kind}-{transport}", lambda: VirtioRig(transport, kind), length, f"tvmm.virtio.{kind}")


SUBJECTS = [subject(transport, kind) for transport in ("mmio", "pci") for kind in MAKERS]
each_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda each: each.name)


@each_subject
def test_accesses(subject: Subject) -> None:
    """Any access has an answer in range."""
    contract.check_accesses(subject, examples=40)


@each_subject
def test_round_trip(subject: Subject) -> None:
    """A restored device goes on as the saved one."""
    contract.check_round_trip(subject, examples=30)


@each_subject
def test_reset(subject: Subject) -> None:
    """Reset is power-on."""
    contract.check_reset(subject, examples=20)


@each_subject
def test_untrusted_state(subject: Subject) -> None:
    """A bad record is refused by name, or is a state like any other."""
    contract.check_untrusted_state(subject, examples=60)


@each_subject
def test_wrong_record(subject: Subject) -> None:
    """Something else than the record is refused."""
    contract.check_wrong_record(subject)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", 0x02),
        ("status", 0x1F),
        ("status", 0x07),
        ("isr", 4),
        ("resetting", True),
        ("config_vector", 8),
        ("queues", ()),
        ("queues", (QueueState(128, ready=True), QueueState(128))),
        ("queues", (QueueState(128), QueueState(128, ready=True, resetting=True))),
        ("queues", (QueueState(128), QueueState(256))),
        ("queues", (QueueState(128), QueueState(128, vector=8))),
    ],
)
def test_impossible_registers(field: str, value: object) -> None:
    """What no driver can bring about is not taken over."""
    rig = VirtioRig("pci", "blk")
    before = rig.device.state()
    transport = before.transport._replace(**{field: value})
    with pytest.raises(ValueError, match=field):
        rig.device.restore(before._replace(transport=transport))
    assert rig.device.state() == before


ALLOWED = ("__future__", "struct", "typing", "tvmm.errors", "tvmm.records", "tvmm.virtio")
MODULES = sorted(Path(tvmm.virtio.__path__[0]).glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports(path: Path) -> None:
    """Models import types and their like: no clock, thread, descriptor or loop, nor the other families."""
    tree = ast.parse(path.read_text())
    for statement in ast.walk(tree):
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            statement.body.clear()
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            assert all(alias.name.startswith(ALLOWED) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert (statement.module or ".").startswith(ALLOWED)
