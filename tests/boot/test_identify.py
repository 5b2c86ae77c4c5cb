"""What is said about files that are no kernels."""

from __future__ import annotations

import re

import pytest

from tests.support.images import pack_kernel, pe_program
from tvmm.boot.identify import unknown_kernel

FILES = {
    "empty": (b"", "k is empty"),
    "gzip": (pack_kernel("gzip", b"x"), "gzip-compressed.*unpack it first"),
    "xz": (pack_kernel("xz", b"x"), "xz-compressed"),
    "zstd": (pack_kernel("zstd", b"x"), "zstd-compressed"),
    "cpio": (b"070701" + bytes(100), "cpio archive.*--initrd"),
    "qcow2": (b"QFI\xfb" + bytes(100), "qcow2 disk image.*--kernel"),
    "deb": (b"!<arch>\ndebian-binary", "archive"),
    "script": (b"#!/bin/sh\n", "a script"),
    "arm64": (bytes(0x38) + b"ARM\x64", "Linux kernel for ARM64"),
    "iso": (bytes(0x8001) + b"CD001", "a CD image"),
    "boot sector": (bytes(510) + b"\x55\xaa", "boot sector or a disk image"),
    "PE32": (pe_program(0x10B), "a PE32 program.*unified kernel image"),
    "PE32+": (pe_program(0x20B), r"a PE32\+ program"),
    "odd PE": (pe_program(0x999), "a PE program"),
    "DOS": (b"MZ" + bytes(100), "a DOS program"),
    "short MZ": (b"MZ", "a DOS program"),
    "text": (b"hello world", "no known kernel format.*68 65 6c 6c 6f"),
}


@pytest.mark.parametrize("kind", FILES)
def test_file_is_named(kind: str) -> None:
    """The message says what the file is and what to do about it."""
    image, words = FILES[kind]
    error = unknown_kernel(memoryview(image), "k")
    assert re.search(words, str(error))
    assert error.hint
