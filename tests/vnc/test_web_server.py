"""The web console over streams in memory: requests, websockets, limits, and peers that mean no good."""

from __future__ import annotations

import json
import ssl
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h11
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, RejectConnection, Request, TextMessage

from tests.vnc.certificates import make_certificate
from tests.vnc.test_web_rules import COOKIE, FILES, TOKEN
from tvmm.vnc import web_server
from tvmm.vnc.web_rules import Rules
from tvmm.vnc.web_server import MAX_CHANNELS, MAX_STRANGERS, REQUEST_SECONDS, WebConsole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GET = f"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: {COOKIE[1].decode()}\r\n"


async def echo(stream: trio.abc.Stream, peer: str) -> None:
    """A viewer's session that says who it is for and repeats what comes."""
    await stream.send_all(f"{peer}\n".encode())
    while data := await stream.receive_some():
        await stream.send_all(data)


class Bench:
    """A console, and connections to it."""

    def __init__(self, nursery: trio.Nursery, **options: Any) -> None:
        self.nursery = nursery
        self.messages: dict[str, Any] = {"name": "vm", "state": "running"}
        self.console = WebConsole(
            Rules(TOKEN, FILES, secure=False),
            options.pop("viewer", echo),
            lambda: self.messages,
            **options,
        )

    def connect(self) -> trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]:
        """A client's end."""
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.console.serve, theirs, "10.0.0.1:5")
        return ours

    async def answer(self, request: str | bytes) -> bytes:
        """All that comes back until the connection ends."""
        stream = self.connect()
        await stream.send_all(request.encode() if isinstance(request, str) else request)
        return await until_end(stream)


