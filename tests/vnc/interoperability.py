"""The table of viewers in docs/vnc.md; `test_real_viewers.py` writes it if TVMM_WRITE_TABLE is set."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HEADER", "NAMES", "PAGE", "Row", "read_table", "version", "write_table"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vnc.md"
HEADER = ("viewer", "version", "encodings", "security types", "keys", "clicks")
PACKAGES = {
    "TigerVNC vncviewer": "tigervnc-viewer",
    "gvnccapture (gtk-vnc)": "gvncviewer",
    "gvncviewer (gtk-vnc)": "gvncviewer",
    "vncsnapshot": "vncsnapshot",
    "libvncclient": "libvncclient1",
    "vncdotool": "",
    "asyncvnc": "",
    "noVNC in Chromium": "chromium",
}
"""Debian's, of the viewers; '': PyPI's of the same name."""
NAMES = tuple(PACKAGES)
TABLE = re.compile(r"^\| viewer \|.*?\n(?=\n|\Z)", re.MULTILINE | re.DOTALL)


class Row(NamedTuple):
    """What a viewer has done right. Empty: it was not tried, or cannot do it."""

    encodings: tuple[str, ...] = ()
    securities: tuple[str, ...] = ()
    keys: bool = False
    clicks: bool = False


def version(name: str) -> str:
    """Of the program that is installed here, without what a distribution has added to it; '' if it is unknown."""
    package = PACKAGES[name]
    if not package:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return ""
    try:
        found = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}\n", package], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return ""
    return re.split(r"[+~-]|\.dfsg", found.partition("\n")[0].rpartition(":")[2])[0]


def read_table(page: str) -> dict[str, list[str]]:
    """The cells behind each viewer's name."""
    found = TABLE.search(page)
    lines = found[0].splitlines()[2:] if found else []
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def write_table(rows: Mapping[str, Row], page: Path = PAGE) -> None:
    """Put `rows` into the page; viewers that were not tried keep what stands there."""
    text = page.read_text()
    cells = read_table(text)
    for name, row in rows.items():
        said = [", ".join(row.encodings), ", ".join(row.securities)]
        cells[name] = [version(name), *said, *("yes" if each else "" for each in (row.keys, row.clicks))]
    lines = [HEADER, ("---",) * len(HEADER), *((name, *cells[name]) for name in NAMES if name in cells)]
    table = "".join(f"| {' | '.join(line)} |\n".replace("  |", " |") for line in lines)
    page.write_text(TABLE.sub(lambda found: table, text))
