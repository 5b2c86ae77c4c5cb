"""Builders of kernel images for tests: small and whole, or wrong in the one place that a test asks for."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Sequence
from struct import pack, pack_into
from typing import NamedTuple

import lz4.block  # type: ignore[import-untyped]
import zstandard

__all__ = [
    "CODECS",
    "EM_386",
    "EM_ARM",
    "EM_X86_64",
    "Load",
    "bzimage",
    "elf32",
    "elf64",
    "pack_kernel",
    "pe_program",
    "xen_note",
]

EM_386 = 3
EM_ARM = 40
EM_X86_64 = 62
ET_EXEC = 2
PT_LOAD = 1
PT_NOTE = 4

CODECS = ("gzip", "xz", "zstd", "lz4", "bzip2", "lzma")
"""What `pack_kernel` can pack with."""

_LZ4_BLOCK = 8 << 20


class Load(NamedTuple):
    """A loadable segment: `data` at physical `address`, zeros up to `size` bytes (0: none).

    `virtual` is its virtual address, None for the physical one.
    """

    address: int
    data: bytes
    size: int = 0
    virtual: int | None = None


def xen_note(entry: int, size: int = 8, *, kind: int = 18, owner: bytes = b"Xen\0") -> bytes:
    """An ELF note with a PVH entry point of `size` bytes."""
    value = entry.to_bytes(size, "little")
    return pack("<III", len(owner), size, kind) + _padded(owner) + _padded(value)


def elf64(
    loads: Sequence[Load],
    *,
    entry: int,
    notes: bytes = b"",
    machine: int = EM_X86_64,
    kind: int = ET_EXEC,
    extra_headers: Sequence[bytes] = (),
) -> bytes:
    """A 64-bit ELF of `loads` and one note segment; `extra_headers` are whole program headers put in
    front."""
    count = len(loads) + bool(notes) + len(extra_headers)
    offset = 64 + 56 * count
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    header = ident + pack("<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56, count, 64, 0, 0)
    headers, bodies = list(extra_headers), []
    for load in loads:
        virtual = load.address if load.virtual is None else load.virtual
        size = max(load.size, len(load.data))
        headers.append(
            pack("<IIQQQQQQ", PT_LOAD, 7, offset, virtual, load.address, len(load.data), size, 0x1000)
        )
        bodies.append(load.data)
        offset += len(load.data)
    if notes:
        headers.append(pack("<IIQQQQQQ", PT_NOTE, 4, offset, 0, 0, len(notes), len(notes), 4))
        bodies.append(notes)
    return b"".join((header, *headers, *bodies))


def elf32(loads: Sequence[Load], *, entry: int, notes: bytes = b"", machine: int = EM_386) -> bytes:
    """A 32-bit ELF of `loads` and one note segment."""
    count = len(loads) + bool(notes)
    offset = 52 + 32 * count
    ident = b"\x7fELF" + bytes((1, 1, 1)) + bytes(9)
    header = ident + pack("<HHIIIIIHHHHHH", ET_EXEC, machine, 1, entry, 52, 0, 0, 52, 32, count, 40, 0, 0)
    headers, bodies = [], []
    for load in loads:
        size = max(load.size, len(load.data))
        headers.append(
            pack("<IIIIIIII", PT_LOAD, offset, load.address, load.address, len(load.data), size, 7, 0x1000)
        )
        bodies.append(load.data)
        offset += len(load.data)
    if notes:
        headers.append(pack("<IIIIIIII", PT_NOTE, offset, 0, 0, len(notes), len(notes), 4, 4))
        bodies.append(notes)
    return b"".join((header, *headers, *bodies))


def bzimage(
    payload: bytes = b"",
    *,
    version: int = 0x20F,
    release: bytes = b"6.1.0-test (somebody@somewhere) #1",
    code_size: int = 0x400,
    pref_address: int = 0x100_0000,
    init_size: int = 0x40_0000,
    command_line_size: int = 2047,
    initrd_addr_max: int = 0x7FFF_FFFF,
    xloadflags: int = 1,
    loadflags: int = 1,
) -> bytes:
    """A bzImage whose protected-mode part is `code_size` bytes of 0x90, followed by `payload`."""
    setup = bytearray(3 * 512)
    kernel = _padded(b"\x90" * code_size + payload, 16)
    setup[0x1F1] = 2
    pack_into("<I", setup, 0x1F4, len(kernel) // 16)
    setup[0x1FE:0x206] = b"\x55\xaa\xeb\x6aHdrS"
    pack_into("<H", setup, 0x206, version)
    pack_into("<H", setup, 0x20E, 0x100 if release else 0)
    setup[0x300 : 0x300 + len(release)] = release
    setup[0x211] = loadflags
    pack_into("<I", setup, 0x22C, initrd_addr_max)
    pack_into("<IBBHI", setup, 0x230, 0x20_0000, 1, 21, xloadflags, command_line_size)
    pack_into("<II", setup, 0x248, code_size if payload else 0, len(payload))
    pack_into("<QI", setup, 0x258, pref_address, init_size)
    return bytes(setup) + kernel


def pack_kernel(codec: str, kernel: bytes, *, claimed: int | None = None) -> bytes:
    """`kernel` compressed as Linux's build does it, with its size (or what is `claimed`) at the end."""
    size = pack("<I", len(kernel) if claimed is None else claimed)
    if codec == "gzip":
        return gzip.compress(kernel)[:-4] + size
    if codec == "xz":
        return lzma.compress(kernel, check=lzma.CHECK_CRC32, preset=0) + size
    if codec == "lzma":
        return lzma.compress(kernel, format=lzma.FORMAT_ALONE, preset=0) + size
    if codec == "bzip2":
        return bz2.compress(kernel) + size
    if codec == "zstd":
        return zstandard.ZstdCompressor().compress(kernel) + size
    if codec == "lz4":
        blocks = [
            lz4.block.compress(kernel[at : at + _LZ4_BLOCK], store_size=False)
            for at in range(0, len(kernel), _LZ4_BLOCK)
        ]
        return b"\x02\x21\x4c\x18" + b"".join(pack("<I", len(b)) + b for b in blocks) + size
    raise ValueError(codec)


def pe_program(kind: int) -> bytes:
    """The head of a Windows or UEFI program; `kind` is the optional header's magic, 0x10b or 0x20b."""
    image = bytearray(1024)
    image[:2] = b"MZ"
    pack_into("<I", image, 0x3C, 0x80)
    image[0x80:0x84] = b"PE\0\0"
    pack_into("<H", image, 0x80 + 24, kind)
    return bytes(image)


def _padded(data: bytes, to: int = 4) -> bytes:
    return data + bytes(-len(data) % to)
