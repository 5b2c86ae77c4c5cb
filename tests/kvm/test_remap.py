"""Other memory in place of a block's, and what is given back of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tvmm.kvm.discard import discard
from tvmm.kvm.pages import PAGE
from tvmm.kvm.remap import adopt_file, borrow_file, map_file
from tvmm.memory.ram import RamBlock

PAGES = 256
SIZE = PAGES * PAGE
CONTENT = b"".join(bytes([number]) * PAGE for number in range(PAGES))


@pytest.fixture
def private() -> Iterator[RamBlock]:
    """A block of private memory."""
    block = RamBlock("pc.ram", SIZE, shared=False)
    yield block
    block.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A file with a page in front of the content."""
    path = tmp_path / "file"
    path.write_bytes(b"\xee" * PAGE + CONTENT)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def test_a_private_block_reads_as_a_file_and_never_writes_to_it(private: RamBlock, file: int) -> None:
    private.view[:5] = b"stale"
    map_file(private, file, PAGE)
    assert private.view == CONTENT
    private.view[7 * PAGE : 8 * PAGE] = bytes(PAGE)
    assert private.view[7 * PAGE : 8 * PAGE] == bytes(PAGE)
    assert os.pread(file, SIZE, PAGE) == CONTENT


def test_after_a_reset_nothing_of_the_file_is_left(private: RamBlock, file: int) -> None:
    map_file(private, file, PAGE)
    private.view[:5] = b"alive"
    private.zero()
    assert private.view == bytes(SIZE)
    private.view[:5] = b"again"
    private.zero()
    assert private.view == bytes(SIZE)


@pytest.mark.parametrize("run", [(3, 2), (64, 128), (0, PAGES)])
def test_what_is_discarded_does_not_come_back_from_the_file(private: RamBlock, file: int, run: tuple[int, int]) -> None:
    map_file(private, file, PAGE)
    discard(private, [run])
    begin, end = run[0] * PAGE, (run[0] + run[1]) * PAGE
    assert private.view[begin:end] == bytes(end - begin)
    assert private.view[:begin] == CONTENT[:begin]
    assert private.view[end:] == CONTENT[end:]


def test_a_shared_block_becomes_the_memory_of_another() -> None:
    here, there = RamBlock("pc.ram", SIZE), RamBlock("pc.ram", SIZE)
    there.view[:] = CONTENT
    here.view[:5] = b"stale"
    adopt_file(here, os.dup(there.fd))
    assert here.view == CONTENT
    there.view[:5] = b"moved"
    assert bytes(here.view[:5]) == b"moved"
    there.close()
    assert bytes(here.view[:5]) == b"moved"
    here.zero()
    assert here.view == bytes(SIZE)
    here.close()


def test_what_is_borrowed_is_read_as_it_is_and_never_written() -> None:
    here, there = RamBlock("pc.ram", SIZE), RamBlock("pc.ram", SIZE)
    there.view[:] = CONTENT
    borrow_file(here, there.fd)
    assert here.view == CONTENT
    there.view[:5] = b"alive"
    assert bytes(here.view[:5]) == b"alive"
    here.view[PAGE : PAGE + 5] = b"trial"
    assert there.view[PAGE : 2 * PAGE] == CONTENT[PAGE : 2 * PAGE]
    adopt_file(here, os.dup(there.fd))
    assert here.view == there.view
    here.view[:5] = b"taken"
    assert bytes(there.view[:5]) == b"taken"
    here.close()
    there.close()


def test_who_has_given_memory_away_does_not_change_it_any_more() -> None:
    here, there = RamBlock("pc.ram", SIZE), RamBlock("pc.ram", SIZE)
    here.view[:] = CONTENT
    adopt_file(there, os.dup(here.fd))
    borrow_file(here, here.fd)
    here.view[:5] = b"stale"
    here.zero()
    assert here.view == bytes(SIZE)
    assert there.view == CONTENT
    here.close()
    there.close()


def test_each_kind_of_block_takes_its_kind_of_file(private: RamBlock, file: int) -> None:
    with pytest.raises(ValueError, match="private"):
        adopt_file(private, file)
    with pytest.raises(ValueError, match="private"):
        borrow_file(private, file)
    shared = RamBlock("pc.ram", SIZE)
    with pytest.raises(ValueError, match="shared"):
        map_file(shared, file)
    shared.close()