async def until_end(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything."""
    received = bytearray()
    while data := await stream.receive_some():
        received += data
    return bytes(received)


@asynccontextmanager
async def bench(**options: Any) -> AsyncIterator[Bench]:
    """A console whose tasks end with the block; nothing stays counted."""
    async with trio.open_nursery() as nursery:
        made = Bench(nursery, **options)
        yield made
        nursery.cancel_scope.cancel()
    assert (made.console.strangers, made.console.connections, made.console.channels) == (0, 0, 0)


class Browser:
    """A websocket client on a stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.frames = WSConnection(ConnectionType.CLIENT)

    async def open(self, path: str, **extra: str) -> object:
        """The first event: accepted or rejected."""
        headers = [COOKIE, (b"origin", b"http://localhost")] + [(k.encode(), v.encode()) for k, v in extra.items()]
        await self.stream.send_all(
            self.frames.send(
                Request(host="localhost", target=path, extra_headers=headers, subprotocols=["binary"])
            )
        )
        return await self.next()

    async def next(self) -> object:
        """The next event."""
        while True:
            for event in self.frames.events():
                return event
            self.frames.receive_data(bytes(await self.stream.receive_some()) or None)

    async def send(self, event: BytesMessage | TextMessage | CloseConnection) -> None:
        """One frame."""
        await self.stream.send_all(self.frames.send(event))


async def test_the_page(autojump_clock: trio.testing.MockClock) -> None:
    """A browser's connection is kept for the files that follow."""
    async with bench() as it:
        stream = it.connect()
        client = h11.Connection(h11.CLIENT)
        for path, body in (("/", b"<p>"), ("/x.js", b"1")):
            request = h11.Request(method="GET", target=path, headers=[(b"host", b"localhost"), COOKIE])
            await stream.send_all((client.send(request) or b"") + (client.send(h11.EndOfMessage()) or b""))
            response, data = await next_event(client, stream), await next_event(client, stream)
            assert isinstance(response, h11.Response)
            assert isinstance(data, h11.Data)
            assert (response.status_code, data.data) == (200, body)
            assert isinstance(await next_event(client, stream), h11.EndOfMessage)
            client.start_next_cycle()
        assert (it.console.strangers, it.console.connections) == (0, 1)


async def next_event(client: h11.Connection, stream: Any) -> Any:
    """h11's next event."""
    while (event := client.next_event()) is h11.NEED_DATA:
        client.receive_data(await stream.receive_some())
    return event


async def test_a_head_has_no_body(autojump_clock: trio.testing.MockClock) -> None:
    """But the length of one."""
    async with bench() as it:
        answer = await it.answer(GET.replace("GET", "HEAD") + "Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"content-length: 3\r\n" in answer.lower()
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\n\r\n", 403),
        ("nonsense\r\n\r\n", 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (GET + "Content-Length: 3\r\n\r\nabc", 400),
        (GET + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 400),
        (GET + "X: " + "a" * 20000, 431),
        (GET.replace("GET /", "GET /none") + "\r\n", 404),
        (GET.replace("GET", "DELETE") + "\r\n", 405),
        (GET.replace("GET /", "GET /vnc") + "\r\n", 426),
    ],
)
async def test_refusals_are_in_words(
    request_text: str, status: int, autojump_clock: trio.testing.MockClock
) -> None:
    """One line of plain text, no trace of the program's insides, and the connection is closed."""
    async with bench() as it:
        answer = await it.answer(request_text.encode("latin-1"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"text/plain" in head
    assert body.endswith(b".\n")
    assert b"Traceback" not in body


async def test_half_a_request_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """A byte now and then does not keep the connection."""
    async with bench() as it:
        stream = it.connect()
        start = trio.current_time()

        async def trickle() -> None:
            for byte in GET.encode():
                await stream.send_all(bytes([byte]))
                await trio.sleep(1)

        it.nursery.start_soon(trickle_until_broken, trickle)
        assert await until_end(stream) == b""
        assert trio.current_time() - start == REQUEST_SECONDS


async def trickle_until_broken(trickle: Any) -> None:
    """The server has hung up."""
    with suppress(trio.BrokenResourceError):
        await trickle()


async def test_strangers_do_not_crowd_out_viewers(autojump_clock: trio.testing.MockClock) -> None:
    """They have few connections, and lose them; who has shown the token keeps what is there."""
    async with bench() as it:
        browser = Browser(it.connect())
        assert isinstance(await browser.open("/panel"), AcceptConnection)
        strangers = [it.connect() for _ in range(MAX_STRANGERS + 5)]
        await trio.testing.wait_all_tasks_blocked()
        assert it.console.strangers == MAX_STRANGERS
        assert await until_end(strangers[-1]) == b""
        await trio.sleep(REQUEST_SECONDS + 1)
        assert (it.console.strangers, it.console.connections) == (0, 1)
        assert isinstance(await browser.next(), TextMessage)


async def test_a_viewer_gets_its_stream(autojump_clock: trio.testing.MockClock) -> None:
    """Bytes go both ways through the websocket, and its end is the session's."""
    async with bench() as it:
        browser = Browser(it.connect())
        accepted = await browser.open("/vnc")
        assert isinstance(accepted, AcceptConnection)
        assert accepted.subprotocol == "binary"
        assert await browser.next() == BytesMessage(data=b"10.0.0.1:5\n")
        await browser.send(BytesMessage(data=b"RFB 003.008\n"))
        assert await browser.next() == BytesMessage(data=b"RFB 003.008\n")
        assert it.console.channels == 1
        await browser.send(CloseConnection(code=1000))
        assert isinstance(await browser.next(), CloseConnection)
        await trio.testing.wait_all_tasks_blocked()
        assert it.console.connections == 0


async def test_a_session_that_ends_closes_the_websocket(autojump_clock: trio.testing.MockClock) -> None:
    """As a server does that has said why it refuses a viewer."""

    async def refuse(stream: trio.abc.Stream, peer: str) -> None:
        await stream.send_all(b"no")

    async with bench(viewer=refuse) as it:
        browser = Browser(it.connect())
        await browser.open("/vnc")
        assert await browser.next() == BytesMessage(data=b"no")
        closed = await browser.next()
        assert isinstance(closed, CloseConnection)
        assert closed.code == 1000


async def test_a_connection_that_breaks_is_nobodys_error(autojump_clock: trio.testing.MockClock) -> None:
    """The console goes on."""
    async with bench() as it:
        stream = it.connect()
        browser = Browser(stream)
        await browser.open("/vnc")
        await trio.aclose_forcefully(stream)
        await trio.testing.wait_all_tasks_blocked()
        assert it.console.connections == 0


async def test_an_error_of_ours_is_not_hidden() -> None:
    """It is a bug, and comes out of the server with its traceback; the peer sees a closed connection."""

    async def broken(stream: trio.abc.Stream, peer: str) -> None:
        raise RuntimeError("a bug")

    with pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
        async with bench(viewer=broken) as it:
            await Browser(it.connect()).open("/vnc")
            await trio.sleep_forever()


async def test_websockets_are_limited(autojump_clock: trio.testing.MockClock) -> None:
    """With an answer that says so."""
    async with bench() as it:
        it.console.channels = MAX_CHANNELS
        answer = await Browser(it.connect()).open("/vnc")
        it.console.channels = 0
    assert isinstance(answer, RejectConnection)
    assert answer.status_code == 503


async def test_frames_before_the_answer_are_refused(autojump_clock: trio.testing.MockClock) -> None:
    """RFC 6455 4.1 has the client wait."""
    async with bench() as it:
        browser = Browser(it.connect())
        request = browser.frames.send(
            Request(host="localhost", target="/vnc", extra_headers=[COOKIE, (b"origin", b"http://localhost")])
        )
        await browser.stream.send_all(request + b"\x82\x80\0\0\0\0")
        assert isinstance(await browser.next(), AcceptConnection)
        assert isinstance(await browser.next(), CloseConnection)


async def test_the_panel_comes_every_second(autojump_clock: trio.testing.MockClock) -> None:
    """And at once when something has happened; what the browser says is not listened to."""
    async with bench() as it:
        browser = Browser(it.connect())
        await browser.open("/panel")
        start = trio.current_time()
        assert await figures(browser) == {"name": "vm", "state": "running"}
        await browser.send(TextMessage(data="hello"))
        await figures(browser)
        assert trio.current_time() - start == 1
        it.messages = {"moved": "http://there:6080/?token=x"}
        it.console.refresh()
        assert await figures(browser) == it.messages
        assert trio.current_time() - start == 1


async def figures(browser: Browser) -> Any:
    """The panel's next message."""
    event = await browser.next()
    assert isinstance(event, TextMessage)
    return json.loads(event.data)


async def test_all_panels_of_one_moment_see_the_same(autojump_clock: trio.testing.MockClock) -> None:
    """A message makes rates since the one before: it is not made anew for each viewer."""
    async with bench() as it:
        asked = []
        it.console._panel = lambda: asked.append(1) or {}  # type: ignore[func-returns-value]
        browsers = [Browser(it.connect()) for _ in range(3)]
        for browser in browsers:
            await browser.open("/panel")
            await figures(browser)
    assert len(asked) == 1


async def test_a_panel_that_nobody_reads_is_cut_off(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages do not pile up."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    async with bench() as it:
        it.nursery.start_soon(it.console.serve, theirs, "peer")
        await Browser(ours).open("/panel")
        await trio.sleep(web_server.REPLY_SECONDS + web_server.CLOSE_SECONDS * 3)
        assert it.console.connections == 0


@pytest.mark.parametrize("path", ["/vnc", "/panel"])
async def test_cancellation(path: str) -> None:
    """Every task of a connection ends with the server, at once."""
    with trio.fail_after(5):
        async with bench() as it:
            browser = Browser(it.connect())
            await browser.open(path)
            await browser.next()
            it.connect()
            await trio.testing.wait_all_tasks_blocked()


async def test_listening() -> None:
    """Over TCP, with the peer's address."""
    async with trio.open_nursery() as nursery:
        console = WebConsole(Rules(TOKEN, FILES, secure=False), echo, dict)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(console.run, listeners)
        stream = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
        browser = Browser(stream)
        await browser.open("/vnc")
        local = stream.socket.getsockname()
        assert await browser.next() == BytesMessage(data=f"127.0.0.1:{local[1]}\n".encode())
        nursery.cancel_scope.cancel()


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's, with a certificate of their own."""
    made = make_certificate(folder)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.key)
    return server, ssl.create_default_context(cafile=made.authority)


async def test_tls(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """The same page and websockets, inside TLS."""
    server, client = contexts(tmp_path)
    async with bench(tls=server) as it:
        inside = trio.SSLStream(it.connect(), client, server_hostname="localhost", https_compatible=True)
        browser = Browser(inside)
        assert isinstance(await browser.open("/vnc"), AcceptConnection)
        assert await browser.next() == BytesMessage(data=b"10.0.0.1:5\n")


async def test_no_tls_handshake(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Plain HTTP where TLS is spoken, and silence, both end the connection."""
    server, _ = contexts(tmp_path)
    async with bench(tls=server) as it:
        await it.answer(GET + "\r\n")
        silent = it.connect()
        start = trio.current_time()
        assert await until_end(silent) == b""
        assert trio.current_time() - start == REQUEST_SECONDS


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=100),
            st.sampled_from([GET.encode(), b"\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n", b"\x82\xff"]),
        ),
        max_size=8,
    )
)
def test_hostile_bytes(parts: list[bytes]) -> None:
    """Whatever comes, the server goes on and the connection ends."""

    async def main() -> None:
        async with bench() as it:
            stream = it.connect()
            await stream.send_all(b"".join(parts))
            await stream.send_eof()
            await until_end(stream)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
