"""A VM that runs a loop in 64-bit user mode and stores all of its registers again and again, with a timer's ticks.

The loop has no exits: what it finds in the registers is in RAM for the test to read. The timer of the local APIC (in
x2APIC mode) interrupts it; the handler counts, and comes out through a port, so that a test can go from tick to tick
on its own thread.
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING

from tvmm.config.memory import MemoryConfig
from tvmm.kvm.system import Kvm
from tvmm.kvm.vcpu import KICK, step
from tvmm.memory.ram import GuestRam
from tvmm.vcpu.cpuid import policy
from tvmm.vcpu.msrs import saved
from tvmm.vcpu.registers import Registers, write_registers

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tvmm.kvm.vcpu import KvmVcpu

PATIENCE = 20.0
"""Seconds without an exit after which a guest hangs: KVM_RUN on the test's own thread would never end."""

__all__ = ["StateVm", "initial_image", "pattern"]

PML4, PDPT, PD, GDT, IDT, TSS = 0x10000, 0x11000, 0x12000, 0x13000, 0x14000, 0x15000
LOOP, HANDLER, KERNEL_STACK, USER_STACK = 0x20000, 0x21000, 0x31000, 0x33000
GENERAL, VECTORS, LEGACY, BASES = 0x40000, 0x40100, 0x40400, 0x40700
COUNTER, TICKS, SCRATCH, FS_AREA, GS_AREA = 0x41000, 0x41008, 0x41010, 0x42000, 0x43000
CLOCK_PAGE = 0x44000

KERNEL_CODE, USER_DATA, USER_CODE, TASK = 0x08, 0x10, 0x18, 0x20
VECTOR = 0x40
TICK_PORT = 0xF4
USER_ACCESS = 7
"""Present, writable, for user mode."""

NAMES = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
"""In the order of their numbers, in which the loop stores them."""


def _absolute(opcode: str, register: int, address: int, rex: int = 0x48) -> bytes:
    """An instruction with a 32-bit absolute address as operand."""
    prefix = bytes((rex | (register & 8) >> 1,)) if rex else b""
    modrm = bytes((0x04 | (register & 7) << 3, 0x25))
    return prefix + bytes.fromhex(opcode) + modrm + address.to_bytes(4, "little")


def _loop() -> bytes:
    code = b"".join(_absolute("89", number, GENERAL + 8 * number) for number in range(16))  # mov [..], reg
    code += _absolute("0fae", 0, LEGACY)  # fxsave64 [..]
    for number in range(16):  # vmovups [..], ymm
        code += bytes((0xC5, 0x7C if number & 8 else 0xFC))
        code += _absolute("11", number & 7, VECTORS + 32 * number, rex=0)
    code += _absolute("89", 0, SCRATCH)
    for index, prefix in enumerate(("64", "65")):  # mov rax, fs:[0]; mov [..], rax
        code += bytes.fromhex(prefix) + _absolute("8b", 0, 0) + _absolute("89", 0, BASES + 8 * index)
    code += _absolute("8b", 0, SCRATCH)  # mov rax, [..]
    code += _absolute("ff", 0, COUNTER)  # inc qword [..]
    return code + b"\xe9" + (-len(code) - 5).to_bytes(4, "little", signed=True)


def _handler() -> bytes:
    code = bytes.fromhex("50 51 52")  # push rax, rcx, rdx
    code += bytes.fromhex("b9 0b080000 31c0 31d2 0f30")  # x2APIC end of interrupt
    code += _absolute("ff", 0, TICKS) + bytes((0xE7, TICK_PORT))  # inc qword [..]; out port, eax
    return code + bytes.fromhex("5a 59 58 48cf")  # pop rdx, rcx, rax; iretq


def _tables(ram: GuestRam) -> None:
    ram.write(PML4, (PDPT | USER_ACCESS).to_bytes(8, "little"))
    ram.write(PDPT, (PD | USER_ACCESS).to_bytes(8, "little"))
    ram.write(PD, (USER_ACCESS | 0x80).to_bytes(8, "little"))  # One page of 2 MiB.
    task = 0x0000_8900_0000_0067 | TSS << 16
    ram.write(GDT, struct.pack("<6Q", 0, 0x00AF_9B00_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF, task, 0))
    ram.write(TSS + 4, KERNEL_STACK.to_bytes(8, "little"))
    gate = struct.pack("<HHBBHII", HANDLER & 0xFFFF, KERNEL_CODE, 0, 0x8E, HANDLER >> 16, 0, 0)
    ram.write(IDT + 16 * VECTOR, gate)


