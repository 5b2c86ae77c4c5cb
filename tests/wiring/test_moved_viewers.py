"""Viewers of a guest that moves: they stay where they are, and see and type where the guest is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from PIL import Image

from tests.support.patience import PATIENT
from tests.support.rfb_person import Person, come_in
from tvmm import Machine, MachineConfig
from tvmm.config.incoming import IncomingConfig
from tvmm.errors import UserError
from tvmm.outcome import STATUS_MIGRATED
from tvmm.testing import PROMPT, booted
from tvmm.vnc.client_messages import ExtendedKeyEvent
from tvmm.wiring.picture import save_picture
from tvmm.wiring.viewers import Viewers

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

SIZE = (640, 480)


async def ask(vm: Machine, line: str) -> str:
    """What the guest prints for a command."""
    await vm.send_serial(line + "\n")
    return (await vm.wait_serial(PROMPT)).decode(errors="replace")


def config(path: Path | None) -> MachineConfig:
    """With a server at `path`, or none."""
    options = {"vnc": f"unix:{path}"} if path else {}
    return MachineConfig.parse(memory="64M", device=["bochs-display"], **options)


class Ends(NamedTuple):
    """Of a migration."""

    source: Machine
    destination: Machine
    uri: str
    path: Path
    """Of the source's server."""
    nursery: trio.Nursery
    said: list[str]
    """To the source's user."""

    async def person(self) -> Person:
        """Somebody who looks at the source."""
        return await come_in(await trio.open_unix_socket(self.path), self.nursery)

    async def migrate(self) -> None:
        """To the destination; returns when it is there."""
        await self.source.migrate(self.uri, PATIENT)
        await self.destination.wait_arrival()


@asynccontextmanager
async def ends(tmp_path: Path, *, served: bool = True) -> AsyncIterator[Ends]:
    """A guest with a picture, and a machine that waits for it; `served`: that one has a server of its own."""
    uri = f"unix:{tmp_path}/move"
    waiting = config(tmp_path / "there" if served else None)._replace(incoming=IncomingConfig(uri))
    said: list[str] = []
    with trio.fail_after(90):
        async with booted(config(tmp_path / "here")) as source, Machine(waiting) as destination:
            source.on_warning = said.append
            await ask(source, f"screen mode {SIZE[0]}x{SIZE[1]}")
            await ask(source, "screen fill 102030")
            async with trio.open_nursery() as nursery:
                yield Ends(source, destination, uri, tmp_path / "here", nursery, said)
                nursery.cancel_scope.cancel()


async def shows(person: Person, red: int, green: int, blue: int) -> None:
    """Until the picture is of that colour."""
    size = SIZE[0] * SIZE[1]
    await person.wait(lambda: person.viewer.pixels == bytes((blue, green, red, 0)) * size)


@pytest.mark.parametrize("served", [True, False])
async def test_viewers_stay(tmp_path: Path, served: bool) -> None:
    """Two of them: what the guest draws after its move they see, and their keys arrive; the source ends with them."""
    async with ends(tmp_path, served=served) as both:
        people = [await both.person(), await both.person()]
        for person in people:
            await shows(person, 0x10, 0x20, 0x30)
        await both.migrate()
        there = both.destination
        await ask(there, "screen fill 405060")
        for person in people:
            await shows(person, 0x40, 0x50, 0x60)
        await there.send_serial("keys 60\n")
        await there.wait_serial("Ctrl-C here to end")
        await people[0].say(ExtendedKeyEvent(True, 0, 0x1E).pack())
        await there.wait_serial("key 30 down")
        await people[0].leave()
        await there.wait_serial("key 30 up")
        assert both.source.outcome is None
        assert any("2 viewers are relayed until they leave" in line for line in both.said), both.said
        if served:
            assert isinstance(there.viewers, Viewers)
            [info] = there.viewers.vnc_servers()
            assert [client.relay for client in info.clients] == [True]
        await people[1].leave()
        outcome = await both.source.wait()
        assert (outcome.kind, outcome.status) == ("migrated", STATUS_MIGRATED)


async def test_without_viewers_nothing_is_waited_for(tmp_path: Path) -> None:
    """As without a server."""
    async with ends(tmp_path) as both:
        await both.migrate()
        assert (await both.source.wait()).kind == "migrated"
        assert not both.said


async def test_the_source_is_small_and_closed(tmp_path: Path) -> None:
    """Its memory is given back, and nobody can come, resume, reset or move it; to be ended it does not wait."""
    async with ends(tmp_path) as both:
        person = await both.person()
        await both.migrate()
        await ask(both.destination, "screen fill 405060")
        await shows(person, 0x40, 0x50, 0x60)
        source = both.source
        assert not any(source.memory.read(0x10_0000, 1 << 20))
        assert source.screen is not None
        await save_picture(source.screen, tmp_path / "a.png", "PNG")
        with Image.open(tmp_path / "a.png") as image:
            assert image.convert("RGB").getpixel((9, 9)) == (0x40, 0x50, 0x60)
        for refused in (source.resume, source.reset):
            with pytest.raises(UserError, match="has moved to"):
                await refused()
        with pytest.raises(UserError, match="has moved to"):
            await source.migrate("unix:/nowhere")
        with pytest.raises(UserError, match="has moved to"):
            source.powerdown()
        with pytest.raises(OSError, match="refused"):
            await trio.open_unix_socket(both.path)
        source.quit()
        assert (await source.wait()).status == STATUS_MIGRATED


async def test_the_destination_sends_them_away(tmp_path: Path) -> None:
    """With its own viewers: so do those at the source go, and the source ends."""
    async with ends(tmp_path) as both:
        person = await both.person()
        await both.migrate()
        await ask(both.destination, "screen fill 405060")
        await shows(person, 0x40, 0x50, 0x60)
        assert isinstance(both.destination.viewers, Viewers)
        both.destination.viewers.server.drop(proved=True)
        assert (await both.source.wait()).kind == "migrated"


@pytest.mark.parametrize("served", [True, False])
async def test_a_guest_that_moves_on(tmp_path: Path, served: bool) -> None:
    """By way of two relays."""
    uri = f"unix:{tmp_path}/on"
    waiting = config(None)._replace(incoming=IncomingConfig(uri))
    async with ends(tmp_path, served=served) as both, Machine(waiting) as last:
        person = await both.person()
        await both.migrate()
        await ask(both.destination, "screen fill 405060")
        await shows(person, 0x40, 0x50, 0x60)
        await both.destination.migrate(uri, PATIENT)
        await last.wait_arrival()
        await ask(last, "screen fill 708090")
        await shows(person, 0x70, 0x80, 0x90)
        await person.leave()
        assert (await both.source.wait()).kind == "migrated"
        assert (await both.destination.wait()).kind == "migrated"
