"""Guests that move between two machines of this process, with all that they have."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.support.patience import PATIENT
from tvmm import Machine, MachineConfig
from tvmm.errors import UserError
from tvmm.testing import LONGEST_PAUSE_MS, PROMPT, VmPair, pair

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]


async def ask(vm: Machine, line: str) -> str:
    """What the guest prints for a command, up to the next prompt."""
    await vm.send_serial(line + "\n")
    return (await vm.wait_serial(PROMPT)).decode(errors="replace")


def image(tmp_path: Path, size: int = 64 << 20) -> str:
    """An empty disk."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(size)
    return str(path)


# --- what every guest can do, on a machine that was booted and on one whose guest has come from elsewhere ---


async def test_shell_and_memory(any_vm: Machine) -> None:
    """Pages are written and found as they were written."""
    assert " 0 errors" in await ask(any_vm, "dirty 0 16M 1")
    assert "checked 4096 pages: 0 errors" in await ask(any_vm, "check")


@pytest.mark.vm(cpus=2)
async def test_processors(any_vm: Machine) -> None:
    """The second one starts and counts."""
    assert "2" in await ask(any_vm, "cpus")
    assert "error" not in await ask(any_vm, "smp 1")


async def test_timers_and_clocks(any_vm: Machine) -> None:
    """Local APIC, PIT, RTC: their interrupts come, and the clocks agree."""
    assert "20" in await ask(any_vm, "timer 100 20")
    assert "20" in await ask(any_vm, "timer 100 20 pit")
    assert "error" not in await ask(any_vm, "rtc")
    assert "error" not in await ask(any_vm, "clock")


async def test_reboot(any_vm: Machine) -> None:
    """The kernel is loaded anew, wherever the guest was started."""
    await any_vm.send_serial("reboot\n")
    await any_vm.wait_serial("built-in guest")
    await any_vm.wait_serial(PROMPT)
    assert "PVH" in await ask(any_vm, "info")


async def test_power_off(any_vm: Machine) -> None:
    """ACPI's registers are where the guest knows them to be."""
    await any_vm.send_serial("poweroff\n")
    assert (await any_vm.wait()).kind == "poweroff"


async def test_reset_by_the_user(any_vm: Machine) -> None:
    """As by a button."""
    await any_vm.reset()
    await any_vm.wait_serial(PROMPT)


# --- on the move ---


@pytest.mark.parametrize("transport", ["pci", "mmio"])
async def test_under_load(tmp_path: Path, transport: str) -> None:
    """Pages, a disk as fast as it goes and clocks, moved in the middle: nothing is lost, wrong or twice."""
    disk = f"{image(tmp_path)},transport={transport}"
    config = MachineConfig.parse(memory="128M", disk=[disk], device=["virtio-console", "virtio-rng"])
    with trio.fail_after(100):
        async with pair(config) as machines:
            await machines.source.send_serial("churn 5 rate=5000 pages=32M iops=0\n")
            await machines.source.wait_serial("churning")
            vm = await machines.migrate()
            told = (await vm.wait_serial(PROMPT)).decode()
            assert " 0 page errors" in told, told
            assert " 0 disk errors" in told, told
            assert "clock 0 backward" in told, told
            assert machines.source.outcome is None or machines.source.outcome.kind == "migrated"


async def test_there_and_back_and_on(tmp_path: Path) -> None:
    """Three moves of one guest, which writes pages all the time."""
    from tvmm.config.incoming import IncomingConfig

    config = MachineConfig.parse(memory="64M", disk=[image(tmp_path)])
    with trio.fail_after(100):
        async with pair(config) as machines:
            await machines.source.send_serial("churn 60 rate=2000 pages=16M\n")
            await machines.source.wait_serial("churning")
            here = await machines.migrate()
            for hop in range(2):
                uri = f"unix:{tmp_path}/hop{hop}"
                # Kept open by the machine before it, as a chain; the test ends all of them.
                next_one = Machine(config._replace(incoming=IncomingConfig(uri)))
                async with next_one as there:
                    await here.migrate(uri, PATIENT)
                    await there.wait_arrival()
                    if hop:
                        break
                    second = f"unix:{tmp_path}/last"
                    async with Machine(config._replace(incoming=IncomingConfig(second))) as last:
                        await there.migrate(second, PATIENT)
                        await last.wait_arrival()
                        await last.send_serial("q")
                        told = (await last.wait_serial(PROMPT)).decode()
                        assert " 0 page errors" in told, told
                        assert " 0 disk errors" in told, told
                break


