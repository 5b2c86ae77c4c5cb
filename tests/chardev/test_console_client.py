"""`tvmm console`: a terminal on one side, a hub that serves viewers on the other."""

from __future__ import annotations

import os
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.chardev.fakes import FakeGuest, odd_bytes
from tests.chardev.rigs import Viewer
from tvmm.chardev.console_client import ConsoleEnd, run_console
from tvmm.chardev.none import NoneBackend
from tvmm.chardev.port import SerialHub
from tvmm.control.listener import unix_listener
from tvmm.errors import HostError

pytestmark = pytest.mark.timeout(30)

A = b"\x01"


class Session:
    """A console in a thread, with a user and a guest."""

    def __init__(self) -> None:
        self.guest = FakeGuest()
        self.end: ConsoleEnd | None = None
        self.master, self.slave = os.openpty()
        os.set_blocking(self.master, False)
        self.user = Viewer(
            trio.lowlevel.FdStream(os.dup(self.master)), trio.lowlevel.FdStream(os.dup(self.master))
        )

    async def run(self, path: Path) -> None:
        """The console, to its end."""
        self.end = await trio.to_thread.run_sync(
            lambda: run_console(path, "box", stdin=self.slave, stdout=self.slave)
        )


@asynccontextmanager
async def session(tmp_path: Path) -> AsyncIterator[Session]:
    """A console that is connected when the block begins and has ended when it is left."""
    it = Session()
    before = termios.tcgetattr(it.slave)
    path = tmp_path / "console.sock"
    async with trio.open_nursery() as machine, unix_listener(path) as listener:
        hub = SerialHub(it.guest, NoneBackend())
        machine.start_soon(hub.run)
        await machine.start(hub.serve_viewers, [listener])
        await it.guest.write(b"hello")
        async with trio.open_nursery() as console:
            console.start_soon(it.run, path)
            assert await it.user.receive(5) == b"hello"
            yield it
        machine.cancel_scope.cancel()
    assert termios.tcgetattr(it.slave) == before
    await it.user.close()
    os.close(it.master)
    os.close(it.slave)


async def test_bytes_both_ways_and_leaving(tmp_path: Path) -> None:
    """Keys reach the guest, its output the terminal; Ctrl-A x leaves and the guest goes on."""
    async with session(tmp_path) as it:
        await it.user.input.send_all(b"\x03ls\r" + A + A + A + b"c")
        assert await it.guest.wait_received(5) == b"\x03ls\r\x01"
        data = odd_bytes(50_000, without=b"\n")
        await it.guest.write(data)
        assert await it.user.receive(len(data)) == data
        await it.user.input.send_all(A + b"x")
    assert it.end is ConsoleEnd.DETACHED
    assert it.guest.received == b"\x03ls\r\x01"


async def test_leaving_a_guest_that_hangs(tmp_path: Path) -> None:
    """The escape works though the guest has stopped to read long ago."""
    async with session(tmp_path) as it:
        it.guest.set_reads(False)
        await it.user.input.send_all(b"x" * 600_000)
        await it.user.input.send_all(A + b"x")
    assert it.end is ConsoleEnd.DETACHED


async def test_help(tmp_path: Path) -> None:
    """Ctrl-A h shows the help without asking the machine."""
    async with session(tmp_path) as it:
        await it.user.input.send_all(A + b"h")
        assert b"leave the console" in await it.user.receive(100)
        await it.user.input.send_all(A + b"x")


async def test_end_of_the_machine(tmp_path: Path) -> None:
    """When the machine ends, its last words are shown and the console ends by itself."""
    async with session(tmp_path) as it:
        await it.guest.write(b"bye")
        it.guest.finish()
        assert await it.user.receive(3) == b"bye"
    assert it.end is ConsoleEnd.GONE


async def test_piped_input(tmp_path: Path) -> None:
    """Input that is no terminal passes unchanged, and its end is not the console's."""
    guest = FakeGuest()
    script, shown = tmp_path / "in", tmp_path / "out"
    script.write_bytes(A + b"xreboot\n")
    with open(script, "rb") as stdin, open(shown, "wb") as stdout:
        async with trio.open_nursery() as nursery, unix_listener(tmp_path / "s") as listener:
            hub = SerialHub(guest, NoneBackend())
            nursery.start_soon(hub.run)
            await nursery.start(hub.serve_viewers, [listener])
            async with trio.open_nursery() as console:
                console.start_soon(
                    trio.to_thread.run_sync,
                    lambda: run_console(tmp_path / "s", "box", stdin=stdin.fileno(), stdout=stdout.fileno()),
                )
                assert await guest.wait_received(9) == A + b"xreboot\n"
                await guest.write(b"rebooting")
                guest.finish()
            nursery.cancel_scope.cancel()
    assert shown.read_bytes() == b"rebooting"


def test_machine_that_is_not_there(tmp_path: Path) -> None:
    """A console of no machine is one line with a hint."""
    with pytest.raises(HostError, match="no machine named box is running; see 'tvmm ps'"):
        run_console(tmp_path / "console.sock", "box")
