"""bzImage files: the setup header's fields, and what is refused with which words."""

from __future__ import annotations

from struct import pack, pack_into

import pytest

from tests.support.images import bzimage
from tests.support.memory import FakeMemory
from tvmm.boot.bzimage import (
    BzImage,
    check_bzimage_placement,
    entry_64,
    is_bzimage,
    load_bzimage,
    parse_bzimage,
    payload,
)
from tvmm.errors import ImageError
from tvmm.memory.layout import ONE_MIB, Range

SETUP = 3 * 512


def parse(image: bytes) -> BzImage:
    return parse_bzimage(memoryview(image), "k")


def patched(offset: int, data: bytes) -> bytes:
    image = bzimage(b"payload")
    return image[:offset] + data + image[offset + len(data) :]


def test_fields() -> None:
    """A current header gives release, places, sizes and limits."""
    parsed = parse(bzimage(b"payload", pref_address=0x200_0000, init_size=0x12_3000, command_line_size=1000))
    assert parsed.version == 0x20F
    assert parsed.release == "6.1.0-test"
    assert parsed.kernel == Range(SETUP, 0x410)
    assert parsed.used == Range(0x200_0000, 0x12_3000)
    assert parsed.payload == Range(SETUP + 0x400, 7)
    assert (parsed.command_line_size, parsed.initrd_addr_max) == (1000, 0x7FFF_FFFF)
    assert entry_64(parsed, "k") == 0x200_0200


def test_header_ends_where_it_says() -> None:
    """The copy for the zero page reaches from 0x1f1 to 0x202 plus the byte at 0x201."""
    parsed = parse(bzimage())
    assert len(parsed.header) == 0x202 + 0x6A - 0x1F1
    assert parsed.header[0x206 - 0x1F1] == 0x0F
    assert len(parse(patched(0x201, b"\xff")).header) == 0x290 - 0x1F1


def test_loads_the_protected_mode_part() -> None:
    """The setup code stays in the file."""
    image = bzimage(b"payload")
    memory = FakeMemory(64 << 20)
    load_bzimage(memoryview(image), parse(image), memory)
    assert memory.writes == [Range(0x100_0000, 0x410)]
    assert memory.read(0x100_0000 + 0x400, 7) == b"payload"


def test_payload() -> None:
    """The compressed kernel is a view into the file."""
    image = memoryview(bzimage(b"payload"))
    assert bytes(payload(image, parse_bzimage(image, "k"), "k")) == b"payload"


def test_what_follows_the_kernel_is_not_loaded() -> None:
    """A signature at the end of the file is no part of the kernel."""
    assert parse(bzimage() + b"signature" * 100).kernel == parse(bzimage()).kernel


def test_last_paragraph_may_be_short() -> None:
    """Sizes are in units of 16 bytes; the file may end inside the last of them, but not before."""
    image = bzimage()
    assert parse(image[:-15]).kernel.size == 0x400 - 15
    with pytest.raises(ImageError, match="truncated"):
        parse(image[:-16])


def test_missing_fields_have_old_meanings() -> None:
    """Before 2.10 the load address is 1 MiB, and before 2.08 no payload is named."""
    old = parse(bzimage(b"payload", version=0x207))
    assert old.used == Range(ONE_MIB, 0x410)
    assert old.payload.size == 0
    with pytest.raises(ImageError, match=r"boot protocol 2.07\) does not say where"):
        payload(memoryview(b""), old, "k")
    assert parse(bzimage(b"payload", version=0x209)).payload.size == 7
    assert parse(bzimage(pref_address=0)).used.start == ONE_MIB


@pytest.mark.parametrize("version", [0, 0x200, 0x205])
def test_too_old(version: int) -> None:
    """The version that was found is named, and the oldest that would do."""
    with pytest.raises(ImageError, match=f"protocol {version >> 8}.{version & 255:02}; 2.06 is the oldest"):
        parse(bzimage(version=version))


def test_64_bit_entry_is_asked_for_by_version() -> None:
    """Before 2.12 nothing says that there is a 64-bit entry point."""
    with pytest.raises(
        ImageError, match=r"no 64-bit entry point: it speaks boot protocol 2.11, older than 2.12"
    ):
        entry_64(parse(bzimage(version=0x20B)), "k")


def test_64_bit_entry_is_asked_for_by_flag() -> None:
    """A 32-bit kernel lacks the flag."""
    with pytest.raises(ImageError, match="no 64-bit entry point: it is a 32-bit kernel"):
        entry_64(parse(bzimage(xloadflags=0)), "k")


def test_kernel_too_short_for_its_entry() -> None:
    """An entry point behind the end of the kernel is none."""
    with pytest.raises(ImageError, match="no 64-bit entry point"):
        entry_64(parse(bzimage(code_size=0x200)), "k")


FAULTS = {
    "zImage": (bzimage(loadflags=0), "zImage"),
    "cut in the header": (bzimage()[:0x250], "truncated: the file ends before the setup header"),
    "cut before the kernel": (bzimage()[:SETUP], "truncated: the file ends before the kernel"),
    "no kernel": (patched(0x1F4, bytes(4)), "truncated"),
    "kernel of 64 GiB": (patched(0x1F4, b"\xff" * 4), "truncated"),
    "payload past the end": (patched(0x24C, pack("<I", 0x11)), "compressed kernel at 0x400 to 0x411"),
    "payload at 4 GiB": (patched(0x248, b"\xff" * 8), "the file is damaged"),
    "header ends early": (patched(0x201, b"\x30"), "setup header that ends at 0x232"),
    "header ends before init_size": (patched(0x201, b"\x5e"), "ends at 0x260, too early for version 2.15"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_headers(fault: str) -> None:
    """Each fault is named, and nothing else is raised."""
    image, words = FAULTS[fault]
    with pytest.raises(ImageError, match=words):
        parse(image)


def test_placement() -> None:
    """init_size counts, not what is in the file, and the hint names enough memory."""
    parsed = parse(bzimage(init_size=48 << 20))
    check_bzimage_placement(parsed, 64 << 20, "k")
    with pytest.raises(ImageError, match=r"0x1000000 to 0x4000000 to unpack itself, .*--memory 64M"):
        check_bzimage_placement(parsed, (64 << 20) - 1, "k")


@pytest.mark.parametrize(("address", "words"), [(0x1_0000, "below 1 MiB"), (1 << 63, "to run below 3 GiB")])
def test_hostile_load_address(address: int, words: str) -> None:
    """A preferred address in low memory or beyond all RAM is refused."""
    with pytest.raises(ImageError, match=words):
        check_bzimage_placement(parse(bzimage(pref_address=address)), 3 << 30, "k")


@pytest.mark.parametrize(
    ("text", "release"),
    [(b"", ""), (b"\x01\x02 x", ""), (b"6.9 (x)", "6.9"), (b"\xff" * 200, "\ufffd" * 80), (b" \n ", "")],
)
def test_release(text: bytes, release: str) -> None:
    """The first word of the version string, bounded, printable, or nothing."""
    assert parse(bzimage(release=text)).release == release


def test_release_outside_of_the_setup() -> None:
    """A pointer behind the setup code is not followed."""
    image = bytearray(bzimage())
    pack_into("<H", image, 0x20E, SETUP)
    assert parse(bytes(image)).release == ""


def test_is_bzimage() -> None:
    """Signature and magic decide; a short file has neither."""
    assert is_bzimage(memoryview(bzimage()))
    assert not is_bzimage(memoryview(bzimage()[:0x205]))
    assert not is_bzimage(memoryview(bytes(1024)))
