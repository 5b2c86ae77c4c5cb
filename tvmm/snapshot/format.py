"""The layout of a snapshot file: a header, pages at fixed offsets, checksums, and the description at the end.

=====================  ===========================================================================================
where                  what
=====================  ===========================================================================================
0                      the header, 4096 bytes (table below)
2 MiB                  the page area: blocks one after the other, each beginning at a multiple of 2 MiB. The bytes of
                       page n of a block are at ``block.offset + 4096 * n``; pages of zeros may be holes of the file
after the page area    the table: for each chunk of 1 MiB of each block, in order, 8 bytes of checksum (16 bytes of tag
                       if the file is encrypted); then the description (`tvmm.snapshot.description`)
=====================  ===========================================================================================

The header, little-endian:

======  =====  =====================================================================
offset  bytes  what
======  =====  =====================================================================
0       8      ``TVMMSNAP``
8       4      version of the format, the oldest reader that understands it (u16 each)
12      4      flags: bit 0 the file is encrypted
16      8      length of the whole file
24      16     the table: offset, length
40      16     the description: offset, length
56      4      pages of 4096 bytes in a chunk: 256
60      4      0
64      32     seed: the key of the page hash is made from it
96      32     SHA-256 of the table as it is in the file
128     32     SHA-256 of the description as it is in the file
160     4      where the key comes from: 0 no key, 1 passphrase (scrypt), 2 key file
164     4      scrypt: log2 of N; then r, p (u16 each at 168 and 170)
172     4      0
176     32     salt
208     32     SHA-256 of the first 208 bytes
240     ...    0
======  =====  =====================================================================

A chunk's checksum is the sum, modulo 2**64, of one number for each page that is not zero: the page's hash (NH, as in
`tvmm/kvm/pages.c`), plus its place in the file, mixed. A chunk of zeros has the sum 0. So the order in which pages are
written does not matter, and no page can have been lost, changed, or put into another's place without notice.

What is read here comes from a file that anybody may have made: every number is compared with the file's length
before it is used, and what does not fit raises `ImageError` with one sentence.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CHUNK_BYTES",
    "HEADER_BYTES",
    "MAGIC",
    "PAGE_BYTES",
    "BlockPlace",
    "Header",
    "KeySource",
    "check_places",
    "chunk_count",
    "description_limit",
    "entry_bytes",
    "is_snapshot",
    "pack_header",
    "page_key",
    "pages_end",
    "parse_header",
    "place_blocks",
    "table_bytes",
]

MAGIC = b"TVMMSNAP"
VERSION = 1
PAGE_BYTES = 4096
CHUNK_PAGES = 256
CHUNK_BYTES = PAGE_BYTES * CHUNK_PAGES
HEADER_BYTES = 4096
ALIGN_BYTES = 2 << 20
"""Of blocks: a mapping may use large pages of the page cache."""
ENCRYPTED = 1
SEED_BYTES = SALT_BYTES = 32
KEY_WORDS = 514
"""Of the page hash: one for each of a page's words of 8 bytes, and two to fold the sum."""

MAX_FILE_BYTES = 1 << 50
"""No file system has larger files, and sums of offsets stay far from 2**64."""
MAX_DESCRIPTION_BYTES = 80 << 20
"""What a file can have a reader keep: all sections of the largest machine, and then some."""
MAX_TABLE_BYTES = 128 << 20
"""All of it is kept, and a file of holes claims any number of pages for nothing: this is of 8 TiB, encrypted."""
SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P = 15, 8, 1
"""32 MiB and a tenth of a second for each passphrase that is tried."""
MAX_SCRYPT_LOG_N, MAX_SCRYPT_COST = 20, 1 << 22
"""A file must not have a reader allocate, or count, without end: N r p is 16 times what is written, so that there are
512 MiB at most, and some seconds in which nobody can interrupt it."""

_FIELDS = struct.Struct("<8sHHI Q QQ QQ II 32s 32s 32s II HHI 32s")
assert _FIELDS.size == 208


class KeySource(NamedTuple):
    """Where the key of an encrypted file comes from: `kind` 0 no key, 1 a passphrase by scrypt, 2 a key file."""

    kind: int = 0
    log_n: int = 0
    r: int = 0
    p: int = 0
    salt: bytes = bytes(SALT_BYTES)


class Header(NamedTuple):
    """What is in the first page of the file; offsets and lengths in bytes."""

    file_bytes: int
    table_offset: int
    table_bytes: int
    description_offset: int
    description_bytes: int
    seed: bytes
    table_digest: bytes
    description_digest: bytes
    key: KeySource = KeySource()
    version: int = VERSION

    @property
    def encrypted(self) -> bool:
        """Whether pages, table and description are."""
        return self.key.kind != 0


class BlockPlace(NamedTuple):
    """A block of pages in the file. `offset` is that of its first page in the file, in bytes."""

    name: str
    pages: int
    offset: int

    @property
    def chunks(self) -> int:
        """How many chunks it has, the last one perhaps a short one."""
        return chunk_count(self.pages)


