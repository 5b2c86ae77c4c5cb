"""Source and destination over real sockets, with guests that are no more than RAM: what goes wrong at every step.

Whatever does, in the end exactly one side runs the guest and holds its disk, or the source has it paused.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.migration.ends import check_one_guest, connected, impatient, paired
from tests.migration.rig import Group
from tests.support.cut_wire import Cutter
from tests.support.moving_guests import World
from tests.support.patience import PATIENT
from tvmm.config.incoming import MigrationAddress
from tvmm.kvm.pages import PAGE
from tvmm.migration import commit, incoming, policy, tls
from tvmm.migration.destination import DestinationState
from tvmm.migration.link import open_connection
from tvmm.migration.outgoing import Outgoing
from tvmm.migration.secure import Insecure, Tls
from tvmm.migration.source import SourceState
from tvmm.migration.status import MigrationParameters
from tvmm.migration.wire import Kind, Opening, Security

TO_DESTINATION = ("Hello", "State", "Commit", "Goodbye")
TO_SOURCE = ("Welcome", "RoundDone", "Ready", "Running")
BEFORE_COMMIT = ("Hello", "Welcome", "RoundDone", "State", "Ready")


async def test_a_guest_moves(world: World, tmp_path: Path) -> None:
    """All of its RAM, its state and its disk, over two connections; the destination knows that the source knows."""
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        assert ends.incoming.state is DestinationState.RUNNING
        check_one_guest(world, ends)
        assert world.destination.loaded[0].name == "serial0"
        assert world.destination.announced == 1
        status = ends.out.status
        assert status.state == "completed"
        assert status.downtime_ms is not None
        assert status.ram.rounds >= 2
        assert len(status.ram.per_connection) == 2
        assert 0 < status.ram.downtime_bytes < status.ram.transferred
        assert status.downtime_parts is not None
        assert min(status.downtime_parts) >= 0
        assert sum(status.downtime_parts) == pytest.approx(status.downtime_ms)


async def test_free_pages_are_spared(world: World, tmp_path: Path) -> None:
    """The guest is asked before the first page is sent, stopped before the first look, and told of the end."""
    world.source.free = [(300, 100)]
    for page in range(300, 400):
        world.source.ram.write(page * PAGE, bytes(PAGE))
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        check_one_guest(world, ends)
        assert ends.out.status.ram.spared == world.source.spared == 100
        assert world.source.hints[:2] == ["begin", "stop"]
        assert world.source.hints[-2:] == ["end", "end"]


async def test_rehearsed_before_anybody_is_let_in(world: World, tmp_path: Path) -> None:
    """Once, and not while a source waits for it: its first message already finds it done."""
    seen: list[int] = []

    def on_message(passing: str) -> bool:
        if passing == "Hello":
            seen.append(world.destination.rehearsed)
        return True

    async with connected(world, tmp_path, on_message) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
    assert seen == [1]
    assert world.destination.rehearsed == 1


@pytest.mark.parametrize("cancelled", [False, True])
async def test_tracking_stops_beside_the_event_loop(world: World, tmp_path: Path, cancelled: bool) -> None:
    """Once, on another thread, also when whoever runs the migration is cancelled."""

    def on_message(passing: str) -> bool:
        if cancelled and passing == "RoundDone":
            scope.cancel()
        return True

    async with connected(world, tmp_path, on_message) as ends:
        with trio.CancelScope() as scope:
            await ends.out.run(trio.Event())
        assert scope.cancelled_caught is cancelled
        (thread,) = world.source.tracking_stopped_on
        assert thread != threading.get_ident()
        check_one_guest(world, ends)


@pytest.mark.parametrize("compress", ["off", "zstd"])
@pytest.mark.parametrize("connections", [1, 3])
async def test_ways_to_move(world: World, tmp_path: Path, compress: str, connections: int) -> None:
    """With hashes compared, compressed and not, on one lane and on several."""
    parameters = PATIENT._replace(connections=connections, compress=compress, verify=True)
    async with connected(world, tmp_path, parameters=parameters) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        check_one_guest(world, ends)


async def screen_of(world: World) -> trio.abc.Stream:
    """The destination's end of the connection for viewers."""
    while not world.destination.screens:
        await trio.sleep(0.01)
    return world.destination.screens[0]


@pytest.mark.parametrize("security", ["plain", "paired"])
async def test_viewers_get_a_connection(world: World, tmp_path: Path, security: str) -> None:
    """After the guest has moved: the destination waits for it, and it goes on after the end of all others."""
    world.source.viewers = 2
    # A code is good for some minutes from when it is made.
    async with connected(world, tmp_path, secured=paired() if security == "paired" else None) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        stream = await world.source.open_screen()
        there = await screen_of(world)
        await ends.incoming_over.wait()
        await stream.send_all(b"hello")
        assert await there.receive_some(5) == b"hello"
        await there.send_all(b"there")
        assert await stream.receive_some(5) == b"there"
        await trio.aclose_forcefully(stream)
        await trio.aclose_forcefully(there)


