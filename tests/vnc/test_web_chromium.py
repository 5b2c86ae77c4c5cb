"""The console's page in a real browser: the picture that it shows, and what it sends."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.vnc.fake_rfb import FakeScreen, pattern
from tests.vnc.test_web_server import contexts
from tests.vnc.webdriver import MISSING, Browser
from tvmm.vnc.web import page_files
from tvmm.vnc.web_rules import Rules, console_url
from tvmm.vnc.web_server import WebConsole

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"a browser is needed: not here: {MISSING}")

SIZE = 160, 100
CANVAS = "#screen canvas"
CONNECTED = "!document.getElementById('ctrl-alt-del').disabled"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One window for all tests; each opens a console of its own."""
    with Browser(tmp_path_factory.mktemp("profile"), insecure=True) as made:
        yield made


class Bench:
    """A console with a fake screen."""

    def __init__(self, name: str, tls: ssl.SSLContext | None, seed: int = 0) -> None:
        self.screen = FakeScreen(*SIZE, pattern(*SIZE, seed))
        self.figures: dict[str, Any] = {
            "name": name, "state": "running", "detail": "", "viewers": 1, "vcpus": [0.5, 0.0],
            "disks": [{"name": "disk0", "in": 0.0, "out": 2048.0}], "nets": [], "migration": None, "moved": "",
        }  # fmt: skip
        self.token = f"token-of-{name}"
        self.secure = tls is not None
        rules = Rules(self.token, page_files(), secure=self.secure)
        self.console = WebConsole(rules, self.screen.serve, lambda: self.figures, tls=tls)
        self.url = ""


@asynccontextmanager
async def bench(name: str = "vm", *, tls: ssl.SSLContext | None = None, seed: int = 0) -> AsyncIterator[Bench]:
    """A console on a port of its own."""
    async with trio.open_nursery() as nursery:
        made = Bench(name, tls, seed)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(made.console.run, listeners)
        port = listeners[0].socket.getsockname()[1]
        made.url = console_url("127.0.0.1", port, made.token, secure=made.secure)
        yield made
        nursery.cancel_scope.cancel()


async def connected(browser: Browser, url: str) -> None:
    """Open a console and wait until its screen is there."""
    await browser.soon(browser.complaints)
    await browser.soon(browser.go, url)
    await browser.soon(browser.wait, CONNECTED)


async def same_picture(browser: Browser, it: Bench) -> None:
    """Wait for the last pixel, then compare all."""
    red, green, blue = it.screen.picture[-1]
    await browser.soon(
        browser.wait,
        f"""(() => {{
            const canvas = document.querySelector("{CANVAS}");
            const last = canvas.getContext("2d").getImageData({SIZE[0] - 1}, {SIZE[1] - 1}, 1, 1).data;
            return last[0] === {red} && last[1] === {green} && last[2] === {blue};
        }})()""",
    )
    width, height, pixels = await browser.soon(browser.canvas, CANVAS)
    assert (width, height) == SIZE
    assert pixels == b"".join(bytes([*pixel, 255]) for pixel in it.screen.picture)


async def test_the_picture_is_the_guests(browser: Browser) -> None:
    """Pixel by pixel; the token has left the address bar, and the browser has nothing to complain about."""
    async with bench() as it:
        await connected(browser, it.url)
        await same_picture(browser, it)
        assert await browser.soon(browser.run, "return location.search") == ""
        assert await browser.soon(browser.run, "return document.cookie") == ""
        assert await browser.soon(browser.complaints) == []
        await connected(browser, it.url.partition("?")[0])
        await same_picture(browser, it)


async def test_inside_tls(browser: Browser, tmp_path: Path) -> None:
    """https and wss."""
    async with bench(tls=contexts(tmp_path)[0]) as it:
        await connected(browser, it.url)
        await same_picture(browser, it)


async def test_without_the_token_there_are_words(browser: Browser) -> None:
    """And no page."""
    async with bench("other") as it:
        await browser.soon(browser.go, it.url.replace("token-of", "wrong"))
        assert "token" in await browser.soon(browser.run, "return document.body.textContent")
        assert it.screen.sessions == 0


