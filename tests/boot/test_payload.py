"""Unpacking: every codec that Linux's build knows, damage of each kind, and the bounds."""

from __future__ import annotations

import lzma
import random
import sys
import zlib
from struct import pack

import pytest
import zstandard

from tests.support.images import CODECS, pack_kernel
from tvmm.boot.payload import MAX_UNPACKED, unpack
from tvmm.errors import HostError, ImageError

KERNEL = b"\x7fELF" + random.Random(1).randbytes(3000) + b"text" * 2000


@pytest.mark.parametrize("codec", CODECS)
def test_round_trip(codec: str) -> None:
    """What was packed comes out."""
    assert unpack(memoryview(pack_kernel(codec, KERNEL)), "k") == KERNEL


def test_lz4_of_several_blocks() -> None:
    """The legacy frame has a block for every 8 MiB; a full last block is no special case."""
    for size in ((8 << 20) + 1, 16 << 20):
        kernel = bytes(size)
        assert unpack(memoryview(pack_kernel("lz4", kernel)), "k") == kernel


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("claimed", [len(KERNEL) - 1, len(KERNEL) + 1, 1])
def test_size_has_to_be_right(codec: str, claimed: int) -> None:
    """More or less than the payload's last bytes say is damage."""
    with pytest.raises(ImageError, match=f"the {codec} kernel in k (unpacks to|is damaged)"):
        unpack(memoryview(pack_kernel(codec, KERNEL, claimed=claimed)), "k")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("claimed", [0, MAX_UNPACKED + 1, 0xFFFF_FFFF])
def test_size_has_to_be_sensible(codec: str, claimed: int) -> None:
    """Nothing is unpacked if the size alone is too much."""
    with pytest.raises(ImageError, match=f"claims to unpack to {claimed} bytes"):
        unpack(memoryview(pack_kernel(codec, KERNEL, claimed=claimed)), "k")


@pytest.mark.parametrize("codec", CODECS)
def test_cut_short(codec: str) -> None:
    """A payload with its middle missing is damaged, wherever it is cut."""
    packed = pack_kernel(codec, KERNEL)
    for keep in range(7, len(packed) - 5, 97):
        with pytest.raises(ImageError, match=r"damaged|unpacks to|only"):
            unpack(memoryview(packed[:keep] + packed[-4:]), "k")


@pytest.mark.parametrize("codec", CODECS)
def test_nothing_but_the_magic(codec: str) -> None:
    """A payload of a few bytes is told so."""
    with pytest.raises(ImageError, match="only 7 bytes long"):
        unpack(memoryview(pack_kernel(codec, KERNEL)[:7]), "k")


def test_lower_limit() -> None:
    """The caller may take less than the constant."""
    with pytest.raises(ImageError, match="1 to 100 are taken"):
        unpack(memoryview(pack_kernel("gzip", KERNEL)), "k", 100)


def test_zstd_window_is_bounded() -> None:
    """A frame that asks for a history of gigabytes is refused, not served."""
    parameters = zstandard.ZstdCompressionParameters(window_log=30)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = compressor.compress(KERNEL) + compressor.flush() + pack("<I", len(KERNEL))
    with pytest.raises(ImageError, match="memory"):
        unpack(memoryview(packed), "k")


@pytest.mark.parametrize("kind", [lzma.FORMAT_XZ, lzma.FORMAT_ALONE])
def test_lzma_dictionary_is_bounded(kind: int) -> None:
    """So is a dictionary of a gigabyte."""
    head = b"\x5d" + pack("<I", 1 << 30) + b"\xff" * 8
    if kind == lzma.FORMAT_XZ:
        # The block header follows the stream header of 12 bytes: size, flags, filter, its size, dictionary
        # (36 is 1 GiB), padding, CRC32.
        packed = bytearray(lzma.compress(KERNEL, check=lzma.CHECK_CRC32))
        packed[16] = 36
        packed[20:24] = pack("<I", zlib.crc32(packed[12:20]))
        head = bytes(packed)
    with pytest.raises(ImageError, match=r"[Mm]emory"):
        unpack(memoryview(head + bytes(20) + pack("<I", 1000)), "k")


LZ4_FAULTS = {
    "block runs past": (pack("<I", 1 << 31) + b"abc", "runs past the end"),
    "empty blocks": (pack("<I", 0) * 50, "damaged"),
    "half a length": (pack("<I", 2) + b"\x10x" + b"\1\2", "left over"),
    "rubbish": (pack("<I", 4) + b"\xff" * 4, "damaged"),
    "short block": (pack("<I", 2) + b"\x10x", "in place of 1000"),
}


@pytest.mark.parametrize("fault", LZ4_FAULTS)
def test_lz4_frame_faults(fault: str) -> None:
    """The frame is walked here, so its faults are found here."""
    body, words = LZ4_FAULTS[fault]
    size = 1 if fault == "half a length" else 1000
    with pytest.raises(ImageError, match=words):
        unpack(memoryview(b"\x02\x21\x4c\x18" + body + pack("<I", size)), "k")


def test_lzo_says_how_to_get_around_it() -> None:
    """There is no decoder for LZO; the guest has one."""
    with pytest.raises(ImageError, match=r"packed with LZO, .*--decompress off"):
        unpack(memoryview(b"\x89LZO\0\r\n\x1a\n" + bytes(20)), "k")


def test_unknown_codec_shows_what_is_there() -> None:
    """The first bytes are shown, for whoever knows them."""
    with pytest.raises(ImageError, match="starts with 00 01 02 03 04 05"):
        unpack(memoryview(bytes(range(30))), "k")


@pytest.mark.parametrize(("codec", "module"), [("zstd", "zstandard"), ("lz4", "lz4.block")])
def test_codec_that_is_not_installed(codec: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing module is the host's matter, with the command that mends it."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(HostError, match=f"pip install {module.split('.')[0]}"):
        unpack(memoryview(pack_kernel(codec, KERNEL)), "k")
