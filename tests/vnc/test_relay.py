"""Two servers in one process: viewers of the first one see, and type into, what the second one has."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import memory_stream_pair

from tests.support.rfb_pair import paint
from tests.support.rfb_person import Person, come_in
from tvmm.devices.keys import evdev_of_xt, keystroke, xt_of_evdev
from tvmm.errors import ProtocolError
from tvmm.kvm.scroll import Scroll
from tvmm.screen import Canvas
from tvmm.vnc.client import Client
from tvmm.vnc.client_messages import ExtendedKeyEvent, PointerEvent
from tvmm.vnc.lockout import Limits
from tvmm.vnc.pixel_format import Rect
from tvmm.vnc.relay import Relay
from tvmm.vnc.remote_input import RemoteInput
from tvmm.vnc.security_types import NoSecurity
from tvmm.vnc.server import End, Settings, VncServer, Watcher

A, B, SHIFT = 30, 48, 42
LEFT, RIGHT = 0x110, 0x111


class FakeScreen:
    """`ScreenLike`."""

    def __init__(self, width: int = 200, height: int = 70) -> None:
        self.canvas = Canvas(width, height)
        self.watchers: list[Watcher] = []

    @asynccontextmanager
    async def watched(self, watcher: Watcher) -> AsyncIterator[None]:
        """See `ScreenLike`."""
        self.watchers.append(watcher)
        try:
            yield
        finally:
            self.watchers.remove(watcher)

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """See `ScreenLike`."""
        yield

    def hurry(self) -> None:
        """See `ScreenLike`."""

    def draw(self, rect: Rect, *colour: int) -> None:
        """The guest fills a rectangle."""
        tiles = bytes(paint(self.canvas, rect, *colour))
        for watcher in self.watchers:
            watcher.damaged(tiles, ())

    def resize(self, width: int, height: int) -> None:
        """The guest has another mode."""
        self.canvas.resize(width, height)
        for watcher in self.watchers:
            watcher.resized()


class FakeInput:
    """`InputLike`."""

    def __init__(self) -> None:
        self.leds = 0
        self.absolute = True
        self.on_leds: list[Callable[[int], None]] = []
        self.heard: list[tuple[object, ...]] = []
        self.news = trio.Event()

    def _hear(self, *what: object) -> None:
        self.heard.append(what)
        self.news.set()
        self.news = trio.Event()

    async def wait(self, *what: object) -> None:
        """Until it has heard that."""
        while what not in self.heard:
            await self.news.wait()

    def key(self, code: int, down: bool, source: Hashable) -> None:
        """See `InputLike`, as all of these."""
        self._hear("key", code, down)

    def button(self, code: int, down: bool, source: Hashable) -> None:
        self._hear("button", code, down)

    def move_to(self, x: int, y: int) -> None:
        self._hear("to", x, y)

    def move_by(self, right: int, down: int) -> None:
        self._hear("by", right, down)

    def wheel(self, up: int, right: int = 0) -> None:
        self._hear("wheel", up, right)

    def release_all(self, source: Hashable) -> None:
        self._hear("release all")

    def sync(self) -> None:
        pass


class Place:
    """A machine's server."""

    def __init__(self, nursery: trio.Nursery, width: int = 200, height: int = 70) -> None:
        self.nursery = nursery
        self.screen = FakeScreen(width, height)
        self.input = FakeInput()
        settings = Settings("it", lambda: (NoSecurity(),), Limits(), keystroke, evdev_of_xt)
        self.server = VncServer(self.screen, self.input, settings)

    def connect(self, end: End = End()) -> trio.abc.Stream:  # noqa: B008 - a NamedTuple
        """A new connection; the viewer's end of it."""
        near, far = memory_stream_pair()
        self.nursery.start_soon(self.server.serve, far, end)
        return near

    async def person(self) -> Person:
        """Somebody who has come in, and gets updates as fast as they are made."""
        return await come_in(self.connect(), self.nursery)


