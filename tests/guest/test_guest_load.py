"""The guest's checked load, `churn` and `dirty`: nothing is wrong when nothing is wrong, and each damage is found."""

from __future__ import annotations

import fcntl
import re
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.support.churn import Summary, summary
from tests.support.echo_peer import Answer, EchoPeer, honest, twice, wrong_checksum, wrong_payload
from tests.support.netns import ip, network_namespace
from tests.wiring.guests import PROMPT, GuestShell, guest
from tvmm import Machine, MachineConfig
from tvmm.board import Board
from tvmm.errors import HostError

pytestmark = pytest.mark.guest

MIB = 1 << 20
PAGE = BLOCK = 4096
MAGIC = 0x7976A6D167E57000
HOST, GUEST = "10.0.2.2", "10.0.2.15"
KVM_GET_CLOCK, KVM_SET_CLOCK, CLOCK_BYTES = 0x8030AE7C, 0x4030AE7B, 48


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """1 MiB of zeros: all of it is the load's area."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    return path


async def finish(shell: GuestShell) -> Summary:
    """Ctrl-C, and what the load says at its end."""
    await shell.vm.send_serial("\x03")
    return summary(await shell.prompt())


async def begin(shell: GuestShell, words: str) -> None:
    """Start the load, and see that it runs: it answers a key."""
    await shell.order(f"churn {words}")
    await shell.vm.wait_serial("churning")
    await shell.vm.send_serial("m")
    await shell.vm.wait_serial("mark 1: ")


def find_page(vm: Machine, index: int) -> int:
    """Where the load's page number `index` lies."""
    for address in range(2 * MIB, 64 * MIB, PAGE):
        if vm.memory.read(address, 8) == struct.pack("<Q", MAGIC + index):
            return address
    raise AssertionError(f"page {index} is not in memory")


async def test_without_devices() -> None:
    """Pages and clocks alone, for as long as was asked; what there is no device for stays 0."""
    async with guest() as shell:
        said = summary(await shell.ask("churn 1 pages=1M rate=5000"))
    assert said.damage() == {}
    assert said.page_writes > 256
    assert (said.disk_requests, said.echoes) == (0, 0)
    assert said.time_us >= 1_000_000


@pytest.mark.parametrize("words", ["", "iops=0 depth=16", "poll iops=0 rate=0", "spin"])
@pytest.mark.parametrize("transport", ["pci", "mmio"])
async def test_disk(image: Path, transport: str, words: str) -> None:
    """Requests at a rate or as fast as it goes, by interrupt or polled: each is answered, and right."""
    async with guest(disk=[f"{image},transport={transport}"]) as shell:
        said = summary(await shell.ask(f"churn 1 pages=1M {words}"))
    assert said.damage() == {}
    assert said.disk_requests > 10
    assert said.page_writes > 10


async def test_status_and_marks(image: Path) -> None:
    """`s` prints the summary so far, `m` what happened since the last mark, and `q` ends it."""
    async with guest(disk=[str(image)]) as shell:
        await begin(shell, "pages=1M")
        await shell.vm.send_serial("s")
        so_far = summary((await shell.vm.wait_serial(" backward, ")).decode() + "drift 0 us, rtc 0 s off, in 0 us")
        await shell.vm.send_serial("mq")
        text = await shell.prompt()
    marked = re.search(r"mark 2: (\d+) page writes in (\d+) us, longest pause (\d+) us", text)
    assert marked
    assert int(marked[3]) <= int(marked[2])
    assert summary(text).page_writes >= so_far.page_writes


async def test_log() -> None:
    """Each interval's writes add up to no more than all of them, and the longest pause is in one of the lines."""
    async with guest() as shell:
        text = await shell.ask("dirty 2000 1M 1 log=50")
    lines = re.findall(r"at (\d+) us: (\d+) page writes, longest pause (\d+) us", text)
    end = re.search(r"dirtied (\d+) pages in (\d+) us: \d+ pages/s, 0 errors, longest pause (\d+) us", text)
    assert end
    assert len(lines) >= 2
    times = [int(line[0]) for line in lines]
    assert times == sorted(times)
    assert sum(int(line[1]) for line in lines) <= int(end[1])
    assert max(int(line[2]) for line in lines) <= int(end[3])


