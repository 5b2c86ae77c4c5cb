"""The hardware of one machine, without Trio: made in a worker thread, handed to `Machine`, closed by it.

`Board.__init__` reads from top to bottom like the machine's parts list. Everything is acquired through one exit
stack, so that whatever fails half-way, and whatever comes later, is undone in the reverse order.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from tvmm.boot.dsdt import GENERATION_EVENT
from tvmm.boot.loader import Hardware, KernelOptions, load
from tvmm.bus import MmioBus, OffsetDevice, PortBus
from tvmm.devices.acpi_gpe import AcpiGpe
from tvmm.devices.acpi_pm import AcpiPm
from tvmm.devices.generation_id import GUID_BYTES, GenerationId, made_guid, parse_guid
from tvmm.devices.i8042 import I8042
from tvmm.devices.misc import DebugExit, PostPort, SystemControl
from tvmm.devices.rtc import Rtc
from tvmm.errors import ConfigError, HostError
from tvmm.kernel_files import KernelFiles
from tvmm.kvm.bus_lock import BusLock
from tvmm.kvm.device_log import DeviceLog
from tvmm.kvm.irq import IrqLine
from tvmm.kvm.system import Kvm, kernel_mode_is_emulated
from tvmm.memory.host import host_memory
from tvmm.memory.ram import VRAM_BLOCK, GuestRam
from tvmm.serial_port import COM1_IRQ, COM1_PORT, SerialPort
from tvmm.serial_port import PORT_COUNT as SERIAL_PORTS
from tvmm.vcpu.cpuid import policy
from tvmm.vcpu.registers import apply_entry, back_to_power_on, connect_pic, power_on, set_boot_msrs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.config.device import DeviceConfig
    from tvmm.config.machine import MachineConfig
    from tvmm.devices.input_hub import InputHub
    from tvmm.kernel_files import Images
    from tvmm.kvm.dirty_log import DirtyRings
    from tvmm.kvm.vcpu import KvmVcpu
    from tvmm.vcpu.compat import CpuDescription
    from tvmm.vcpu.cpuid import CpuidEntry
    from tvmm.vcpu.registers import PowerOn
    from tvmm.wiring.devices import Devices

__all__ = ["Board", "GuestRequest"]

KEYBOARD_IRQ, RTC_IRQ, SCI_IRQ, MOUSE_IRQ = 1, 8, 9, 12
KEYBOARD_PORTS = ((0x60, 0), (0x64, 4))
RTC_PORT, RTC_PORTS = 0x70, 2
PM_PORT, PM_PORTS = 0x600, 12
GPE_PORT, GPE_PORTS = 0x60C, 2
POST_PORT = 0x80
FAST_A20_PORT, RESET_CONTROL_PORT = 0x92, 0xCF9


class GuestRequest(NamedTuple):
    """What the machine is asked for: by the guest, through a device, ``poweroff``, ``reset`` or ``debug-exit`` with a
    code; by a device that waits for the user ``io-error``.
    """

    kind: str
    code: int = 0


class CpuSupport(NamedTuple):
    """What this host's KVM has for vCPUs."""

    supported: list[CpuidEntry]
    emulated: list[CpuidEntry]
    """Features that work although the processor lacks them: only where the CPU model asks for them."""
    listed_msrs: list[int]
    tsc_control: bool


def has_virtio(config: MachineConfig) -> bool:
    """Whether the machine has devices beyond those of every board."""
    beside = config.disks, config.nets, config.consoles, config.rngs, config.inputs, config.balloons, config.vsocks
    return any(beside) or config.display is not None