def chunk_count(pages: int) -> int:
    """Chunks of a block."""
    return -(-pages // CHUNK_PAGES)


def entry_bytes(*, encrypted: bool) -> int:
    """Of a chunk in the table."""
    return 16 if encrypted else 8


def place_blocks(blocks: Sequence[tuple[str, int]]) -> tuple[BlockPlace, ...]:
    """Where blocks, given as name and number of pages, go."""
    at, places = ALIGN_BYTES, []
    for name, pages in blocks:
        places.append(BlockPlace(name, pages, at))
        at = -(-(at + pages * PAGE_BYTES) // ALIGN_BYTES) * ALIGN_BYTES
    return tuple(places)


def pages_end(places: Sequence[BlockPlace]) -> int:
    """Where the page area ends and the table begins: behind the last block."""
    return max((place.offset + place.pages * PAGE_BYTES for place in places), default=ALIGN_BYTES)


def table_bytes(places: Sequence[BlockPlace], *, encrypted: bool) -> int:
    """Length of the table, without the tag of an encrypted one."""
    return sum(place.chunks for place in places) * entry_bytes(encrypted=encrypted)


def page_key(seed: bytes) -> bytes:
    """The key of the page hash, as words of 8 bytes, little-endian: SHAKE-256 of the seed."""
    return hashlib.shake_256(b"tvmm snapshot pages\0" + seed).digest(KEY_WORDS * 8)


def is_snapshot(start: bytes) -> bool:
    """Whether a file that starts like this may be a snapshot: what is asked before one is replaced."""
    return start[: len(MAGIC)] == MAGIC


def pack_header(header: Header) -> bytes:
    """The first `HEADER_BYTES` of the file."""
    key = header.key
    fields = _FIELDS.pack(
        MAGIC, header.version, header.version, ENCRYPTED if header.encrypted else 0,
        header.file_bytes,
        header.table_offset, header.table_bytes,
        header.description_offset, header.description_bytes,
        CHUNK_PAGES, 0,
        header.seed, header.table_digest, header.description_digest,
        key.kind, key.log_n, key.r, key.p, 0, key.salt,
    )  # fmt: skip
    return (fields + hashlib.sha256(fields).digest()).ljust(HEADER_BYTES, b"\0")


def parse_header(data: bytes, file_bytes: int) -> Header:
    """The header in the first bytes of a file of that length. Raises `ImageError` saying what is wrong."""
    if not is_snapshot(data):
        raise ImageError("it is not a snapshot of tvmm")
    if len(data) < HEADER_BYTES:
        raise ImageError("it is cut short: its header is not whole")
    fields = data[: _FIELDS.size]
    numbers, rest = _FIELDS.unpack(fields)[1:9], _FIELDS.unpack(fields)[9:]
    version, minimum, flags, length, table_offset, table_length, description_offset, description_length = numbers
    chunk_pages, zero_a, seed, table_digest, description_digest, *key, zero_b, salt = rest
    # First what a newer tvmm may have laid out in another way.
    if minimum > VERSION:
        raise ImageError(
            f"its format is version {version}, this tvmm knows {VERSION}", "restore it with the tvmm that wrote it"
        )
    digest = data[_FIELDS.size : _FIELDS.size + 32]
    if hashlib.sha256(fields).digest() != digest or any(data[_FIELDS.size + 32 : HEADER_BYTES]) or zero_a or zero_b:
        raise ImageError("its header is damaged")
    if not 1 <= minimum <= version or flags & ~ENCRYPTED or chunk_pages != CHUNK_PAGES:
        raise ImageError("its header says what no tvmm writes")
    if length != file_bytes:
        what = "cut short" if file_bytes < length else "longer than it was"
        raise ImageError(f"it is {what}: {file_bytes} bytes, and {length} were written")
    header = Header(
        length, table_offset, table_length, description_offset, description_length,
        seed, table_digest, description_digest, _key_source(key, salt, flags), version,
    )  # fmt: skip
    _check_areas(header)
    return header


def _key_source(key: list[int], salt: bytes, flags: int) -> KeySource:
    kind, log_n, r, p = key
    fits = {
        0: (log_n, r, p) == (0, 0, 0) and not any(salt),
        1: 1 <= log_n <= MAX_SCRYPT_LOG_N and 1 <= (r * p) << log_n <= MAX_SCRYPT_COST,
        2: (log_n, r, p) == (0, 0, 0),
    }
    if not fits.get(kind, False) or bool(kind) != bool(flags & ENCRYPTED):
        raise ImageError("its header says of its encryption what no tvmm writes")
    return KeySource(kind, log_n, r, p, salt)


def _check_areas(header: Header) -> None:
    """Table and description are inside of the file, one behind the other, behind the place where pages begin."""
    areas = (
        ("table of checksums", header.table_offset, header.table_bytes, MAX_TABLE_BYTES),
        ("description", header.description_offset, header.description_bytes, description_limit(header)),
    )
    at = ALIGN_BYTES
    if header.file_bytes > MAX_FILE_BYTES:
        raise ImageError("its header says that it is larger than a file can be")
    for what, offset, length, limit in areas:
        if offset < at or length > limit or offset > header.file_bytes or length > header.file_bytes - offset:
            raise ImageError(f"its {what} is not where it can be")
        at = offset + length
    if at != header.file_bytes:
        raise ImageError("it has something behind its description")


def description_limit(header: Header) -> int:
    """How long a description can be in bytes."""
    return MAX_DESCRIPTION_BYTES + (16 if header.encrypted else 0)


def check_places(places: Sequence[BlockPlace], header: Header) -> None:
    """Raise `ImageError` unless blocks lie in the page area one behind the other, and the table is theirs."""
    at = ALIGN_BYTES
    for place in places:
        if place.offset % ALIGN_BYTES or place.offset < at:
            raise ImageError(f"block {place.name} overlaps something, or is at no multiple of 2 MiB")
        if place.pages < 1 or place.offset > header.table_offset:
            raise ImageError(f"block {place.name} is not inside of the file")
        if place.pages * PAGE_BYTES > header.table_offset - place.offset:
            raise ImageError(f"block {place.name} goes beyond the page area")
        at = place.offset + place.pages * PAGE_BYTES
    tag = 16 if header.encrypted else 0
    if header.table_bytes != table_bytes(places, encrypted=header.encrypted) + tag:
        raise ImageError("its table of checksums is not of its blocks")