@pytest.mark.parametrize("words", ["", "rate=0", "spin"])
async def test_pause_is_seen(words: str) -> None:
    """The longest stall is at least the time that the machine was stopped."""
    async with guest() as shell:
        await begin(shell, f"pages=1M {words}")
        await shell.vm.pause()
        stopped = time.monotonic()
        for address in range(0, 64 * MIB, PAGE):  # something that takes a while
            shell.vm.memory.read(address, PAGE)
        held_us = (time.monotonic() - stopped) * 1e6
        await shell.vm.resume()
        said = await finish(shell)
    assert held_us > 2000
    # Asleep when it began, the guest misses no more than its nap.
    assert said.stall_us >= held_us - (1100 if words == "" else 0)
    assert said.damage() == {}


async def test_other_cpus_watch() -> None:
    """With `cpus` each other CPU says how long it was away."""
    async with guest(cpus=2) as shell:
        text = await shell.ask("churn 1 pages=1M cpus")
    assert re.search(r"cpu 1: longest pause \d+ us", text)
    assert summary(text).damage() == {}


@pytest.mark.parametrize(
    ("kind", "line"),
    [("byte", "has a wrong checksum"), ("older", "is a wrong version"), ("misplaced", "is not this page")],
)
async def test_each_damage_of_pages_is_found(kind: str, line: str) -> None:
    """A changed byte, a page as it was before, and another page's content: errors although checksums may be right.

    Two pages are changed, since the guest may be about to overwrite one of them.
    """
    async with guest() as shell:
        memory = shell.vm.memory
        await begin(shell, "pages=64K rate=0")
        async with shell.vm.paused():
            places = [find_page(shell.vm, index) for index in range(3)]
            before = [memory.read(place, PAGE) for place in places]
        for place, old in zip(places, before, strict=True):
            while memory.read(place + 8, 8) == old[8:16]:
                await trio.lowlevel.checkpoint()
        async with shell.vm.paused():
            for index in range(2):
                page = bytearray(memory.read(places[index], PAGE))
                page[2000] ^= 1
                wrong = {"byte": bytes(page), "older": before[index], "misplaced": before[index + 1]}
                memory.write(places[index], wrong[kind])
        await shell.vm.wait_serial(line)
        said = await finish(shell)
    assert said.damage() in ({"page_errors": 1}, {"page_errors": 2})


