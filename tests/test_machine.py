"""Whole machines with the built-in guest, through the library: life, pause, serial line, memory, ends."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import trio

from tvmm import Machine, MachineConfig
from tvmm.errors import GuestError, HostError, ImageError, UserError
from tvmm.vcpu.runstate import RunState

pytestmark = pytest.mark.guest

KVM_SYSTEM_TIME = 0x4B56_4D01

SECONDS = 30
"""Far above what anything here takes; a hang is to fail and not to stall the suite."""


def config(append: str = "", **options: object) -> MachineConfig:
    """The built-in guest with 64 MiB."""
    return MachineConfig.parse(memory="64M", append=append, **options)  # type: ignore[arg-type]


def leftovers() -> tuple[set[str], set[str]]:
    """What this process has open, and its threads that belong to vCPUs."""
    links = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            links.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return {link for link in links if "kvm" in link or "tvmm" in link}, {
        thread.name for thread in threading.enumerate() if "vcpu" in thread.name
    }


async def test_boots_answers_and_powers_off() -> None:
    """The shell's prompt comes, a command is answered, power off ends the machine with status 0."""
    with trio.fail_after(SECONDS):
        async with Machine(config()) as vm:
            assert vm.run_state() == "prelaunch"
            await vm.resume()
            banner = await vm.wait_serial("tvmm> ")
            assert b"64 MiB, 1 CPU" in banner
            assert vm.run_state() == "running"
            await vm.send_serial("echo one two\n")
            assert b"one two" in await vm.wait_serial("tvmm> ")
            await vm.send_serial("poweroff\n")
            outcome = await vm.wait()
        assert (outcome.kind, outcome.status) == ("poweroff", 0)
        assert vm.run_state() == "shutdown"


@pytest.mark.parametrize("cpus", [1, 2, 4])
async def test_all_cpus_start_and_count(cpus: int) -> None:
    """Every CPU that the MP table names comes up by INIT and SIPI and works."""
    with trio.fail_after(SECONDS):
        async with Machine(config("run=cpus then=poweroff", cpus=cpus)) as vm:
            await vm.resume()
            assert (await vm.wait()).kind == "poweroff"
            for index in range(cpus):
                await vm.wait_serial(f"cpu {index}")


async def test_nothing_is_left_behind() -> None:
    """After the block no descriptor, mapping or thread of the machine is left."""
    before = leftovers()
    with trio.fail_after(SECONDS):
        async with Machine(config(cpus=2)) as vm:
            await vm.resume()
            await vm.wait_serial("tvmm> ")
    assert leftovers() == before


async def test_pause_stops_the_guest_and_resume_goes_on() -> None:
    """While paused the guest says nothing and its registers stand still; afterwards it answers."""
    with trio.fail_after(SECONDS):
        async with Machine(config(cpus=2)) as vm:
            await vm.resume()
            await vm.wait_serial("tvmm> ")
            async with vm.paused():
                assert vm.run_state() == "paused"
                assert all(vcpu.state is RunState.PAUSED for vcpu in vm.vcpus)
                first = vm.vcpus[0].registers
                await vm.send_serial("echo late\n")
                assert vm.vcpus[0].registers == first
            assert vm.run_state() == "running"
            assert b"late" in await vm.wait_serial("tvmm> ")


async def test_memory_is_shared_with_the_guest() -> None:
    """What is written into guest memory from outside is what the guest sees, and the other way round."""
    with trio.fail_after(SECONDS):
        async with Machine(config()) as vm:
            await vm.resume()
            await vm.wait_serial("tvmm> ")
            vm.memory.write(0x200_0000, b"\xef\xbe\xad\xde")
            await vm.send_serial("mem 0x2000000 16\n")
            assert b"ef be ad de" in await vm.wait_serial("tvmm> ")
            await vm.send_serial("poke 0x2000010 0x12345678\n")
            await vm.wait_serial("tvmm> ")
            assert vm.memory.read(0x200_0010, 4) == b"\x78\x56\x34\x12"


