"""The frames of lanes against a twin in plain Python, both ways, and everything that a hostile peer can get wrong."""

from __future__ import annotations

import random
import struct
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kvm.lane_rig import Ram
from tests.support.plain_lanes import (
    HEADER,
    MAGIC,
    PAGE,
    PAGES,
    ROUND_END,
    ZEROS,
    Frame,
    Refused,
    apply,
    decode,
    encode,
)
from tvmm.errors import ProtocolError
from tvmm.kvm.lanes import LaneGroup, LanePacker, LaneUnpacker
from tvmm.kvm.pages import PageBitmap

SIZES = (("a", 70), ("b", 3))
COUNTS = [70, 3]
FILL = b"\xa5" * PAGE

GOLDEN = bytes.fromhex(
    "54 56 50 4c 02 00 00 00 02 00 00 00 08 00 00 00 00 00 00 00 00 00 00 00 01 00 00 00 45 00 00 00"
    "54 56 50 4c 01 00 01 00 01 00 00 00 04 10 00 00 00 00 00 00 00 00 00 00 02 00 00 00"
) + FILL + bytes.fromhex("54 56 50 4c 03 00 00 00 00 00 00 00 00 00 00 00 09 00 00 00 00 00 00 00")
"""Pages 1 and 69 of block 0 are zero, page 2 of block 1 is not, and round 9 ends."""


def filled(stack: ExitStack) -> Ram:
    """RAM in which a page that somebody writes to can be told."""
    ram = Ram(stack, SIZES)
    for block in ram.blocks:
        block.view[:] = FILL * (block.size // PAGE)
    return ram


def take(ram: Ram, stream: bytes) -> LaneUnpacker:
    """All of a stream, over the ends of rounds."""
    unpacker, at = LaneUnpacker(ram.pages), 0
    while at < len(stream):
        at += unpacker.unpack(stream, len(stream) - at, at)
    return unpacker


def test_golden_stream() -> None:
    """The bytes of version 1, made by the sender and taken by the receiver."""
    with ExitStack() as stack:
        source, target = filled(stack), filled(stack)
        for page in (1, 69):
            source.write(0, page, bytes(PAGE))
        bitmap = PageBitmap.of(source.pages)
        for name, page in (("a", 1), ("a", 69), ("b", 2)):
            bitmap.mark(name, page)
        packer, buffer = LanePacker(LaneGroup(source.pages, bitmap)), bytearray(1 << 20)
        length = packer.pack(buffer, 9)
        assert bytes(buffer[:length]) == GOLDEN
        assert packer.round_ended
        assert take(target, GOLDEN).round == 9
        assert target.contents() == source.contents()
        assert decode(GOLDEN, COUNTS) == (
            [Frame(ZEROS, 0, (1, 69)), Frame(PAGES, 1, (2,), FILL), Frame(ROUND_END, number=9)],
            b"",
        )


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(st.sampled_from([0, 1]), st.integers(0, 69), st.booleans())), st.integers(0, 2**64 - 1))
def test_what_is_sent_decodes(writes: set[tuple[int, int, bool]], number: int) -> None:
    """Any set of dirty pages, zero or not, becomes frames that the twin reads as just those."""
    with ExitStack() as stack:
        source, model = filled(stack), [bytearray(FILL * count) for count in COUNTS]
        bitmap = PageBitmap.of(source.pages)
        dirty = set()
        for block, page, zero in sorted(writes):
            if page >= COUNTS[block]:
                continue
            source.write(block, page, bytes(PAGE) if zero else random.Random(page).randbytes(PAGE))
            bitmap.mark(SIZES[block][0], page)
            dirty.add((block, page))
        packer, buffer = LanePacker(LaneGroup(source.pages, bitmap, chunk_pages=64)), bytearray(1 << 20)
        length = packer.pack(buffer, number)
        frames, left = decode(bytes(buffer[:length]), COUNTS)
        assert not left
        assert frames.pop() == Frame(ROUND_END, number=number)
        apply(frames, model)
        assert [bytes(block) for block in model] == source.contents()
        named = [(frame.block, page) for frame in frames for page in frame.pages]
        assert sorted(named) == sorted(dirty)


def frame_of(data: st.DataObject) -> bytes:
    """A frame's bytes, mostly with something wrong in it."""
    kind = data.draw(st.sampled_from([PAGES, ZEROS, ROUND_END, 0, 4, 255]))
    block = data.draw(st.sampled_from([0, 1, 2, 65535]))
    pages = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 69, 70, 2**32 - 1]), max_size=4))
    if data.draw(st.booleans()):
        pages = sorted(set(pages))
    body = struct.pack(f"<{len(pages)}I", *pages) + (b"\x11" * PAGE * len(pages) if kind == PAGES else b"")
    wrong = st.sampled_from([0, 1, 1024, 1025, 2**32 - 1])
    count = len(pages) if data.draw(st.booleans()) else data.draw(wrong)
    payload = len(body) if data.draw(st.booleans()) else data.draw(wrong)
    magic = MAGIC if data.draw(st.integers(0, 9)) else b"TVPM"
    encoding = 0 if data.draw(st.integers(0, 9)) else 1
    number = data.draw(st.sampled_from([0, 0, 0, 7]))
    return HEADER.pack(magic, kind, encoding, block, count, payload, number) + body


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_receiver_agrees_with_its_twin(data: st.DataObject) -> None:
    """Any bytes are taken or refused as the twin does it; RAM that no good frame names keeps its bytes."""
    stream = b"".join(frame_of(data) for _ in range(data.draw(st.integers(1, 3))))
    stream = stream[: data.draw(st.integers(0, len(stream)))]
    model = [bytearray(FILL * count) for count in COUNTS]
    with ExitStack() as stack:
        ram = filled(stack)
        try:
            frames, left = decode(stream, COUNTS)
        except Refused as refused:
            with pytest.raises(ProtocolError):
                take(ram, stream)
            apply(refused.frames, model)
            assert untouched_but(ram, model, COUNTS)
            return
        unpacker = take(ram, stream)
        assert unpacker.between_frames == (not left)
        apply(frames, model)
        assert untouched_but(ram, model, COUNTS, unfinished(left))


