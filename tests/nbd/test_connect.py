"""Connections: sockets of both kinds, TLS, and all that a server may do in place of a handshake."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from struct import pack

import pytest
import trio

from tests.support.nbd_server import ALL_FLAGS, Facts, serving_nbd
from tests.vnc.certificates import Certificate, make_certificate
from tvmm.errors import ConfigError, HostError, ImageError, UserError
from tvmm.nbd.codec import Conversation, Request
from tvmm.nbd.connect import CONNECT_SECONDS, Connection, RemoteServer, run_now
from tvmm.nbd.constants import Command
from tvmm.nbd.tls import Credentials, make_context
from tvmm.nbd.uri import NbdAddress


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Of localhost."""
    return make_certificate(tmp_path_factory.mktemp("certificates"))


def server_context(certificate: Certificate, *, wants_client: bool = False) -> ssl.SSLContext:
    """The server's side of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    if wants_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificate.authority)
    return context


async def read(connection: Connection, offset: int, length: int) -> bytes:
    """What a request gets on the engine's end of the connection."""
    client = Conversation(structured=connection.export.structured, extended=connection.export.extended)
    sock = trio.socket.from_stdlib_socket(socket.socket(fileno=os.dup(connection.fd)))
    connection.given()
    await sock.send(client.send(Request(Command.READ, 1, offset, length)))
    while True:
        data = await sock.recv(1 << 16)
        assert data
        for answer in client.receive(data):
            assert not answer.error
            sock.close()
            return answer.data


async def test_unix_and_tcp(tmp_path: Path) -> None:
    """Both give a connection that works, with what was agreed on."""
    export = bytearray(range(256)) * 4096
    facts = Facts({"disk": export})
    async with serving_nbd(tmp_path / "s", facts):
        connection = await RemoteServer(NbdAddress("disk", path=str(tmp_path / "s"))).connect()
        assert connection.export.size == 1 << 20
        assert connection.transmission == (ALL_FLAGS, True, False, 1, 32 << 20)
        assert not connection.needs_pump
        assert await read(connection, 100, 100) == export[100:200]
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with serving_nbd(listener, facts) as server:
        connection = await RemoteServer(NbdAddress("disk", "localhost", port)).connect()
        peer = socket.socket(fileno=os.dup(connection.fd))
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        peer.close()
        assert await read(connection, 0, 5) == bytes(range(5))
        assert server.connections == 1


async def refused(address: NbdAddress, credentials: Credentials | None = None) -> str:
    """The one line that a connection fails with."""
    with pytest.raises(UserError) as caught:
        await RemoteServer(address, credentials).connect()
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_nobody_there(tmp_path: Path) -> None:
    """What is wrong with the place is told, and what to do."""
    path = tmp_path / "s"
    assert "no such socket; start it" in await refused(NbdAddress(path=str(path)))
    path.touch()
    assert "connection refused" in await refused(NbdAddress(path=str(path)))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert "connection refused" in await refused(NbdAddress("", "127.0.0.1", sock.getsockname()[1]))


@pytest.mark.parametrize("name", ["greeting", "ACK-STRUCTURED_REPLY", "ACK-GO"])
async def test_a_server_that_says_nothing(tmp_path: Path, autojump_clock: object, name: str) -> None:
    """It is left after some seconds, wherever it stops."""
    async with serving_nbd(tmp_path / "s", Facts(stall={name})):
        before = trio.current_time()
        assert "did not answer within 10 s" in await refused(NbdAddress(path=str(tmp_path / "s")))
        assert trio.current_time() - before == pytest.approx(CONNECT_SECONDS, abs=0.5)


@pytest.mark.parametrize("name", ["greeting", "ACK-STRUCTURED_REPLY", "INFO-GO"])
async def test_a_server_that_goes(tmp_path: Path, name: str) -> None:
    """The words say where it was."""
    async with serving_nbd(tmp_path / "s", Facts(hang_up={name})):
        assert "closed the connection" in await refused(NbdAddress(path=str(tmp_path / "s")))


async def test_a_missing_export_is_left_with_a_word(tmp_path: Path) -> None:
    """The server is told that nothing follows, and has nobody connected afterwards."""
    async with serving_nbd(tmp_path / "s", Facts({"a": bytearray(512)})) as server:
        assert "has no export 'b'; there is: 'a'" in await refused(NbdAddress("b", path=str(tmp_path / "s")))
        while server.connections:
            await trio.lowlevel.checkpoint()
        assert server.halves[0].seen[-2:] == ["LIST", "ABORT"]