async def test_two_machines_in_one_process() -> None:
    """Two guests run side by side and do not hear of one another."""
    with trio.fail_after(SECONDS):
        async with Machine(config()) as left, Machine(config()) as right:
            for vm, word in ((left, "left"), (right, "right")):
                await vm.resume()
                await vm.wait_serial("tvmm> ")
                await vm.send_serial(f"echo {word}\n")
            assert b"left" in await left.wait_serial("left\r\n")
            assert b"right" in await right.wait_serial("right\r\n")
            left.quit()
            assert (await left.wait()).kind == "quit"
            await right.send_serial("echo still here\n")
            await right.wait_serial("still here\r\n")


async def test_reboot_starts_anew() -> None:
    """A reset by the guest boots it again, with memory as after power-on."""
    with trio.fail_after(SECONDS):
        async with Machine(config()) as vm:
            await vm.resume()
            await vm.wait_serial("tvmm> ")
            vm.memory.write(0x200_0000, b"gone after reset")
            await vm.send_serial("reboot\n")
            await vm.wait_serial("64 MiB")
            await vm.wait_serial("tvmm> ")
            assert vm.memory.read(0x200_0000, 4) == bytes(4)
            await vm.send_serial("echo again\n")
            await vm.wait_serial("again\r\n")


async def test_reboot_with_four_cpus() -> None:
    """After a reset the other CPUs wait for SIPI again and come up again."""
    with trio.fail_after(SECONDS):
        async with Machine(config(cpus=4)) as vm:
            await vm.resume()
            for _ in range(3):
                await vm.wait_serial("tvmm> ")
                await vm.send_serial("cpus\n")
                await vm.wait_serial("tvmm> ")
                await vm.send_serial("reboot\n")


async def test_no_reboot_ends_at_a_reset() -> None:
    """With reboot off, a reset ends the machine."""
    with trio.fail_after(SECONDS):
        async with Machine(config("then=reboot", reboot=False)) as vm:
            assert (await vm.run()).kind == "reset"


async def test_reset_from_outside() -> None:
    """The reset line works while the guest spins with interrupts off."""
    with trio.fail_after(SECONDS):
        async with Machine(config()) as vm:
            await vm.resume()
            await vm.wait_serial("tvmm> ")
            await vm.send_serial("spinoff\n")
            await vm.wait_serial("spinoff")
            await vm.reset()
            await vm.wait_serial("tvmm> ")


async def test_the_timer_interrupt_is_where_the_tables_say() -> None:
    """The PIT's interrupt arrives at the IOAPIC pin that the MP table names."""
    with trio.fail_after(SECONDS):
        async with Machine(config("run=timer,100,20,pit then=poweroff")) as vm:
            await vm.resume()
            await vm.wait_serial("20 ticks of the PIT")
            assert (await vm.wait()).kind == "poweroff"


async def test_a_reset_forgets_the_paravirtual_clock() -> None:
    """KVM does not go on writing the last guest's clock page into the memory of the next."""
    with trio.fail_after(SECONDS):
        async with Machine(config()) as vm:
            await vm.pause()
            vm.vcpus[0].kvm.set_msrs([(KVM_SYSTEM_TIME, 0x200_0000 | 1)])
            assert vm.vcpus[0].kvm.get_msrs([KVM_SYSTEM_TIME]) == {KVM_SYSTEM_TIME: 0x200_0000 | 1}
            await vm.reset()
            assert vm.vcpus[0].kvm.get_msrs([KVM_SYSTEM_TIME]) == {KVM_SYSTEM_TIME: 0}
            await vm.resume()
            await vm.wait_serial("tvmm> ")
            assert vm.memory.read(0x200_0000, 32) == bytes(32)


async def test_output_that_went_by_unread_is_told() -> None:
    """A wait after more than 64 KiB of unread output says how much of it is missing, and goes on with the rest."""
    with trio.fail_after(SECONDS):
        async with Machine(config("run=emit,80000")) as vm:
            await vm.resume()
            with vm.hub.follow(holding=False) as follower:
                while follower.position < 80000:
                    piece = await follower.wait(1 << 16)
                    assert piece is not None
                    follower.took(piece)
            output = await vm.wait_serial("tvmm> ")
    assert b"bytes skipped]" in output
    assert b"emitted 80000 bytes" in output


