"""What a file is that is no kernel, so that the message can say more than "unknown format"."""

from __future__ import annotations

from struct import unpack_from

from tvmm.errors import ImageError

__all__ = ["unknown_kernel"]

_UNPACK = "unpack it first, for a kernel with Linux's scripts/extract-vmlinux"
_BUILD = "give a bzImage, a vmlinux or another ELF kernel for x86-64"

_MAGICS = (
    (0, b"\x1f\x8b", "gzip-compressed", _UNPACK),
    (0, b"\xfd7zXZ\0", "xz-compressed", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed", _UNPACK),
    (0, b"\x02\x21\x4c\x18", "lz4-compressed", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "lz4-compressed", _UNPACK),
    (0, b"BZh", "bzip2-compressed", _UNPACK),
    (0, b"\x89LZO", "LZO-compressed", _UNPACK),
    (0, b"07070", "a cpio archive", "an initramfs is given with --initrd, the kernel with --kernel"),
    (0, b"QFI\xfb", "a qcow2 disk image", "give the kernel that is on it with --kernel"),
    (0, b"\x7fELF", "an ELF file", _BUILD),
    (0, b"\x27\x05\x19\x56", "a U-Boot image", _BUILD),
    (0, b"!<arch>\n", "an archive (.a or .deb)", "unpack it and give the kernel in it"),
    (0, b"#!", "a script", _BUILD),
    (0, b"version https://git-lfs", "a pointer to a file in Git LFS", "fetch the file itself: git lfs pull"),
    (0x38, b"ARM\x64", "a Linux kernel for ARM64", "this machine has x86-64 processors"),
    (0x38, b"RSC\x05", "a Linux kernel for RISC-V", "this machine has x86-64 processors"),
    (0x8001, b"CD001", "a CD image", "give the kernel that is on it"),
)
_PE_KINDS = {0x10B: "PE32", 0x20B: "PE32+"}
_PE_HINT = (
    "UEFI programs need a firmware; a unified kernel image has its kernel in section .linux: extract that"
)


def unknown_kernel(image: memoryview, name: str) -> ImageError:
    """The error for a kernel file that is neither ELF nor bzImage."""
    if not len(image):
        return ImageError(f"{name} is empty", _BUILD)
    for offset, magic, what, hint in _MAGICS:
        if bytes(image[offset : offset + len(magic)]) == magic:
            return ImageError(f"{name} is {what}, not a kernel that can be booted here", hint)
    if bytes(image[:2]) == b"MZ":
        return ImageError(f"{name} is {_pe_kind(image)}, not a kernel that can be booted here", _PE_HINT)
    if bytes(image[0x1FE:0x200]) == b"\x55\xaa":
        return ImageError(
            f"{name} is a boot sector or a disk image, not a kernel",
            "give the kernel that is on it with --kernel",
        )
    start = bytes(image[:8]).hex(" ")
    return ImageError(f"{name} is of no known kernel format (it starts with {start})", _BUILD)


def _pe_kind(image: memoryview) -> str:
    """Name the kind of program that a DOS header introduces."""
    if len(image) >= 0x40:
        (offset,) = unpack_from("<I", image, 0x3C)
        if bytes(image[offset : offset + 4]) == b"PE\0\0" and offset + 26 <= len(image):
            (kind,) = unpack_from("<H", image, offset + 24)
            return f"a {_PE_KINDS.get(kind, 'PE')} program (Windows or UEFI)"
    return "a DOS program"