class Board:
    """RAM, buses, devices, KVM's VM and vCPUs of one machine. Callbacks are set by `Machine` before anything runs."""

    def __init__(self, config: MachineConfig, *, load: bool = True, images: Images | None = None) -> None:
        """Build it and load the kernel. Raises `UserError` with nothing left behind.

        Without `load` RAM and vCPUs stay as at power-on, for a state to be loaded; the kernel is there for a reset.
        `images` are in place of the kernel's files.
        """
        self.config = config
        self.on_request: Callable[[GuestRequest], None] = _ignore_request
        self.on_deadline: Callable[[], None] = _ignore
        self.came_as: CpuDescription | None = None
        """How a guest that was started on another host knows its vCPUs."""
        with ExitStack() as stack:
            self._images = KernelFiles(config.kernel) if images is None else images
            self._check_memory()
            self.emulated_kernel = kernel_mode_is_emulated()
            with Kvm() as kvm:
                self.vm = kvm.create_vm()
                stack.callback(self.vm.close)
                self.max_cpus = kvm.check_extension("MAX_VCPUS") or kvm.check_extension("NR_VCPUS")
                self._check_cpus()
                self.cpu = CpuSupport(
                    kvm.supported_cpuid(),
                    kvm.emulated_cpuid() if config.cpu.model == "max" else [],
                    kvm.msr_indices(),
                    kvm.has_tsc_control,
                )
            self.vm.report_triple_faults()
            self.vm.create_irqchip()
            self.rings = self._make_rings(stack)
            self._make_memory(stack)
            self._make_devices(stack)
            self._make_vcpus(stack)
            self.loaded = ""
            """What the kernel is, once one is loaded."""
            if load:
                self.load_kernel()
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Undo everything, in order. No vCPU thread may be left."""
        self._stack.close()

    # --- the parts list ---

    def _make_memory(self, stack: ExitStack) -> None:
        self.ram = GuestRam(self.config.memory)
        stack.callback(self.ram.close)
        if self.config.display is not None:
            self.ram.add_block(VRAM_BLOCK, self.config.display.vgamem)
        self.device_log = DeviceLog(self.ram)
        """What tvmm writes into RAM past KVM, for migration to start."""
        stack.callback(self.device_log.close)
        self.ram.dirty_log = self.device_log
        # KVM exports the mapping; it must let go before the mapping does.
        stack.callback(self.vm.release_memory)
        for slot, region in enumerate(self.ram.regions):
            view = self.ram.blocks[region.block].view[region.offset : region.offset + region.size]
            self.vm.set_memory(slot, region.gpa, view, read_only=region.read_only)

    def _make_rings(self, stack: ExitStack) -> DirtyRings | None:
        """In which KVM notes what the vCPUs write, if they are wanted; they come before the vCPUs."""
        if not self.config.memory.dirty_ring:
            return None
        self._check_rings()
        from tvmm.kvm.dirty_log import DirtyRings

        rings = DirtyRings(self.vm, self.config.memory.dirty_ring, self.config.cpu.count)
        stack.callback(rings.close)
        return rings

    def _make_devices(self, stack: ExitStack) -> None:
        self.bus_lock = BusLock()
        self.ports = PortBus()
        self.mmio = MmioBus()

        def line(gsi: int) -> IrqLine:
            made = IrqLine(self.vm, gsi)
            stack.callback(made.close)
            return made

        self.serial = SerialPort(line(COM1_IRQ), self.bus_lock)
        stack.callback(self.serial.close)
        self.ports.add(COM1_PORT, SERIAL_PORTS, self.serial, "serial0")

        self.keyboard_line, self.mouse_line = line(KEYBOARD_IRQ), line(MOUSE_IRQ)
        self.rtc_line, self.sci_line = line(RTC_IRQ), line(SCI_IRQ)
        self.keyboard = I8042(self.keyboard_line, self.mouse_line, self._reset)
        for port, offset in KEYBOARD_PORTS:
            self.ports.add(port, 1, OffsetDevice(self.keyboard, offset), "i8042")

        self.rtc = Rtc(self.config.memory.size, self.rtc_line, time.time, self._deadline_changed)
        self.ports.add(RTC_PORT, RTC_PORTS, self.rtc, "rtc")

        self.pm = AcpiPm(self.sci_line, self._sleep, time.monotonic_ns, self._deadline_changed)
        self.ports.add(PM_PORT, PM_PORTS, self.pm, "acpi-pm")
        self.gpe = AcpiGpe(self.sci_line)
        self.ports.add(GPE_PORT, GPE_PORTS, self.gpe, "acpi-gpe")
        self.generation = GenerationId(self.ram, self._generation_changed, _first_guid(self.config.devices))

        self.post = PostPort()
        self.ports.add(POST_PORT, 1, self.post, "post")
        self.system_control = SystemControl(self._reset)
        self.ports.add(FAST_A20_PORT, 1, OffsetDevice(self.system_control, 0), "system-control")
        self.devices = self._make_virtio(stack) if has_virtio(self.config) else None
        """Virtio devices and the PCI bus, if the machine has any."""
        if self.devices is None or self.devices.bus is None:
            self.ports.add(RESET_CONTROL_PORT, 1, OffsetDevice(self.system_control, 1), "system-control")
        for device in self.config.devices:
            self._make_device(device.name, dict(device.properties))

    def _make_virtio(self, stack: ExitStack) -> Devices:
        from tvmm.wiring.devices import make_devices

        return make_devices(self, OffsetDevice(self.system_control, 1), stack)

    def _make_device(self, name: str, properties: dict[str, int | str | bool]) -> None:
        if name == "vmgenid":
            return  # every machine has it; the option says with which number
        if name != "isa-debug-exit":
            raise ConfigError(f"device {name!r} is known but not made")
        base, length = int(properties["iobase"]), int(properties["iosize"])
        self.ports.add(base, length, DebugExit(self._debug_exit), name)

    def _make_vcpus(self, stack: ExitStack) -> None:
        cpu = self.config.cpu
        self.vcpus: list[KvmVcpu] = []
        self.power_on: list[PowerOn] = []
        self.tsc_khz = 0
        """Of this host; a vCPU that runs could not be asked, since its ioctls wait for KVM_RUN."""
        for index in range(cpu.count):
            vcpu = self.vm.create_vcpu(index)
            stack.callback(vcpu.close)
            vcpu.set_uart(self.serial.ring)
            self.tsc_khz = vcpu.get_tsc_khz()
            if self.rings is not None:
                self.rings.add(vcpu)
            leaves = policy(
                cpu.model,
                cpu.adjustments,
                self.cpu.supported,
                cpu_index=index,
                cpu_count=cpu.count,
                emulated=self.cpu.emulated,
                tsc_khz=vcpu.get_tsc_khz(),
            )
            vcpu.set_cpuid(leaves)
            if index == 0:
                self.leaves = leaves
                connect_pic(vcpu)
            self.vcpus.append(vcpu)
            self.power_on.append(power_on(vcpu))
        self.chips = self.vm.get_chips()

    # --- kernel ---

    @cached_property
    def kernel_image(self) -> bytes:
        """The kernel's bytes; `ImageError` if they have to be read and cannot."""
        return self._images.kernel()

    @cached_property
    def initrd_image(self) -> bytes | None:
        """The same of the initrd, None if there is none."""
        return self._images.initrd()

    def load_kernel(self) -> None:
        """Put the kernel into RAM and the boot CPU at its entry. Raises `ImageError`."""
        files = self.config.kernel
        options = KernelOptions(
            kernel=self.kernel_image,
            kernel_name=files.kernel or "the built-in guest",
            initrd=self.initrd_image,
            append=files.append,
            entry=files.entry,
            decompress=files.decompress,
        )
        if self.devices is not None:
            with self.bus_lock:
                hardware = self.devices.introduce(len(self.vcpus))
        else:
            hardware = Hardware(len(self.vcpus))
        entry = load(options, self.ram, self.ram.size, hardware, self.emulated_kernel)
        self.loaded = entry.kernel
        self.generation.place()
        set_boot_msrs(self.vcpus[0])
        apply_entry(self.vcpus[0], entry)

    def reset(self) -> None:
        """Everything as after power-on, with the kernel loaded anew. All vCPUs are paused."""
        from tvmm.vcpu.msrs import reset_values

        with self.bus_lock:
            self.serial.reset()
            self.keyboard.reset()
            self.rtc.reset()
            self.pm.reset()
            self.gpe.reset()
            self.system_control.reset()
            if self.devices is not None:
                self.devices.reset()
        self.vm.set_chips(self.chips)
        msrs = reset_values(self.cpu.listed_msrs)
        for vcpu, state in zip(self.vcpus, self.power_on, strict=True):
            back_to_power_on(vcpu, state, msrs)
        self.ram.zero()
        self.load_kernel()

    # --- generation ---

    def begin_generation(self) -> None:
        """The guest, loaded and paused, is not the one successor of what was saved: give it another generation ID."""
        with self.bus_lock:
            self.generation.renew(_new_guid())

    def _generation_changed(self) -> None:
        self.gpe.signal(GENERATION_EVENT)

    # --- what devices ask for, on a vCPU's thread ---

    def _reset(self) -> None:
        self.on_request(GuestRequest("reset"))

    def _sleep(self, kind: int) -> None:
        self.on_request(GuestRequest("poweroff"))

    def _debug_exit(self, status: int) -> None:
        self.on_request(GuestRequest("debug-exit", status))

    def _deadline_changed(self) -> None:
        self.on_deadline()

    # --- people ---

    @cached_property
    def input(self) -> InputHub:
        """Where viewers and clients type and point. Made when it is first asked for, on the event loop's thread."""
        from tvmm.wiring.input import make_hub

        return make_hub(self)

    def release_keys(self) -> None:
        """What a guest that has come from elsewhere takes for held down goes up, but for what somebody here holds."""
        inputs = self.devices is not None and self.devices.inputs
        if inputs or self.keyboard.keyboard.down or self.keyboard.mouse.buttons:
            self.input.settle()

    # --- time ---

    def seconds_to_deadline(self) -> float | None:
        """When `tick` is to be called next, in seconds from now; None as long as no device waits for the clock."""
        with self.bus_lock:
            alarm, carry = self.rtc.next_deadline(), self.pm.next_deadline_ns()
        waits = []
        if alarm is not None:
            waits.append(alarm - time.time())
        if carry is not None:
            waits.append((carry - time.monotonic_ns()) / 1e9)
        return max(0.0, min(waits)) if waits else None

    def tick(self) -> None:
        """Let devices act on the time that it is now."""
        with self.bus_lock:
            self.rtc.tick(time.time())
            self.pm.tick()

    # --- checks ---

    def _check_memory(self) -> None:
        total, available, free_huge = host_memory(self.config.memory.hugepages)
        self.config.memory.check_host(total, available, free_huge)

    def _check_cpus(self) -> None:
        if self.config.cpu.count > self.max_cpus:
            raise HostError(f"KVM on this host makes at most {self.max_cpus} vCPUs, not {self.config.cpu.count}")

    def _check_rings(self) -> None:
        if self.emulated_kernel:
            raise HostError(
                "dirty rings overflow where KVM emulates guest kernel mode, as on this host", "leave out dirty-ring"
            )



def _first_guid(devices: Sequence[DeviceConfig]) -> bytes:
    """The generation ID of a machine that boots."""
    if devices:
        from tvmm.config.device import chosen_guid

        chosen = chosen_guid(devices)
        if chosen != "auto":
            return parse_guid(chosen)
    return _new_guid()


def _new_guid() -> bytes:
    return made_guid(os.urandom(GUID_BYTES))


def _ignore_request(request: GuestRequest) -> None:
    """Before the machine listens, nothing runs that could ask."""


def _ignore() -> None:
    """As above."""
