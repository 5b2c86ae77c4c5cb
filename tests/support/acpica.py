"""The reference implementation of ACPI (Debian's acpica-tools) as an oracle: its compiler, disassembler, interpreter.

Every function here skips the test that calls it, and says why, where the tools are not installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["compile_asl", "disassemble", "evaluate", "recompile"]


def _run(tool: str, *arguments: str, folder: Path) -> str:
    """Output and error output of a tool that has to succeed."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed: apt-get install acpica-tools")
    done = subprocess.run(
        [tool, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def disassemble(table: bytes, folder: Path) -> str:
    """The source of a table, from a disassembly without complaints."""
    (folder / "table.aml").write_bytes(table)
    report = _run("iasl", "-d", "table.aml", folder=folder)
    assert not re.search("(?i)error|warning|invalid|unknown", report), report
    source = (folder / "table.dsl").read_text()
    assert "**** " not in source, "the disassembler put a complaint into the source"
    return source


def compile_asl(source: str, folder: Path, *, strict: bool = True) -> bytes:
    """The table that iasl makes of ASL, or of the source of a data table. `strict`: without a warning or remark."""
    (folder / "source.asl").write_text(source)
    report = _run("iasl", "-p", "compiled", "source.asl", folder=folder)
    if strict:
        assert "0 Errors, 0 Warnings, 0 Remarks" in report, report
    return (folder / "compiled.aml").read_bytes()


def recompile(table: bytes, folder: Path) -> bytes:
    """A table disassembled and compiled again, both without complaints.

    The compiler signs its work; name and checksum of the maker in the header are put back to those of `table`.
    """
    made = compile_asl(disassemble(table, folder), folder)
    if table[:4] == b"FACS":
        return made
    assert not sum(made) & 0xFF
    return made[:9] + table[9:10] + made[10:28] + table[28:36] + made[36:]


def evaluate(dsdt: bytes, command: str, folder: Path) -> str:
    """What ACPICA's interpreter prints for a debugger command after it has loaded the table."""
    (folder / "dsdt.aml").write_bytes(dsdt)
    output = _run("acpiexec", "-b", command, "dsdt.aml", folder=folder)
    assert "Error" not in output, output
    return output
