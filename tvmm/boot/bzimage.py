"""Linux's bzImage: the setup header to a checked record, the protected-mode kernel to guest memory.

Layout and meaning of the fields are from Linux's Documentation/arch/x86/boot.rst. The file is real-mode
code with the setup header in it (skipped here), followed by the protected-mode kernel: a decompressor with
the compressed vmlinux inside it, entered 512 bytes behind its start in 64-bit mode.
"""

from __future__ import annotations

from struct import unpack_from
from typing import NamedTuple

from tvmm.boot.linux import HEADER_END, HEADER_START
from tvmm.errors import ImageError
from tvmm.memory.layout import HOLE_START, ONE_MIB, GuestMemory, Range

__all__ = [
    "BzImage",
    "check_bzimage_placement",
    "entry_64",
    "is_bzimage",
    "load_bzimage",
    "parse_bzimage",
    "payload",
]

_SECTOR = 512
_ENTRY_64 = 0x200
_LOADED_HIGH = 1
_XLF_KERNEL_64 = 1
_RELEASE_LIMIT = 80
"""Bytes of the version string that are looked at; it ends up in messages."""

_OLDEST = 0x206
_WITH_PAYLOAD = 0x208
_WITH_PREFERRED_ADDRESS = 0x20A
_WITH_XLOADFLAGS = 0x20C
_HEADER_NEEDS = ((_OLDEST, 0x23C), (_WITH_PAYLOAD, 0x250), (_WITH_PREFERRED_ADDRESS, 0x264))
"""From which version on the header reaches how far, as to the fields that are used here."""


class BzImage(NamedTuple):
    """A checked setup header. Offsets are into the file, addresses are guest-physical, sizes in bytes.

    `header` is the header itself, as the zero page wants it. `used` is the memory that the kernel takes
    until it has read the memory map, from its load address on. `payload` is the compressed kernel, empty
    before 2.08.
    """

    version: int
    release: str
    header: bytes
    kernel: Range
    used: Range
    has_entry_64: bool
    payload: Range
    command_line_size: int
    initrd_addr_max: int


def is_bzimage(image: memoryview) -> bool:
    """Are a boot sector's signature and the setup header's magic there?"""
    return bytes(image[0x1FE:0x200]) == b"\x55\xaa" and bytes(image[0x202:0x206]) == b"HdrS"


def parse_bzimage(image: memoryview, name: str) -> BzImage:
    """Check the setup header of `image`; `name` is for messages.

    Raises `ImageError` for protocol versions before 2.06, kernels that load below 1 MiB, and damaged files.
    """
    if len(image) < HEADER_END:
        raise _truncated(name, "the setup header")
    (version,) = unpack_from("<H", image, 0x206)
    if version < _OLDEST:
        raise ImageError(
            f"{name} speaks Linux boot protocol {_dotted(version)}; 2.06 is the oldest that is known here",
            "take Linux 3.8 or later",
        )
    header_end = 0x202 + image[0x201]
    for since, needed in _HEADER_NEEDS:
        if version >= since and header_end < needed:
            raise ImageError(
                f"{name} has a setup header that ends at {header_end:#x}, too early for "
                f"version {_dotted(version)}"
            )
    if not image[0x211] & _LOADED_HIGH:
        raise ImageError(f"{name} is a zImage, which has to be loaded below 1 MiB", "build a bzImage")
    kernel = _protected_mode_part(image, name)
    (initrd_addr_max,) = unpack_from("<I", image, 0x22C)
    (command_line_size,) = unpack_from("<I", image, 0x238)
    payload_part, address, init_size, xloadflags = Range(0, 0), 0, 0, 0
    if version >= _WITH_PAYLOAD:
        payload_part = Range(*unpack_from("<II", image, 0x248))
        if payload_part.end > kernel.size:
            raise ImageError(
                f"{name} has its compressed kernel at {payload_part.start:#x} to {payload_part.end:#x} "
                f"of {kernel.size:#x} bytes: the file is damaged"
            )
    if version >= _WITH_PREFERRED_ADDRESS:
        address, init_size = unpack_from("<QI", image, 0x258)
    if version >= _WITH_XLOADFLAGS:
        (xloadflags,) = unpack_from("<H", image, 0x236)
    return BzImage(
        version=version,
        release=_release(image, kernel.start),
        header=bytes(image[HEADER_START : min(header_end, HEADER_END)]),
        kernel=kernel,
        used=Range(address or ONE_MIB, max(init_size, kernel.size)),
        has_entry_64=bool(xloadflags & _XLF_KERNEL_64) and kernel.size > _ENTRY_64,
        payload=Range(kernel.start + payload_part.start, payload_part.size),
        command_line_size=command_line_size,
        initrd_addr_max=initrd_addr_max,
    )


