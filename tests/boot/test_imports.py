"""What the run path of a PVH kernel imports: start-up time is part of the contract."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.images import Load, elf64, xen_note

PROGRAM = """
import json, sys
import tvmm
before = set(sys.modules)  # Also what an editable installation imports to find the package.
from tvmm.boot.loader import Hardware, KernelOptions, load
class Memory:
    def read(self, gpa, length): return bytes(length)
    def write(self, gpa, data): pass
image = bytes.fromhex(sys.stdin.read())
load(KernelOptions(image, "k"), Memory(), 64 << 20, Hardware(2), True)
print(json.dumps(sorted(name for name in set(sys.modules) - before if not name.startswith("_"))))
"""


def test_pvh_path_imports_little() -> None:
    """Codecs, the bzImage parser and the 64-bit protocol stay out until a kernel needs them."""
    image = elf64([Load(0x10_0000, b"x" * 100)], entry=0x10_0000, notes=xen_note(0x10_0000))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=image.hex(), capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout))
    boot = {name.rpartition(".")[2] for name in loaded if name.startswith("tvmm.boot.")}
    assert boot == {"loader", "elf", "pvh", "gdt", "e820", "entry", "mptable", "acpi", "aml", "dsdt"}
    heavy = {
        "zlib",
        "lzma",
        "bz2",
        "lz4",
        "zstandard",
        "gzip",
        "dataclasses",
        "inspect",
        "pathlib",
        "logging",
    }
    assert not loaded & heavy