def shows(person: Person, place: Place) -> bool:
    """Whether the picture is that of `place`."""
    return person.viewer.pixels == place.screen.canvas.pixels


@asynccontextmanager
async def nursery() -> AsyncIterator[trio.Nursery]:
    """One that is cancelled at its end, and too long waiting is an error."""
    with trio.fail_after(20):
        async with trio.open_nursery() as inner:
            yield inner
            inner.cancel_scope.cancel()


async def moved(here: Place, there: Place, *, compressed: bool = True) -> Relay:
    """The guest of `here` is `there` now."""
    relay = Relay(xt_of_evdev, compressed=compressed)
    here.server.redirect(relay.input)
    await here.nursery.start(relay.run, there.connect(End(relay=True)))
    await here.server.move(relay)
    return relay


@pytest.mark.parametrize("compressed", [True, False])
async def test_the_picture_and_keys(compressed: bool) -> None:
    """Two viewers, one connection: the picture of there, and then what changes in it; keys arrive there alone."""
    async with nursery() as tasks:
        here, there = Place(tasks), Place(tasks)
        here.screen.draw(Rect(0, 0, 200, 70), 1, 1, 1)
        there.screen.draw(Rect(0, 0, 200, 70), 2, 2, 2)
        people = [await here.person(), await here.person()]
        relay = await moved(here, there, compressed=compressed)
        assert not here.screen.watchers
        assert len(there.server.viewers) == 1
        for person in people:
            await person.wait(partial(shows, person, there))
        there.screen.draw(Rect(100, 30, 20, 20), 9, 8, 7)
        for person in people:
            await person.wait(partial(shows, person, there))
            assert person.viewer.colour(110, 40) == (7, 8, 9)
        await people[0].say(ExtendedKeyEvent(True, 0, 0x1E).pack() + ExtendedKeyEvent(False, 0, 0x1E).pack())
        await there.input.wait("key", A, False)
        await people[1].say(PointerEvent(1, 199, 0).pack())
        await there.input.wait("button", LEFT, True)
        assert ("to", 0x7FFF, 0) in there.input.heard
        assert not here.input.heard
        assert relay.bytes_received


async def test_streams_of_a_viewer_go_on() -> None:
    """One that has been sent compressed rectangles, whose streams have a history, reads those that come after."""
    async with nursery() as tasks:
        here, there = Place(tasks), Place(tasks)
        viewer = Relay(xt_of_evdev)
        await tasks.start(viewer.run, here.connect())
        for place, seed in ((here, 1), (there, 2)):
            place.screen.canvas.pixels[:] = pattern(seed)
            place.screen.draw(Rect(0, 0, 1, 1), 0, 0, 0)
        here.screen.resize(200, 70)
        here.screen.canvas.pixels[:] = pattern(3)
        looker = Looker()
        async with viewer.watched(looker):
            while viewer.canvas.pixels != here.screen.canvas.pixels:
                await looker.news.wait()
            await moved(here, there)
            while viewer.canvas.pixels != there.screen.canvas.pixels:
                await looker.news.wait()


class Looker:
    """A `Watcher` that can be waited for."""

    copies = False

    def __init__(self) -> None:
        self.news = trio.Event()

    def damaged(self, tiles: bytes, scrolls: Sequence[Scroll]) -> None:
        """See `Watcher`."""
        self.resized()

    def resized(self) -> None:
        """See `Watcher`."""
        self.news.set()
        self.news = trio.Event()


def pattern(seed: int) -> bytes:
    """Text-like: few colours, none of them for long."""
    chance = random.Random(seed)
    return b"".join(chance.choice((b"\0\0\0\0", b"\1\2\3\0", b"\7\7\7\0")) for _ in range(200 * 70))


