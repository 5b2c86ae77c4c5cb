"""Sockets of guests that move: connections end on both sides at once, and there are new ones at the destination."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.patience import PATIENT
from tests.support.vsock_programs import echo, listening
from tests.wiring.guests import PROMPT, GuestShell
from tests.wiring.moves import destination, move
from tvmm import Machine, MachineConfig
from tvmm.config.incoming import IncomingConfig

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]


@asynccontextmanager
async def machine(path: Path, uri: str = "", options: str = "") -> AsyncIterator[GuestShell]:
    """One at its prompt, or waiting at `uri`."""
    config = MachineConfig.parse(name="web", memory="64M", vsock=f"{path}{options}")
    if uri:
        config = config._replace(incoming=IncomingConfig(uri))
    with trio.fail_after(60):
        async with Machine(config) as vm:
            shell = GuestShell(vm)
            if not uri:
                await vm.resume()
                await vm.wait_serial(PROMPT)
            yield shell


async def echoes(shell: GuestShell) -> trio.SocketStream:
    """A connection to an echo in the guest, which goes on serving."""
    await shell.order("vsock echo 80")
    await shell.vm.wait_serial("listening at port 80")
    stream = await shell.vm.vsock(80)
    await stream.send_all(b"hello")
    assert await stream.receive_some(100) == b"hello"
    return stream


async def ended(stream: trio.SocketStream) -> bool:
    """Whether the end comes."""
    try:
        while await stream.receive_some(100):
            pass
    except trio.BrokenResourceError:
        pass
    return True


@pytest.mark.parametrize("options", ["", ",packed=on", ",transport=mmio"])
async def test_a_live_migration(tmp_path: Path, options: str) -> None:
    """The program's connection ends at the source, whose socket goes; the guest is told, and serves the next one."""
    uri = f"unix:{tmp_path}/move"
    async with (
        machine(tmp_path / "there", uri, options) as there,
        machine(tmp_path / "here", options=options) as here,
    ):
        async with await echoes(here) as stream:
            await here.vm.migrate(uri, PATIENT)
            await there.vm.wait_arrival()
            assert await ended(stream)
        assert not (tmp_path / "here").exists()
        async with await there.vm.vsock(80) as stream:
            await stream.send_all(b"again")
            assert await stream.receive_some(100) == b"again"
        await there.vm.send_serial("\x03")
        await there.prompt()
        assert "1 transport resets" in await there.ask("vsock")
        with listening(f"{tmp_path}/there_7", echo):
            assert "100 round trips" in await there.ask("vsock ping 7 100")


async def test_a_migration_that_fails(tmp_path: Path) -> None:
    """Nothing happens to connections."""
    uri = f"unix:{tmp_path}/move"
    async with (
        machine(tmp_path / "there", uri, ",cid=9"),
        machine(tmp_path / "here") as here,
        await echoes(here) as stream,
    ):
        with pytest.raises(Exception, match="guest-cid"):
            await here.vm.migrate(uri)
        await stream.send_all(b"still here")
        assert await stream.receive_some(100) == b"still here"


async def test_a_saved_state(tmp_path: Path) -> None:
    """As it is loaded elsewhere: the same, without the source's knowing."""
    async with machine(tmp_path / "here") as here, await echoes(here):
        config = MachineConfig.parse(name="web", memory="64M", vsock=f"{tmp_path}/there")
        async with destination(config) as there:
            await move(here.vm, there.vm)
            async with await there.vm.vsock(80) as stream:
                await stream.send_all(b"again")
                assert await stream.receive_some(100) == b"again"
            await there.vm.send_serial("\x03")
            await there.prompt()
            assert "1 transport resets" in await there.ask("vsock")
