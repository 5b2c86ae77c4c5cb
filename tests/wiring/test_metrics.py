"""What a machine counts is what its guest did: the built-in guest says what it does, and the numbers add up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.support.netns import ip, network_namespace
from tests.support.vsock_programs import echo, listening
from tests.wiring.guests import PROMPT, GuestShell, guest
from tests.wiring.moves import destination, move
from tvmm import Machine, MachineConfig
from tvmm.board import Board
from tvmm.metrics.histogram import Times
from tvmm.metrics.model import Sample

pytestmark = pytest.mark.guest

MIB = 1 << 20


class Numbers:
    """A reading, to be asked."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def all(self, name: str, **labels: str) -> list[Sample]:
        """Samples of a metric that have these labels."""
        return [
            sample
            for sample in self.samples
            if sample.metric.name == name
            and labels.items() <= dict(zip(sample.metric.labels, sample.labels, strict=True)).items()
        ]

    def one(self, name: str, **labels: str) -> float:
        """The only number of these labels."""
        [found] = self.all(name, **labels)
        assert not isinstance(found.value, Times)
        return found.value

    def times(self, name: str, **labels: str) -> Times:
        """The only histogram of these labels."""
        [found] = self.all(name, **labels)
        assert isinstance(found.value, Times)
        return found.value


async def numbers(vm: Machine) -> Numbers:
    """Of a machine, now."""
    return Numbers(list((await vm.metrics().read()).samples))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """64 MiB of zeros."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    return path


@pytest.mark.parametrize("aio", ["threads", "auto"])
async def test_disk_requests_add_up(image: Path, aio: str) -> None:
    """Requests, bytes and times by operation; all of the queue's chains are among them."""
    async with guest(disk=[f"{image},aio={aio}"], cpus=2) as shell:
        before = await numbers(shell.vm)
        assert " 0 failed requests" in await shell.ask("blkfill 0 4 7 0")
        assert "0 errors" in await shell.ask("blkcheck 0 4 7")
        await shell.ask("flush 0")
        await shell.ask("flush 0")
        assert shell.vm.virtio is not None
        [told] = shell.vm.virtio.disks()
        after = await numbers(shell.vm)

    def grown(name: str, **labels: str) -> float:
        return after.one(name, **labels) - before.one(name, **labels)

    disk = {"device": "disk0", "queue": "0"}
    for operation in ("read", "write"):
        assert grown("tvmm_blk_bytes_total", **disk, operation=operation) == 4 * MIB
    assert grown("tvmm_blk_requests_total", **disk, operation="flush") == 2
    requests = 0.0
    for operation in ("read", "write", "flush", "discard", "write-zeroes", "get-id"):
        labels = {**disk, "operation": operation}
        count = after.one("tvmm_blk_requests_total", **labels)
        timed = [sample.value for sample in after.all("tvmm_blk_request_seconds", **labels)]
        assert [times.count for times in timed if isinstance(times, Times)] == ([count] if count or timed else [])
        assert after.one("tvmm_blk_errors_total", **labels) == 0
        requests += count
    assert requests == after.one("tvmm_virtio_queue_chains_total", **disk)
    # query-blockstats has the sums.
    for operation, took in (("read", told.rd_total_time_ns), ("write", told.wr_total_time_ns)):
        assert took == after.times("tvmm_blk_request_seconds", **disk, operation=operation).sum_ns > 0
    assert after.one("tvmm_virtio_driver_ok", device="disk0") == 1


async def test_exits_by_reason(image: Path) -> None:
    """Each vCPU's exits by reason are all that it had; a pause comes out as `intr`, and is counted as a pause."""
    async with guest(disk=[str(image)]) as shell:
        await shell.ask("blk 0")
        vm = shell.vm
        await vm.pause()
        found = await numbers(vm)
        exits = found.all("tvmm_vcpu_exits_total", cpu="0")
        reasons = {reason: found.one("tvmm_vcpu_exits_total", reason=reason) for _, (_, reason), _ in exits}
        assert reasons["io"] > 0
        assert reasons["mmio"] > 0
        others = [count for reason, count in reasons.items() if reason != "intr"]
        assert sum(others) == shell.exits
        assert found.one("tvmm_vcpu_pauses_total", cpu="0") >= 1
        assert found.one("tvmm_machine_running") == 0
        assert [sample.labels for sample in found.all("tvmm_machine_state")] == [("paused",)]
        await vm.resume()
        again = await numbers(vm)
        assert again.one("tvmm_machine_running") == 1


async def test_port_accesses_are_counted() -> None:
    """As many exits for I/O as the guest made."""
    async with guest() as shell:
        before = await numbers(shell.vm)
        await shell.ask("pio 1000")
        after = await numbers(shell.vm)
    grown = after.one("tvmm_vcpu_exits_total", reason="io") - before.one("tvmm_vcpu_exits_total", reason="io")
    assert grown >= 1000


async def test_resident_memory_is_what_was_touched() -> None:
    """Guest RAM, the part of it that is there, and that this part grows when something is written."""
    async with guest(memory="128M") as shell:
        before = await numbers(shell.vm)
        shell.vm.memory.write(64 * MIB, b"x" * (32 * MIB))
        shell.vm.metrics()._resident_due = float("-inf")
        after = await numbers(shell.vm)
    assert after.one("tvmm_memory_bytes") == 128 * MIB
    grown = after.one("tvmm_memory_resident_bytes") - before.one("tvmm_memory_resident_bytes")
    assert 32 * MIB <= grown <= 64 * MIB
    assert after.one("tvmm_process_resident_bytes") >= after.one("tvmm_memory_resident_bytes") * 0.9