def unfinished(left: bytes) -> tuple[int, set[int]]:
    """The pages that an unfinished frame of pages names: their bytes may be those that came."""
    if len(left) < HEADER.size or left[4] != PAGES:
        return 0, set()
    _, _, _, block, count, _, _ = HEADER.unpack_from(left)
    numbers = left[HEADER.size : HEADER.size + 4 * count]
    return block, set(struct.unpack(f"<{count}I", numbers)) if len(numbers) == 4 * count else set()


def untouched_but(
    ram: Ram, model: list[bytearray], counts: list[int], except_for: tuple[int, set[int]] = (0, set())
) -> bool:
    """Whether RAM is as the model says, but for some pages."""
    for block, (real, wanted, count) in enumerate(zip(ram.contents(), model, counts, strict=True)):
        for page in range(count):
            part = slice(page * PAGE, (page + 1) * PAGE)
            if real[part] != wanted[part] and not (block == except_for[0] and page in except_for[1]):
                return False
    return True


def packed(**changes: int | bytes) -> bytes:
    """A header for one page of block 0, changed, and page number 0 with its bytes."""
    values: dict[str, int | bytes] = {
        "magic": MAGIC, "kind": PAGES, "encoding": 0, "block": 0, "count": 1, "payload": 4 + PAGE, "number": 0
    }
    values.update(changes)
    return HEADER.pack(*values.values()) + bytes(4 + PAGE)


HOSTILE = {
    "magic": (packed(magic=b"tvpl"), "starts with"),
    "kind 0": (packed(kind=0), "no frames of kind 0"),
    "kind 4": (packed(kind=4), "no frames of kind 4"),
    "encoding": (packed(encoding=1), "no pages of encoding 1"),
    "block": (packed(block=2), "block 2, of 2"),
    "no pages": (packed(count=0, payload=0), "has 0 pages"),
    "too many pages": (packed(count=1025, payload=1025 * (4 + PAGE)), "has 1025 pages"),
    "all pages": (packed(count=2**32 - 1), "has 4294967295 pages"),
    "payload too short": (packed(payload=4), "payload of 4 bytes"),
    "payload too long": (packed(payload=2**32 - 1), "payload of 4294967295 bytes"),
    "number": (packed(number=1), "has a number, 1"),
    "end with pages": (packed(kind=ROUND_END), "has 1 pages"),
    "end of a block": (packed(kind=ROUND_END, count=0, payload=0, block=1), "block 1"),
    "end with payload": (packed(kind=ROUND_END, count=0), "payload of 4100 bytes"),
    "zeros with bytes": (packed(kind=ZEROS), "payload of 4100 bytes"),
    "range": (encode(Frame(PAGES, 0, (70,), bytes(PAGE))), "page 70 of a block of 70"),
    "range of zeros": (encode(Frame(ZEROS, 1, (0, 3))), "page 3 of a block of 3"),
    "twice": (encode(Frame(ZEROS, 0, (5, 5))), "page 5 comes behind page 5"),
    "backwards": (encode(Frame(PAGES, 0, (6, 5), bytes(2 * PAGE))), "page 5 comes behind page 6"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_frame_is_named_and_touches_nothing(name: str) -> None:
    """Each field wrong: the error says which, no byte of RAM changes, and the stream is over."""
    stream, words = HOSTILE[name]
    with ExitStack() as stack:
        ram = filled(stack)
        before = ram.contents()
        unpacker = LaneUnpacker(ram.pages)
        with pytest.raises(ProtocolError, match=words):
            unpacker.unpack(stream, len(stream))
        with pytest.raises(ProtocolError, match=words):
            unpacker.unpack(GOLDEN, len(GOLDEN))
        assert ram.contents() == before


def test_truncated_at_each_byte() -> None:
    """What is missing at the end is noticed, and only the pages of the unfinished frame may have changed."""
    stream = encode(Frame(ZEROS, 0, (3, 9))) + encode(Frame(PAGES, 1, (1,), bytes([7]) * PAGE)) + GOLDEN[-24:]
    with ExitStack() as stack:
        ram = filled(stack)
        for end in [*range(100), *range(4100, len(stream))]:
            for block in ram.blocks:
                block.view[:] = FILL * (block.size // PAGE)
            frames, left = decode(stream[:end], COUNTS)
            model = [bytearray(FILL * count) for count in COUNTS]
            apply(frames, model)
            assert take(ram, stream[:end]).between_frames == (not left)
            assert untouched_but(ram, model, COUNTS, unfinished(left))
