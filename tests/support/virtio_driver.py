"""The driver's half of a virtio device without its rings: registers through either transport, as Linux uses them.

`MmioDriver` and `PciDriver` have one set of methods, so that a test is written once and driven through both. The PCI
one knows nothing about the layout of the BAR: it follows the capabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

from tvmm.virtio.features import Ring
from tvmm.virtio.mmio import VirtioMmio
from tvmm.virtio.pci import VirtioPci

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.bus import Hold
    from tvmm.virtio.device import Activation, QueueSetup, VirtioDevice
    from tvmm.virtio.transport import Transport

__all__ = ["Areas", "Driver", "MmioDriver", "PciDriver", "RecordingShell", "make_driver"]

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 0x40, 0x80
NO_VECTOR = 0xFFFF


class RecordingShell:
    """A machine that notes what it is told. With `prompt` it stops queues at once, else when a test says so."""

    def __init__(self, prompt: bool = True) -> None:
        self.prompt = prompt
        self.log: list[object] = []
        self.transport: Transport | None = None

    def on_activate(self, activation: Activation) -> None:
        """DRIVER_OK."""
        self.log.append(("activate", activation))

    def on_reset(self) -> None:
        """A reset of a live device."""
        self.log.append("reset")
        if self.prompt and self.transport is not None:
            self.transport.reset_done()

    def on_queue_ready(self, setup: QueueSetup) -> None:
        """A queue of a live device."""
        self.log.append(("ready", setup))

    def on_queue_reset(self, index: int) -> None:
        """A queue is to be let go."""
        self.log.append(("queue reset", index))
        if self.prompt and self.transport is not None:
            self.transport.queue_reset_done(index)

    def on_vector(self, index: int) -> None:
        """Another vector for a queue: what matters is which one the next interrupt takes."""

    def on_notify(self, index: int, data: int) -> None:
        """A kick that came as an access."""
        self.log.append(("notify", index, data))

    def interrupt(self, vector: int | None, isr: int) -> None:
        """A message or a level."""
        self.log.append(("interrupt", vector, isr))

    def interrupts(self) -> list[tuple[int | None, int]]:
        """What was sent since the last call, without the rest."""
        found = [entry[1:] for entry in self.log if isinstance(entry, tuple) and entry[0] == "interrupt"]
        self.log.clear()
        return found


class Areas(NamedTuple):
    """Where the three areas of a queue are."""

    desc: int
    driver: int
    device: int


class Driver:
    """What both transports have in common."""

    name = ""

    def __init__(self, device: VirtioDevice, shell: RecordingShell, transport: Transport) -> None:
        self.device = device
        self.shell = shell
        self.transport = transport
        self.held: Hold | None = None
        """What the last write that could hold the vCPU came back with."""
        shell.transport = transport

    # -- what a transport adds ---------------------------------------------------------------------------

    def read(self, register: str) -> int:
        """A register by name."""
        raise NotImplementedError

    def write(self, register: str, value: int) -> None:
        """A register by name."""
        raise NotImplementedError

    def config(self, offset: int, size: int) -> int:
        """`size` bytes of the configuration space."""
        raise NotImplementedError

    def write_config(self, offset: int, size: int, value: int) -> None:
        """`size` bytes of the configuration space."""
        raise NotImplementedError

    def notify(self, index: int, value: int | None = None) -> None:
        """Kick a queue, with `value` in place of its index."""
        raise NotImplementedError

    def take_interrupt(self) -> int:
        """Read and acknowledge the interrupt status."""
        raise NotImplementedError

    # -- Linux's steps -----------------------------------------------------------------------------------

    @property
    def status(self) -> int:
        """The device status."""
        return self.read("status")

    def add_status(self, bit: int) -> None:
        """One more step, with those before it."""
        self.write("status", self.status | bit)

    def reset(self) -> None:
        """Write zero."""
        self.write("status", 0)

    def offered(self) -> int:
        """All 64 features."""
        word = []
        for select in (0, 1):
            self.write("device_feature_select", select)
            word.append(self.read("device_feature"))
        return word[0] | word[1] << 32

    def accept(self, features: int) -> None:
        """Choose among them."""
        for select in (0, 1):
            self.write("driver_feature_select", select)
            self.write("driver_feature", features >> 32 * select & 0xFFFF_FFFF)

    def negotiate(self, wanted: int | None = None) -> int:
        """Up to FEATURES_OK, which may be refused. What was asked for: `wanted`, or all that is offered."""
        self.reset()
        self.add_status(ACKNOWLEDGE)
        self.add_status(DRIVER)
        features = self.offered() if wanted is None else wanted
        self.accept(features)
        self.add_status(FEATURES_OK)
        return features

    def queue_max(self, index: int) -> int:
        """The most entries of a queue."""
        self.write("queue_select", index)
        return self.read("queue_max")

    def areas(self, index: int) -> Areas:
        """Where this driver has the queue's areas: anywhere that is aligned."""
        return Areas(0x1_0000_0000 + 0x10_0000 * index, 0x2000_0000 + 0x1_0000 * index, 0x3000_0000 + 0x10_0000 * index)

    def setup_queue(self, index: int, size: int | None = None, ring: Areas | None = None) -> None:
        """Configure and enable a queue."""
        self.write("queue_select", index)
        self.write("queue_size", size or self.read("queue_max"))
        for area, address in (ring or self.areas(index))._asdict().items():
            self.write(f"{area}_low", address & 0xFFFF_FFFF)
            self.write(f"{area}_high", address >> 32)
        self.write("queue_ready", 1)

    def queue_ready(self, index: int) -> bool:
        """Whether the queue is enabled."""
        self.write("queue_select", index)
        return bool(self.read("queue_ready"))

    def reset_queue(self, index: int) -> None:
        """Ask for the reset of a queue."""
        self.write("queue_select", index)
        self.write("queue_reset", 1)

    def initialise(self, wanted: int | None = None, queues: int | None = None) -> int:
        """The whole way to DRIVER_OK with the first `queues` queues, or all; the features."""
        features = self.negotiate(wanted)
        assert self.status & FEATURES_OK, self.transport.last_error
        for index in range(len(self.device.queue_sizes) if queues is None else queues):
            self.setup_queue(index)
        self.add_status(DRIVER_OK)
        return features

    def stable_config(self, length: int) -> bytes:
        """The configuration space, read byte by byte until nothing has changed meanwhile."""
        while True:
            before = self.read("config_generation")
            space = bytes(self.config(offset, 1) for offset in range(length))
            if self.read("config_generation") == before:
                return space


