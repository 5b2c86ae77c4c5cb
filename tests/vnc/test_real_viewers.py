"""Other people's viewers of a running guest: each sees its picture, types and clicks. They are optional.

    pytest -m slow tests/vnc/test_real_viewers.py
    TVMM_WRITE_TABLE=1 pytest -m slow tests/vnc/test_real_viewers.py     # and writes the table of docs/vnc.md
"""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.vnc import webdriver
from tests.vnc.interoperability import Row, write_table
from tests.vnc.tvmm_screen import SIZE, TvmmScreen, tvmm_screen, wanted_picture
from tests.vnc.viewers import VIEWERS, Viewer, difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from PIL.Image import Image

    Screens = Callable[[str], TvmmScreen]

pytestmark = [pytest.mark.slow, pytest.mark.guest]

SPOKEN = ("", "raw", "hextile", "tight", "zrle", "zlib")
"""And zlib, which tvmm does not speak: it answers in Raw."""
JPEG_TOLERANCE = 96
"""Of noise, where it is worst."""
KEY_A, KEY_Z = 30, 44
CLICK = 200, 120
CHECKS_CERTIFICATES = ("gvnccapture (gtk-vnc)", "libvncclient")
"""Where both are offered, these take TLS with a certificate before TLS without, and stay outside if they cannot check
it. A server without keys= offers both."""
BROWSER = "noVNC in Chromium"
CANVAS = "#screen canvas"
CONNECTED = "!document.getElementById('ctrl-alt-del').disabled"


class Done(NamedTuple):
    """Something that worked."""

    viewer: str
    what: str
    """`encodings`, `securities`, `keys` or `clicks`."""
    detail: str = ""


@pytest.fixture(scope="module")
def done() -> Iterator[list[Done]]:
    """What has worked; it becomes the table."""
    made: list[Done] = []
    yield made
    if os.environ.get("TVMM_WRITE_TABLE"):
        rows: dict[str, Row] = defaultdict(Row)
        for name, what, detail in made:
            row = rows[name]
            new: Any = (*getattr(row, what), detail) if detail else True
            rows[name] = row._replace(**{what: new})
        write_table(rows)


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screens]:
    """A guest for each security type, started when it is first asked for."""
    with ExitStack() as stack:
        running: dict[str, TvmmScreen] = {}

        def screen(security: str) -> TvmmScreen:
            if security not in running:
                running[security] = stack.enter_context(tvmm_screen(tmp_path_factory.mktemp("vm"), security))
            return running[security]

        yield screen


def cases(parts: str, known: Sequence[str] | None = None) -> list[object]:
    """Each viewer with each of its encodings, or security types."""
    made: list[object] = []
    for viewer in VIEWERS:
        skip = pytest.mark.skipif(bool(viewer.missing), reason=viewer.missing)
        for part in getattr(viewer, parts):
            if known is None or part in known:
                made.append(pytest.param(viewer, part, id=f"{viewer.name}-{part or 'any'}", marks=skip))
    return made


def tolerance_of(viewer: Viewer) -> int:
    """How far a colour may be off."""
    return JPEG_TOLERANCE if viewer.lossy or "JPEG" in viewer.name else 0


def is_right(viewer: Viewer) -> Callable[[Image], bool]:
    """Whether a picture is the guest's."""
    return lambda picture: difference(picture, wanted_picture()) <= tolerance_of(viewer)


@pytest.mark.parametrize(("viewer", "encoding"), cases("encodings", SPOKEN))
def test_encodings(viewer: Viewer, encoding: str, screens: Screens, done: list[Done]) -> None:
    """Each pixel is the guest's, or near it where JPEG is between."""
    shown = viewer.capture(screens("none").target, encoding, until=is_right(viewer))
    assert shown.size == SIZE
    assert difference(shown, wanted_picture()) <= tolerance_of(viewer)
    name, _, jpeg = viewer.name.partition(", JPEG")
    if encoding != "zlib":
        done.append(Done(name, "encodings", "JPEG" if jpeg else encoding or "its own choice"))