def payload(image: memoryview, bzimage: BzImage, name: str) -> memoryview:
    """The compressed kernel inside of `image`; raises `ImageError` if the header does not say where it is."""
    if not bzimage.payload.size:
        raise ImageError(
            f"{name} (boot protocol {_dotted(bzimage.version)}) does not say where its compressed kernel is",
            "give the vmlinux of that kernel, or let the guest unpack it: --decompress off",
        )
    return image[bzimage.payload.start : bzimage.payload.end]


def entry_64(bzimage: BzImage, name: str) -> int:
    """The physical address of the 64-bit entry point; raises `ImageError` if there is none."""
    if not bzimage.has_entry_64:
        because = "is a 32-bit kernel"
        if bzimage.version < _WITH_XLOADFLAGS:
            because = f"speaks boot protocol {_dotted(bzimage.version)}, older than 2.12"
        raise ImageError(
            f"{name} has no 64-bit entry point: it {because}", "take a 64-bit kernel, Linux 3.8 or later"
        )
    return bzimage.used.start + _ENTRY_64


def check_bzimage_placement(bzimage: BzImage, ram_end: int, name: str) -> None:
    """Raise `ImageError` unless the kernel, with what it needs to unpack itself, fits into low RAM."""
    used = bzimage.used
    if used.start < ONE_MIB:
        raise ImageError(f"{name} wants to be loaded at {used.start:#x}, below 1 MiB: the file is damaged")
    if used.end > ram_end:
        hint = "it has to be built to run below 3 GiB"
        if used.end <= HOLE_START:
            hint = f"give the machine more memory: --memory {-(-used.end >> 20)}M"
        raise ImageError(
            f"{name} needs memory from {used.start:#x} to {used.end:#x} to unpack itself, "
            f"but RAM ends at {ram_end:#x}",
            hint,
        )


def load_bzimage(image: memoryview, bzimage: BzImage, memory: GuestMemory) -> None:
    """Write the protected-mode kernel, which `check_bzimage_placement` has passed."""
    memory.write(bzimage.used.start, image[bzimage.kernel.start : bzimage.kernel.end])


def _protected_mode_part(image: memoryview, name: str) -> Range:
    """Where the kernel proper is in the file. What follows it (signatures) is not loaded.

    The size is counted in units of 16 bytes, and some builds do not fill the last one.
    """
    start = ((image[0x1F1] or 4) + 1) * _SECTOR
    (paragraphs,) = unpack_from("<I", image, 0x1F4)
    size = min(paragraphs * 16, len(image) - start)
    if size <= 0 or paragraphs * 16 - size > 15:
        raise _truncated(name, "the kernel")
    return Range(start, size)


def _release(image: memoryview, setup_size: int) -> str:
    """The kernel's release, such as "6.1.0-13-amd64", or an empty string."""
    start = int(unpack_from("<H", image, 0x20E)[0])
    if not start or start + 0x200 >= setup_size:
        return ""
    text = bytes(image[start + 0x200 : min(start + 0x200 + _RELEASE_LIMIT, setup_size)])
    words = text.split(b"\0")[0].decode("ascii", "replace").split()
    return words[0] if words and words[0].isprintable() else ""


def _dotted(version: int) -> str:
    return f"{version >> 8}.{version & 0xFF:02}"


def _truncated(name: str, what: str) -> ImageError:
    return ImageError(f"{name} is truncated: the file ends before {what} does", "copy or build it again")
