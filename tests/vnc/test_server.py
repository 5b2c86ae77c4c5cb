"""The server's tasks around sessions, over streams in memory: pictures, what only moved, input, sharing, leaving."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair

from tests.support.rfb_viewer import RfbViewer
from tvmm.screen import Surface
from tvmm.vnc import encodings
from tvmm.vnc.lockout import Limits
from tvmm.vnc.security_types import NoSecurity
from tvmm.vnc.server import End, Settings, VncServer
from tvmm.vnc.session import SessionOptions
from tvmm.vnc.viewer import MADE
from tvmm.wiring.screen import Screen

WIDTH, HEIGHT = 256, 192
STRIDE = 4 * WIDTH
PAGE = 4096
KEY_A, XT_A, XK_A = 30, 0x1E, 0x61


class Log:
    """Written pages, as a display's memory has them."""

    def __init__(self, pages: int) -> None:
        self.on = False
        self.pages = bytearray(pages)

    def turn_on(self) -> None:
        """See `VramWatch`."""
        self.on = True

    def turn_off(self) -> None:
        """See `VramWatch`."""
        self.on = False

    def take(self) -> bytes | None:
        """See `VramWatch`."""
        taken, self.pages = bytes(self.pages), bytearray(len(self.pages))
        return taken


class Display:
    """What `Screen` looks at."""

    def __init__(self) -> None:
        self.memory = bytearray(STRIDE * HEIGHT)
        self.log = Log(len(self.memory) // PAGE)
        self.vram: Any = SimpleNamespace(view=memoryview(self.memory), watch=self.log)
        self.surface: Surface | None = Surface(WIDTH, HEIGHT, STRIDE, 32, 0)

    def write(self, at: int, data: bytes) -> None:
        """As the guest does."""
        self.memory[at : at + len(data)] = data
        for page in range(at // PAGE, (at + len(data) - 1) // PAGE + 1):
            self.log.pages[page] = 1

    def scroll(self, lines: int, fresh: bytes) -> None:
        """The picture moves up, and `fresh` is at the bottom."""
        self.write(0, bytes(self.memory[lines * STRIDE :]) + fresh)


class Hub:
    """Input that is written down."""

    def __init__(self) -> None:
        self.on_leds: list[Callable[[int], None]] = []
        self.leds = 0
        self.absolute = True
        self.said: list[tuple[object, ...]] = []
        self.key_came = trio.Event()

    def key(self, code: int, down: bool, source: object) -> None:
        """See `InputLike`, as all of these."""
        self.said.append(("key", code, down))

    def button(self, code: int, down: bool, source: object) -> None:
        self.said.append(("button", code, down))

    def move_to(self, x: int, y: int) -> None:
        self.said.append(("at", x, y))

    def move_by(self, right: int, down: int) -> None:
        self.said.append(("by", right, down))

    def wheel(self, up: int, right: int = 0) -> None:
        self.said.append(("wheel", up, right))

    def release_all(self, source: object) -> None:
        self.said.append(("release",))

    def sync(self) -> None:
        self.key_came.set()


class Client:
    """A viewer at its stream."""

    def __init__(self, stream: trio.abc.Stream, **options: Any) -> None:
        self.stream = stream
        self.viewer = RfbViewer(**options)

    async def until(self, done: Callable[[], bool]) -> None:
        """Talk until it is so."""
        while True:
            if output := self.viewer.take_output():
                await self.stream.send_all(output)
            if done():
                return
            data = await self.stream.receive_some()
            assert data, "the server has closed the connection"
            self.viewer.receive(bytes(data))

    async def update(self, *, incremental: bool = True) -> None:
        """Ask for one, and have it."""
        count = len(self.viewer.updates)
        self.viewer.request(incremental=incremental)
        await self.until(lambda: len(self.viewer.updates) > count)


class World:
    """A screen, its server, and what was told."""

    def __init__(self, share: Any = "allow-exclusive", limits: Limits | None = None) -> None:
        self.display = Display()
        self.screen = Screen(self.display)
        self.hub = Hub()
        self.told: list[str] = []
        settings = Settings(
            "a machine",
            lambda: [NoSecurity()],
            limits or Limits(),
            lambda keysym: None,
            {XT_A: KEY_A}.get,
            share,
            options=SessionOptions(encodings=MADE),
        )
        self.complaints: list[str] = []
        self.server = VncServer(
            self.screen, self.hub, settings, lambda event, viewer: self.told.append(event), self.complaints.append
        )

    @asynccontextmanager
    async def viewer(self, nursery: trio.Nursery, *numbers: int, **options: Any) -> AsyncIterator[Client]:
        """One that is in and has seen all of it."""
        ours, theirs = memory_stream_pair()
        nursery.start_soon(self.server.serve, theirs, End("127.0.0.1", 1))
        client = Client(ours, **options)
        await client.until(lambda: client.viewer.running)
        client.viewer.set_encodings(*numbers, encodings.DESKTOP_SIZE, encodings.EXTENDED_KEY)
        while (client.viewer.width, client.viewer.height) != (WIDTH, HEIGHT):
            await client.update()
        await client.update(incremental=False)
        try:
            yield client
        finally:
            await trio.aclose_forcefully(ours)


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[tuple[World, trio.Nursery]]:
    """Its tasks run within the block; nothing outlives it."""
    made = World(**options)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.screen.run)
            yield made, nursery
            nursery.cancel_scope.cancel()
    assert not made.display.log.on
    assert made.server.viewers == []
    assert made.server.lockout.strangers == made.server.lockout.viewers == 0


def shown(client: Client) -> bytes:
    return bytes(client.viewer.pixels)


async def same(client: Client, display: Display) -> None:
    """Ask until the viewer has what the guest shows."""
    while shown(client) != bytes(display.memory):
        await client.update()


def noise(random: Random, lines: int) -> bytes:
    """Lines of pixels whose fourth byte is 0."""
    return b"".join(random.randbytes(3) + b"\0" for _ in range(lines * WIDTH))


async def test_two_viewers_see_what_the_guest_draws() -> None:
    """Whatever each of them asks for, and when."""
    random = Random(1)
    async with world() as (made, nursery), made.viewer(nursery, encodings.RAW) as one:
        async with made.viewer(nursery, encodings.RAW, minor_version=3) as other:
            assert one.viewer.name == "a machine"
            for _ in range(8):
                made.display.write(random.randrange(HEIGHT) * STRIDE, noise(random, 1))
                await same(one, made.display)
            await same(other, made.display)
        made.display.write(0, noise(random, 3))
        await same(one, made.display)


async def test_what_only_moved_is_copied() -> None:
    """A viewer that knows CopyRect gets a few bytes for it, beside one without; the picture is right at each step."""
    random = Random(2)
    async with world() as (made, nursery), made.viewer(nursery, encodings.RAW) as plain:
        async with made.viewer(nursery, encodings.COPY_RECT, encodings.RAW) as copying:
            made.display.write(0, noise(random, HEIGHT))
            await same(copying, made.display)
            sent = made.server.viewers[1].bytes_sent
            for _ in range(5):
                made.display.scroll(16, noise(random, 16))
                await same(copying, made.display)
            assert made.server.viewers[1].bytes_sent - sent < 5 * STRIDE * 64
            kinds = {kind for update in copying.viewer.updates for _, kind in update.rects}
            assert encodings.COPY_RECT in kinds
        await same(plain, made.display)


async def test_a_viewer_that_was_away_copies_nothing_that_it_lacks() -> None:
    """It asks for nothing while the picture scrolls and changes."""
    random = Random(3)
    async with world() as (made, nursery), made.viewer(nursery, encodings.COPY_RECT, encodings.RAW) as client:
        for _ in range(4):
            for step in range(3):
                made.display.scroll(16, noise(random, 16))
                made.display.write(random.randrange(HEIGHT) * STRIDE + 4 * step, noise(random, 1)[:64])
                await made.screen.refresh()
            await same(client, made.display)


async def test_another_size() -> None:
    """And nothing to show at all."""
    async with world() as (made, nursery), made.viewer(nursery, encodings.RAW) as client:
        made.display.surface = Surface(128, 64, STRIDE, 32, 0)
        made.screen.mode_changed()
        while (client.viewer.width, client.viewer.height) != (128, 64):
            await client.update()
        made.display.surface = None
        made.screen.mode_changed()
        while (client.viewer.width, client.viewer.height) != (640, 480):
            await client.update()


async def test_keys_and_pointer_arrive() -> None:
    """By scancode; what a viewer holds comes up when it goes."""
    async with world() as (made, nursery):
        async with made.viewer(nursery, encodings.RAW) as client:
            client.viewer.send(b"\xff\0\0\1" + XK_A.to_bytes(4, "big") + XT_A.to_bytes(4, "big"))
            client.viewer.send(b"\5\1" + (WIDTH - 1).to_bytes(2, "big") + bytes(2))
            await client.until(lambda: True)
            await made.hub.key_came.wait()
            await client.update(incremental=False)
        while ("release",) not in made.hub.said:
            await trio.lowlevel.checkpoint()
        assert made.hub.said == [("key", KEY_A, True), ("at", 0x7FFF, 0), ("button", 0x110, True), ("release",)]
        assert made.told == ["VNC_CONNECTED", "VNC_INITIALIZED", "VNC_DISCONNECTED"]


async def test_lights_come_back() -> None:
    """To a viewer that shows them."""
    async with world() as (made, nursery), made.viewer(nursery, encodings.RAW, encodings.LED_STATE) as client:
        made.server.set_leds(4)
        while client.viewer.leds != 4:
            await client.update()


@pytest.mark.parametrize("share", ["allow-exclusive", "force-shared"])
async def test_a_viewer_for_itself(share: str) -> None:
    """It sends the others away, or is not let in."""
    async with world(share=share) as (made, nursery), made.viewer(nursery, encodings.RAW) as first:
        ours, theirs = memory_stream_pair()
        nursery.start_soon(made.server.serve, theirs, End("127.0.0.1", 2))
        second = Client(ours, shared=False)
        if share == "allow-exclusive":
            await second.until(lambda: second.viewer.running)
            while await first.stream.receive_some():
                pass
        else:
            with pytest.raises(AssertionError, match="closed the connection"):
                await second.until(lambda: second.viewer.running)
        await trio.aclose_forcefully(ours)
        while len(made.server.viewers) > (share == "force-shared"):
            await trio.lowlevel.checkpoint()


async def test_too_many_strangers() -> None:
    """Connections that say nothing are counted; one too many is told so, and costs nothing: it has not guessed."""
    async with world(limits=Limits(strangers_per_address=1)) as (made, nursery):
        _, theirs = memory_stream_pair()
        nursery.start_soon(made.server.serve, theirs, End("127.0.0.1", 1))
        while not made.server.viewers:
            await trio.lowlevel.checkpoint()
        ours, theirs = memory_stream_pair()
        nursery.start_soon(made.server.serve, theirs, End("127.0.0.1", 2))
        client = Client(ours)
        with pytest.raises(Exception, match="too many connections without a password"):
            await client.until(lambda: client.viewer.running)
        assert not made.server.lockout.addresses


async def test_nonsense_ends_a_viewer_and_nobody_else() -> None:
    """With its reason."""
    async with world() as (made, nursery), made.viewer(nursery, encodings.RAW) as client:
        async with made.viewer(nursery, encodings.RAW) as other:
            [_, viewer] = made.server.viewers
            await other.stream.send_all(b"\x77" * 100)
            while await other.stream.receive_some():
                pass
            assert viewer.reason
        made.display.write(0, b"\x11\x22\x33\0")
        await same(client, made.display)


async def test_a_fault_of_ours_ends_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a traceback for those who mend it; others go on."""
    async with world() as (made, nursery), made.viewer(nursery, encodings.RAW) as client:
        async with made.viewer(nursery, encodings.RAW) as other:
            [_, viewer] = made.server.viewers

            def fail(*arguments: object) -> None:
                raise ZeroDivisionError("a fault")

            monkeypatch.setattr(viewer, "_handle", fail)
            await other.stream.send_all(b"\4\1\0\0" + XK_A.to_bytes(4, "big"))
            while await other.stream.receive_some():
                pass
        [complaint] = made.complaints
        assert "fault of tvmm's own" in complaint
        assert "ZeroDivisionError: a fault" in complaint
        made.display.write(0, b"\x11\x22\x33\0")
        await same(client, made.display)