async def test_listeners_hear_what_happens_also_beside_the_control_socket(tmp_path: Path) -> None:
    """A library user's listener and the control server do not displace each other."""
    heard: list[str] = []
    with trio.fail_after(SECONDS):
        async with Machine(config("then=poweroff", control=tmp_path / "control.sock")) as vm:
            vm.listeners.append(lambda name, data: heard.append(name))
            assert (tmp_path / "control.sock").exists()
            await vm.run()
    assert heard == ["RESUME", "SHUTDOWN"]
    assert not (tmp_path / "control.sock").exists()


async def test_a_control_path_that_is_taken_is_an_error_before_the_guest_runs(tmp_path: Path) -> None:
    """Nothing has run, nothing is left."""
    (tmp_path / "control.sock").write_text("something else")
    before = leftovers()
    with trio.fail_after(SECONDS), pytest.raises(HostError, match=r"control\.sock"):
        async with Machine(config(control=tmp_path / "control.sock")):
            pass
    assert leftovers() == before
    assert (tmp_path / "control.sock").read_text() == "something else"


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero"])
async def test_a_kernel_that_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    """A pipe that nobody writes to and a device without end neither block nor fill memory."""
    path = tmp_path / "fifo" if kind == "fifo" else Path(kind)
    if kind == "fifo":
        os.mkfifo(path)
    with trio.fail_after(SECONDS), pytest.raises(ImageError, match="no regular file"):
        async with Machine(config(kernel=path)):
            pass


async def test_power_button() -> None:
    """The guest is asked to power off and does."""
    with trio.fail_after(SECONDS):
        async with Machine(config()) as vm:
            await vm.resume()
            await vm.wait_serial("tvmm> ")
            outcome = await vm.shutdown()
    assert outcome.kind == "poweroff"


async def test_a_paused_guest_has_no_use_for_its_power_button() -> None:
    """Nobody has to wait for a guest that cannot react."""
    with trio.fail_after(SECONDS):
        async with Machine(config()) as vm:
            with pytest.raises(UserError, match="paused"):
                vm.powerdown()


async def test_a_guest_that_ignores_the_power_button_is_ended() -> None:
    """After the time that it gets, the machine ends all the same."""
    with trio.fail_after(SECONDS):
        async with Machine(config("run=spinoff", powerdown_timeout="200ms")) as vm:
            await vm.resume()
            await vm.wait_serial("CPU")
            outcome = await vm.shutdown()
    assert outcome.kind == "quit"


async def test_triple_fault_ends_with_a_report() -> None:
    """The report names the fault, and holds registers and bytes."""
    with trio.fail_after(SECONDS):
        async with Machine(config("run=crash")) as vm:
            outcome = await vm.run()
    assert (outcome.kind, outcome.status) == ("crashed", 3)
    for words in ("triple fault", "rip", "cr3", "bytes at rip"):
        assert words in outcome.report


async def test_an_instruction_that_kvm_cannot_emulate() -> None:
    """With the assist it is done; without, the machine ends with a report of its bytes. Real hardware just runs it."""
    with trio.fail_after(SECONDS):
        async with Machine(config("run=badop then=poweroff")) as vm:
            assert (await vm.run()).kind == "poweroff"
            if vm.board.emulated_kernel:
                assert vm.exits.assists["crc32"] >= 1
        async with Machine(config("run=badop then=poweroff", assist="off")) as vm:
            outcome = await vm.run()
            if vm.board.emulated_kernel:
                assert outcome.kind == "crashed"
                assert "cannot emulate" in outcome.report
                assert "f2 0f 38 f" in outcome.report or "f2 48 0f 38 f" in outcome.report


async def test_halt_of_all_cpus_ends_the_machine() -> None:
    """HLT with interrupts off on every CPU is noticed although KVM reports no exit."""
    with trio.fail_after(SECONDS):
        async with Machine(config("run=halt", cpus=2)) as vm:
            outcome = await vm.run()
    assert (outcome.kind, outcome.status) == ("halted", 0)


