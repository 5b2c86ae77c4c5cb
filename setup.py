"""What pyproject.toml cannot say: the C extension, the built-in guest's image, and what a missing tool means."""

from __future__ import annotations

import compileall
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
NEEDS = (
    "tvmm is compiled at install time: run 'apt-get install gcc libc6-dev linux-libc-dev python3-dev' and install again"
)


def missing_tool(compiler: str) -> str:
    """What keeps us from compiling, as one sentence; empty if nothing does."""
    if shutil.which(compiler) is None:
        return f"the C compiler '{compiler}' was not found"
    with tempfile.TemporaryDirectory() as folder:
        for header in ("stdio.h", "linux/kvm.h", "Python.h"):
            source = Path(folder, "probe.c")
            source.write_text(f"#include <{header}>\n")
            include = sysconfig.get_paths()["include"]
            command = [compiler, "-fsyntax-only", f"-I{include}", str(source)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                return f"the C header <{header}> was not found by '{compiler}'"
    return ""


class Build(build_ext):
    """Compiles the extension and, beside it, the guest; in a working copy the modules too."""

    def run(self) -> None:
        compiler = os.environ.get("CC", "gcc").split()[0]
        missing = missing_tool(compiler)
        if missing:
            sys.exit(f"tvmm: {missing}; {NEEDS}")
        super().run()
        spec = importlib.util.spec_from_file_location("tvmm_guest_build", ROOT / "tvmm/guest/build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        top = ROOT if self.inplace or getattr(self, "editable_mode", False) else Path(self.build_lib)
        folder = top / "tvmm" / "guest"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            module.build(folder / "guest.elf")
        except RuntimeError as error:
            sys.exit(f"tvmm: {error}")
        if top == ROOT:
            # Those that pip copies it compiles itself. Left to the first start, it would be each start's business where
            # PYTHONDONTWRITEBYTECODE is set, and a third of a second for some.
            compileall.compile_dir(ROOT / "tvmm", quiet=1)


setup(cffi_modules=["tvmm/kvm/build.py:ffi"], cmdclass={"build_ext": Build})