async def test_changed_block_is_found(image: Path) -> None:
    """A byte of the image behind the guest's back is one disk error or more, as often as the block is read."""
    async with guest(disk=[str(image)]) as shell:
        await begin(shell, "pages=1M")
        async with shell.vm.paused():
            with image.open("r+b") as file:
                # A block may be overwritten before it is read; not all of them.
                for block in range(0, MIB // BLOCK, 2):
                    file.seek(block * BLOCK + 1000)
                    byte = file.read(1)[0]
                    file.seek(-1, 1)
                    file.write(bytes([byte ^ 1]))
        said = await finish(shell)
    assert said.damage().keys() == {"disk_errors"}


async def test_answer_that_makes_no_sense_is_found(image: Path) -> None:
    """A used entry for a request that is not in flight is a disk error, as a second answer would be."""
    async with guest("noevent noinorder", disk=[str(image)]) as shell:
        await begin(shell, "pages=1M poll")
        async with shell.vm.paused():
            assert shell.vm.board.devices is not None
            queue = shell.vm.board.devices.slots[0].transport.queues[0]
            (count,) = struct.unpack("<H", shell.vm.memory.read(queue.device + 2, 2))
            entry = queue.device + 4 + count % queue.size * 8
            # The last one of the ring is not taken while others are free.
            shell.vm.memory.write(entry, struct.pack("<II", queue.size - 1, 1))
            shell.vm.memory.write(queue.device + 2, struct.pack("<H", (count + 1) & 0xFFFF))
        await shell.vm.wait_serial("makes no sense")
        said = await finish(shell)
    assert said.damage().keys() == {"disk_errors"}


async def test_lost_interrupt_is_found(image: Path) -> None:
    """Answers are there, but the queue's interrupt has been disconnected: an error, and the load goes on."""
    async with guest(disk=[str(image)]) as shell:
        await begin(shell, "pages=1M")
        async with shell.vm.paused():
            assert shell.vm.board.devices is not None
            slot = shell.vm.board.devices.slots[0]
            event = slot.call_of(0)
            for gsi in range(24, 64):  # whichever of the messages it is
                with suppress(HostError):
                    shell.vm.board.vm.set_irqfd(gsi, event, assign=False)
        await shell.vm.wait_serial("error: blk 0: answers that no interrupt told of")
        said = await finish(shell)
    assert said.damage().keys() == {"disk_errors"}


@pytest.mark.parametrize("factor", [0.5, 2.0])
async def test_clock_that_jumps_is_found(factor: float) -> None:
    """kvmclock set back is a clock that goes backward; set forward it has left the TSC. Both are drift."""
    async with guest() as shell:
        await begin(shell, "pages=1M")
        async with shell.vm.paused():
            state = bytearray(CLOCK_BYTES)
            fcntl.ioctl(shell.vm.board.vm.fd, KVM_GET_CLOCK, state)
            (now,) = struct.unpack_from("<Q", state)
            struct.pack_into("<QI", state, 0, int(now * factor), 0)
            fcntl.ioctl(shell.vm.board.vm.fd, KVM_SET_CLOCK, bytes(state))
        await shell.vm.send_serial("m")
        await shell.vm.wait_serial("mark 2: ")
        said = await finish(shell)
    # The clock stood still between the two calls: less of a jump forward, more of one backward.
    assert said.drift_us * 1000 >= abs(factor - 1) * now / (2 if factor > 1 else 1) - 1000
    assert said.damage() == ({"backward": 1} if factor < 1 else {})


async def test_clocks_agree() -> None:
    """Undisturbed, kvmclock and TSC stay together."""
    async with guest() as shell:
        said = summary(await shell.ask("churn 1 pages=1M spin"))
    assert said.drift_us < 1000


async def test_wrong_words_print_the_usage() -> None:
    """Words that make no sense, and devices that are not there."""
    async with guest() as shell:
        for line in ("churn pages=1K", "churn depth=0", "churn depth=17", "churn 1 2", "churn peer=1.2", "dirty 1"):
            assert f"usage: {line.split()[0]} " in await shell.ask(line)
        assert "there is no blk 1" in await shell.ask("churn disk=1")
        assert "there is no net 0" in await shell.ask(f"churn peer={HOST}")


@asynccontextmanager
async def networked(append: str = "", peer: bool = True) -> AsyncIterator[tuple[GuestShell, EchoPeer | None]]:
    """A machine with a TAP and, instead of the host's stack, a peer that the test tells what to answer."""
    with network_namespace():
        ip("link", "set", "lo", "up")
        config = MachineConfig.parse(name="web", memory="64M", append=append, net=[f"tap,ip={HOST}/24"])
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery, Machine(config, board=Board(config)) as vm:
                shell = GuestShell(vm)
                await vm.resume()
                await vm.wait_serial(PROMPT)
                await shell.ask(f"ip 0 {GUEST}/24")
                other = None
                if peer:
                    assert vm.virtio is not None
                    Path("/proc/sys/net/ipv4/icmp_echo_ignore_all").write_text("1")
                    other = EchoPeer(vm.virtio.nets()[0].ifname)
                    nursery.start_soon(other.run)
                yield shell, other
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("words", ["", "pps=0", "poll", "spin pps=2000"])
async def test_echoes_of_the_host(words: str) -> None:
    """The host's own stack answers every one of them."""
    async with networked(peer=False) as (shell, _):
        said = summary(await shell.ask(f"churn 1 pages=1M peer={HOST} {words}"))
    assert said.damage() == {}
    assert said.echoes > 10


@pytest.mark.parametrize(
    ("answer", "line", "damage"),
    [
        (honest, "", set()),
        (wrong_payload, "has another payload", {"lost", "wrong"}),
        (wrong_checksum, "has a wrong checksum", {"lost", "wrong"}),
        (twice, "was answered twice", {"wrong"}),
        (lambda icmp: [icmp[:20]], "is cut short", {"lost", "wrong"}),
        (lambda icmp: [], "", {"lost"}),
    ],
    ids=["honest", "payload", "checksum", "twice", "cut", "none"],
)
async def test_each_kind_of_answer(answer: Answer, line: str, damage: set[str]) -> None:
    """What is wrong and what comes twice is told apart from what is lost."""
    async with networked() as (shell, peer):
        assert peer is not None
        peer.answer = answer
        await shell.order(f"churn pages=1M peer={HOST}")
        await shell.vm.wait_serial("churning")
        while peer.requests < 20:
            await trio.lowlevel.checkpoint()
        if line:
            await shell.vm.wait_serial(line)
        said = await finish(shell)
    assert said.damage().keys() == damage
