"""vCPU threads on real KVM with a few bytes of real-mode code: exits, pause, kick, finish, reports."""

from __future__ import annotations

import threading

import pytest
import trio

from tests.support.rawvm import CODE, RecordingPort, raw_vm, wait_set
from tvmm.bus import PortBus
from tvmm.kvm.vcpu import PIO_IN
from tvmm.vcpu.runstate import RunEvent, RunState
from tvmm.vcpu.thread import Vcpu

pytestmark = pytest.mark.kvm

PORT = 0x200
MOV_DX_PORT = bytes((0xBA, PORT & 0xFF, PORT >> 8))
SPIN = b"\xeb\xfe"
OUT_DX_AL, IN_AL_DX, OUT_DX_AX, IN_AX_DX = b"\xee", b"\xec", b"\xef", b"\xed"


def mov_ax(value: int) -> bytes:
    """MOV AX, value."""
    return b"\xb8" + value.to_bytes(2, "little")


def test_port_keys_agree() -> None:
    """What the C step returns for a port read is the key under which the bus has it."""
    assert PIO_IN == PortBus.READ


async def test_out_reaches_the_device() -> None:
    """OUT of 1 and 2 bytes arrives with offset, size and value."""
    device = RecordingPort()
    async with raw_vm(MOV_DX_PORT + mov_ax(0x1234) + OUT_DX_AL + OUT_DX_AX + SPIN) as vm:
        vm.board.ports.add(PORT, 8, device, "test")
        vm.vcpus[0].request(RunEvent.RESUME)
        with trio.fail_after(10):
            while len(device.written) < 2:
                await wait_set(device.touched)
                device.touched.clear()
    assert device.written == [(0, 1, 0x34), (0, 2, 0x1234)]


async def test_in_returns_the_devices_answer() -> None:
    """What a device answers to IN is in AX afterwards, and goes out again."""
    device, sink = RecordingPort([0xBEEF]), RecordingPort()
    code = MOV_DX_PORT + IN_AX_DX + b"\xba\x00\x03" + OUT_DX_AX + SPIN
    async with raw_vm(code) as vm:
        vm.board.ports.add(PORT, 8, device, "source")
        vm.board.ports.add(0x300, 8, sink, "sink")
        vm.vcpus[0].request(RunEvent.RESUME)
        with trio.fail_after(10):
            await wait_set(sink.touched)
    assert sink.written == [(0, 2, 0xBEEF)]


async def test_pause_finds_the_pending_access_complete() -> None:
    """A pause asked for while IN is at the device leaves RIP behind the IN, and the answer in AL."""
    async with raw_vm(MOV_DX_PORT + IN_AL_DX + SPIN) as vm:
        vcpu = vm.vcpus[0]

        class Pausing(RecordingPort):
            def read(self, offset: int, size: int) -> int:
                vcpu.hold()
                return super().read(offset, size)

        device = Pausing([0x5A])
        vm.board.ports.add(PORT, 8, device, "test")
        vcpu.request(RunEvent.RESUME)
        with trio.fail_after(10):
            await wait_set(device.touched)
            await vcpu.wait_not_running()
        registers = vcpu.registers
        assert vcpu.state is RunState.PAUSED
        assert registers.rip == CODE + len(MOV_DX_PORT) + len(IN_AL_DX)
        assert registers.rax & 0xFF == 0x5A
        assert device.reads == 1


async def test_pause_and_resume_many_times() -> None:
    """A spinning vCPU can be paused and resumed over and over; registers are readable each time."""
    async with raw_vm(b"\x40" + b"\xeb\xfd") as vm:  # INC AX; JMP back
        vcpu = vm.vcpus[0]
        with trio.fail_after(20):
            for _ in range(100):
                vcpu.request(RunEvent.RESUME)
                vcpu.hold()
                await vcpu.wait_not_running()
                assert vcpu.registers.rip in (CODE, CODE + 1)


async def test_registers_of_a_running_vcpu_are_refused() -> None:
    """Reading registers while the thread runs is an error, not a race."""
    device = RecordingPort()
    async with raw_vm(MOV_DX_PORT + OUT_DX_AL + SPIN) as vm:
        vm.board.ports.add(PORT, 1, device, "test")
        vm.vcpus[0].request(RunEvent.RESUME)
        with trio.fail_after(10):
            await wait_set(device.touched)
        with pytest.raises(RuntimeError, match="running"):
            _ = vm.vcpus[0].registers


@pytest.mark.parametrize("cpus", [1, 2, 4])
async def test_cancelling_ends_spinning_vcpus(cpus: int) -> None:
    """Leaving the block ends threads whose guests spin with interrupts off."""
    with trio.fail_after(10):
        async with raw_vm(b"\xfa" + SPIN, cpus) as vm:  # CLI
            for vcpu in vm.vcpus:
                vcpu.request(RunEvent.RESUME)
        assert all(vcpu.state is RunState.FINISHED for vcpu in vm.vcpus)


