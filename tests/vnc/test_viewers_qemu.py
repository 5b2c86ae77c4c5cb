"""The viewers that tvmm's server is tried with work here as they should: each shows what QEMU's server has.

    pytest -m slow tests/vnc/test_viewers_qemu.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vnc.qemu_screen import MISSING, SECURITIES, qemu_screen
from tests.vnc.viewers import VIEWERS, Target, Viewer, difference

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from PIL.Image import Image

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

QEMU_LACKS = {"corre", "rre", "zlib", "ultra", "trle"}
"""It answers in Raw, hextile or what else the viewer offers."""


def cases(parts: str) -> Sequence[object]:
    """Each viewer with each of its encodings, or security types."""
    made = []
    for viewer in VIEWERS:
        skip = pytest.mark.skipif(bool(viewer.missing), reason=viewer.missing)
        made += [pytest.param(viewer, part, id=f"{viewer.name}-{part}", marks=skip) for part in getattr(viewer, parts)]
    return made


@pytest.fixture(scope="module", params=[0])
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Target, Image]]:
    """One server without security for all encodings."""
    with qemu_screen(tmp_path_factory.mktemp("qemu")) as made:
        yield made


@pytest.mark.parametrize(("viewer", "encoding"), cases("encodings"))
def test_encodings(viewer: Viewer, encoding: str, plain: tuple[Target, Image]) -> None:
    """The picture is QEMU's, or near it where JPEG is between."""
    target, wanted = plain
    tolerance = 60 if viewer.lossy or "JPEG" in viewer.name or encoding == "zywrle" else 0
    shown = viewer.capture(target, encoding, until=lambda picture: difference(picture, wanted) <= tolerance)
    assert shown.size == wanted.size
    assert difference(shown, wanted) <= tolerance


@pytest.mark.parametrize(("viewer", "security"), cases("securities"))
def test_securities(viewer: Viewer, security: str, tmp_path: Path) -> None:
    """Each way in that both know."""
    if security not in SECURITIES:
        pytest.skip(f"QEMU does not do {security}")
    with qemu_screen(tmp_path, security) as (target, wanted):
        assert viewer.capture(target, security=security).size == wanted.size
