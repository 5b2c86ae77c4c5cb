"""Standard input and output: terminal, escapes, pipes, files and closed readers."""

from __future__ import annotations

import math
import os
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.chardev.fakes import FakeActions, FakeGuest, odd_bytes
from tests.chardev.rigs import Viewer
from tvmm.chardev.escape import PROMPT
from tvmm.chardev.port import SerialHub
from tvmm.chardev.stdio import OutputClosed, StdioBackend
from tvmm.errors import HostError, UserError

A = b"\x01"


class Desk:
    """A user at a terminal, and a guest on the other side of it."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        os.set_blocking(self.master, False)
        # So that what is written to it can be compared: the backend keeps this as it finds it.
        attributes = termios.tcgetattr(self.slave)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(self.slave, termios.TCSANOW, attributes)
        self.guest = FakeGuest()
        self.actions = FakeActions()
        self.user = Viewer(
            trio.lowlevel.FdStream(os.dup(self.master)), trio.lowlevel.FdStream(os.dup(self.master))
        )

    async def shows(self, text: bytes) -> None:
        """Expect `text` to be the next that appears."""
        assert await self.user.receive(len(text)) == text

    async def type(self, data: bytes) -> None:
        """Press keys."""
        await self.user.input.send_all(data)


@asynccontextmanager
async def desk(escape: str = "\x01") -> AsyncIterator[Desk]:
    """A desk with a running backend."""
    it = Desk()
    before = termios.tcgetattr(it.slave)
    async with (
        StdioBackend(it.actions, escape=escape, stdin=it.slave, stdout=it.slave) as backend,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(SerialHub(it.guest, backend).run)
        yield it
        nursery.cancel_scope.cancel()
    assert termios.tcgetattr(it.slave) == before
    await it.user.close()
    os.close(it.master)
    os.close(it.slave)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe; the test may close either."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            continue


async def test_keys_reach_the_guest_at_once() -> None:
    """Single keys, ^C, ^Z and carriage returns are the guest's, unchanged and without an echo."""
    async with desk() as it:
        await it.type(b"\x03\x1a\x13a\r")
        assert await it.guest.wait_received(5) == b"\x03\x1a\x13a\r"
        await it.guest.write(b"$ ")
        await it.shows(b"$ ")


async def test_escape_quits() -> None:
    """Ctrl-A x ends the machine, also while the guest neither reads nor is being shown."""
    async with desk() as it:
        it.guest.set_reads(False)
        await it.type(b"much" * 1000)
        await it.type(A + b"x")
        await it.actions.quits.wait()


async def test_quitting_does_not_wait_for_a_pager(
    pipe: tuple[int, int], autojump_clock: trio.testing.MockClock
) -> None:
    """After Ctrl-A x the rest is given a moment, where a guest's own end waits for its reader."""
    it = Desk()
    async with (
        StdioBackend(it.actions, stdin=it.slave, stdout=pipe[1]) as backend,
        trio.open_nursery() as nursery,
    ):
        hub = SerialHub(it.guest, backend)
        nursery.start_soon(hub.run)
        nursery.start_soon(it.guest.write, odd_bytes(1 << 20))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert backend.patience == math.inf
        await it.type(A + b"x")
        await it.actions.quits.wait()
        it.guest.finish()
        start = trio.current_time()
        await hub.drain()
        assert trio.current_time() - start == pytest.approx(backend.patience)
        nursery.cancel_scope.cancel()
    await it.user.close()
    os.close(it.master)
    os.close(it.slave)


async def test_escape_breaks_and_literal() -> None:
    """Ctrl-A b sends a break in its place, twice Ctrl-A one of them."""
    async with desk() as it:
        await it.type(b"ab" + A + b"b" + A + A + b"c")
        assert await it.guest.wait_received(4) == b"ab\x01c"
    assert it.guest.breaks_at == [2]