async def test_devices_without_numbers_of_their_own_have_the_common_ones() -> None:
    """A source of entropy has nothing but a queue: chains, kicks, interrupts, turns."""
    labels = {"device": "rng0", "queue": "0"}
    async with guest(device=["virtio-rng"]) as shell:
        await shell.ask("rng 0 64")
        found = await numbers(shell.vm)
        # A task's turn ends after the guest has what it gave.
        while not found.times("tvmm_virtio_turn_seconds", **labels).count:
            found = await numbers(shell.vm)
    assert found.one("tvmm_virtio_queue_chains_total", **labels) >= 1
    assert found.one("tvmm_virtio_queue_errors_total", **labels) == 0
    [info] = found.all("tvmm_virtio_info", device="rng0")
    assert info.labels == ("rng0", "rng", "pci", "00:01.0")


@pytest.fixture
def _namespace() -> Iterator[None]:
    with network_namespace():
        ip("link", "set", "lo", "up")
        yield


@pytest.mark.usefixtures("_namespace")
async def test_net_frames_add_up() -> None:
    """As many frames left as the guest says that it sent, and each direction's turns were timed."""
    config = MachineConfig.parse(memory="64M", net=["tap,ip=10.0.2.2/24"])
    with trio.fail_after(60):
        async with Machine(config, board=Board(config)) as vm:
            shell = GuestShell(vm)
            await vm.resume()
            await vm.wait_serial(PROMPT)
            await shell.ask("ip 0 10.0.2.15/24")
            before = await numbers(vm)
            text = await shell.ask("ping 0 10.0.2.2 200")
            after = await numbers(vm)
    assert "200" in text
    for direction in ("receive", "transmit"):
        labels = {"device": "net0", "pair": "0", "direction": direction}
        grown = after.one("tvmm_net_frames_total", **labels) - before.one("tvmm_net_frames_total", **labels)
        # An ARP exchange may be among them.
        assert 200 <= grown <= 204
        times = after.times("tvmm_net_turn_seconds", **labels)
        assert 0 < times.count <= after.one("tvmm_net_frames_total", **labels)
    assert after.one("tvmm_net_link_up", device="net0") == 1


async def test_counters_begin_anew_where_a_guest_arrives(image: Path) -> None:
    """They are about what this machine did, and not about the guest: requests from after the move alone."""
    async with guest(disk=[f"{image},locking=off"]) as shell:
        await shell.ask("blkfill 0 4 7 0")
        source = await numbers(shell.vm)
        assert source.one("tvmm_blk_bytes_total", device="disk0", operation="write") == 4 * MIB
        async with destination(shell.vm.config) as there:
            await move(shell.vm, there.vm)
            assert "0 errors" in await there.ask("blkcheck 0 4 7")
            target = await numbers(there.vm)
    assert target.one("tvmm_blk_bytes_total", device="disk0", operation="write") == 0
    assert target.one("tvmm_blk_bytes_total", device="disk0", operation="read") == 4 * MIB
    labels = {"device": "disk0", "operation": "read"}
    assert target.times("tvmm_blk_request_seconds", **labels).count == target.one("tvmm_blk_requests_total", **labels)
    # What was in flight over the move is timed here.
    assert target.times("tvmm_blk_request_seconds", **labels).sum_ns < 60e9


async def test_balloon_and_limits(image: Path) -> None:
    """What the guest has left, pages that went, and how often a disk waited for its limit."""
    async with guest(disk=[f"{image},iops=100"], device=["virtio-balloon"]) as shell:
        found = await numbers(shell.vm)
        assert found.one("tvmm_balloon_target_bytes", device="balloon0") == 64 * MIB
        assert found.one("tvmm_balloon_actual_bytes", device="balloon0") == 64 * MIB
        assert found.one("tvmm_balloon_pages_total", device="balloon0", event="inflated") == 0
        await shell.ask("blkfill 0 4 7 0")
        found = await numbers(shell.vm)
        requests = found.one("tvmm_blk_requests_total", device="disk0", operation="write")
        assert requests < 10 or found.one("tvmm_limit_waits_total", device="disk0") >= 1


async def test_streams_between_guest_and_host(tmp_path: Path) -> None:
    """As many bytes as the guest sent, and came back."""
    path = str(tmp_path / "v")
    device = {"device": "vsock0"}
    with listening(f"{path}_7", echo):
        async with guest(vsock=path) as shell:
            assert "3 connections" in await shell.ask("vsock many 7 3 1000")
            found = await numbers(shell.vm)
            while found.one("tvmm_vsock_connections", **device):
                found = await numbers(shell.vm)
    for direction in ("receive", "transmit"):
        assert found.one("tvmm_vsock_bytes_total", **device, direction=direction) == 3000
    assert found.one("tvmm_vsock_events_total", **device, event="by-guest") == 3
    assert found.one("tvmm_vsock_events_total", **device, event="ended") == 3


async def test_names_of_samples_have_their_labels(image: Path) -> None:
    """Every sample has a value for each label of its metric, and no two have the same."""
    async with guest(disk=[str(image)], device=["virtio-rng", "virtio-console"]) as shell:
        found = await numbers(shell.vm)
    seen = [(sample.metric.name, sample.labels) for sample in found.samples]
    assert len(seen) == len(set(seen))
    for sample in found.samples:
        assert len(sample.labels) == len(sample.metric.labels)
        assert isinstance(sample.value, Times) == (sample.metric.kind == "histogram")