# -- TLS ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def secure(
    certificate: Certificate, facts: Facts | None = None, *, wants_client: bool = False
) -> AsyncIterator[NbdAddress]:
    """A server with TLS on localhost."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    context = server_context(certificate, wants_client=wants_client)
    async with serving_nbd(listener, facts or Facts(tls="required"), context):
        yield NbdAddress("", "localhost", listener.socket.getsockname()[1], tls=True)


async def test_tls(certificate: Certificate) -> None:
    """Bytes go both ways through the pump, which ends with either end."""
    export = bytearray(range(256)) * 4096
    facts = Facts({"": export}, tls="required")
    async with secure(certificate, facts) as address:
        connection = await RemoteServer(address, Credentials("localhost", str(certificate.authority))).connect()
        assert connection.needs_pump
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.pump)
            assert await read(connection, 0, 1 << 20) == export
        # The engine's end was closed, and so the pump has ended.


async def test_a_server_ends_tls(certificate: Certificate) -> None:
    """The engine sees the end when the server goes."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = NbdAddress("", "localhost", listener.socket.getsockname()[1], tls=True)
    async with serving_nbd(listener, Facts(tls="offered"), server_context(certificate)) as server:
        connection = await RemoteServer(address, Credentials("localhost", str(certificate.authority))).connect()
        sock = trio.socket.from_stdlib_socket(socket.socket(fileno=os.dup(connection.fd)))
        connection.given()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.pump)
            server.drop()
            assert await sock.recv(1) == b""
        sock.close()


async def test_tls_that_is_not_to_be_trusted(certificate: Certificate, tmp_path: Path) -> None:
    """CA, name, a certificate of ours that is wanted, and a server without TLS: each has its sentence."""
    authority = str(certificate.authority)
    async with secure(certificate) as address:
        assert "is of a CA that is not known here; name the CA with tls_ca=FILE" in await refused(
            address, Credentials("localhost")
        )
        assert "is not for 'elsewhere'; say tls_hostname=NAME" in await refused(
            address, Credentials("elsewhere", authority)
        )
        assert "wants TLS; say tls=on or nbds://" in await refused(address)
    async with secure(certificate, wants_client=True) as address:
        assert "want a certificate of this host: tls_cert=FILE" in await refused(
            address, Credentials("localhost", authority)
        )
    async with serving_nbd(tmp_path / "s", Facts()):
        assert "has no TLS" in await refused(NbdAddress(path=str(tmp_path / "s")), Credentials("h", authority))
    async with serving_nbd(tmp_path / "t", Facts(tls="offered")):
        assert "TLS with NBD server" in await refused(NbdAddress(path=str(tmp_path / "t")), Credentials("h", authority))


def test_files_that_are_of_no_use(certificate: Certificate, tmp_path: Path) -> None:
    """They are named."""
    nothing = tmp_path / "nothing.pem"
    with pytest.raises(ConfigError, match=r"nothing\.pem does not exist"):
        make_context(Credentials("h", str(nothing)))
    nothing.write_text("hello")
    with pytest.raises(ConfigError, match=r"nothing\.pem is of no use"):
        make_context(Credentials("h", str(nothing)))
    with pytest.raises(ConfigError, match="does not exist"):
        make_context(Credentials("h", str(certificate.authority), str(tmp_path / "x.pem")))
    make_context(Credentials("h", str(certificate.authority), str(certificate.certificate), str(certificate.key)))


async def test_run_now_in_a_loop_and_errors() -> None:
    """It has a loop of its own, and raises what is raised there."""

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ImageError("that")

    with pytest.raises(ImageError, match="that"):
        run_now(fail)

    async def give() -> int:
        await trio.lowlevel.checkpoint()
        return 5

    assert run_now(give) == 5


async def test_noise_of_every_kind(tmp_path: Path) -> None:
    """What is no NBD server is told apart from one that is away."""
    for noise in (b"HTTP/1.1 200 OK\r\n\r\n" * 9, b"\0" * 152, pack(">Q", 0x4E42444D41474943) + b"x" * 200):
        async with serving_nbd(tmp_path / "s", Facts(spoil={"greeting": lambda _, noise=noise: noise})):  # type: ignore[misc]
            with pytest.raises((ImageError, HostError), match="is no NBD server"):
                await RemoteServer(NbdAddress(path=str(tmp_path / "s"))).connect()
