"""virtio-pci: the requirements of its own, and what else its registers do."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.devices.pci_parts import LoosePlace
from tests.support.virtio_driver import RecordingShell
from tests.virtio.conformance_rules import each_device, must, pci
from tests.virtio.devices import MAKERS, make_blk
from tvmm.devices.pci_bars import MEMORY32, MEMORY64, Bar
from tvmm.devices.pci_config import PciIdentity
from tvmm.devices.pci_function import PciFunction
from tvmm.devices.pci_msix import Msix
from tvmm.virtio.pci import BAR, BAR_SIZE, MSIX_BAR, WINDOW_LENGTH, WINDOW_OFFSET, VirtioPci

if TYPE_CHECKING:
    from collections.abc import Callable


@must("4.1.2.1 vendor", "4.1.2.1 device")
def test_pci_identity() -> None:
    """1af4, and 1040 more than the virtio ID; nothing that a legacy driver takes for its own."""
    for make in MAKERS.values():
        driver = pci(make)
        identity = driver.pci.identity
        assert (identity.vendor_id, identity.device_id) == (0x1AF4, 0x1040 + driver.device.device_id)
        assert identity.revision >= 1
        assert identity.subsystem_id >= 0x40


@must(
    "4.1.4.2 cap_len",
    "4.1.4.3.1 present",
    "4.1.4.3.1 aligned",
    "4.1.4.4.1 present",
    "4.1.4.4.1 multiplier",
    "4.1.4.4.1 aligned",
    "4.1.4.4.1 length",
    "4.1.4.5.1 present",
    "4.1.4.6 present",
    "4.1.4.6.1 aligned",
    "4.1.4.9.1 present",
)
@each_device
def test_pci_capabilities(kind: str) -> None:
    """Each structure once, aligned, inside the BAR, apart from the others, and long enough."""
    driver = pci(MAKERS[kind])
    ranges = []
    for capability in driver.pci.capabilities():
        body = capability.body
        # Identifier, link and length byte go before the body: 16 bytes, or 20 with a field more.
        assert len(body) + 3 == (20 if capability.kind in (2, 5) else 16)
        assert body[0] == capability.kind
        offset, length = int.from_bytes(body[5:9], "little"), int.from_bytes(body[9:13], "little")
        if capability.kind != 5:
            assert offset % 4 == 0
            assert offset + length <= 0x4000
            ranges.append((offset, offset + length))
        if capability.kind == 2:
            multiplier = int.from_bytes(body[13:17], "little")
            assert multiplier in (4, 16, 64)
            assert length >= (len(driver.device.queue_sizes) - 1) * multiplier + 4
        if capability.kind == 4:
            assert length >= driver.device.config_length
    kinds = [capability.kind for capability in driver.pci.capabilities()]
    assert sorted(kinds) == ([1, 2, 3, 4, 5] if driver.device.config_length else [1, 2, 3, 5])
    ranges.sort()
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))


@must("4.1.4.5.1 config", "4.1.4.5.1 queue", "4.1.4.5.1 line", "4.1.4.5.1 read")
def test_isr() -> None:
    """The line is up from the first event to the read, which clears both."""
    driver = pci()
    driver.initialise()
    driver.shell.log.clear()
    driver.transport.used(0)
    driver.device.change_config(0, b"\7")
    assert driver.shell.interrupts() == [(None, 1), (None, 3)]
    assert driver.take_interrupt() == 3
    assert driver.shell.interrupts() == [(None, 0)]
    assert driver.take_interrupt() == 0
    driver.msix = True
    driver.write("config_vector", 0)
    driver.device.change_config(0, b"\6")
    assert driver.shell.interrupts() == [(0, 2)]
    assert driver.take_interrupt() == 2


@must("4.1.4.9.1 write", "4.1.4.9.1 read")
def test_pci_cfg_window() -> None:
    """The status through the configuration space; nothing through a window that leads elsewhere."""
    driver = pci()
    window = driver.pci.window
    window.write(0, 1, 4)
    window.write(4, 4, driver.starts[1] + 0x14)
    window.write(8, 4, 1)
    window.write(12, 4, 0xFFFF_FF01)
    assert driver.status == 1
    assert window.read(12, 4) == window.read(12, 1) == 1
    window.write(4, 4, driver.starts[1])
    window.write(8, 4, 4)
    window.write(12, 4, 1)
    window.write(4, 4, driver.starts[1] + 4)
    assert window.read(12, 4) == driver.device.features >> 32
    for bar, offset, length in ((1, 0, 4), (4, 2, 4), (4, 0, 3), (4, 0x3FFC, 4), (4, 0x800, 4), (4, 0xFFFF_FFFC, 4)):
        window.write(0, 1, bar)
        window.write(4, 4, offset)
        window.write(8, 4, length)
        mistakes = driver.transport.mistakes.get("window", 0)
        assert window.read(12, 4) == 0
        assert driver.transport.mistakes["window"] == mistakes + 1


@must(
    "4.1.5.1.2.1 any vector",
    "4.1.5.1.2.1 unmap",
    "4.1.5.1.2.1 read back",
    "4.1.5.1.2.1 reset",
    "4.1.5.1.2.1 failure",
    "4.1.5.3.1 no vector",
    "4.1.5.4.1 no vector",
)
@pytest.mark.parametrize("vectors", [0, 1, 3, 2048])
def test_vectors(vectors: int) -> None:
    """Each event takes each vector of the table and no other, and is silent without one."""
    driver = pci(vectors=vectors)
    driver.msix = True
    driver.initialise()
    driver.shell.log.clear()
    events: tuple[tuple[str, Callable[[], object]], ...] = (
        ("queue_vector", lambda: driver.transport.used(1)),
        ("config_vector", lambda: driver.device.change_config(0, bytes([driver.device.config_bytes()[0] ^ 1]))),
    )
    driver.write("queue_select", 1)
    for register, event in events:
        assert driver.read(register) == 0xFFFF
        event()
        assert driver.shell.interrupts() == []
        for vector in {0, vectors // 2, vectors - 1} - {-1}:
            driver.write(register, vector)
            mapped = vector < vectors
            assert driver.read(register) == (vector if mapped else 0xFFFF)
            event()
            assert [sent[0] for sent in driver.shell.interrupts()] == ([vector] if mapped else [])
        for nowhere in (vectors, 0x800, 0xFFFE):
            driver.write(register, nowhere)
            assert driver.read(register) == 0xFFFF
        driver.write(register, 0xFFFF)
        event()
        assert driver.shell.interrupts() == []
        if vectors:
            driver.write(register, 0)
    driver.reset()
    driver.write("queue_select", 1)
    assert driver.read("queue_vector") == driver.read("config_vector") == 0xFFFF


def test_access_sizes() -> None:
    """Fields have one width, those of 64 bits also the other; the rest reads zero, changes nothing and is counted."""
    driver = pci()
    driver.negotiate()
    common = driver.starts[1]
    driver.write("queue_select", 0)
    driver.pci.write(common + 0x20, 8, 0x1234_5678_9ABC_DEF0)
    assert driver.pci.read(common + 0x20, 8) == 0x1234_5678_9ABC_DEF0
    assert driver.pci.read(common + 0x24, 4) == 0x1234_5678
    for offset, size in ((0x14, 2), (0x14, 4), (0x00, 2), (0x16, 4), (0x21, 4), (0x22, 2), (0x40, 4), (0x28, 1)):
        assert driver.pci.read(common + offset, size) == 0
        driver.pci.write(common + offset, size, 0)
    assert driver.status == 0xB
    assert driver.transport.mistakes == {"access-size": 16}


def test_fields_for_reading() -> None:
    """What a driver must not write stays."""
    driver = pci()
    driver.negotiate()
    for offset, size in ((0x04, 4), (0x12, 2), (0x15, 1), (0x1E, 2), (0x38, 2), (0x3C, 2), (0x3E, 2)):
        before = driver.pci.read(driver.starts[1] + offset, size)
        driver.pci.write(driver.starts[1] + offset, size, 0xFF)
        assert driver.pci.read(driver.starts[1] + offset, size) == before
    assert driver.transport.mistakes == {"register-read-only": 7}


def test_a_queue_cannot_be_disabled() -> None:
    """Zero to queue_enable is not for drivers."""
    driver = pci()
    driver.initialise()
    driver.write("queue_ready", 0)
    assert driver.queue_ready(0)
    assert driver.transport.mistakes == {"queue-enable": 1}


def test_a_missing_queue_has_nothing() -> None:
    """All its fields read as if there were none, and writes to them are counted."""
    driver = pci()
    driver.negotiate()
    driver.write("queue_select", 77)
    fields = ("queue_size", "queue_ready", "queue_notify_off", "queue_reset", "desc_low", "desc_high")
    assert [driver.read(field) for field in fields] == [0] * 6
    assert driver.read("queue_vector") == 0xFFFF
    for field in ("queue_size", "queue_vector", "queue_ready", "queue_reset", "desc_low"):
        driver.write(field, 1)
    assert driver.transport.mistakes == {"queue-missing": 5}


def test_doorbells() -> None:
    """Each queue has its own, and a kick at it says which queue it is, whatever is written by ioeventfd's rules."""
    driver = pci()
    kicks = driver.pci.kicks()
    assert [(kick.queue, kick.size, kick.value) for kick in kicks] == [(0, 0, None), (1, 0, None)]
    driver.initialise()
    driver.shell.log.clear()
    for kick in kicks:
        driver.pci.write(kick.offset, 2, kick.queue)
    assert driver.shell.log == [("notify", 0, 0), ("notify", 1, 0)]


