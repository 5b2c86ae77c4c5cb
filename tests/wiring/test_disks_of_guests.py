"""Disks of whole machines: the built-in guest's driver over both transports, and what can happen to an image."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.wiring.guests import guest
from tvmm import Machine, MachineConfig
from tvmm.errors import ImageError

pytestmark = pytest.mark.guest

MIB = 1 << 20
RINGS = ("", "packed=on", "in_order=on", "packed=on,in_order=on", "event_idx=off", "indirect_desc=off")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """64 MiB of zeros."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    return path


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid():
        pytest.skip("mounting a file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tvmm-test", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def disk(image: Path, *options: str) -> list[str]:
    """The value of --disk."""
    return [",".join([str(image), *filter(None, options)])]


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize("ring", RINGS)
async def test_patterns_over_every_ring(image: Path, transport: str, ring: str) -> None:
    """What the guest wrote it reads back, over both transports and every ring format that can be offered."""
    words = "packed" if "packed=on" in ring else ""
    async with guest(words, disk=disk(image, ring, f"transport={transport}")) as shell:
        assert " 0 failed requests" in await shell.ask("blkfill 0 16 7 0")
        assert "blkcheck: 4096 blocks, 0 errors, 0 unreadable" in await shell.ask("blkcheck 0 16 7")
        assert "0 errors" in await shell.ask("blkbench 0 randwrite 4096 32 1 irq")
    assert image.read_bytes()[: 16 * MIB].count(0) < 16 * MIB


@pytest.mark.parametrize("option", ["intx", ""])
async def test_interrupts(image: Path, option: str) -> None:
    """The guest sleeps until the device's interrupt, by a message or by the pin, and never waits in vain."""
    async with guest(option, disk=disk(image)) as shell:
        text = await shell.ask("blkbench 0 read 4096 4 1 irq")
        assert " 0 errors" in text
        assert " 0 interrupts" not in text


async def test_queues_of_processors_on_their_own(image: Path) -> None:
    """Each processor drives a queue, its interrupts come to it alone, and a thread serves it: none disturbs another."""
    async with guest("mq", disk=disk(image), cpus=4) as shell:
        text = await shell.ask("mqbench 0 randwrite 4096 16 1 irq")
        assert " on 4 of 4 queues" in text
        assert " 0 errors" in text
        rows = re.findall(r"queue \d: (\d+) requests, \d+ kicks, (\d+) interrupts, (\d+) on its CPU", text)
        assert len(rows) == 4
        for requests, interrupts, events in rows:
            assert int(requests) > 0
            # The boot processor has those of the serial line and the clock as well.
            assert 0 < int(interrupts) <= int(events)
        assert all(interrupts == events for _, interrupts, events in rows[1:])
        assert shell.vm.virtio is not None
        assert [queue.chains > 0 for queue in shell.vm.virtio.virtio()[0].queues] == [True] * 4


@pytest.mark.parametrize(("cpus", "options", "queues"), [(1, "", 1), (2, "", 2), (8, "", 4), (8, "queues=7", 7),
                                                         (4, "transport=mmio", 1)])  # fmt: skip
def test_number_of_queues(image: Path, cpus: int, options: str, queues: int) -> None:
    """One for each processor, up to four, unless the user says otherwise."""
    config = MachineConfig.parse(disk=disk(image, options), cpus=cpus).check()
    assert config.disks[0].queues == queues


async def test_a_million_operations_cause_no_exit(image: Path) -> None:
    """With both sides polling, or kicking by eventfd, a ring operation never leaves the kernel for user space."""
    async with guest(disk=disk(image), seconds=110) as shell:
        await shell.ask("ringops 0 1000")
        before = shell.exits
        text = await shell.ask("ringops 0 1000000")
        after = shell.exits
        assert "ringops: 1000000 done" in text
        # Typing the command and printing its line are accesses to the serial port, and nothing else is.
        assert after - before < 1000
        (queue,) = shell.vm.virtio.virtio()[0].queues if shell.vm.virtio else ()
        assert queue.exits == 0
        assert queue.chains >= 1_001_000


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_thousands_of_resets(image: Path, count: int) -> None:
    """A driver that resets again and again, each time up to DRIVER_OK, gets a working device each time."""
    async with guest(disk=disk(image), seconds=100) as shell:
        assert f"vreset: {count} resets" in await shell.ask(f"vreset 0 {count}")
        await shell.ask("blkfill 0 1 3 0")
        assert "256 blocks, 0 errors" in await shell.ask("blkcheck 0 1 3")


@pytest.mark.parametrize("options", ["", "aio=threads,direct=on", "aio=io_uring,direct=on"])
async def test_reset_with_requests_in_flight(image: Path, options: str) -> None:
    """A reset in the middle of 256 requests takes them all back; the next life of the device works."""
    async with guest(disk=disk(image, options)) as shell:
        assert "0 errors" in await shell.ask("blkreset 0 20")
        await shell.ask("blkfill 0 1 3 0")
        assert "256 blocks, 0 errors" in await shell.ask("blkcheck 0 1 3")


async def test_full_host_stops_the_guest_and_nothing_is_lost(small_tmpfs: Path) -> None:
    """Without room for a write the machine pauses; with room again it goes on, and every block is right."""
    image = small_tmpfs / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    async with guest(disk=disk(image)) as shell:
        await shell.order("blkfill 0 24 9 0")
        error = await shell.event("BLOCK_IO_ERROR")
        assert (error["action"], error["nospace"], error["device"]) == ("stop", True, "disk0")
        await shell.event("STOP")
        assert shell.vm.run_state() == "io-error"
        subprocess.run(["mount", "-o", "remount,size=64M", str(small_tmpfs)], check=True)
        await shell.vm.resume()
        assert " 0 failed requests" in await shell.prompt()
        assert "6144 blocks, 0 errors, 0 unreadable" in await shell.ask("blkcheck 0 24 9")


async def test_full_host_reported_to_the_guest(small_tmpfs: Path) -> None:
    """With werror=report the guest sees the error and the machine goes on."""
    image = small_tmpfs / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    async with guest(disk=disk(image, "werror=report")) as shell:
        assert " 0 failed requests" not in await shell.ask("blkfill 0 24 9 0")
        assert shell.vm.run_state() == "running"


async def test_random_faults_end_with_no_wrong_byte(tmp_path: Path) -> None:
    """1 GiB of checksummed blocks, written and read at random while one call in five hundred fails: none is wrong.

    The guest counts failed requests, and tries again; what it was told is written has to be there.
    """
    folder = Path("/dev/shm") if os.path.isdir("/dev/shm") else tmp_path
    image = folder / f"tvmm-test-{os.getpid()}.img"
    try:
        with image.open("wb") as file:
            file.truncate(1024 * MIB)
        options = disk(image, "faults=2000", "werror=report", "rerror=report")
        async with guest(disk=options, memory="128M", seconds=110) as shell:
            text = await shell.ask("blkstress 0 1024 11 100000")
            assert " 0 wrong" in text
            assert not re.search(r"[^0-9]0 failed", text)
            assert shell.vm.virtio is not None
            (found,) = shell.vm.virtio.disks()
            assert found.failed_rd_operations > 50
            assert found.failed_wr_operations > 50
            assert found.io_status == "ok"
    finally:
        image.unlink()


async def test_image_truncated_under_the_guest(image: Path) -> None:
    """Reads behind the new end fail, those before it do not, and the machine lives."""
    async with guest(disk=disk(image)) as shell:
        await shell.ask("blkfill 0 16 7 0")
        os.truncate(image, 8 * MIB)
        text = await shell.ask("blkcheck 0 16 7")
        assert "2048 unreadable" in text
        assert shell.vm.run_state() == "running"
        os.truncate(image, 64 * MIB)
        assert " 0 failed requests" in await shell.ask("blkfill 0 16 7 0")


async def test_resize_while_running(image: Path) -> None:
    """The guest is told of the new capacity and can use it."""
    async with guest(disk=disk(image)) as shell:
        assert "131072 sectors" in await shell.ask("blk 0")
        assert shell.vm.virtio is not None
        await shell.vm.virtio.resize_disk("disk0", 80 * MIB)
        assert "163840 sectors" in await shell.ask("blk 0")
        assert image.stat().st_size == 80 * MIB
        assert ": ok" in await shell.ask("wrsec 0 163839 end")
        assert image.read_bytes()[-512:].startswith(b"end")


async def test_two_machines_on_one_image(image: Path) -> None:
    """The second is refused in one line while the first has it, and may have it afterwards; readers share."""
    async with guest(disk=disk(image)):
        with pytest.raises(ImageError, match="in use"):
            async with Machine(MachineConfig.parse(memory="64M", disk=disk(image))):
                pass
    async with guest(disk=disk(image, "readonly=on")), guest(disk=disk(image, "readonly=on")):
        pass


async def test_read_only(image: Path) -> None:
    """A write is refused, a read is not, and the file stays as it was."""
    async with guest(disk=disk(image, "readonly=on")) as shell:
        assert "read-only" in await shell.ask("blk 0")
        await shell.ask("wrsec 0 5 text")
        assert ": ok 0000" in await shell.ask("rdsec 0 5")
    assert not any(image.read_bytes()[:4096])


async def test_pause_leaves_the_image_alone(image: Path) -> None:
    """While the machine is paused nothing is written, and after it the guest goes on without an error."""
    async with guest(disk=disk(image), seconds=60) as shell:
        await shell.order("blkfill 0 32 5 2")
        for _ in range(20):
            async with shell.vm.paused():
                first = os.stat(image).st_mtime_ns, image.read_bytes()
                assert (os.stat(image).st_mtime_ns, image.read_bytes()) == first
        assert " 0 failed requests" in await shell.prompt()
        assert "8192 blocks, 0 errors" in await shell.ask("blkcheck 0 32 5")


async def test_machine_reset_under_load(image: Path) -> None:
    """The reset line in the middle of requests: the guest boots again and finds its disk."""
    async with guest(disk=disk(image)) as shell:
        for _ in range(3):
            await shell.order("blkbench 0 randwrite 4096 64 10")
            await shell.vm.wait_serial("randwrite")
            await shell.vm.reset()
            await shell.vm.wait_serial("tvmm built-in guest")
            await shell.prompt()
        await shell.ask("blkfill 0 1 3 0")
        assert "256 blocks, 0 errors" in await shell.ask("blkcheck 0 1 3")


async def test_cancelled_under_load(image: Path) -> None:
    """The end of the scope ends a machine with requests under way, and gives the image back."""
    with trio.fail_after(20):
        async with guest(disk=disk(image, "aio=io_uring,direct=on")) as shell:
            await shell.order("blkbench 0 randwrite 4096 64 10")
            await shell.vm.wait_serial("randwrite")
    async with guest(disk=disk(image)):
        pass


async def test_several_queues_and_disks(image: Path, tmp_path: Path) -> None:
    """Each disk is its own; one with four queues works with a guest that uses one."""
    second = tmp_path / "second.img"
    with second.open("wb") as file:
        file.truncate(8 * MIB)
    async with guest(disk=[*disk(image, "queues=4,serial=one"), *disk(second, "transport=mmio,serial=two")]) as shell:
        assert '"one"' in await shell.ask("blk 0")
        assert '"two"' in await shell.ask("blk 1")
        await shell.ask("blkfill 1 4 3 0")
        assert "1024 blocks, 0 errors" in await shell.ask("blkcheck 1 4 3")
    assert not any(image.read_bytes())