async def test_the_screen_is_for_the_source_alone(world: World, tmp_path: Path) -> None:
    """Another host of the same group that knows the token has not the certificate that brought the guest."""
    group = Group(tmp_path / "keys")
    there, stranger = group.join("there", "localhost"), group.join("stranger")
    secured = (
        Tls(tls.source(group.alpha, ""), Security.TLS, "localhost"),
        Tls(tls.destination(there), Security.TLS),
    )
    world.source.viewers = 1
    async with connected(world, tmp_path, secured=secured) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        other = Tls(tls.source(stranger, ""), Security.TLS, "localhost")
        opening = Opening(Kind.SCREEN, Security.TLS, token=ends.out._token)
        address = MigrationAddress("unix", path=str(tmp_path / "there"))
        stream = await other.wrap(await open_connection(address, opening))
        with suppress(trio.BrokenResourceError):
            assert await stream.receive_some(1) == b""
        assert not world.destination.screens
        stream = await world.source.open_screen()
        await trio.aclose_forcefully(await screen_of(world))
        await trio.aclose_forcefully(stream)


async def test_nobody_waits_for_viewers_that_do_not_come(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For long; nor at all if there are none."""
    monkeypatch.setattr(incoming, "SCREEN_SECONDS", 0.2)
    world.source.viewers = 1
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        await ends.incoming_over.wait()
        assert not world.destination.screens


@pytest.mark.parametrize("connections", [1, 3])
async def test_ways_to_move_with_tls(world: World, tmp_path: Path, connections: int) -> None:
    """Neither side waits for a handshake on one lane while the other waits for another lane."""
    parameters = PATIENT._replace(connections=connections, verify=True)
    async with connected(world, tmp_path, parameters=parameters, secured=paired()) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        check_one_guest(world, ends)


@pytest.mark.parametrize("name", [*TO_DESTINATION, *TO_SOURCE])
async def test_a_connection_that_breaks(world: World, tmp_path: Path, name: str) -> None:
    """Just before each message. Nobody is in doubt for long, since both are there to be asked."""
    cutter = Cutter(name)
    async with connected(world, tmp_path, cutter) as ends:
        state = await ends.out.run(trio.Event())
        assert cutter.done
        check_one_guest(world, ends)
        assert state is (SourceState.DONE if name in ("Running", "Goodbye") else SourceState.FAILED)


@pytest.mark.parametrize("name", [*TO_DESTINATION, *TO_SOURCE])
async def test_a_connection_that_stalls(
    world: World, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From each message on nothing comes through, and nothing breaks. Questions go another way."""
    seen: list[str] = []

    def on_message(passing: str) -> bool:
        seen.append(passing)
        return passing != name

    async with connected(world, tmp_path, on_message, impatient(name, monkeypatch)) as ends:
        state = await ends.out.run(trio.Event())
        assert name in seen
        check_one_guest(world, ends)
        assert state is (SourceState.DONE if name in ("Running", "Goodbye") else SourceState.FAILED)


@pytest.mark.parametrize("name", ["Commit", "Running"])
async def test_nobody_answers(world: World, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The destination is cut off in the moment of the commit: the guest is paused here, and a person decides."""
    monkeypatch.setattr(commit, "ASK_SECONDS", 0.5)

    def on_message(passing: str) -> bool:
        if passing == name:
            ends.wire.refusing = True
            ends.wire.cut()
            return False
        return True

    async with connected(world, tmp_path, on_message) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.UNCERTAIN
        check_one_guest(world, ends)
        status = ends.out.status
        assert (status.state, status.guest) == ("failed", "unknown")
        assert "resume" in status.error_hint


@pytest.mark.parametrize("name", BEFORE_COMMIT)
async def test_cancelled_at_every_step(world: World, tmp_path: Path, name: str) -> None:
    """By the user, before the guest is given up: it goes on here, and the destination hears of it."""

    def on_message(passing: str) -> bool:
        if passing == name:
            ends.out.cancel()
        return True

    async with connected(world, tmp_path, on_message) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.CANCELLED
        check_one_guest(world, ends)
        assert ends.out.status.state == "cancelled"


async def test_cancelled_too_late(world: World, tmp_path: Path) -> None:
    """After COMMIT the guest is the destination's, whatever the user wants here."""

    def on_message(passing: str) -> bool:
        if passing == "Commit":
            ends.out.cancel()
        return True

    async with connected(world, tmp_path, on_message) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        check_one_guest(world, ends)


async def test_a_state_that_cannot_be_saved(world: World, tmp_path: Path) -> None:
    """An error of the source in the pause: the guest goes on."""
    world.source.fail_save = True
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert "broken" in ends.out.status.error
        check_one_guest(world, ends)
        while not ends.ended:
            await trio.lowlevel.checkpoint()
        assert "its source keeps it: the host's disk is broken" in ends.ended[0].message


async def test_a_state_that_cannot_be_loaded(world: World, tmp_path: Path) -> None:
    """The destination says what is wrong with it."""
    world.destination.fail_load = True
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert "serial0" in ends.out.status.error
        check_one_guest(world, ends)


async def test_a_state_that_is_loaded_wrongly(world: World, tmp_path: Path) -> None:
    """Found by comparing what the destination would save with what was sent, if that is asked for."""
    world.destination.otherwise = ["serial0"]
    parameters = PATIENT._replace(verify=True)
    async with connected(world, tmp_path, parameters=parameters) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert "differs from the source's: serial0" in ends.out.status.error
        check_one_guest(world, ends)


async def test_pages_that_differ(world: World, tmp_path: Path) -> None:
    """A page that changed without being marked, as a bug would have it: the hashes tell."""
    world.source.on_held = lambda: world.source.write_page(300, 99)
    parameters = PATIENT._replace(verify=True)
    async with connected(world, tmp_path, parameters=parameters) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert "pc.ram differs" in ends.out.status.error
        check_one_guest(world, ends)


async def test_a_guest_that_cannot_be_started(world: World, tmp_path: Path) -> None:
    """After COMMIT: the destination gives it back, with the disk."""
    world.destination.fail_start = True
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert "cannot be started" in ends.out.status.error
        check_one_guest(world, ends)


async def test_a_disk_that_a_third_one_takes(world: World, tmp_path: Path) -> None:
    """In the moment in which it has no lock: the source cannot go on either, and is paused until it is free."""

    def on_message(passing: str) -> bool:
        if passing == "Commit":
            assert world.disk.holder is None
            world.disk.holder = object()
        return True

    async with connected(world, tmp_path, on_message) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert world.source.kept_paused
        assert world.running == set()
        assert "in use" in ends.out.status.error


async def test_refused_for_its_processor(world: World, tmp_path: Path) -> None:
    """Before a page moves; the destination goes on waiting, and takes the next one."""
    world.destination.problems = ["the destination lacks avx512f"]
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert "avx512f" in ends.out.status.error
        assert ends.out.status.ram.transferred == 0
        assert ends.incoming.state is DestinationState.WAITING
        check_one_guest(world, ends)


async def test_the_pause_has_a_limit(world: World, tmp_path: Path) -> None:
    """A destination that is slow in the pause: the guest is taken back when it has been paused for long enough."""
    parameters = MigrationParameters(max_downtime_ms=100, connections=1)
    async with connected(world, tmp_path, lambda name: name != "State", parameters) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert "100 ms" in ends.out.status.error
        check_one_guest(world, ends)


def test_a_pause_in_which_memory_is_compared() -> None:
    """May be longer by the time that both sides need for it, or no guest with much RAM could be verified."""
    parameters = MigrationParameters(max_downtime_ms=100)
    assert policy.longest_pause(parameters, 1 << 30) == pytest.approx(0.12)
    assert policy.longest_pause(parameters._replace(max_downtime_ms=1), 1 << 30) == pytest.approx(0.05)
    assert 10 < policy.longest_pause(parameters._replace(verify=True), 1 << 30) < 60


async def test_strangers_cost_nothing(world: World, tmp_path: Path) -> None:
    """Junk, silence and a lane without a token: the migration after them succeeds."""
    async with connected(world, tmp_path) as ends:
        for junk in (b"GET / HTTP/1.0\r\n\r\n" * 3, b"", b"tvmm-mig" + bytes([2, 0, 1, 0, 1, 0]) + bytes(18)):
            stream = await trio.open_unix_socket(str(tmp_path / "there"))
            with suppress(trio.BrokenResourceError):
                await stream.send_all(junk)
                if junk:
                    await stream.receive_some(100)
            await stream.aclose()
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        check_one_guest(world, ends)


async def test_nobody_is_there(world: World, tmp_path: Path) -> None:
    """One line, with what to do."""
    address = MigrationAddress("unix", path=str(tmp_path / "nothing"))
    out = Outgoing(world.source, address, MigrationParameters(), Insecure(), lambda status: None)
    assert await out.run(trio.Event()) is SourceState.FAILED
    assert "cannot be reached" in out.status.error
    assert "--incoming" in out.status.error_hint
    assert world.running == {"source"}


async def test_nobody_listens_at_a_port(world: World) -> None:
    """The system's reason, and not that of the library that tried all of a host's addresses."""
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    address = MigrationAddress("tcp", "127.0.0.1", port)
    out = Outgoing(world.source, address, MigrationParameters(), Insecure(), lambda status: None)
    assert await out.run(trio.Event()) is SourceState.FAILED
    assert out.status.error == f"tcp:127.0.0.1:{port} cannot be reached: Connection refused"
    assert "--incoming" in out.status.error_hint