async def test_another_size() -> None:
    """At once, and later."""
    async with nursery() as tasks:
        here, there = Place(tasks), Place(tasks, 320, 100)
        person = await here.person()
        await moved(here, there)
        await person.wait(lambda: person.viewer.width == 320)
        there.screen.resize(64, 48)
        await person.wait(lambda: person.viewer.width == 64)
        there.screen.draw(Rect(0, 0, 64, 48), 5, 5, 5)
        await person.wait(partial(shows, person, there))


async def test_lights_and_the_kind_of_pointer() -> None:
    """Those of there."""
    async with nursery() as tasks:
        here, there = Place(tasks), Place(tasks)
        there.input.leds, there.input.absolute = 4, False
        person = await here.person()
        relay = await moved(here, there)
        relay.input.on_leds.append(here.server.set_leds)
        await person.wait(lambda: person.viewer.leds == 4)
        await person.wait(lambda: person.viewer.absolute is False)
        await person.say(PointerEvent(0, 0x7FFF + 3, 0x7FFF - 2).pack())
        await there.input.wait("by", 3, -2)
        there.server.set_leds(2)
        await person.wait(lambda: person.viewer.leds == 2)


async def test_who_leaves_holds_nothing() -> None:
    """Its keys go up there; when all have left that can be waited for."""
    async with nursery() as tasks:
        here, there = Place(tasks), Place(tasks)
        first, second = await here.person(), await here.person()
        await moved(here, there)
        await first.say(ExtendedKeyEvent(True, 0, 0x1E).pack())
        await there.input.wait("key", A, True)
        await first.leave()
        await there.input.wait("key", A, False)
        await second.leave()
        await here.server.wait_empty()


async def test_what_is_typed_before_there_is_a_connection() -> None:
    """Keys come later, in order, with Shift that was held before; a letter that was held is none any more."""
    async with nursery() as tasks:
        here, there = Place(tasks), Place(tasks)
        person = await here.person()
        await person.say(ExtendedKeyEvent(True, 0, 0x2A).pack() + ExtendedKeyEvent(True, 0, 0x30).pack())
        await here.input.wait("key", B, True)
        relay = Relay(xt_of_evdev)
        here.server.redirect(relay.input)
        await person.say(PointerEvent(0, 5, 5).pack())
        await person.say(ExtendedKeyEvent(True, 0, 0x1E).pack() + ExtendedKeyEvent(False, 0, 0x2A).pack())
        await trio.testing.wait_all_tasks_blocked()
        await tasks.start(relay.run, there.connect(End(relay=True)))
        await there.input.wait("key", SHIFT, False)
        assert there.input.heard == [("key", SHIFT, True), ("key", A, True), ("key", SHIFT, False)]


async def test_nobody_new() -> None:
    """Who comes after the end is refused; who is there stays."""
    async with nursery() as tasks:
        here = Place(tasks)
        person = await here.person()
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        await tasks.start(here.server.run, [listener])
        late = await trio.open_tcp_stream("127.0.0.1", port)
        assert await late.receive_some(12) == b"RFB 003.008\n"
        here.server.close("the guest has moved")
        stranger = here.connect()
        await stranger.send_all(b"RFB 003.008\n")
        said = b""
        while data := await stranger.receive_some(1000):
            said += bytes(data)
        assert b"the guest has moved" in said
        here.screen.draw(Rect(0, 0, 9, 9), 3, 3, 3)
        await person.wait(lambda: person.viewer.colour(1, 1) == (3, 3, 3))
        await late.send_all(b"RFB 003.008\n")
        assert await late.receive_some(2) == b"\1\1"
        with pytest.raises(OSError, match="all attempts"):
            await trio.open_tcp_stream("127.0.0.1", port)


async def test_a_relay_ends_with_the_other_machine() -> None:
    """By itself, without an error."""
    async with nursery() as tasks:
        there = Place(tasks)
        async with trio.open_nursery() as inner:
            await inner.start(Relay(xt_of_evdev).run, there.connect(End(relay=True)))
            there.server.viewers[0].leave("it ends")


