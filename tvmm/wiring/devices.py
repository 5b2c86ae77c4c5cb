"""The devices of one board that not every board has: virtio devices, each in a slot with its runner, and a display.

They are made from their options, in their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.boot.loader import Hardware
from tvmm.errors import HostError
from tvmm.kvm.memory_map import MemoryMap
from tvmm.virtio.runner.base import hold_all
from tvmm.wiring.mmio_slot import MmioSlot
from tvmm.wiring.slot import Slot, SlotHost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from contextlib import ExitStack

    from tvmm.board import Board
    from tvmm.bus import Device
    from tvmm.config.balloon import BalloonConfig
    from tvmm.config.console import ConsoleConfig
    from tvmm.config.disk import DiskConfig
    from tvmm.config.input import InputConfig
    from tvmm.config.net import NetConfig
    from tvmm.config.rng import RngConfig
    from tvmm.config.vsock import VsockConfig
    from tvmm.metrics.model import Sample
    from tvmm.net.opened_tap import Tap
    from tvmm.virtio.device import VirtioDevice
    from tvmm.virtio.runner.input import InputRunner
    from tvmm.wiring.balloon import BalloonPart
    from tvmm.wiring.console import ConsoleDevice
    from tvmm.wiring.display import Display
    from tvmm.wiring.pci_bus import PciBus
    from tvmm.wiring.view import DiskPart, NetPart
    from tvmm.wiring.vsock import VsockPart

    DeviceOptions = DiskConfig | NetConfig | ConsoleConfig | RngConfig | InputConfig | BalloonConfig | VsockConfig

__all__ = ["Devices", "make_devices"]


class Devices:
    """Slots in the order of the command line: disks, networks, consoles, sources of entropy, input, a balloon, sockets.

    `bus` is None without PCI.

    Built in a worker thread with the board, then run by the machine.
    """

    def __init__(self, board: Board, reset_control: Device, stack: ExitStack) -> None:
        self.slots: list[Slot] = []
        self.bus: PciBus | None = None
        self.disks: dict[str, DiskPart] = {}
        self.nets: dict[str, NetPart] = {}
        self.taps: dict[str, Tap] = {}
        self.consoles: dict[str, ConsoleDevice] = {}
        self.display: Display | None = None
        self.inputs: dict[str, InputRunner] = {}
        self.measures: dict[str, Callable[[], Iterable[Sample]]] = {}
        """By device: what it counts beyond what every virtio device does, under names of `tvmm.metrics.catalog`."""
        self.balloon: BalloonPart | None = None
        self.vsock: VsockPart | None = None
        self.on_warning: Callable[[str], None] = lambda message: None
        """Called from any thread with a line for the user."""
        self.on_event: Callable[[str, dict[str, object], str], None] = lambda name, data, reason: None
        """Called from any thread with a QMP event, and a word of RunState if the machine is to stop for it."""
        self.config = board.config
        self._board = board
        self._reset_control = reset_control
        memory = MemoryMap(board.ram, board.device_log)
        stack.callback(memory.close)
        self.host = SlotHost(board.vm, memory, board.bus_lock, stack)

    # -- building -----------------------------------------------------------------------------------------

    def place(self, device: VirtioDevice, options: DeviceOptions) -> Slot:
        """A slot for `device`, of the transport that its options say."""
        slot: Slot
        if options.transport == "pci":
            from tvmm.wiring.pci_slot import PciSlot

            slot = PciSlot(options.id, device, self.host, self.pci())
        else:
            number = sum(other.transport_name == "mmio" for other in self.slots)
            slot = MmioSlot(options.id, device, self.host, self._board.mmio, number)
        self.slots.append(slot)
        return slot

    def pci(self) -> PciBus:
        """The bus, made when the first device wants it."""
        if self.bus is None:
            from tvmm.wiring.pci_bus import PciBus

            board = self._board
            self.bus = PciBus(
                board.vm,
                board.ports,
                board.mmio,
                board.bus_lock,
                board.ram.size,
                self._reset_control,
                self.host.stack,
            )
        return self.bus

    def warn(self, message: str) -> None:
        """Tell the user. From any thread."""
        self.on_warning(message)

    # -- life ---------------------------------------------------------------------------------------------

    def introduce(self, cpu_count: int) -> Hardware:
        """Place BARs as firmware does, and say what the kernel has to be told. Under the bus lock."""
        if self.bus is not None:
            self.bus.place_bars()
        framebuffer = self.display.introduce() if self.display is not None else None
        return Hardware(
            cpu_count,
            self.bus.windows if self.bus is not None else None,
            self.bus.slots_with_pins() if self.bus is not None else (),
            tuple(slot.described for slot in self.slots if isinstance(slot, MmioSlot)),
            framebuffer,
        )

    def tasks(self) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        """What runs beside the vCPUs, by name."""
        for slot in self.slots:
            yield slot.name, slot.runner.run
        if self.bus is not None:
            yield "pci pins", self.bus.watch_pins

    async def hold(self) -> None:
        """Return when no device touches guest memory any more; what was in flight is done."""
        await hold_all([slot.runner for slot in self.slots])

    def release(self) -> None:
        """Go on after `hold`."""
        for slot in self.slots:
            slot.runner.release()

    async def stop(self) -> None:
        """Return when every device has let go of its queues, before a reset of the board. No vCPU runs."""
        for slot in self.slots:
            await slot.stop()

    # -- disks in the hands of one machine ------------------------------------------------------------------

    def flush_disks(self, *, local: bool = False) -> None:
        """Have what was written on disks and servers. Waits for them. Raises `HostError`.

        `local`: what is in this host's page cache is as good as on the disk.
        """
        for disk in self.disks.values():
            # A server may keep what one connection wrote from another until it is flushed.
            if not local or disk.image.links(0):
                disk.image.flush()

    def release_disks(self) -> None:
        """Let go of the locks."""
        for disk in self.disks.values():
            disk.image.unlock()

    def forget_disks(self) -> None:
        """Drop what this host's page cache has of them: it may be older than what another host wrote."""
        for disk in self.disks.values():
            disk.image.forget()

    def take_disks(self) -> None:
        """Lock all, or none. Raises `ImageError` if somebody else has one."""
        try:
            for disk in self.disks.values():
                disk.image.lock()
        except BaseException:
            self.release_disks()
            raise

    def reset(self) -> None:
        """Transports, functions and devices as after power-on. Under the bus lock."""
        for slot in self.slots:
            slot.reset()
        if self.display is not None:
            self.display.reset()
        if self.bus is not None:
            self.bus.reset()


def make_devices(board: Board, reset_control: Device, stack: ExitStack) -> Devices:
    """All devices of the board's configuration. Raises `UserError`; what was acquired is undone by `stack`."""
    devices = Devices(board, reset_control, stack)
    config = board.config
    try:
        for disk in config.disks:
            from tvmm.wiring.disk import make_disk

            make_disk(devices, disk)
        for index, net in enumerate(config.nets):
            from tvmm.wiring.net import make_net

            make_net(devices, net, config.name, index)
        for console in config.consoles:
            from tvmm.wiring.console import make_console

            make_console(devices, console)
        for rng in config.rngs:
            from tvmm.wiring.rng import make_rng

            make_rng(devices, rng)
        if config.display is not None:
            from tvmm.wiring.display import make_display

            make_display(devices, board, config.display)
        for options in config.inputs:
            from tvmm.wiring.input import make_input

            make_input(devices, options)
        for wanted in config.balloons:
            from tvmm.wiring.balloon import make_balloon

            make_balloon(devices, board, wanted)
        for vsock in config.vsocks:
            from tvmm.wiring.vsock import make_vsock

            make_vsock(devices, vsock)
    except OSError as error:
        raise HostError(f"KVM or the host refuses a device: {error.strerror or error}") from error
    return devices
