"""A ring as a device has it: real guest RAM, system calls on its buffers, two threads that wake each other."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator

import pytest

from tests.support.driver_ring import Buffer, lay_out, make_driver
from tests.virtio.ring_parts import FEATURES, feature_names
from tvmm.config.memory import MemoryConfig
from tvmm.kvm.memory_map import MemoryMap
from tvmm.kvm.vring import Batch, Vring
from tvmm.kvm.vring_records import F_INDIRECT_DESC, RingError
from tvmm.memory.ram import GuestRam

each_features = pytest.mark.parametrize("features", FEATURES, ids=feature_names)
PATIENCE_S = 20


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    """4 MiB of guest RAM; whoever maps it has let go of it at the end."""
    made = GuestRam(MemoryConfig(4 << 20))
    yield made
    made.close()


@pytest.fixture
def memory(ram: GuestRam) -> Iterator[MemoryMap]:
    """Its map."""
    made = MemoryMap(ram)
    yield made
    made.close()


def test_system_calls_work_on_guest_ram(ram: GuestRam, memory: MemoryMap) -> None:
    """preadv fills a chain's writable buffers, pwritev takes its readable ones, and nothing is copied on the way."""
    config, tables = lay_out(8, F_INDIRECT_DESC)
    driver = make_driver(ram, config, tables)
    ring, batch = Vring(memory), Batch()
    assert ring.configure(config) is RingError.NONE
    ram.write(0x10_0000, b"sent by ")
    ram.write(0x20_0000, b"the guest")
    number = driver.add(
        [Buffer(0x10_0000, 8), Buffer(0x20_0000, 9), Buffer(0x30_0000, 4, True), Buffer(0x30_1000, 100, True)], 0
    )
    driver.publish()
    assert ring.pop(batch) == len(batch) == 1
    [chain] = batch.chains
    assert (chain.id, chain.readable_bytes, chain.writable_bytes) == (number, 17, 104)
    with tempfile.TemporaryFile() as file:
        assert os.pwritev(file.fileno(), batch.readable(chain), 0) == 17
        assert os.preadv(file.fileno(), batch.writable(chain), 5) == 12
    assert ram.read(0x30_0000, 4) == b"by t"
    assert ram.read(0x30_1000, 9) == b"he guest\0"
    batch.set_length(0, 12)
    ring.push_batch(batch)
    assert driver.collect() == [(number, 12)]


def test_lengths_of_a_batch(ram: GuestRam, memory: MemoryMap) -> None:
    """Each chain's own, 0 if not said; only chains that are in the batch."""
    config, tables = lay_out(8, 0)
    driver = make_driver(ram, config, tables)
    ring, batch = Vring(memory), Batch(4, 4)
    ring.configure(config)
    ids = [driver.add([Buffer(0x10_0000, 64, True)]) for _ in range(5)]
    driver.publish()
    assert ring.pop(batch) == 4
    batch.set_length(1, 5)
    batch.set_length(3, 64)
    for index in (-1, 4):
        with pytest.raises(IndexError, match="4 chains"):
            batch.set_length(index, 1)
    ring.push_batch(batch)
    assert driver.collect() == list(zip(ids, (0, 5, 0, 64), strict=False))
    assert ring.pop(batch) == 1
    for wrong in ((1 << 32, 0), (0, 1 << 32), (0, -1)):
        with pytest.raises(ValueError, match="32 bits"):
            ring.push(*wrong)
        with pytest.raises(ValueError, match="32 bits"):
            ring.push_many([wrong])
    with pytest.raises(ValueError, match="not in flight, or has no room for 65 bytes"):
        ring.push(batch.chains[0].id, 65)
    ring.push(batch.chains[0].id, 64)
    assert driver.collect() == [(ids[4], 64)]


def test_kicks_are_counted(memory: MemoryMap) -> None:
    """When the device says that it took one."""
    ring = Vring(memory)
    ring.note_kick()
    ring.note_kick()
    assert ring.counters.kicks == 2


def test_a_stopped_ring_has_a_sentence(memory: MemoryMap) -> None:
    """For the report; a working one has none."""
    ring = Vring(memory)
    config, _ = lay_out(8, 0)
    assert ring.configure(config._replace(size=7)) is RingError.QUEUE_SIZE
    assert ring.error_sentence == "a queue size of 7 is not one that this ring format has"
    assert ring.configure(config) is RingError.NONE
    assert ring.error_sentence == ""


@each_features
def test_nobody_sleeps_through_a_notification(ram: GuestRam, memory: MemoryMap, features: int) -> None:
    """Driver and device on two threads that sleep whenever they may: each kick and interrupt that is needed comes."""
    config, tables = lay_out(8, features)
    driver = make_driver(ram, config, tables)
    ring, batch = Vring(memory), Batch(3)
    ring.configure(config)
    ring.enable_kicks()
    kick, interrupt, ended = threading.Event(), threading.Event(), threading.Event()
    total = 600
    late: list[str] = []

    def device() -> None:
        left = total
        while left:
            while taken := ring.pop(batch):
                ring.push_batch(batch)
                if ring.should_notify():
                    interrupt.set()
                left -= taken
            if left and ring.enable_kicks():
                if not kick.wait(PATIENCE_S):
                    late.append("kick")
                    return
                kick.clear()
                ring.note_kick()
                ring.disable_kicks()
        ended.set()

    thread = threading.Thread(target=device)
    thread.start()
    sent = got = 0
    while got < total and not late:
        while sent < total and driver.add([Buffer(0x10_0000, 1)]) is not None:
            sent += 1
        if driver.publish():
            kick.set()
        driver.refuse_interrupts()
        back = driver.collect()
        if not back:
            driver.ask_for_interrupt()
            back = driver.collect()
            if not back:
                if not interrupt.wait(PATIENCE_S):
                    late.append("interrupt")
                    break
                interrupt.clear()
        got += len(back)
    assert not late
    assert got == total
    thread.join(PATIENCE_S)
    assert ended.is_set()
    assert ring.counters.chains == total