@pytest.mark.vm(device=["virtio-console", "virtio-rng"], cpus=2)
async def test_verified(vm_pair: VmPair) -> None:
    """Hashes of RAM and the sections of all devices are compared while the guest is paused."""
    await vm_pair.source.send_serial("dirty 20000 16M 30\n")
    await vm_pair.source.migrate(vm_pair.uri, PATIENT._replace(verify=True))
    await vm_pair.destination.send_serial("q")
    assert " 0 errors" in (await vm_pair.destination.wait_serial(PROMPT)).decode()


async def test_a_paused_guest_arrives_paused(vm_pair: VmPair) -> None:
    """And goes on when somebody wants it to."""
    await vm_pair.source.pause()
    there = await vm_pair.migrate()
    assert there.run_state() == "paused"
    await there.resume()
    assert "0 errors" in await ask(there, "check")


async def test_a_machine_that_waits_cannot_be_started(vm_pair: VmPair) -> None:
    """It has no guest yet."""
    assert vm_pair.destination.run_state() == "inmigrate"
    with pytest.raises(UserError, match="waits for a guest"):
        await vm_pair.destination.resume()
    with pytest.raises(UserError, match="waits for a guest"):
        await vm_pair.destination.reset()
    with pytest.raises(UserError, match="waits for a guest and has none to power off"):
        vm_pair.destination.powerdown()


async def test_a_guest_that_reboots_on_its_way(vm_pair: VmPair) -> None:
    """RAM is emptied behind the dirty log's back, and all of it is sent anew."""
    await vm_pair.source.send_serial("dirty 20000 16M 1\n")
    await vm_pair.source.wait_serial(PROMPT)
    # It takes longer than any host needs for the reboot.
    vm_pair.source.moves.set_migration_parameters({"bandwidth": 1 << 20, "max_downtime_ms": LONGEST_PAUSE_MS})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(vm_pair.source.migrate, vm_pair.uri, vm_pair.source.moves.migration_parameters())
        while not vm_pair.source.moves.migration_status().ram.transferred:
            await trio.sleep(0.01)
        await vm_pair.source.send_serial("reboot\n")
        await vm_pair.source.wait_serial("built-in guest")
        vm_pair.source.moves.set_migration_parameters({"bandwidth": 0})
    await vm_pair.destination.wait_arrival()
    assert "0 errors" in await ask(vm_pair.destination, "check")


async def test_another_machine_is_refused(tmp_path: Path) -> None:
    """Before anything moves, in words; the guest does not notice."""
    from tvmm.config.incoming import IncomingConfig

    config = MachineConfig.parse(memory="64M")
    uri = f"unix:{tmp_path}/migration"
    other = MachineConfig.parse(memory="32M", cpus=2)._replace(incoming=IncomingConfig(uri))
    with trio.fail_after(60):
        async with Machine(config) as source, Machine(other) as destination:
            await source.resume()
            await source.wait_serial(PROMPT)
            with pytest.raises(UserError, match="refuses the machine") as refused:
                await source.migrate(uri)
            assert "64M" in str(refused.value)
            assert "32M" in str(refused.value)
            assert source.run_state() == "running"
            assert destination.run_state() == "inmigrate"
            assert "0 errors" in await ask(source, "check")


async def test_one_migration_at_a_time(vm_pair: VmPair) -> None:
    """Two clients at the same moment: one begins, the other is told so."""
    vm_pair.source.moves.set_migration_parameters({"bandwidth": 1 << 20})
    parameters = vm_pair.source.moves.migration_parameters()
    refused: list[UserError] = []

    async def begin() -> None:
        try:
            await vm_pair.source.moves.start_migration(vm_pair.uri, parameters)
        except UserError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin)
        nursery.start_soon(begin)
    assert vm_pair.source.moves.migration_status().under_way
    (error,) = refused
    assert "under way" in str(error)
    vm_pair.source.moves.cancel_migration()
    assert (await vm_pair.source.moves.wait_migration()).state == "cancelled"


async def test_the_disk_is_locked_by_one_side(tmp_path: Path) -> None:
    """Before the move by the source, after it by the destination; a third machine never gets it."""
    from tvmm.errors import ImageError

    config = MachineConfig.parse(memory="64M", disk=[image(tmp_path)])
    with trio.fail_after(60):
        async with pair(config) as machines:
            with pytest.raises(ImageError, match="in use"):
                await Machine(config).__aenter__()
            await machines.migrate()
            with pytest.raises(ImageError, match="in use"):
                await Machine(config).__aenter__()
