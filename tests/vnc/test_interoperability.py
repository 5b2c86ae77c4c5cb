"""The table of viewers in docs/vnc.md has the shape that the test run gives it, and a line for each of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.vnc.interoperability import HEADER, NAMES, PAGE, Row, read_table, version, write_table
from tests.vnc.viewers import VENCRYPT, VIEWERS

if TYPE_CHECKING:
    from pathlib import Path

SECURITIES = {"none", "vnc", *VENCRYPT, "token"}
ENCODINGS = {"raw", "hextile", "tight", "zrle", "JPEG", "its own choice"}


def test_the_page_has_all_viewers() -> None:
    """In order, with words that mean something."""
    page = PAGE.read_text()
    assert f"| {' | '.join(HEADER)} |" in page
    rows = read_table(page)
    assert tuple(rows) == NAMES
    for number, encodings, securities, keys, clicks in rows.values():
        assert re.fullmatch(r"[\d.a-z]+", number)
        assert set(encodings.split(", ")) <= ENCODINGS
        assert set(securities.split(", ")) <= SECURITIES
        assert {keys, clicks} <= {"", "yes"}


def test_every_viewer_has_a_line() -> None:
    """Those with JPEG share that of the same viewer without."""
    assert {viewer.name.partition(", JPEG")[0] for viewer in VIEWERS} <= set(NAMES)


def test_writing_keeps_what_was_not_tried(tmp_path: Path) -> None:
    """And the text around the table."""
    page = tmp_path / "page.md"
    page.write_text("before\n\n| viewer | rest |\n| --- | --- |\n| asyncvnc | 1 | raw | none | yes | |\n\nafter\n")
    write_table({"vncdotool": Row(("raw", "zrle"), ("none",), keys=True)}, page)
    assert page.read_text() == (
        "before\n\n| viewer | version | encodings | security types | keys | clicks |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        f"| vncdotool | {version('vncdotool')} | raw, zrle | none | yes | |\n".replace("|  |", "| |")
        + "| asyncvnc | 1 | raw | none | yes | |\n\nafter\n"
    )