def test_the_line_follows_msix() -> None:
    """An event from before MSI-X is off again is on the line when the shell looks."""
    driver = pci()
    driver.initialise()
    driver.msix = True
    driver.device.change_config(0, b"\7")
    driver.shell.log.clear()
    driver.msix = False
    driver.pci.msix_changed()
    assert driver.shell.interrupts() == [(None, 2)]


class Function:
    """The device in a function of `tvmm.devices`, as a machine puts it together."""

    def __init__(self) -> None:
        self.messages: list[int] = []
        self.place = LoosePlace()
        self.shell = RecordingShell()
        self.msix = Msix(4, lambda *changed: None, self.messages.append)
        self.virtio = VirtioPci(make_blk(), self.shell, self.msix.vector_count, lambda: self.msix.enabled)
        self.shell.transport = self.virtio.transport
        self.function = PciFunction(
            self.place,
            PciIdentity(*self.virtio.identity),
            interrupt_pin=1,
            bars=(
                Bar(MSIX_BAR, self.msix.length, MEMORY32, self.msix, "msix"),
                Bar(BAR, BAR_SIZE, MEMORY64, self.virtio, "virtio"),
            ),
            msix=self.msix,
        )
        self.place.function = self.function
        for capability in self.virtio.capabilities():
            offset = self.function.config.add_vendor_capability(capability.body)
            if capability.kind == 5:
                self.function.config.delegate(offset + WINDOW_OFFSET, WINDOW_LENGTH, self.virtio.window)

    def capabilities(self) -> dict[int, int]:
        """The kind of each of virtio's capabilities and where it is, found by following the list."""
        found = {}
        at = self.function.read(0x34, 1)
        while at:
            if self.function.read(at, 1) == 0x09:
                found[self.function.read(at + 3, 1)] = at
            at = self.function.read(at + 1, 1)
        return found


def test_inside_a_pci_function() -> None:
    """A driver that walks the configuration space finds the structures, and drives the device through the window."""
    whole = Function()
    assert whole.function.read(0, 4) == 0x1042_1AF4
    found = whole.capabilities()
    assert sorted(found) == [1, 2, 3, 4, 5]
    assert {kind: whole.function.read(at + 2, 1) for kind, at in found.items()} == {1: 16, 2: 20, 3: 16, 4: 16, 5: 20}
    assert {whole.function.read(found[kind] + 4, 1) for kind in (1, 2, 3, 4)} == {BAR}
    window, common = found[5], whole.function.read(found[1] + 8, 4)
    whole.function.write(window + 4, 1, BAR)
    whole.function.write(window + 8, 4, common + 0x14)
    whole.function.write(window + 12, 4, 1)
    whole.function.write(window + 16, 1, 1)
    whole.function.write(window + 16, 1, 3)
    assert whole.function.read(window + 16, 1) == whole.virtio.transport.status == 3
    assert whole.virtio.transport.mistakes == {}