async def test_keys_and_clicks_arrive(browser: Browser) -> None:
    """As keysyms and places of the guest's screen."""
    async with bench() as it:
        await connected(browser, it.url)
        await browser.soon(browser.press, "a", "Enter")
        assert [await it.screen.next("key") for _ in range(4)] == [
            (0x61, True),
            (0x61, False),
            (0xFF0D, True),
            (0xFF0D, False),
        ]
        await browser.soon(browser.choose, "#sizing", "exact")
        await browser.soon(browser.click, CANVAS, 30, 20)
        while (event := await it.screen.next("pointer"))[0] != 1:
            pass
        assert event == (1, 30, 20)


async def test_buttons(browser: Browser) -> None:
    """Ctrl-alt-del; and in view-only mode nothing is sent."""
    async with bench() as it:
        await connected(browser, it.url)
        await browser.soon(browser.click, "#ctrl-alt-del")
        assert [(await it.screen.next("key"))[0] for _ in range(3)] == [0xFFE3, 0xFFE9, 0xFFFF]
        for _ in range(3):
            await it.screen.next("key")
        await browser.soon(browser.click, "#view-only")
        assert await browser.soon(browser.run, "return document.getElementById('ctrl-alt-del').disabled")
        await browser.soon(browser.click, CANVAS)
        await browser.soon(browser.press, "b")
        await browser.soon(browser.click, "#view-only")
        await browser.soon(browser.click, CANVAS)
        await browser.soon(browser.press, "c")
        assert await it.screen.next("key") == (0x63, True)


async def test_passwords(browser: Browser) -> None:
    """The page asks, says what is wrong with the answer, and asks again when it is loaded again."""
    async with bench() as it:
        it.screen.password = "sesame"
        for password, seen in (("wrong", "document.getElementById('notice').textContent"), ("sesame", CONNECTED)):
            await browser.soon(browser.go, it.url)
            await browser.soon(browser.wait, "document.getElementById('credentials').open")
            await browser.soon(browser.click, "#password")
            await browser.soon(browser.press, *password, "Enter")
            said = await browser.soon(browser.wait, seen)
            if password == "wrong":
                assert said == "The screen refused this viewer: wrong password. Reload the page to try again."
        await same_picture(browser, it)


async def test_full_screen(browser: Browser) -> None:
    """The guest's screen alone, and back."""
    async with bench() as it:
        await connected(browser, it.url)
        await browser.soon(browser.click, "#full-screen")
        await browser.soon(browser.wait, "document.fullscreenElement && document.fullscreenElement.id === 'screen'")
        await browser.soon(browser.run, "document.exitFullscreen()")
        await browser.soon(browser.wait, "!document.fullscreenElement")


async def test_clipboard(browser: Browser) -> None:
    """Both ways, through the panel of the page."""
    async with bench() as it:
        await connected(browser, it.url)
        await browser.soon(browser.click, "#show-clipboard")
        await it.screen.say("from the guest")
        await browser.soon(browser.wait, "document.getElementById('clipboard-text').value === 'from the guest'")
        await browser.soon(browser.choose, "#clipboard-text", "to the guest")
        assert await it.screen.next("cut") == ("to the guest",)


async def test_a_lost_screen_comes_back(browser: Browser) -> None:
    """The page says what it does, and does it."""
    async with bench() as it:
        await connected(browser, it.url)
        await it.screen.hang_up()
        await browser.soon(browser.wait, "document.getElementById('notice').textContent.includes('again')")
        await browser.soon(browser.wait, CONNECTED)
        assert await browser.soon(browser.run, "return document.getElementById('notice').hidden")
        assert it.screen.sessions == 2


async def test_the_panel_and_a_move(browser: Browser) -> None:
    """Figures, progress, and then the destination's console without anybody's doing."""
    async with bench("here") as here, bench("there", seed=5) as there:
        await connected(browser, here.url)
        await browser.soon(browser.wait, "document.getElementById('state').textContent === 'running'")
        text = await browser.soon(browser.run, "return document.getElementById('panel').innerText")
        assert "50 %" in text
        assert "2.0 KiB/s" in text
        assert "Network" not in text
        here.figures["migration"] = {
            "phase": "round 2", "fraction": 0.25, "transferred": 1 << 20, "remaining": 3 << 20, "throughput": 1e6,
            "error": "",
        }  # fmt: skip
        here.console.refresh()
        shown = await browser.soon(browser.wait, "document.getElementById('migration-text').textContent")
        assert shown == "round 2: 1.0 MiB sent, 3.0 MiB to go, 977 KiB/s"
        here.figures["moved"] = there.url
        here.console.refresh()
        await browser.soon(browser.wait, f"document.title.startsWith('there') && {CONNECTED}")
        await same_picture(browser, there)
