"""The log of pages that tvmm has written, against a plain twin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.driver_ring import HostPages, RingMemory
from tests.support.watch import take_marks
from tvmm.config.memory import MemoryConfig
from tvmm.kvm.calls import ffi
from tvmm.kvm.device_log import PAGE_SIZE, DeviceLog
from tvmm.kvm.memory_map import MemoryMap
from tvmm.memory.ram import GuestRam

PAGES = {"low": 200, "next": 2, "rom": 1, "top": 1}
ENDS = st.integers(0, PAGES["low"] * PAGE_SIZE) | st.integers(0, PAGES["low"]).map(lambda page: page * PAGE_SIZE)


@pytest.fixture
def memory() -> RingMemory:
    """Four blocks, the first of more pages than three words have bits."""
    return RingMemory(PAGES["low"] * PAGE_SIZE)


@pytest.fixture
def log(memory: RingMemory) -> Iterator[DeviceLog]:
    """Its log, off."""
    made = DeviceLog(memory)
    yield made
    made.close()


def words_of(memory: RingMemory, name: str) -> Any:
    """An empty bitmap for a block."""
    return ffi.new("uint64_t[]", (PAGES[name] + 63) // 64)


def test_off_nothing_is_marked_and_there_are_no_bitmaps(memory: RingMemory, log: DeviceLog) -> None:
    """Before `start` there is nothing but the objects, and marks go nowhere."""
    assert not log.on
    log.mark("low", 0, PAGE_SIZE)
    log.mark_written(memory.blocks["low"].view[:10])
    assert all(log.raw.blocks[index].words == ffi.NULL for index in range(4))
    assert take_marks(memory, log) == set()
    log.start()
    assert take_marks(memory, log) == set()


def test_stop_and_start(memory: RingMemory, log: DeviceLog) -> None:
    """Marks stay after `stop` and can be taken; a new `start` forgets them, one in between changes nothing."""
    log.start()
    log.mark("low", 0, 1)
    log.mark("next", PAGE_SIZE, 1)
    log.start()
    log.stop()
    log.mark("low", 5 * PAGE_SIZE, 1)
    words = words_of(memory, "low")
    assert log.merge_into("low", words) == 1
    assert list(words) == [1, 0, 0, 0]
    log.start()
    assert take_marks(memory, log) == set()
    log.mark("next", 0, 1)
    assert take_marks(memory, log) == {("next", 0)}


def test_merging_adds(memory: RingMemory, log: DeviceLog) -> None:
    """Bits that are in `words` already stay there, and do not count."""
    log.start()
    log.mark("low", 65 * PAGE_SIZE, 2 * PAGE_SIZE)
    words = words_of(memory, "low")
    words[0], words[1] = 1 << 63, 0b10
    assert log.merge_into("low", words) == 2
    assert list(words) == [1 << 63, 0b110, 0, 0]
    assert log.merge_into("low", words) == 0
    assert list(words) == [1 << 63, 0b110, 0, 0]


def test_what_is_not_there(memory: RingMemory, log: DeviceLog) -> None:
    """Bytes outside of a block and blocks that are none are mistakes; other memory is no business of the log."""
    log.start()
    for offset, length in ((-1, 1), (0, -1), (PAGES["low"] * PAGE_SIZE, 1), (0, PAGES["low"] * PAGE_SIZE + 1)):
        with pytest.raises(ValueError, match="not in low"):
            log.mark("low", offset, length)
    with pytest.raises(KeyError):
        log.mark("high", 0, 1)
    with pytest.raises(KeyError):
        log.merge_into("high", words_of(memory, "low"))
    log.mark("low", PAGES["low"] * PAGE_SIZE, 0)
    log.mark_written(HostPages(PAGE_SIZE).view)
    log.mark_written(memory.blocks["low"].view[:0])
    assert take_marks(memory, log) == set()


def test_a_block_that_ends_within_a_page() -> None:
    """It has a bit for the page that it begins, and none is set behind it."""
    memory = RingMemory()
    memory.blocks = {"odd": HostPages(63 * PAGE_SIZE + 100)}
    log = DeviceLog(memory)
    log.start()
    log.mark("odd", 0, 63 * PAGE_SIZE + 100)
    words = ffi.new("uint64_t[]", [0, 0])
    assert log.merge_into("odd", words) == 64
    assert list(words) == [(1 << 64) - 1, 0]
    log.close()


def test_close_lets_go_of_ram() -> None:
    """RAM can be unmapped afterwards, and not before."""
    ram = GuestRam(MemoryConfig(4 << 20))
    log = DeviceLog(ram)
    memory = MemoryMap(ram, log)
    log.start()
    with pytest.raises(BufferError):
        ram.close()
    memory.close()
    log.close()
    ram.close()


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["mark", "view", "take"]), ENDS, ENDS), max_size=30))
def test_against_a_set_of_pages(program: list[tuple[str, int, int]]) -> None:
    """Any marks and takes: exactly the pages that have one of the bytes, each once."""
    memory = RingMemory(PAGES["low"] * PAGE_SIZE)
    log = DeviceLog(memory)
    log.start()
    twin: set[tuple[str, int]] = set()
    for what, one, other in [*program, ("take", 0, 0)]:
        start, end = sorted((one, other))
        if what == "take":
            assert take_marks(memory, log) == twin
            twin.clear()
            continue
        if what == "mark":
            log.mark("low", start, end - start)
        else:
            log.mark_written(memory.blocks["low"].view[start:end])
        twin |= {("low", at // PAGE_SIZE) for at in range(start, end)[:: PAGE_SIZE]} if start < end else set()
        twin |= {("low", (end - 1) // PAGE_SIZE)} if start < end else set()
    log.close()
