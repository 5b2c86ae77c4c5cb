"""A guest's screen in a real browser: tvmm's own page, server and encoder, and the built-in guest behind them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.guest_picture import picture
from tests.vnc.test_web_chromium import CANVAS, connected
from tests.vnc.webdriver import MISSING, Browser
from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(bool(MISSING), reason=f"a browser is needed: not here: {MISSING}"),
]

WIDTH, HEIGHT = 320, 200


async def test_the_picture_is_seen_and_keys_arrive(tmp_path: Path) -> None:
    """Pixel by pixel, as noVNC has decoded it; what is typed on the page is what the guest's keyboard says."""
    config = MachineConfig.parse(
        name="web",
        append=f"run=screen,mode,{WIDTH}x{HEIGHT};screen,picture",
        device=["virtio-keyboard", "virtio-tablet"],
        vnc="127.0.0.1:0,web=127.0.0.1:0,lossy=off",
    )
    said: list[str] = []
    vm = Machine(config)
    vm.on_warning = said.append
    with Browser(tmp_path, insecure=True) as browser:
        async with vm:
            await vm.resume()
            await vm.wait_serial(PROMPT)
            [url] = re.findall(r"http://\S+", "\n".join(said))
            await connected(browser, url)
            expected = b"".join(
                bytes([colour >> 16, colour >> 8 & 0xFF, colour & 0xFF, 255])
                for row in picture(WIDTH, HEIGHT)
                for colour in row
            )
            while (await browser.soon(browser.canvas, CANVAS)) != (WIDTH, HEIGHT, expected):
                await trio.lowlevel.checkpoint()
            shell = GuestShell(vm)
            await shell.order("keys")
            await vm.wait_serial("to end\r\n")
            await browser.soon(browser.press, "a", "b")
            told = [(await vm.wait_serial(b"\r\n")).decode() for _ in range(4)]
            assert [re.findall(r"key (\d+) (down|up)", line)[0] for line in told] == [
                ("30", "down"),
                ("30", "up"),
                ("48", "down"),
                ("48", "up"),
            ]
