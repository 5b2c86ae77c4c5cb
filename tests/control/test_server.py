"""The control server over real sockets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.control.fakes import NEGOTIATION, FakeMachine, connected, serving
from tvmm.control.server import LAST_SECONDS, MAX_CLIENTS, MAX_QUEUED, SEND_SECONDS, ControlServer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the control socket goes."""
    return tmp_path / "control.sock"


async def test_a_command_and_its_answer(path: Path) -> None:
    """A client negotiates, asks and is answered with its id."""
    async with serving(FakeMachine(), path), connected(path) as peer:
        assert await peer.ask("query-name", id=5) == {"return": {"name": "fake"}, "id": 5}


async def test_commands_are_answered_in_order(path: Path) -> None:
    """Commands sent in one go are carried out one after the other; the events they cause come before the
    answer."""
    async with serving(FakeMachine(), path), connected(path) as peer:
        await peer.send(b'{"execute": "stop", "id": 1}{"execute": "query-status", "id": 2}')
        stopped, first, second = await peer.line(), await peer.line(), await peer.line()
        assert stopped is not None
        assert stopped["event"] == "STOP"
        assert stopped["timestamp"]["seconds"] > 0
        assert first == {"return": {}, "id": 1}
        assert second == {"return": {"running": False, "status": "paused"}, "id": 2}


async def test_events_go_to_those_who_negotiated(path: Path) -> None:
    """Every client in command mode hears of an event, one that still negotiates does not."""
    machine = FakeMachine()
    async with (
        serving(machine, path) as server,
        connected(path) as first,
        connected(path) as second,
        connected(path, negotiated=False) as silent,
    ):
        server.emit("RESET", {"guest": True, "reason": "guest-reset"})
        for peer in (first, second):
            event = await peer.line()
            assert event is not None
            assert event["data"] == {"guest": True, "reason": "guest-reset"}
        assert await silent.ask("qmp_capabilities") == {"return": {}}


async def test_unknown_event_is_our_bug(path: Path) -> None:
    """An event that is not in the table is refused where it is emitted."""
    with pytest.raises(ValueError, match="NONSENSE"):
        ControlServer(FakeMachine(), path).emit("NONSENSE")


async def test_refusals_reach_the_client(path: Path) -> None:
    """What the machine refuses is an error answer with the machine's words and hint; the session goes on."""
    async with serving(FakeMachine(), path), connected(path) as peer:
        answer = await peer.ask("x-query-cpu-registers")
        assert answer is not None
        assert answer["error"]["class"] == "GenericError"
        assert "tvmm pause" in answer["error"]["desc"]
        answer = await peer.ask("x-query-cpu-registers", arguments={"cpu-index": 7})
        assert answer is not None
        assert answer["error"]["class"] == "DeviceNotFound"
        assert await peer.ask("query-kvm") == {"return": {"enabled": True, "present": True}}