class MmioDriver(Driver):
    """Through virtio-mmio."""

    name = "mmio"
    REGISTERS: ClassVar[dict[str, int]] = {
        "magic": 0x00,
        "version": 0x04,
        "device_id": 0x08,
        "device_feature": 0x10,
        "device_feature_select": 0x14,
        "driver_feature": 0x20,
        "driver_feature_select": 0x24,
        "queue_select": 0x30,
        "queue_max": 0x34,
        "queue_size": 0x38,
        "queue_ready": 0x44,
        "status": 0x70,
        "desc_low": 0x80,
        "desc_high": 0x84,
        "driver_low": 0x90,
        "driver_high": 0x94,
        "device_low": 0xA0,
        "device_high": 0xA4,
        "queue_reset": 0xC0,
        "config_generation": 0xFC,
    }

    def __init__(self, device: VirtioDevice, shell: RecordingShell) -> None:
        self.mmio = VirtioMmio(device, shell)
        super().__init__(device, shell, self.mmio.transport)

    def read(self, register: str) -> int:
        """Four bytes, aligned."""
        return self.mmio.read(self.REGISTERS[register], 4)

    def write(self, register: str, value: int) -> None:
        """Four bytes, aligned."""
        self.held = self.mmio.write(self.REGISTERS[register], 4, value)

    def config(self, offset: int, size: int) -> int:
        """Behind the registers."""
        return self.mmio.read(0x100 + offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Behind the registers."""
        self.mmio.write(0x100 + offset, size, value)

    def notify(self, index: int, value: int | None = None) -> None:
        """One register for all."""
        self.mmio.write(0x50, 4, index if value is None else value)

    def take_interrupt(self) -> int:
        """Read, then acknowledge what was read."""
        status = self.mmio.read(0x60, 4)
        self.mmio.write(0x64, 4, status)
        return status


class PciDriver(Driver):
    """Through virtio-pci; `msix` is whether MSI-X is on."""

    name = "pci"
    FIELDS: ClassVar[dict[str, tuple[int, int]]] = {
        "device_feature_select": (0x00, 4),
        "device_feature": (0x04, 4),
        "driver_feature_select": (0x08, 4),
        "driver_feature": (0x0C, 4),
        "config_vector": (0x10, 2),
        "num_queues": (0x12, 2),
        "status": (0x14, 1),
        "config_generation": (0x15, 1),
        "queue_select": (0x16, 2),
        "queue_size": (0x18, 2),
        "queue_max": (0x18, 2),
        "queue_vector": (0x1A, 2),
        "queue_ready": (0x1C, 2),
        "queue_notify_off": (0x1E, 2),
        "desc_low": (0x20, 4),
        "desc_high": (0x24, 4),
        "driver_low": (0x28, 4),
        "driver_high": (0x2C, 4),
        "device_low": (0x30, 4),
        "device_high": (0x34, 4),
        "queue_reset": (0x3A, 2),
    }

    def __init__(self, device: VirtioDevice, shell: RecordingShell, vectors: int = 8) -> None:
        self.msix = False
        self.pci = VirtioPci(device, shell, vectors, lambda: self.msix)
        super().__init__(device, shell, self.pci.transport)
        self.starts: dict[int, int] = {}
        self.multiplier = 0
        for capability in self.pci.capabilities():
            kind, body = capability.body[0], capability.body
            self.starts[kind] = int.from_bytes(body[5:9], "little")
            if kind == 2:
                self.multiplier = int.from_bytes(body[13:17], "little")

    def read(self, register: str) -> int:
        """A field of the common configuration, in its width."""
        offset, size = self.FIELDS[register]
        return self.pci.read(self.starts[1] + offset, size)

    def write(self, register: str, value: int) -> None:
        """A field of the common configuration, in its width."""
        offset, size = self.FIELDS[register]
        self.held = self.pci.write(self.starts[1] + offset, size, value)

    def config(self, offset: int, size: int) -> int:
        """The structure for it."""
        return self.pci.read(self.starts[4] + offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """The structure for it."""
        self.pci.write(self.starts[4] + offset, size, value)

    def notify(self, index: int, value: int | None = None) -> None:
        """The doorbell of the queue, in 32 bits if notifications carry data."""
        self.write("queue_select", index)
        offset = self.starts[2] + self.read("queue_notify_off") * self.multiplier
        size = 4 if self.transport.features & Ring.NOTIFICATION_DATA else 2
        self.pci.write(offset, size, index if value is None else value)

    def take_interrupt(self) -> int:
        """Reading acknowledges."""
        return self.pci.read(self.starts[3], 1)


def make_driver(name: str, make_device: Callable[[], VirtioDevice], prompt: bool = True) -> Driver:
    """A driver in front of a new device behind the transport called `name`."""
    shell = RecordingShell(prompt)
    return MmioDriver(make_device(), shell) if name == "mmio" else PciDriver(make_device(), shell)
