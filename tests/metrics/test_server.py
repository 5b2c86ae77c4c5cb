"""The endpoint's server, with clients that mean well and others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from tvmm.http_stream import READ_SIZE
from tvmm.metrics.http_rules import Rules
from tvmm.metrics.server import (
    FRESH_SECONDS,
    IDLE_SECONDS,
    MAX_CONNECTIONS,
    MAX_REQUEST,
    REPLY_SECONDS,
    REQUEST_SECONDS,
    REST_FACTOR,
    MetricsServer,
)

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Endpoint:
    """A server whose page says how often it was made."""

    def __init__(self, nursery: trio.Nursery, body: bytes = b"") -> None:
        self.server = MetricsServer(Rules(), self._expose)
        self.made = 0
        self.seconds = 0.0
        """What it takes to make one."""
        self._body = body
        self._nursery = nursery

    async def _expose(self, accept: str) -> tuple[bytes, str]:
        self.made += 1
        await trio.sleep(self.seconds)
        return self._body or f"made {self.made} for {accept!r}\n".encode(), "text/plain"

    def connect(self) -> trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream]:
        """A client's end of a new connection."""
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self.server.serve, theirs)
        return ours  # type: ignore[return-value]


@asynccontextmanager
async def endpoint(body: bytes = b"") -> AsyncIterator[Endpoint]:
    """Until the block is left."""
    async with trio.open_nursery() as nursery:
        yield Endpoint(nursery, body)
        nursery.cancel_scope.cancel()


async def everything(stream: trio.abc.ReceiveStream) -> bytes:
    """Until the other side closes."""
    found = b""
    try:
        while data := await stream.receive_some():
            found += data
    except trio.BrokenResourceError:
        pass
    return found


async def answer(stream: trio.abc.Stream, request: bytes) -> tuple[bytes, bytes]:
    """Status line and body of the answer to one request; the connection stays."""
    await stream.send_all(request)
    found = b""
    while b"\r\n\r\n" not in found:
        data = await stream.receive_some()
        assert data, found
        found += data
    head, _, body = found.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.splitlines()[1:])
    length = 0 if request.startswith(b"HEAD") else int(fields[b"content-length"])
    while len(body) < length:
        body += await stream.receive_some()
    return head.splitlines()[0], body


async def test_page_and_the_next_one(autojump_clock: trio.testing.MockClock) -> None:
    """Several requests on one connection; numbers are new when they have got old."""
    async with endpoint() as one:
        stream = one.connect()
        assert await answer(stream, GET) == (b"HTTP/1.1 200 ", b"made 1 for ''\n")
        assert await answer(stream, GET) == (b"HTTP/1.1 200 ", b"made 1 for ''\n")
        await trio.sleep(FRESH_SECONDS)
        assert await answer(stream, GET) == (b"HTTP/1.1 200 ", b"made 2 for ''\n")
        wanted = GET.replace(b"\r\n\r\n", b"\r\nAccept: text/x\r\n\r\n")
        assert await answer(stream, wanted) == (b"HTTP/1.1 200 ", b"made 3 for 'text/x'\n")
        status, body = await answer(stream, GET.replace(b"GET", b"HEAD"))
        assert (status, body) == (b"HTTP/1.1 200 ", b"")


async def test_pipelined_requests() -> None:
    """Answers in order, one page made for all."""
    async with endpoint() as one:
        stream = one.connect()
        await stream.send_all(GET * 3 + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await everything(stream)).count(b"made 1") == 4
        assert one.made == 1


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n123456789", b"400"),
        (GET[:-2] + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * MAX_REQUEST, b"431"),
        (b"G" * (MAX_REQUEST + 1), b"431"),
    ],
)
async def test_refusals_end_the_connection(request_bytes: bytes, status: bytes) -> None:
    """Each gets its status in plain words, and the connection is closed; nothing was read for it."""
    with trio.fail_after(10):
        async with endpoint() as one:
            stream = one.connect()
            await stream.send_all(request_bytes)
            found = await everything(stream)
            assert found.split(b" ")[1] == status
            assert one.made == 0
            await trio.testing.wait_all_tasks_blocked()
            assert one.server.connections == 0


async def test_too_many_connections_are_cut() -> None:
    """And when some have gone, others come in."""
    async with endpoint() as one:
        streams = [one.connect() for _ in range(MAX_CONNECTIONS)]
        for stream in streams:
            assert (await answer(stream, GET))[0] == b"HTTP/1.1 200 "
        assert await everything(one.connect()) == b""
        await streams[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert (await answer(one.connect(), GET))[0] == b"HTTP/1.1 200 "


async def test_half_a_request_is_not_waited_for_long(autojump_clock: trio.testing.MockClock) -> None:
    """However it comes, byte by byte or not at all."""
    async with endpoint() as one:
        silent, slow = one.connect(), one.connect()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def dribble() -> None:
                with suppress(trio.BrokenResourceError):
                    for byte in GET:
                        await slow.send_all(bytes([byte]))
                        await trio.sleep(REQUEST_SECONDS / 4)
                    pytest.fail("it went on for ever")
                assert trio.current_time() - started <= 1.5 * REQUEST_SECONDS

            nursery.start_soon(dribble)
        assert await everything(silent) == b""
        assert trio.current_time() - started == pytest.approx(IDLE_SECONDS)


async def test_who_does_not_read_is_left(autojump_clock: trio.testing.MockClock) -> None:
    """An answer that is not taken ends the connection."""
    async with trio.open_nursery() as nursery:
        one = Endpoint(nursery)
        ours, theirs = trio.testing.lockstep_stream_pair()
        nursery.start_soon(one.server.serve, theirs)
        await ours.send_all(GET)
        started = trio.current_time()
        with trio.move_on_after(2 * REPLY_SECONDS):
            while one.server.connections:
                await trio.sleep(0.5)
        assert trio.current_time() - started <= REPLY_SECONDS + 1
        nursery.cancel_scope.cancel()


async def test_clients_cannot_make_it_work_more(autojump_clock: trio.testing.MockClock) -> None:
    """However many ask at once, the numbers are read once."""
    async with endpoint() as one:
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_CONNECTIONS):
                nursery.start_soon(answer, one.connect(), GET)
        assert one.made == 1


async def test_many_forms_do_not_make_it_work_more(autojump_clock: trio.testing.MockClock) -> None:
    """A client that asks for a form of its own each time waits while the machine rests."""
    async with trio.open_nursery() as nursery:
        one = Endpoint(nursery)
        one.seconds = 1.0
        stream = one.connect()
        started = trio.current_time()
        for number in range(5):
            wanted = GET.replace(b"\r\n\r\n", b"\r\nAccept: text/%d\r\n\r\n" % number)
            assert (await answer(stream, wanted))[0] == b"HTTP/1.1 200 "
        assert trio.current_time() - started == pytest.approx(5 + 4 * REST_FACTOR)
        nursery.cancel_scope.cancel()


async def test_cancelled_with_clients() -> None:
    """The server ends with them."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server = MetricsServer(Rules(), Endpoint(nursery)._expose)
        await nursery.start(server.run, listeners)
        stream = await trio.testing.open_stream_to_socket_listener(listeners[0])
        assert (await answer(stream, GET))[0] == b"HTTP/1.1 200 "
        nursery.cancel_scope.cancel()
    assert server.connections == 0
    await stream.aclose()


def test_bounds_are_small() -> None:
    """What all clients together may hold of this process."""
    assert MAX_CONNECTIONS * MAX_REQUEST <= 1 << 20
    assert READ_SIZE <= MAX_REQUEST
