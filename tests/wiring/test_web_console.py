"""A guest's screen in a real browser: tvmm's own page, server and encoder, and the built-in guest behind them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.guest_picture import picture
from tests.support.patience import PATIENT
from tests.vnc.test_web_chromium import CANVAS, connected
from tests.vnc.webdriver import MISSING, Browser
from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig
from tvmm.config.incoming import IncomingConfig

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


async def test_it_goes_on_after_a_migration(tmp_path: Path) -> None:
    """The page stays as it is: it shows what the guest draws where it is then, and keys typed on it arrive there."""
    config = MachineConfig.parse(
        name="web",
        append=f"run=screen,mode,{WIDTH}x{HEIGHT};screen,fill,102030",
        memory="64M",
        device=["virtio-keyboard", "virtio-tablet"],
        vnc="127.0.0.1:0,web=127.0.0.1:0,lossy=off",
    )
    uri = f"unix:{tmp_path}/move"
    waiting = config._replace(name="there", vnc=None, incoming=IncomingConfig(uri))
    said: list[str] = []
    vm = Machine(config)
    vm.on_warning = said.append

    async def shows(*colour: int) -> None:
        while (await browser.soon(browser.canvas, CANVAS)) != (WIDTH, HEIGHT, bytes((*colour, 255)) * WIDTH * HEIGHT):
            await trio.lowlevel.checkpoint()

    with Browser(tmp_path, insecure=True) as browser:
        async with vm, Machine(waiting) as there:
            await vm.resume()
            await vm.wait_serial(PROMPT)
            [url] = re.findall(r"http://\S+", "\n".join(said))
            await connected(browser, url)
            await shows(0x10, 0x20, 0x30)
            await vm.migrate(uri, PATIENT)
            await there.wait_arrival()
            shell = GuestShell(there)
            await shell.order("screen fill 405060")
            await there.wait_serial(PROMPT)
            await shows(0x40, 0x50, 0x60)
            await shell.order("keys")
            await there.wait_serial("to end\r\n")
            await browser.soon(browser.press, "a")
            await there.wait_serial("key 30 up")
            assert vm.run_state() == "postmigrate"
