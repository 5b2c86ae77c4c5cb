"""Compiles the built-in guest: a freestanding x86-64 ELF, linked at 1 MiB.

One compiler call for everything: the sources are few, and whole-program is how they are meant to be read.
The result depends on nothing but the sources and the compiler (no paths, no time, no build id), so two
builds give the same bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["build"]

HERE = Path(__file__).resolve().parent

FLAGS = (
    "-m64 -O2 -std=gnu11 -ffreestanding -nostdlib -static -fno-pic -no-pie -mcmodel=small "
    # Hosts that emulate kernel mode know few instructions; user mode keeps to the same plain set, which
    # also leaves no vector state to set up or to save.
    "-mgeneral-regs-only -fcf-protection=none -fno-stack-protector -fno-asynchronous-unwind-tables "
    # Padding between branches is a twentieth of the image; only functions and loops keep theirs.
    "-falign-jumps=1 -falign-labels=1 "
    "-fno-strict-aliasing -fno-delete-null-pointer-checks -fno-tree-loop-distribute-patterns "
    # Physical addresses are turned into pointers everywhere, so GCC's idea of object bounds does not hold.
    "-Wall -Wextra -Wno-array-bounds -Wno-stringop-overflow -Wno-stringop-overread "
    "-Wl,--build-id=none -Wl,-z,max-page-size=4096 -Wl,-z,noexecstack -Wl,--no-warn-rwx-segments -s"
)


def build(output: Path, cc: str | None = None) -> None:
    """Compiles and links the guest into ``output``, replacing it in one step.

    ``cc`` is the compiler's name (default: ``$CC``, or gcc). Raises RuntimeError with one line saying what
    went wrong: the compiler is missing, or its first error.
    """
    compiler = (cc or os.environ.get("CC") or "gcc").split()
    sources = sorted(str(path) for path in [*HERE.glob("*.c"), *HERE.glob("*.S")])
    output = output.absolute()
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        image = Path(folder, output.name)
        command = [*compiler, *FLAGS.split(), f"-I{HERE}", *sources, f"-Wl,-T,{HERE / 'guest.lds'}"]
        try:
            done = subprocess.run([*command, "-o", str(image)], capture_output=True, text=True, check=False)
        except OSError as error:
            raise RuntimeError(f"cannot compile the guest: {compiler[0]}: {error.strerror}") from error
        if done.returncode:
            lines = done.stderr.splitlines() or [f"{compiler[0]} ended with status {done.returncode}"]
            first = next((line for line in lines if "error" in line or "undefined" in line), lines[0])
            raise RuntimeError(f"cannot compile the guest: {first}")
        if done.stderr:
            sys.stderr.write(done.stderr)
        image.chmod(0o644)
        image.replace(output)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "guest.elf")