@pytest.mark.parametrize(
    ("viewer", "security"), [case for case in cases("securities") if "JPEG" not in str(case)]
)
def test_securities(viewer: Viewer, security: str, screens: Screens, done: list[Done]) -> None:
    """Each way in that both know, and the picture behind it."""
    if security.startswith("tls") and viewer.name in CHECKS_CERTIFICATES:
        pytest.skip("it wants a certificate that it can check")
    shown = viewer.capture(screens(security).target, security=security, until=is_right(viewer))
    assert difference(shown, wanted_picture()) <= tolerance_of(viewer)
    done.append(Done(viewer.name, "securities", security))


@pytest.mark.parametrize(
    "viewer",
    [
        pytest.param(each, id=each.name, marks=pytest.mark.skipif(bool(each.missing), reason=each.missing))
        for each in VIEWERS
        if each.types and "JPEG" not in each.name
    ],
)
def test_keys_and_clicks(viewer: Viewer, screens: Screens, done: list[Done]) -> None:
    """They arrive in the guest, in order and once, and a click where it was made."""
    screen = screens("none")
    with screen.listening("keys"):
        viewer.capture(screen.target, keys="az", until=is_right(viewer))
        events = keys_of(screen.expect(f"key {KEY_Z} up from 2\r\n"))
    assert events == [(KEY_A, "down"), (KEY_A, "up"), (KEY_Z, "down"), (KEY_Z, "up")]
    done.append(Done(viewer.name, "keys"))
    with screen.listening("mouse"):
        # A guest is told of a position only if it is another one.
        x, y = CLICK[0] + 10 * VIEWERS.index(viewer), CLICK[1]
        viewer.capture(screen.target, until=is_right(viewer), click=(x, y))
        assert_click(screen.expect("button left up from 3\r\n"), x, y)
    done.append(Done(viewer.name, "clicks"))


def keys_of(text: str) -> list[tuple[int, str]]:
    """The events in what the guest has printed."""
    return [(int(line.split()[1]), line.split()[2]) for line in text.splitlines() if line.startswith("key ")]


def assert_click(text: str, x: int, y: int) -> None:
    """The pointer was brought there, to a pixel, and the button pressed."""
    lines = text.splitlines()
    down = lines.index("button left down from 3")
    [place] = [line.split()[1:3] for line in lines[:down] if line.startswith("at ")][-1:]
    found = [round(int(value) * (size - 1) / 0x7FFF) for value, size in zip(place, SIZE, strict=True)]
    assert abs(found[0] - x) <= 1
    assert abs(found[1] - y) <= 1


@pytest.mark.skipif(bool(webdriver.MISSING), reason=f"not here: {webdriver.MISSING}")
def test_browser(tmp_path_factory: pytest.TempPathFactory, done: list[Done]) -> None:
    """The console's page: with a server that sends no JPEG each pixel is right, too."""
    from PIL import Image

    with (
        tvmm_screen(tmp_path_factory.mktemp("vm"), "none", "lossy=off") as screen,
        webdriver.Browser(tmp_path_factory.mktemp("profile")) as browser,
    ):
        browser.go(screen.console)
        browser.wait(CONNECTED)
        # The lower right corner comes last.
        browser.wait(
            f"""(() => {{
                const canvas = document.querySelector("{CANVAS}");
                const last = canvas.getContext("2d").getImageData({SIZE[0] - 1}, {SIZE[1] - 1}, 1, 1).data;
                return last[0] === 255 && last[1] === 255 && last[2] === 0;
            }})()"""
        )
        width, height, pixels = browser.canvas(CANVAS)
        assert (width, height) == SIZE
        assert difference(Image.frombytes("RGBA", SIZE, pixels).convert("RGB"), wanted_picture()) == 0
        assert browser.complaints() == []
        done += [Done(BROWSER, "encodings", "its own choice"), Done(BROWSER, "securities", "token")]
        box = browser.run("return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", CANVAS)
        with screen.listening("mouse"):
            browser.click(CANVAS, *CLICK)
            text = screen.expect("button left up from 3\r\n")
        # The page scales the screen to the window.
        scale = SIZE[0] / box["width"], SIZE[1] / box["height"]
        assert_click(text, *(round(at * by) for at, by in zip(CLICK, scale, strict=True)))
        done.append(Done(BROWSER, "clicks"))
        with screen.listening("keys"):
            browser.press("a", "z")
            events = keys_of(screen.expect(f"key {KEY_Z} up from 2\r\n"))
        assert events == [(KEY_A, "down"), (KEY_A, "up"), (KEY_Z, "down"), (KEY_Z, "up")]
        done.append(Done(BROWSER, "keys"))