def enter_protected_mode(vcpu: Vcpu) -> None:
    """Flat 32-bit segments and an IDT without room for a single gate."""
    sregs = vcpu.kvm.get_sregs()
    for name in ("cs", "ds", "es", "ss"):
        segment = getattr(sregs, name)
        segment.base, segment.limit, segment.selector = 0, 0xFFFF_FFFF, 0x10
        segment.type, segment.db, segment.s, segment.g, segment.present = 3, 1, 1, 1, 1
    sregs.cs.type, sregs.cs.selector = 11, 0x08
    sregs.cr0 |= 1
    sregs.idt.limit = 0
    vcpu.kvm.set_sregs(sregs)


async def test_triple_fault_is_reported() -> None:
    """An exception with an empty IDT ends in a report that names the triple fault and the registers."""
    async with raw_vm(b"\x0f\x0b") as vm:  # UD2
        enter_protected_mode(vm.vcpus[0])
        vm.vcpus[0].request(RunEvent.RESUME)
        with trio.fail_after(10):
            await wait_set(vm.crashed)
            await vm.vcpus[0].wait_not_running()
    (report,) = vm.crashes
    assert "triple fault" in report
    assert "rip" in report
    assert "cr0" in report


async def test_code_outside_ram_is_reported() -> None:
    """A jump to where no RAM is stops the machine with the address, on whichever way KVM tells it."""
    async with raw_vm(b"\xea\x00\x00\xff\xff") as vm:  # JMP FFFF:0000, above 640 KiB of a 2 MiB guest: RAM
        vm.ram.write(0xFFFF0, b"\x66\xea\x00\x00\x00\x00\xff\xff")
        vcpu = vm.vcpus[0]
        registers = vcpu.registers
        sregs = vcpu.kvm.get_sregs()
        sregs.cs.base = 0xFFFF_0000
        vcpu.kvm.set_sregs(sregs)
        vcpu.registers = registers._replace(rip=0)
        vcpu.request(RunEvent.RESUME)
        with trio.fail_after(10):
            await wait_set(vm.crashed)
    assert "vCPU 0" in vm.crashes[0]


async def test_unknown_instruction_is_reported_with_its_bytes() -> None:
    """What neither KVM nor the assist can do is shown in the report."""
    code = b"\x66\x0f\x3a\x44\xc1\x00" + SPIN  # PCLMULQDQ in real mode
    async with raw_vm(code) as vm:
        vm.ram.write(0, b"\x00\x20\x00\x00" * 256)
        vm.ram.write(0x2000, b"\xf4")  # every vector: HLT, if the CPU raises an exception instead
        vm.vcpus[0].request(RunEvent.RESUME)
        with trio.move_on_after(3):
            await wait_set(vm.crashed)
    for report in vm.crashes:
        assert "66 0f 3a 44 c1 00" in report


async def test_string_io_arrives_element_by_element() -> None:
    """REP OUTSB sends each byte of guest memory in order."""
    device = RecordingPort()
    code = MOV_DX_PORT + b"\xbe\x00\x20" + b"\xb9\x05\x00" + b"\xf3\x6e" + SPIN
    async with raw_vm(code) as vm:
        vm.board.ports.add(PORT, 1, device, "test")
        vm.ram.write(0x2000, b"hello")
        vm.vcpus[0].request(RunEvent.RESUME)
        with trio.fail_after(10):
            while len(device.written) < 5:
                await wait_set(device.touched)
                device.touched.clear()
    assert bytes(value for _, _, value in device.written) == b"hello"


async def test_a_full_device_holds_the_vcpu_until_it_has_room() -> None:
    """A write that returns a hold keeps the guest there, also over a pause, which gets through; room lets it go on."""
    released: list[bool] = []
    waits = threading.Event()

    class Full(RecordingPort):
        def write(self, offset: int, size: int, value: int):  # type: ignore[no-untyped-def]
            super().write(offset, size, value)
            return self

        def call_when_ready(self, callback) -> bool:  # type: ignore[no-untyped-def]
            if released:
                return False
            self.callback = callback
            waits.set()
            return True

    device = Full()
    async with raw_vm(MOV_DX_PORT + OUT_DX_AL + OUT_DX_AL + SPIN) as vm:
        vm.board.ports.add(PORT, 1, device, "test")
        vcpu = vm.vcpus[0]
        vcpu.request(RunEvent.RESUME)
        with trio.fail_after(10):
            await wait_set(waits)
            vcpu.hold()
            await vcpu.wait_not_running()
            waits.clear()
            vcpu.request(RunEvent.RESUME)
            await wait_set(waits)
            assert len(device.written) == 1
            device.touched.clear()
            released.append(True)
            device.callback()
            await wait_set(device.touched)
    assert len(device.written) == 2
