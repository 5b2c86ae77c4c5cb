"""From files to a machine that is ready to run: kernel, initrd, command line and platform tables.

All that can be wrong with the files, or does not fit, is found before the first byte is written. What only
some formats need is imported when they turn up: the built-in guest, which has to start fast, is an ELF with a
PVH note.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.boot.acpi import build_tables
from tvmm.boot.e820 import memory_map
from tvmm.boot.elf import ElfImage, check_placement, is_elf, load_elf, parse_elf
from tvmm.boot.mptable import BusInterrupts, check_cpu_count, write_mp_table
from tvmm.errors import ConfigError, ImageError
from tvmm.memory.layout import COMMAND_LINE, COMMAND_LINE_LIMIT, ONE_MIB, RSDP, GuestMemory, Range, ram_ranges

if TYPE_CHECKING:
    from tvmm.boot.bzimage import BzImage
    from tvmm.boot.dsdt_buses import PciWindows, VirtioMmio
    from tvmm.boot.entry import EntryState
    from tvmm.boot.framebuffer import Framebuffer

__all__ = ["MIN_RAM", "Hardware", "KernelOptions", "load"]

MIN_RAM = 2 << 20
"""Bytes: low memory with its reserved end, and something to put a kernel into."""
_PAGE = 0x1000
_INITRD_ADDR_MAX = 0x7FFF_FFFF
"""For kernels that do not say: what every 64-bit Linux has in its header."""


class KernelOptions(NamedTuple):
    """What to boot, and how.

    `kernel_name` is what messages call the kernel, most often its path. `append` is the command line; bytes
    of it that are no UTF-8 come as surrogate escapes, as in ``sys.argv``. `entry`: which entry point to
    use, ``auto`` is PVH for an ELF that has it, else the 64-bit one. `decompress`: whether to unpack a
    bzImage here rather than in the guest, ``auto`` does if kernel code is emulated, where unpacking takes
    minutes.
    """

    kernel: memoryview | bytes
    kernel_name: str
    initrd: memoryview | bytes | None = None
    append: str = ""
    entry: str = "auto"
    decompress: str = "auto"


class Hardware(NamedTuple):
    """What the tables and the command line tell of, beyond what every machine has.

    `pci_slots` are the slots on bus 0 whose functions have an interrupt pin. PVH has no place for a `framebuffer`.
    """

    cpu_count: int = 1
    pci: PciWindows | None = None
    pci_slots: tuple[int, ...] = ()
    virtio_mmio: tuple[VirtioMmio, ...] = ()
    framebuffer: Framebuffer | None = None

    @property
    def command_line(self) -> str:
        """How Linux is told of devices that no bus has (Documentation/admin-guide/kernel-parameters)."""
        return " ".join(
            f"virtio_mmio.device={one.registers.size >> 10}K@{one.registers.start:#x}:{one.gsi}"
            for one in self.virtio_mmio
        )


class _ElfKernel(NamedTuple):
    """A kernel to load by its segments. `bzimage` is what it was unpacked from, None if the file is the
    ELF."""

    image: memoryview
    elf: ElfImage
    bzimage: BzImage | None


class _PackedKernel(NamedTuple):
    """A bzImage that unpacks itself in the guest."""

    image: memoryview
    bzimage: BzImage


def load(
    options: KernelOptions, memory: GuestMemory, ram_size: int, hardware: Hardware, emulated_kernel: bool
) -> EntryState:
    """Put the kernel and all that it looks for into `memory`; return the boot CPU's registers.

    `ram_size` is in bytes; there are 1 to 254 processors. `emulated_kernel` says that this host runs kernel-mode
    code in an emulator. `memory` has to read as zeros (fresh RAM, or RAM that was discarded before a
    reset), because the zeros of a kernel's BSS are not written. Raises `ImageError` if a file is at fault,
    `ConfigError` if an option is, and `HostError` if a decoder is not installed; nothing has been written
    then.
    """
    ram_end = ram_ranges(ram_size)[0].end
    if ram_end < MIN_RAM:
        raise ConfigError(
            f"{ram_size} bytes of memory are too little for any kernel",
            f"give the machine at least --memory {MIN_RAM >> 20}M",
        )
    check_cpu_count(hardware.cpu_count)
    kernel = _parse(options, emulated_kernel)
    by_pvh, address = _entry(options, kernel)
    used = _check_placement(kernel, ram_end, options.kernel_name)
    command_line = _command_line(" ".join(filter(None, (options.append, hardware.command_line))), kernel.bzimage)
    tables = build_tables(hardware.cpu_count, pci=hardware.pci, virtio_mmio=hardware.virtio_mmio)
    initrd = _place_initrd(options.initrd, used, ram_end, kernel.bzimage)

    # Everything is known to fit: from here on memory is written, and nothing can fail.
    if isinstance(kernel, _ElfKernel):
        load_elf(kernel.image, kernel.elf, memory)
    else:
        from tvmm.boot.bzimage import load_bzimage

        load_bzimage(kernel.image, kernel.bzimage, memory)
    memory.write(COMMAND_LINE, command_line)
    if options.initrd is not None and initrd is not None:
        memory.write(initrd.start, options.initrd)
    write_mp_table(memory, hardware.cpu_count, _bus_interrupts(hardware))
    for gpa, table in tables:
        memory.write(gpa, table)
    if by_pvh:
        from tvmm.boot.pvh import enter_pvh

        return enter_pvh(memory, address, memory_map(ram_size), initrd, rsdp=RSDP)
    return _enter_linux(kernel, address, memory, ram_size, initrd, hardware.framebuffer)


def _bus_interrupts(hardware: Hardware) -> BusInterrupts:
    """What the MP table says of PCI pins, and of lines that the ISA bus of a PC does not have."""
    pins: tuple[tuple[int, int, int], ...] = ()
    if hardware.pci is not None:
        gsi = hardware.pci.gsi
        pins = tuple((slot, pin, gsi(slot, pin)) for slot in hardware.pci_slots for pin in range(4))
    return BusInterrupts(pins, tuple(one.gsi for one in hardware.virtio_mmio))


def _parse(options: KernelOptions, emulated_kernel: bool) -> _ElfKernel | _PackedKernel:
    """Find out what the kernel file is, judge it, and unpack it if that is asked for."""
    image, name = memoryview(options.kernel), options.kernel_name
    if is_elf(image):
        return _ElfKernel(image, parse_elf(image, name), None)

    from tvmm.boot.bzimage import is_bzimage, parse_bzimage, payload

    if not is_bzimage(image):
        from tvmm.boot.identify import unknown_kernel

        raise unknown_kernel(image, name)
    bzimage = parse_bzimage(image, name)
    if options.decompress == "off" or (options.decompress == "auto" and not emulated_kernel):
        return _PackedKernel(image, bzimage)

    from tvmm.boot.payload import unpack

    unpacked = memoryview(unpack(payload(image, bzimage, name), name))
    return _ElfKernel(unpacked, parse_elf(unpacked, f"the kernel unpacked from {name}"), bzimage)


def _entry(options: KernelOptions, kernel: _ElfKernel | _PackedKernel) -> tuple[bool, int]:
    """Whether to use PVH rather than Linux's 64-bit protocol, and the physical address of the entry point.

    A kernel unpacked from a bzImage is entered by the protocol of its bzImage unless PVH is asked for: the
    setup header tells it more than PVH does.
    """
    name = options.kernel_name
    if isinstance(kernel, _PackedKernel):
        if options.entry == "pvh":
            raise ImageError(
                f"{name} is a bzImage, which has no PVH entry point",
                "give its vmlinux, or have it unpacked: --decompress on",
            )
        from tvmm.boot.bzimage import entry_64

        return False, entry_64(kernel.bzimage, name)
    elf = kernel.elf
    if options.entry == "pvh" or (
        options.entry == "auto" and kernel.bzimage is None and elf.pvh_entry is not None
    ):
        if elf.pvh_entry is None:
            raise ImageError(f"{name} has no PVH note", "use --entry linux64, or build it with CONFIG_PVH=y")
        return True, elf.pvh_entry
    if elf.bits == 32:
        raise ImageError(f"{name} is a 32-bit ELF, which has no 64-bit entry point", "use --entry pvh")
    if elf.entry is None:
        raise ImageError(
            f"{name} has an entry point that is in none of its segments",
            "link it again with the entry in its text",
        )
    return False, elf.entry


def _check_placement(kernel: _ElfKernel | _PackedKernel, ram_end: int, name: str) -> Range:
    """The memory that the kernel takes until it has read the memory map.

    Raises `ImageError` if it is no free RAM.
    """
    if isinstance(kernel, _ElfKernel):
        check_placement(kernel.elf, ram_end, name)
        return kernel.elf.extent

    from tvmm.boot.bzimage import check_bzimage_placement

    check_bzimage_placement(kernel.bzimage, ram_end, name)
    return kernel.bzimage.used


def _command_line(append: str, bzimage: BzImage | None) -> bytes:
    """The command line as the kernel reads it, with its final NUL."""
    try:
        line = append.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigError(
            "the kernel command line has a character that UTF-8 cannot express", "see --append"
        ) from error
    if b"\0" in line:
        raise ConfigError(
            "the kernel command line has a NUL character in it, which would end it", "see --append"
        )
    if len(line) >= COMMAND_LINE_LIMIT:
        raise ConfigError(
            f"the kernel command line is {len(line)} bytes long; there is room for {COMMAND_LINE_LIMIT - 1}",
            "shorten --append",
        )
    if bzimage is not None and len(line) > bzimage.command_line_size:
        raise ConfigError(
            f"the kernel command line is {len(line)} bytes long; this kernel takes "
            f"{bzimage.command_line_size}",
            "shorten --append",
        )
    return line + b"\0"


def _place_initrd(
    initrd: memoryview | bytes | None, used: Range, ram_end: int, bzimage: BzImage | None
) -> Range | None:
    """The highest place that is page-aligned, in low RAM, not above what the kernel can reach, and free."""
    if initrd is None:
        return None
    size = len(initrd)
    if not size:
        raise ImageError("the initrd is empty", "leave --initrd out, or build the file again")
    highest = _INITRD_ADDR_MAX if bzimage is None else bzimage.initrd_addr_max
    top = min(ram_end, highest + 1)
    for end in (top, min(top, used.start)):
        start = (end - size) // _PAGE * _PAGE
        if start >= ONE_MIB and (start >= used.end or start + size <= used.start):
            return Range(start, size)
    raise ImageError(
        f"the initrd ({size} bytes) does not fit beside the kernel ({used.start:#x} to {used.end:#x}) "
        f"into memory below {top:#x}",
        "give the machine more --memory" if top == ram_end else "this kernel takes a smaller initrd only",
    )


def _enter_linux(
    kernel: _ElfKernel | _PackedKernel,
    address: int,
    memory: GuestMemory,
    ram_size: int,
    initrd: Range | None,
    framebuffer: Framebuffer | None,
) -> EntryState:
    """The 64-bit protocol, with the kernel's own setup header if it has one."""
    from tvmm.boot.linux import LinuxEntry, enter_linux, made_header

    bzimage = kernel.bzimage
    if bzimage is None:
        header, what = made_header(COMMAND_LINE_LIMIT - 1, _INITRD_ADDR_MAX), "64-bit ELF"
    else:
        header, what = bzimage.header, f"Linux {bzimage.release or '(unknown release)'}, bzImage"
    if isinstance(kernel, _ElfKernel):
        start = kernel.elf.extent.start
        if bzimage is not None:
            what += ", unpacked by the loader"
    else:
        start = kernel.bzimage.used.start
    entry = LinuxEntry(address, start, header, initrd, what, RSDP, framebuffer)
    return enter_linux(memory, entry, memory_map(ram_size))