async def test_a_bug_in_a_verb_does_not_end_the_machine(path: Path) -> None:
    """An exception that no verb should raise is reported, and the client gets an error."""
    machine = FakeMachine()
    machine.bug = ZeroDivisionError("oops")
    reported: list[Exception] = []
    server = ControlServer(machine, path, report_bug=reported.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        async with connected(path) as peer:
            answer = await peer.ask("query-cpus-fast")
            assert answer is not None
            assert "oops" in answer["error"]["desc"]
            assert reported == [machine.bug]
            assert await peer.ask("query-name") == {"return": {"name": "fake"}}
        nursery.cancel_scope.cancel()


async def test_bugs_are_printed_unless_somebody_wants_them(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default the traceback of a verb's bug goes to standard error."""
    machine = FakeMachine()
    machine.bug = ZeroDivisionError("oops")
    async with serving(machine, path), connected(path) as peer:
        await peer.ask("query-cpus-fast")
    assert "ZeroDivisionError: oops" in capsys.readouterr().err


async def test_quit_answers_first(path: Path) -> None:
    """The answer to quit, and the event that follows from it, arrive although the machine ends at once."""
    machine = FakeMachine()
    server = ControlServer(machine, path)
    machine.server = server
    async with trio.open_nursery() as outer:
        machine_nursery = await outer.start(_run_until_ended, machine, server)
        async with connected(path) as peer:
            await peer.send(b'{"execute": "quit", "id": 1}')
            assert await peer.line() == {"return": {}, "id": 1}
            event = await peer.line()
            assert event is not None
            assert event["event"] == "SHUTDOWN"
            assert await peer.line() is None
    assert machine_nursery.cancel_scope.cancel_called
    assert not path.exists()


async def _run_until_ended(
    machine: FakeMachine, server: ControlServer, *, task_status: trio.TaskStatus[trio.Nursery]
) -> None:
    """A machine: its control server runs until somebody ends it."""
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        task_status.started(nursery)
        await machine.ended.wait()
        nursery.cancel_scope.cancel()


async def test_quit_works_for_a_client_that_is_gone(path: Path) -> None:
    """A client that asks the machine to quit and hangs up is obeyed."""
    machine = FakeMachine()
    async with serving(machine, path):
        async with connected(path) as peer:
            await peer.send(b'{"execute": "quit"}')
        await machine.ended.wait()


async def test_quit_works_for_a_client_that_does_not_read(path: Path, autojump_clock: MockClock) -> None:
    """A client whose socket is full cannot keep the machine from ending."""
    machine = FakeMachine()
    async with serving(machine, path) as server, connected(path) as peer:
        await _fill(server)
        await peer.send(b'{"execute": "quit"}')
        start = trio.current_time()
        await machine.ended.wait()
        assert trio.current_time() - start <= LAST_SECONDS + 0.01


async def test_a_request_outlives_its_client(path: Path) -> None:
    """What a client asked for is carried out to the end although the client is gone and events cannot be
    sent."""
    machine = FakeMachine()
    machine.hold_reset = trio.Event()
    async with serving(machine, path) as server:
        async with connected(path) as peer:
            await peer.send(b'{"execute": "system_reset"}')
            await wait_all_tasks_blocked()
        server.emit("STOP")
        server.emit("RESUME")
        await wait_all_tasks_blocked()
        machine.hold_reset.set()
        await wait_all_tasks_blocked()
        assert machine.resets == 1
        assert server.client_count == 0


async def _fill(server: ControlServer) -> None:
    """Send events until the client's socket is full and some stay in the outbox, but not too many."""
    data = {"padding": "x" * 60_000}
    for _ in range(MAX_QUEUED // 2):
        server.emit("STOP", data)
    await wait_all_tasks_blocked()


async def test_client_that_does_not_read_is_dropped_when_its_outbox_is_full(path: Path) -> None:
    """Events never wait for a client: one that lets too many pile up is dropped, others are not affected."""
    async with serving(FakeMachine(), path) as server, connected(path) as stuck, connected(path) as lively:
        await _fill(server)
        for _ in range(MAX_QUEUED // 2):
            assert await lively.line() is not None
        assert server.client_count == 2
        for number in range(2 * MAX_QUEUED):
            server.emit("RESUME", {"number": number})
            event = await lively.line()
            assert event is not None
            assert event["data"] == {"number": number}
        await wait_all_tasks_blocked()
        assert server.client_count == 1
        assert await lively.ask("query-name") == {"return": {"name": "fake"}}
        assert stuck.stream.socket.fileno() >= 0


async def test_client_that_takes_nothing_is_dropped_after_a_while(
    path: Path, autojump_clock: MockClock
) -> None:
    """A client that keeps a message waiting for SEND_SECONDS loses its place."""
    async with serving(FakeMachine(), path) as server, connected(path) as peer:
        await _fill(server)
        assert server.client_count == 1
        await trio.sleep(SEND_SECONDS + 1)
        assert server.client_count == 0
        assert peer.stream.socket.fileno() >= 0


async def test_client_that_only_sends_is_held_up_alone(path: Path) -> None:
    """A client that sends without reading is not read from any more, and others are served."""
    async with serving(FakeMachine(), path), connected(path) as flood, connected(path) as other:
        request = b'{"execute": "query-commands"}' * 1000
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send_for_ever, flood.stream, request)
                for _ in range(20):
                    assert await other.ask("query-name") == {"return": {"name": "fake"}}
                scope.cancel()


async def _send_for_ever(stream: trio.SocketStream, data: bytes) -> None:
    while True:
        await stream.send_all(data)


async def test_too_many_clients(path: Path) -> None:
    """Past the limit a client is told why and hung up on; a place that gets free can be had."""
    async with serving(FakeMachine(), path) as server, trio.open_nursery() as nursery:
        for _ in range(MAX_CLIENTS):
            nursery.start_soon(_stay, path)
        await wait_all_tasks_blocked()
        assert server.client_count == MAX_CLIENTS
        async with await trio.open_unix_socket(path) as stream:
            data = b""
            async for chunk in stream:
                data += chunk
        assert str(MAX_CLIENTS) in json.loads(data)["error"]["desc"]
        nursery.cancel_scope.cancel()
    async with serving(FakeMachine(), path), connected(path):
        pass


async def _stay(path: Path) -> None:
    async with connected(path):
        await trio.sleep_forever()


async def test_client_over_a_limit_is_told_and_hung_up_on(path: Path) -> None:
    """A client that exceeds a limit of the wire reads why before the end."""
    async with serving(FakeMachine(), path), connected(path) as peer:
        await peer.send(b"[" * 1000)
        answer = await peer.line()
        assert answer is not None
        assert "levels" in answer["error"]["desc"]
        assert await peer.line() is None


async def test_half_closed_client_gets_its_answers(path: Path) -> None:
    """A client that says all it has to say and closes its sending side still reads every answer."""
    async with serving(FakeMachine(), path), connected(path) as peer:
        await peer.send(b'{"execute": "query-name"}' * 3)
        await peer.stream.send_eof()
        for _ in range(3):
            assert await peer.line() == {"return": {"name": "fake"}}
        assert await peer.line() is None


async def test_clients_may_vanish_at_any_point(path: Path) -> None:
    """Clients that hang up while they negotiate, ask or are told something leave nothing behind."""
    async with serving(FakeMachine(), path) as server:
        for data in (
            b"",
            b'{"exe',
            NEGOTIATION,
            NEGOTIATION + b'{"execute": "stop"}{"execute": "cont"}' * 50,
        ):
            stream = await trio.open_unix_socket(path)
            if data:
                await stream.send_all(data)
            await stream.aclose()
            server.emit("STOP")
        await wait_all_tasks_blocked()
        assert server.client_count == 0


async def test_two_machines_in_one_process(tmp_path: Path) -> None:
    """Two servers keep their machines and their events apart."""
    one, two = FakeMachine("one"), FakeMachine("two")
    async with (
        serving(one, tmp_path / "1"),
        serving(two, tmp_path / "2"),
        connected(tmp_path / "1") as first,
        connected(tmp_path / "2") as second,
    ):
        one.powerdown()
        assert (await first.line() or {})["event"] == "POWERDOWN"
        assert await second.ask("query-name") == {"return": {"name": "two"}}


async def test_cancelled_while_clients_are_connected(path: Path) -> None:
    """Cancelling the server ends its clients' sessions and removes the socket."""
    async with serving(FakeMachine(), path) as server:
        idle = await trio.open_unix_socket(path)
        await wait_all_tasks_blocked()
        assert server.client_count == 1
    assert server.client_count == 0
    assert not path.exists()
    await idle.aclose()