async def test_an_idle_guest_is_not_taken_for_halted() -> None:
    """A shell that sleeps until a key comes stays alive past several looks."""
    with trio.fail_after(SECONDS):
        async with Machine(config()) as vm:
            await vm.resume()
            await vm.wait_serial("tvmm> ")
            with trio.move_on_after(2.5):
                await vm.wait()
            assert vm.outcome is None
            await vm.send_serial("echo awake\n")
            await vm.wait_serial("awake\r\n")


async def test_debug_exit_gives_its_status() -> None:
    """`isa-debug-exit` ends the machine with (value << 1) | 1, as QEMU's."""
    with trio.fail_after(SECONDS):
        async with Machine(config("run=exit,21", device=["isa-debug-exit,iobase=0x501,iosize=2"])) as vm:
            outcome = await vm.run()
    assert (outcome.kind, outcome.status) == ("debug-exit", 43)


@pytest.mark.parametrize("order", ["run=spinoff", "run=smp,600", "run=emit,100000000"])
async def test_cancelling_the_scope_ends_everything(order: str) -> None:
    """Whatever the guest does, cancellation gets through, and nothing is left."""
    before = leftovers()
    with trio.fail_after(SECONDS):
        with trio.CancelScope() as scope:
            async with Machine(config(order, cpus=4)) as vm:
                await vm.resume()
                await vm.wait_serial("CPU")
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
    assert leftovers() == before


async def test_a_failing_task_ends_the_machine_with_its_cause() -> None:
    """An exception in the block comes out as itself, and the machine is gone."""
    before = leftovers()
    with trio.fail_after(SECONDS), pytest.raises(ZeroDivisionError):
        await _fail_inside()
    assert leftovers() == before


async def _fail_inside() -> None:
    async with Machine(config(cpus=2)) as vm:
        await vm.resume()
        await vm.wait_serial("tvmm> ")
        _ = 1 // 0


async def test_a_crashing_device_ends_the_machine_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in a device model, on a vCPU's thread, is not swallowed."""
    from tvmm.devices.misc import PostPort

    def broken(self: PostPort, offset: int, size: int, value: int) -> None:
        raise LookupError("a bug in a device")

    monkeypatch.setattr(PostPort, "write", broken)
    before = leftovers()
    with trio.fail_after(SECONDS), pytest.raises(LookupError, match="a bug in a device"):
        async with Machine(config("run=pio,10")) as vm:
            await vm.run()
    assert leftovers() == before


async def test_waiting_for_words_that_never_come_ends_with_the_output() -> None:
    """When the machine's output ends, a wait for more says so."""
    with trio.fail_after(SECONDS):
        async with Machine(config("then=poweroff")) as vm:
            await vm.resume()
            with pytest.raises(GuestError, match="xyzzy"):
                await vm.wait_serial("xyzzy")


async def test_resuming_an_ended_machine_is_refused() -> None:
    """One clear error."""
    with trio.fail_after(SECONDS):
        async with Machine(config("then=poweroff")) as vm:
            await vm.run()
            with pytest.raises(UserError, match="has ended"):
                await vm.resume()


async def test_serial_to_a_file(tmp_path: Path) -> None:
    """Every byte is in the file when the machine is gone."""
    path = tmp_path / "serial.log"
    with trio.fail_after(SECONDS):
        async with Machine(config("run=emit,20000 then=poweroff", serial=f"file={path}")) as vm:
            await vm.run()
    text = path.read_bytes()
    assert b"emitted 20000 bytes" in text


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"kernel": "/nonexistent/vmlinux"}, ImageError, "no such kernel"),
        ({"kernel": "/"}, ImageError, "directory"),
        ({"kernel": __file__}, ImageError, "test_machine.py"),
        ({"memory": "4096G"}, HostError, "more than the host"),
    ],
)
async def test_what_cannot_start_is_one_error(options: dict[str, str], kind: type[UserError], words: str) -> None:
    """The error says what it is, and nothing is left behind."""
    before = leftovers()
    with trio.fail_after(SECONDS), pytest.raises(kind, match=words):
        async with Machine(MachineConfig.parse(**options)):
            pass
    assert leftovers() == before
