"""Whatever a kernel file holds, loading gives an entry state or an error of the user's, soon and in little
memory."""

from __future__ import annotations

import tracemalloc
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.images import CODECS, Load, bzimage, elf32, elf64, pack_kernel, xen_note
from tests.support.memory import FakeMemory
from tvmm.boot.entry import EntryState
from tvmm.boot.loader import Hardware, KernelOptions, load
from tvmm.boot.payload import unpack
from tvmm.errors import ConfigError, ImageError

RAM = 32 << 20
LOADS = [Load(0x10_0000, b"\x90" * 300, 5000), Load(0x20_0000, b"data" * 40)]
NOTES = xen_note(1, 4, kind=3) + xen_note(0x10_0004)
INNER = elf64(LOADS, entry=0x10_0000, notes=NOTES)
SEEDS = [
    INNER,
    elf64(LOADS, entry=0x10_0000),
    elf32(LOADS, entry=0x10_0000, notes=xen_note(0x10_0004, 4)),
    bzimage(b"payload" * 9, pref_address=0x10_0000, init_size=0x1000),
    *(bzimage(pack_kernel(codec, INNER), pref_address=0x10_0000, init_size=0x1000) for codec in CODECS),
]
HEADER = 0x400
"""Mutations are made where the headers are; what is behind is code, or compressed."""

INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]
ENTRIES: list[Literal["auto", "pvh", "linux64"]] = ["auto", "pvh", "linux64"]


def try_load(image: bytes, entry: Literal["auto", "pvh", "linux64"], emulated: bool) -> None:
    memory = FakeMemory(RAM)
    options = KernelOptions(image, "k", b"initrd", "console=ttyS0", entry)
    try:
        state = load(options, memory, RAM, Hardware(2), emulated)
    except (ImageError, ConfigError) as error:
        refusal = str(error)
    else:
        assert isinstance(state, EntryState)
        assert state.registers["rip"] < RAM
        assert not memory.overlapping_writes()
        return
    assert not memory.writes
    assert "\n" not in refusal


@settings(deadline=None, max_examples=300)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(
        st.tuples(
            st.integers(0, HEADER * 4),
            st.one_of(
                st.sampled_from(INTERESTING).map(lambda byte: bytes((byte,))),
                st.binary(min_size=1, max_size=8),
                st.sampled_from([b"\xff" * 4, b"\xff" * 8, bytes(8), b"\0\0\0\x80", bytes(7) + b"\x80"]),
            ),
        ),
        max_size=8,
    ),
    cut=st.one_of(st.none(), st.integers(0, 8192)),
    entry=st.sampled_from(ENTRIES),
    emulated=st.booleans(),
)
def test_mutated_images(
    seed: bytes,
    changes: list[tuple[int, bytes]],
    cut: int | None,
    entry: Literal["auto", "pvh", "linux64"],
    emulated: bool,
) -> None:
    """A good image with bytes changed and its end cut off is loaded or refused."""
    image = bytearray(seed)
    for offset, data in changes:
        offset %= len(image)
        image[offset : offset + len(data)] = data
    try_load(bytes(image[:cut]), entry, emulated)


@settings(deadline=None, max_examples=300)
@given(
    head=st.sampled_from([b"", b"\x7fELF\2\1\1", b"\x7fELF\1\1\1", b"MZ"]),
    body=st.binary(max_size=2048),
    entry=st.sampled_from(ENTRIES),
    emulated=st.booleans(),
)
def test_random_bytes(
    head: bytes, body: bytes, entry: Literal["auto", "pvh", "linux64"], emulated: bool
) -> None:
    """Noise, with and without a magic number in front, is refused."""
    try_load(head + body, entry, emulated)


@settings(deadline=None, max_examples=150)
@given(header=st.binary(min_size=0x90, max_size=0x90), body=st.binary(max_size=600), emulated=st.booleans())
def test_random_setup_header(header: bytes, body: bytes, emulated: bool) -> None:
    """A setup header of noise around the two magic numbers."""
    image = bytearray(bzimage(body))
    image[0x1F1 : 0x1F1 + len(header)] = header
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    try_load(bytes(image), "auto", emulated)


@settings(deadline=None, max_examples=200)
@given(
    codec=st.sampled_from(CODECS),
    offset=st.integers(0, 2000),
    data=st.binary(min_size=1, max_size=12),
    size=st.one_of(st.none(), st.integers(0, 1 << 24)),
)
def test_mutated_payloads(codec: str, offset: int, data: bytes, size: int | None) -> None:
    """A damaged payload gives what was packed, other bytes of the claimed size, or an error."""
    packed = bytearray(pack_kernel(codec, INNER, claimed=size))
    offset %= len(packed)
    packed[offset : offset + len(data)] = data
    claimed = int.from_bytes(packed[-4:], "little")
    try:
        kernel = unpack(memoryview(packed), "k", 1 << 24)
    except ImageError:
        return
    assert len(kernel) == claimed


@pytest.mark.parametrize("codec", CODECS)
def test_bomb_in_little_memory(codec: str) -> None:
    """A payload that would become 16 MiB, but claims 64 KiB, costs no more than a decoder's buffers."""
    packed = memoryview(pack_kernel(codec, bytes(16 << 20), claimed=1 << 16))
    unpack(memoryview(pack_kernel(codec, INNER)), "k")
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            unpack(packed, "k")
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_loading_copies_no_image() -> None:
    """Segments reach memory as views: what the loader allocates does not grow with the kernel."""
    image = elf64([Load(0x10_0000, bytes(16 << 20))], entry=0x10_0000, notes=xen_note(0x10_0000))

    class Sink(FakeMemory):
        """Takes every write and keeps none."""

        def write(self, gpa: int, data: bytes | memoryview) -> None:
            assert len(data) < 1 << 16 or isinstance(data, memoryview)

    options = KernelOptions(memoryview(image), "k")
    load(options, Sink(RAM), RAM, Hardware(1), False)
    tracemalloc.start()
    try:
        load(options, Sink(RAM), RAM, Hardware(1), False)
        assert tracemalloc.get_traced_memory()[1] < 64 << 10
    finally:
        tracemalloc.stop()