async def test_prompt_takes_commands_and_holds_output_back() -> None:
    """At the prompt commands are answered, the guest goes on, and what it wrote appears afterwards."""
    async with desk() as it:
        await it.type(A + b"c")
        await it.shows(b"\r\n" + PROMPT)
        await it.guest.write(b"meanwhile")
        await it.type(b"status\r")
        await it.shows(b"status\r\nSTATUS\r\n" + PROMPT)
        await it.type(b"c\r")
        await it.shows(b"c\r\nmeanwhile")
        await it.type(b"d")
        assert await it.guest.wait_received(1) == b"d"
    assert it.actions.commands == ["status"]


async def test_prompt_does_not_hold_the_guest() -> None:
    """Somebody who sits at the prompt does not stop the guest; lost output is reported."""
    async with desk() as it:
        await it.type(A + b"c")
        await it.shows(b"\r\n" + PROMPT)
        await it.guest.write(odd_bytes(100_000, without=b"\n"))
        await trio.testing.wait_all_tasks_blocked()
        assert it.guest.written == 100_000
        await it.type(A + b"c")
        await it.shows(b"\r\n\r\n[... 34464 bytes skipped]\r\n")


async def test_failed_command_is_shown() -> None:
    """An error of a command is its answer, and the prompt comes back."""
    async with desk() as it:
        it.actions.error = UserError("no such thing", "try help")
        await it.type(A + b"cboom\r")
        await it.shows(b"\r\n" + PROMPT + b"boom\r\nno such thing; try help\r\n" + PROMPT)


async def test_help_is_shown() -> None:
    """Ctrl-A h tells what Ctrl-A does."""
    async with desk() as it:
        await it.type(A + b"h")
        await it.shows(b"\r\nCtrl-A h       this help\r\n")


async def test_other_escape_key_and_none() -> None:
    """Another control character can be the escape, and with none every key is the guest's."""
    async with desk(escape="\x1d") as it:
        await it.type(A + b"x\x1dx")
        await it.actions.quits.wait()
        assert await it.guest.wait_received(2) == A + b"x"
    async with desk(escape="") as it:
        await it.type(A + b"x")
        assert await it.guest.wait_received(2) == A + b"x"


async def test_terminal_is_restored_after_an_error() -> None:
    """The terminal is as before when a task next to the backend fails."""
    it = Desk()
    before = termios.tcgetattr(it.slave)

    async def fail() -> None:
        await it.type(b"x")
        await it.guest.wait_received(1)
        assert termios.tcgetattr(it.slave) != before
        raise KeyError("bug")

    async def run() -> None:
        backend = StdioBackend(it.actions, stdin=it.slave, stdout=it.slave)
        async with backend, trio.open_nursery() as nursery:
            nursery.start_soon(SerialHub(it.guest, backend).run)
            nursery.start_soon(fail)

    with pytest.raises(BaseExceptionGroup) as caught:
        await run()
    assert caught.group_contains(KeyError)
    assert termios.tcgetattr(it.slave) == before
    await it.user.close()
    os.close(it.master)
    os.close(it.slave)


async def test_user_gone_ends_the_machine() -> None:
    """A terminal whose other side is gone takes no output: that is one clear error."""
    async with StdioBackend(FakeActions(), stdin=(it := Desk()).slave, stdout=it.slave) as backend:
        await it.user.close()
        os.close(it.master)
        await it.guest.write(b"anyone?")
        with pytest.raises(OutputClosed):
            await SerialHub(it.guest, backend).run()
    os.close(it.slave)