@pytest.mark.parametrize("said", [b"HTTP/1.1 404 go away\n", b"RFB 003.008\n\x01\x01\0\0\0\1\0\0\0\2no", b""])
async def test_wrong_ends(said: bytes) -> None:
    """An error before anybody was moved."""
    with trio.fail_after(20):
        near, far = memory_stream_pair()
        await far.send_all(said)
        await far.send_eof()
        async with trio.open_nursery() as tasks:
            with pytest.raises(ProtocolError):
                await tasks.start(Relay(xt_of_evdev).run, near)


async def test_an_end_that_breaks_later(autojump_clock: trio.testing.MockClock) -> None:
    """Viewers keep what they have seen; the relay is over."""
    async with nursery() as tasks:
        here, there = Place(tasks), Place(tasks)
        near, far = memory_stream_pair()
        relay_end, there_end = memory_stream_pair()
        tasks.start_soon(there.server.serve, there_end, End(relay=True))

        async def carry(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
            while data := await source.receive_some():
                await target.send_all(bytes(data))

        tasks.start_soon(carry, relay_end, far)
        tasks.start_soon(carry, far, relay_end)
        relay = Relay(xt_of_evdev)
        person = await here.person()
        async with trio.open_nursery() as inner:
            inner.start_soon(expect_error, relay, near)
            while not relay.bytes_received:
                await trio.testing.wait_all_tasks_blocked()
            here.server.redirect(relay.input)
            await here.server.move(relay)
            await far.send_all(b"\x07" * 9)
        assert person.viewer.running


async def expect_error(relay: Relay, stream: trio.abc.Stream) -> None:
    """It ends badly."""
    with pytest.raises(ProtocolError):
        await relay.run(stream)


# --- input, by itself ---


class FakeClient(Client):
    """Notes what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.running = True
        self.canvas.resize(101, 51)
        self.said: list[tuple[int, ...]] = []

    def key(self, xt_code: int, down: bool) -> None:
        self.said.append((xt_code, down))

    def pointer(self, x: int, y: int, buttons: int) -> None:
        self.said.append((x, y, buttons))


def test_a_key_that_two_hold() -> None:
    """It goes down once and comes up once; a repeat is one; keys without a scancode are none."""
    client = FakeClient()
    hub = RemoteInput(client, xt_of_evdev)
    for source, down in (("a", True), ("b", True), ("a", True), ("a", False), ("c", False)):
        hub.key(A, down, source)
    hub.key(0x10000, True, "a")
    assert client.said == [(0x1E, True), (0x1E, True)]
    hub.release_all("b")
    assert client.said[2:] == [(0x1E, False)]
    hub.button(RIGHT, True, "a")
    hub.release_all("a")
    assert client.said[3:] == [(50, 25, 4), (50, 25, 0)]


def test_positions_and_wheels() -> None:
    """Every pixel is reached; a group of movements is one message; turns are bounded."""
    client = FakeClient()
    hub = RemoteInput(client, xt_of_evdev)
    for x in range(101):
        hub.move_to(x * 0x7FFF // 100, 0)
        hub.sync()
        assert client.said.pop() == (x, 0, 0)
        assert not client.said
    hub.sync()
    assert not client.said
    hub.wheel(-2, 1)
    assert [mask for _, _, mask in client.said] == [16, 0, 16, 0, 64, 0]
    client.said.clear()
    hub.wheel(1 << 30)
    assert len(client.said) == 32


def test_pointers_of_another_kind() -> None:
    """What a viewer says that has not heard yet."""
    client = FakeClient()
    hub = RemoteInput(client, xt_of_evdev)
    hub.move_by(-1000, 7)
    hub.sync()
    assert client.said.pop()[:2] == (0, 32)
    client.absolute = False
    hub.move_by(5, -6)
    hub.move_by(1 << 40, 0)
    hub.sync()
    assert client.said.pop() == (0xFFFE, 0x7FFF - 6, 0)
    hub.move_to(0x7FFF, 0)
    hub.sync()
    assert client.said.pop()[0] == 0x7FFF + 101
