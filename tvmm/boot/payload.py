"""Unpack the kernel that is inside of a bzImage: compressed bytes in, vmlinux (ELF) out.

On a host that emulates kernel-mode code the guest's own decompressor runs for minutes; here it takes a
fraction of a second. What comes out is bounded twice: by what the payload says about itself (its last four
bytes, which the kernel's build appends, see Linux's scripts/Makefile.lib), and by `MAX_UNPACKED` if that is
a lie.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack_from
from typing import Protocol

from tvmm.errors import HostError, ImageError

__all__ = ["MAX_UNPACKED", "unpack"]

MAX_UNPACKED = 1 << 30
"""Bytes. A few hundred bytes of zstd can claim and become many gigabytes; kernels have 100 MiB at most."""
_MAX_WINDOW = 128 << 20
"""History that zstd may ask for: what ``zstd --ultra -22``, as the kernel's build uses it, needs."""
_MAX_CODEC_MEMORY = 256 << 20
"""For xz and lzma, whose header can ask for a 4 GiB dictionary; kernels have 32 to 128 MiB."""
_LZ4_BLOCK = 8 << 20
"""A block of the legacy frame format is this long, unpacked, except for the last."""
_PIECE = 4 << 20

_AROUND = "give the vmlinux of that kernel, or let the guest unpack it: --decompress off"


class _CorruptError(Exception):
    """The decoder's own words on what is wrong."""


class _Decoder(Protocol):
    """The decompressor objects of zlib, bz2 and lzma."""

    @property
    def eof(self) -> bool: ...
    def decompress(self, data: memoryview, max_length: int, /) -> bytes: ...


def unpack(payload: memoryview, name: str, limit: int = MAX_UNPACKED) -> bytes | bytearray:
    """The kernel in `payload`, at most `limit` bytes long; `name` is for messages.

    Raises `ImageError` for unknown or unsupported compression, for damaged data, and if it unpacks to
    anything but the size that the payload's last four bytes give; `HostError` if the codec's module is not
    installed or memory runs out.
    """
    codec, decode = _codec(payload, name)
    if len(payload) < 8:
        raise ImageError(f"the {codec} kernel in {name} is only {len(payload)} bytes long", _AROUND)
    (size,) = unpack_from("<I", payload, len(payload) - 4)
    if not 0 < size <= limit:
        raise ImageError(
            f"the {codec} kernel in {name} claims to unpack to {size} bytes; 1 to {limit} are taken",
            "the file is damaged: copy or build it again",
        )
    try:
        kernel = decode(payload, size)
    except _CorruptError as error:
        raise ImageError(
            f"the {codec} kernel in {name} is damaged: {error}", "copy or build it again"
        ) from error
    except MemoryError as error:
        raise HostError(
            f"there is not enough memory to unpack the kernel in {name} ({size} bytes)",
            "let the guest unpack it: --decompress off",
        ) from error
    if len(kernel) != size:
        more = "more than" if len(kernel) > size else f"{len(kernel)} bytes in place of"
        raise ImageError(
            f"the {codec} kernel in {name} unpacks to {more} {size} bytes",
            "the file is damaged: copy or build it again",
        )
    return kernel


def _codec(payload: memoryview, name: str) -> tuple[str, Callable[[memoryview, int], bytes | bytearray]]:
    start = bytes(payload[:6])
    for magic, codec, decode in _CODECS:
        if start.startswith(magic):
            return codec, decode
    if start.startswith(b"\x89LZO"):
        raise ImageError(
            f"the kernel in {name} is packed with LZO, for which there is no decoder here", _AROUND
        )
    raise ImageError(
        f"the kernel in {name} is packed in an unknown way (it starts with {start.hex(' ')})", _AROUND
    )


# Each decoder gets the payload with the size still at its end, and returns at most one byte more than `size`.


def _gzip(payload: memoryview, size: int) -> bytes:
    import zlib

    try:
        return _whole(zlib.decompressobj(wbits=31), payload, size)
    except zlib.error as error:
        raise _CorruptError(str(error)) from error


def _bzip2(payload: memoryview, size: int) -> bytes:
    import bz2

    try:
        return _whole(bz2.BZ2Decompressor(), payload, size)
    except OSError as error:
        raise _CorruptError(str(error)) from error


def _xz(payload: memoryview, size: int) -> bytes:
    return _liblzma(payload, size, "FORMAT_XZ")


def _lzma(payload: memoryview, size: int) -> bytes:
    return _liblzma(payload, size, "FORMAT_ALONE")


def _liblzma(payload: memoryview, size: int, kind: str) -> bytes:
    import lzma

    try:
        return _whole(lzma.LZMADecompressor(getattr(lzma, kind), memlimit=_MAX_CODEC_MEMORY), payload, size)
    except lzma.LZMAError as error:
        raise _CorruptError(str(error)) from error


def _zstd(payload: memoryview, size: int) -> bytearray:
    try:
        import zstandard
    except ImportError as error:
        raise _not_installed("zstandard") from error
    kernel = bytearray()
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(payload[:-4])
        while len(kernel) <= size:
            piece = reader.read(min(_PIECE, size + 1 - len(kernel)))
            if not piece:
                break
            kernel += piece
    except zstandard.ZstdError as error:
        raise _CorruptError(str(error)) from error
    return kernel


def _lz4(payload: memoryview, size: int) -> bytearray:
    """The legacy frame of lz4's doc/lz4_Frame_format.md: blocks, each after its packed length, no end mark.

    All but the last have to be full, so that their number is bounded too.
    """
    try:
        import lz4.block  # type: ignore[import-untyped]
    except ImportError as error:
        raise _not_installed("lz4") from error
    kernel = bytearray()
    offset, end = 4, len(payload) - 4
    while offset < end and len(kernel) < size:
        (length,) = unpack_from("<I", payload, offset)
        offset += 4
        if length > end - offset:
            raise _CorruptError(f"a block of {length} bytes runs past the end")
        expected = min(_LZ4_BLOCK, size - len(kernel))
        try:
            block = lz4.block.decompress(payload[offset : offset + length], uncompressed_size=expected)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise _CorruptError(str(error)) from error
        if len(block) != expected:
            raise _CorruptError(f"a block unpacks to {len(block)} bytes in place of {expected}")
        kernel += block
        offset += length
    if offset != end:
        raise _CorruptError(f"{end - offset} bytes are left over")
    return kernel


def _whole(decoder: _Decoder, payload: memoryview, size: int) -> bytes:
    kernel = decoder.decompress(payload, size + 1)
    if not decoder.eof and len(kernel) <= size:
        raise _CorruptError("the data end too early")
    return kernel


def _not_installed(module: str) -> HostError:
    return HostError(
        f"the Python module {module}, which unpacks this kernel, is not installed",
        f"install it (pip install {module}), or let the guest unpack the kernel: --decompress off",
    )


_CODECS: tuple[tuple[bytes, str, Callable[[memoryview, int], bytes | bytearray]], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\0\0", "lzma", _lzma),
)
