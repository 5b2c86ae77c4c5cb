"""The layout of snapshot files: numbers in and out, and every wrong one refused in a sentence."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.errors import ImageError
from tvmm.snapshot import format as layout
from tvmm.snapshot.format import (
    HEADER_BYTES,
    BlockPlace,
    Header,
    KeySource,
    check_places,
    pack_header,
    pages_end,
    parse_header,
    place_blocks,
    table_bytes,
)

BLOCKS = (("pc.ram", 300), ("image.kernel", 3))


def header_for(description: int = 100, key: KeySource | None = None) -> Header:
    """Of a file with `BLOCKS`."""
    key = key or KeySource()
    places = place_blocks(BLOCKS)
    table = table_bytes(places, encrypted=key.kind != 0) + (16 if key.kind else 0)
    end = pages_end(places)
    return Header(
        end + table + description, end, table, end + table, description, bytes(32), bytes(32), bytes(32), key
    )


@pytest.mark.parametrize(
    "key", [KeySource(), KeySource(1, 15, 8, 1, bytes(range(32))), KeySource(2, salt=bytes(range(32)))]
)
def test_a_header_is_read_as_it_was_written(key: KeySource) -> None:
    """Plain, with a passphrase, with a key file."""
    header = header_for(key=key)
    data = pack_header(header)
    assert len(data) == HEADER_BYTES
    assert parse_header(data, header.file_bytes) == header


def test_blocks_begin_at_two_mib_and_do_not_overlap() -> None:
    """So that the kernel may map them with large pages."""
    assert place_blocks(BLOCKS) == (BlockPlace("pc.ram", 300, 2 << 20), BlockPlace("image.kernel", 3, 4 << 20))
    assert pages_end(place_blocks(BLOCKS)) == (4 << 20) + 3 * 4096
    assert table_bytes(place_blocks(BLOCKS), encrypted=False) == 3 * 8


def signed(fields: bytes) -> bytes:
    """A header with a digest that is right."""
    return (fields + hashlib.sha256(fields).digest()).ljust(HEADER_BYTES, b"\0")


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (8, struct.pack("<HH", 7, 7), "version 7, this tvmm knows 1"),
        (8, struct.pack("<HH", 1, 0), "says what no tvmm writes"),
        (12, struct.pack("<I", 2), "says what no tvmm writes"),
        (12, struct.pack("<I", 1), "of its encryption"),
        (16, struct.pack("<Q", 1 << 60), "cut short"),
        (16, struct.pack("<Q", 4096), "longer than it was"),
        (24, struct.pack("<Q", 4096), "table of checksums is not where"),
        (24, struct.pack("<Q", (1 << 64) - 1), "table of checksums is not where"),
        (32, struct.pack("<Q", (1 << 64) - 1), "table of checksums is not where"),
        (40, struct.pack("<Q", 0), "description is not where"),
        (48, struct.pack("<Q", 1 << 40), "description is not where"),
        (48, struct.pack("<Q", 1), "something behind its description"),
        (56, struct.pack("<I", 0), "says what no tvmm writes"),
        (160, struct.pack("<I", 3), "of its encryption"),
        (164, struct.pack("<I", 15), "of its encryption"),
    ],
)
def test_a_wrong_number_is_refused(offset: int, value: bytes, why: str) -> None:
    """Each field that says what cannot be, in a header whose digest is right."""
    header = header_for()
    fields = bytearray(pack_header(header)[:208])
    fields[offset : offset + len(value)] = value
    with pytest.raises(ImageError, match=why):
        parse_header(signed(bytes(fields)), header.file_bytes)


@pytest.mark.parametrize(
    "key", [(1, 21, 1, 1), (1, 20, 8, 1), (1, 15, 8, 17), (1, 15, 33, 16), (1, 0, 8, 1), (1, 15, 0, 1)]
)
def test_a_file_cannot_have_a_reader_compute_for_ever(key: tuple[int, int, int, int]) -> None:
    """Scrypt's parameters are bounded."""
    header = header_for(key=KeySource(*key, salt=bytes(32)))
    with pytest.raises(ImageError, match="of its encryption"):
        parse_header(pack_header(header), header.file_bytes)


def test_a_file_cannot_have_a_reader_keep_a_table_without_end() -> None:
    """One of holes is as long as it likes."""
    table = 1 << 40
    at = (2 << 20) + table
    header = header_for()._replace(
        file_bytes=at + 100, table_offset=2 << 20, table_bytes=table, description_offset=at
    )
    with pytest.raises(ImageError, match="table of checksums is not where it can be"):
        parse_header(pack_header(header), header.file_bytes)


def test_what_is_no_snapshot_is_called_that() -> None:
    """Also an empty file; and one that ends in its header."""
    for data in (b"", b"\x7fELF" + bytes(5000)):
        with pytest.raises(ImageError, match="not a snapshot"):
            parse_header(data, len(data))
    with pytest.raises(ImageError, match="header is not whole"):
        parse_header(pack_header(header_for())[:100], 100)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_a_changed_header_is_never_taken(change: bytes, at: int) -> None:
    """Whatever bytes stand in it: the same header, or an error."""
    header = header_for()
    data = pack_header(header)
    changed = data[:at] + change + data[at + len(change) :]
    if changed[:HEADER_BYTES] != data:
        with pytest.raises(ImageError):
            parse_header(changed, header.file_bytes)


@pytest.mark.parametrize(
    ("places", "why"),
    [
        ((BlockPlace("a", 300, 0),), "overlaps"),
        ((BlockPlace("a", 300, (2 << 20) + 4096),), "overlaps"),
        ((BlockPlace("a", 513, 2 << 20), BlockPlace("b", 3, 4 << 20)), "overlaps"),
        ((BlockPlace("a", 0, 2 << 20),), "not inside"),
        ((BlockPlace("a", 1 << 60, 2 << 20),), "beyond"),
        ((BlockPlace("a", 1, 1 << 60),), "not inside"),
        ((BlockPlace("a", 300, 2 << 20),), "not of its blocks"),
    ],
)
def test_blocks_that_cannot_be_are_refused(places: tuple[BlockPlace, ...], why: str) -> None:
    """Outside of the page area, over one another, or others than the table is of."""
    with pytest.raises(ImageError, match=why):
        check_places(places, header_for())


def test_the_key_of_the_hash_is_the_same_for_ever() -> None:
    """It is part of the format."""
    key = layout.page_key(bytes(range(32)))
    assert len(key) == 514 * 8
    assert hashlib.sha256(key).hexdigest()[:16] == "40914ffa00519065"