class StateVm:
    """One vCPU with 2 MiB of RAM; it can run as soon as `start` or a saved state is loaded."""

    def __init__(self, stack: ExitStack) -> None:
        with Kvm() as kvm:
            self.vm = kvm.create_vm()
            stack.callback(self.vm.close)
            supported = kvm.supported_cpuid()
            self.msrs = saved(kvm.msr_indices())
        self.vm.report_triple_faults()
        self.vm.create_irqchip()
        self.ram = GuestRam(MemoryConfig(2 << 20))
        stack.callback(self.ram.close)
        stack.callback(self.vm.release_memory)
        for slot, region in enumerate(self.ram.regions):
            block = self.ram.blocks[region.block]
            self.vm.set_memory(slot, region.gpa, block.view[region.offset : region.offset + region.size])
        self.vcpu: KvmVcpu = self.vm.create_vcpu(0)
        stack.callback(self.vcpu.close)
        self.vcpu.set_cpuid(policy("host", (), supported))
        self.vcpu.enter_thread()
        stack.callback(self.vcpu.leave_thread)

    def start(self, registers: dict[str, int], timer: int, count: int) -> None:
        """Into the loop with these general registers; `timer` is the mode in the APIC's timer register."""
        _tables(self.ram)
        self.ram.write(LOOP, _loop())
        self.ram.write(HANDLER, _handler())
        cpu = self.vcpu
        sregs = cpu.get_sregs()
        for name in ("cs", "ds", "es", "ss", "fs", "gs"):
            segment, is_code = getattr(sregs, name), name == "cs"
            segment.selector, segment.type = (USER_CODE | 3, 11) if is_code else (USER_DATA | 3, 3)
            segment.base, segment.limit, segment.dpl, segment.unusable = 0, 0xFFFF_FFFF, 3, 0
            segment.present = segment.s = segment.g = 1
            segment.l, segment.db = is_code, not is_code
        sregs.fs.base, sregs.gs.base = FS_AREA, GS_AREA
        sregs.tr.selector, sregs.tr.base, sregs.tr.limit, sregs.tr.type = TASK, TSS, 0x67, 11
        sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit = GDT, 0x2F, IDT, 0xFFF
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x8000_0033, PML4, 0x4_0620, 0xD01
        sregs.apic_base |= 0xC00  # x2APIC
        cpu.set_sregs(sregs)
        write_registers(cpu, Registers(**registers, rip=LOOP, rflags=0x202))
        lapic = cpu.get_lapic()
        # Enabled, timer register, undivided, initial and current count.
        words = ((0xF0, 0x1FF), (0x320, VECTOR | timer << 17), (0x3E0, 0xB), (0x380, count), (0x390, count))
        for offset, value in words:
            lapic[offset : offset + 4] = value.to_bytes(4, "little")
        cpu.set_lapic(lapic)

    def copy_ram(self, source: StateVm) -> None:
        """All of another VM's RAM."""
        self.ram.write(0, bytes(source.ram.window(0, 0xA0000)))

    def number(self, address: int) -> int:
        """Eight bytes of RAM."""
        return int.from_bytes(self.ram.read(address, 8), "little")

    def run(self) -> bool:
        """Run until a tick comes out, or until a kick: whether it was a tick. A guest that hangs fails the test."""
        hangs = threading.Timer(PATIENCE, self.vcpu.kick)
        hangs.start()
        try:
            code = step(self.vcpu.raw, 0)
        finally:
            late = hangs.finished.is_set()
            hangs.cancel()
            hangs.join()
        assert not late, "no tick and no kick"
        assert code in (KICK, TICK_PORT << 8 | 4), f"{code:#x} {self.vcpu.exit_words()}"
        return bool(code != KICK)

    def run_to_tick(self) -> None:
        """Run until the handler comes out, with nothing left half done."""
        assert self.run()
        self.settle()

    def settle(self) -> None:
        """Complete a pending access, as a pause does."""
        self.vcpu.kick()
        assert step(self.vcpu.raw, 0) == KICK
        self.vcpu.unkick()


def pattern(number: int, count: int) -> bytes:
    """Bytes that tell registers apart."""
    return bytes((number * 37 + position * 11 + 1) & 0xFF for position in range(count))


def initial_image(size: int) -> bytes:
    """An XSAVE image with all of x87, SSE and AVX in use, and rounding modes that nobody else has."""
    image = bytearray(size)
    image[0:2] = (0x0B7F).to_bytes(2, "little")
    image[4] = 0xFF
    image[24:28] = (0x3F80).to_bytes(4, "little")
    for number in range(8):
        image[32 + 16 * number : 40 + 16 * number] = pattern(number, 7) + b"\x80"
        image[40 + 16 * number : 42 + 16 * number] = (0x3FFF + number).to_bytes(2, "little")
    for number in range(16):
        image[160 + 16 * number : 176 + 16 * number] = pattern(number + 8, 16)
        image[576 + 16 * number : 592 + 16 * number] = pattern(number + 40, 16)
    image[512] = 7
    return bytes(image)