async def test_piped_input_is_not_searched_for_escapes(pipe: tuple[int, int], tmp_path: Path) -> None:
    """Bytes from a pipe pass unchanged, and their end ends input only."""
    guest = FakeGuest()
    os.write(pipe[1], b"\x01x\x01c")
    os.close(pipe[1])
    with open(tmp_path / "out", "wb") as out:
        async with (
            StdioBackend(FakeActions(), stdin=pipe[0], stdout=out.fileno()) as backend,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(SerialHub(guest, backend).run)
            assert await guest.wait_received(4) == b"\x01x\x01c"
            await guest.write(b"still here")
            guest.finish()
    assert (tmp_path / "out").read_bytes() == b"still here"


@pytest.mark.parametrize("source", ["/dev/null", "file", "closed"])
async def test_inputs_that_are_no_terminal(source: str, tmp_path: Path) -> None:
    """/dev/null, a file and no standard input at all: input ends, output goes on."""
    guest = FakeGuest()
    (tmp_path / "script").write_bytes(b"first\nsecond\n")
    stdin = os.open("/dev/null" if source == "/dev/null" else tmp_path / "script", os.O_RDONLY)
    if source == "file":
        assert os.read(stdin, 6) == b"first\n"
    elif source == "closed":
        os.close(stdin)
    with open(tmp_path / "out", "wb") as out:
        # Nothing may be given the number that is meant to be closed.
        unused = stdin if source != "closed" else 1 << 18
        async with (
            StdioBackend(FakeActions(), stdin=unused, stdout=out.fileno()) as backend,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(SerialHub(guest, backend).run)
            if source == "file":
                assert await guest.wait_received(7) == b"second\n"
            await guest.write(b"output")
            guest.finish()
    assert (tmp_path / "out").read_bytes() == b"output"
    if source != "closed":
        os.close(stdin)


async def test_output_to_a_file_keeps_its_place(tmp_path: Path) -> None:
    """Output goes behind what others wrote to the same open file, and theirs behind it."""
    guest = FakeGuest()
    with open(tmp_path / "out", "wb", buffering=0) as out:
        out.write(b"header\n")
        async with StdioBackend(FakeActions(), stdin=1 << 18, stdout=out.fileno()) as backend:
            await guest.write(b"guest\n")
            guest.finish()
            await SerialHub(guest, backend).run()
        out.write(b"trailer\n")
    assert (tmp_path / "out").read_bytes() == b"header\nguest\ntrailer\n"


async def test_reader_that_leaves_ends_the_machine(pipe: tuple[int, int]) -> None:
    """Output into a closed pipe is one clear error of the user's kind."""
    guest = FakeGuest()
    async with StdioBackend(FakeActions(), stdin=1 << 18, stdout=pipe[1]) as backend:
        os.close(pipe[0])
        await guest.write(b"anyone?")
        with pytest.raises(OutputClosed, match="closed by its reader"):
            await SerialHub(guest, backend).run()


async def test_reader_that_left_before(pipe: tuple[int, int]) -> None:
    """A pipe that is closed from the start, and so cannot be opened again, gives the same error."""
    guest = FakeGuest()
    os.close(pipe[0])
    await guest.write(b"anyone?")
    async with StdioBackend(FakeActions(), stdin=1 << 18, stdout=pipe[1]) as backend:
        with pytest.raises(OutputClosed):
            await SerialHub(guest, backend).run()
    assert os.get_blocking(pipe[1])


async def test_full_device_is_an_error() -> None:
    """Output that fails for another reason says which."""
    guest = FakeGuest()
    await guest.write(b"x")
    full = os.open("/dev/full", os.O_WRONLY)
    async with StdioBackend(FakeActions(), stdin=1 << 18, stdout=full) as backend:
        with pytest.raises(HostError, match="No space left"):
            await SerialHub(guest, backend).run()
    os.close(full)


async def test_closed_output_is_refused() -> None:
    """Without a standard output the backend cannot be acquired."""
    with pytest.raises(HostError, match="standard output"):
        async with StdioBackend(FakeActions(), stdin=1 << 18, stdout=1 << 18):
            pass


async def test_inherited_flags_are_not_touched(pipe: tuple[int, int]) -> None:
    """While the backend runs, those who share the terminal or pipe still find it blocking."""
    it = Desk()
    async with StdioBackend(FakeActions(), stdin=it.slave, stdout=pipe[1]):
        assert os.get_blocking(it.slave)
        assert os.get_blocking(pipe[1])
    await it.user.close()
    os.close(it.master)
    os.close(it.slave)
