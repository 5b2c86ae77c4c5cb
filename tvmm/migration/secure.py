"""How connections of a migration are secured, for both sides: not at all, by certificates, or by a pairing code."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

from tvmm.errors import ConfigError, ProtocolError
from tvmm.migration.wire import Security

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import trio

    from tvmm.config.incoming import IncomingConfig, MigrationAddress
    from tvmm.kvm.serve import Waker
    from tvmm.migration.keys import KeyDirectory
    from tvmm.migration.pairing import Gate
    from tvmm.migration.senders import ThreadStream
    from tvmm.migration.status import MigrationParameters
    from tvmm.migration.tls import Endpoint, SecureLane

__all__ = ["Insecure", "Securer", "Tls", "client_security", "server_security"]


class Securer(Protocol):
    """One side of it. `lanes_are_plain`: pages go from guest memory into the socket as they are."""

    kind: Security
    lanes_are_plain: bool

    @property
    def is_void(self) -> bool:
        """Nobody can come in any more: a code has been tried too often, or is too old."""

    async def wrap(self, stream: trio.SocketStream) -> trio.abc.Stream:
        """The same connection, secured. Raises `UserError`, `ProtocolError` or `LinkLost`."""

    def identity(self, stream: trio.abc.Stream) -> bytes:
        """Who is at the other end of a stream that `wrap` returned; b'' where nobody can tell."""

    async def wrap_lane(self, stream: trio.SocketStream, waker: Waker, identity: bytes = b"") -> ThreadStream:
        """For a thread, which `waker` gets out. Raises `ProtocolError` too if it is not `identity` that has come."""


class Insecure:
    """Plain bytes: for this host alone, or asked for by name."""

    kind = Security.PLAIN
    lanes_are_plain = True
    is_void = False

    async def wrap(self, stream: trio.SocketStream) -> trio.abc.Stream:
        """See `Securer`."""
        return stream

    def identity(self, stream: trio.abc.Stream) -> bytes:
        """See `Securer`."""
        return b""

    async def wrap_lane(self, stream: trio.SocketStream, waker: Waker, identity: bytes = b"") -> ThreadStream:
        """See `Securer`."""
        from tvmm.migration.plain_thread import PlainThreadStream

        return PlainThreadStream(_detached(stream), waker)


class Tls:
    """TLS 1.3 with certificates on both sides: the user's own, or those that a pairing code stands for."""

    lanes_are_plain = False

    def __init__(self, endpoint: Endpoint, kind: Security, host: str = "", gate: Gate | None = None) -> None:
        """`host` is what a source has connected to; `gate` says whether a destination's pairing code is still good."""
        self._gate = gate
        self.kind = kind
        self._endpoint = endpoint
        self._host = host
        self._peer = "the destination" if host else "the source"

    @property
    def is_void(self) -> bool:
        """Nobody can come in any more."""
        return self._gate is not None and self._gate.is_void

    async def wrap(self, stream: trio.SocketStream) -> trio.abc.Stream:
        """See `Securer`."""
        return await self._endpoint.secure(stream, self._peer, self._host)

    def identity(self, stream: trio.abc.Stream) -> bytes:
        """See `Securer`: the certificate."""
        import trio

        assert isinstance(stream, trio.SSLStream)
        return stream.getpeercert(binary_form=True) or b""

    async def wrap_lane(self, stream: trio.SocketStream, waker: Waker, identity: bytes = b"") -> ThreadStream:
        """See `Securer`. Cancelled, it wakes `waker`: a peer that stalls does not keep a user from giving up."""
        from tvmm.migration.link import LinkLost
        from tvmm.migration.threads import run_together

        plain = _detached(stream)
        made: list[SecureLane] = []

        def make() -> None:
            with suppress(InterruptedError):
                made.append(self._endpoint.lane(plain, self._peer, self._host, waker=waker))

        try:
            await run_together([make], waker)
        except BaseException:
            for lane in made:
                lane.stream.close()
            raise
        if not made:
            raise LinkLost("the migration is over")
        lane = made[0]
        if identity and lane.peer_certificate != identity:
            lane.stream.close()
            raise ProtocolError("a connection for pages comes from somebody else than the guest")
        return lane.stream


def _detached(stream: trio.SocketStream) -> socket.socket:
    import socket

    return socket.socket(fileno=stream.socket.detach())


async def client_security(
    address: MigrationAddress, parameters: MigrationParameters, default_keys: str = ""
) -> Securer:
    """The source's. `default_keys` is the directory of the user's own.

    Raises `UserError`: the keys are not complete, or the destination is not for plain bytes.
    """
    import trio

    from tvmm.migration.security import require_secure

    await trio.to_thread.run_sync(
        partial(
            require_secure,
            address.uri,
            tls=parameters.tls,
            pair=bool(parameters.pair),
            insecure=parameters.insecure,
        )
    )
    # What a certificate is looked up by; a path has no name, and only the user can say whose it leads to.
    host = parameters.tls_hostname or address.host or "localhost"
    if parameters.pair:
        from tvmm.migration import pairing, tls

        return Tls(tls.paired_source(pairing.parse_code(parameters.pair)), Security.PAIR, host)
    if parameters.tls:
        from tvmm.migration import tls

        keys = _key_directory(parameters.keys or default_keys)
        return Tls(tls.source(keys, parameters.tls_hostname), Security.TLS, host)
    return Insecure()


async def server_security(
    config: IncomingConfig, say: Callable[[str], None], default_keys: str = ""
) -> Securer:
    """The destination's; `say` gets the pairing code to be shown. Raises `UserError`."""
    import time

    import trio

    from tvmm.migration.security import require_secure

    await trio.to_thread.run_sync(
        partial(require_secure, config.uri, tls=config.tls, pair=config.pair, insecure=config.insecure)
    )
    if config.pair:
        from tvmm.migration import pairing, tls

        secret = pairing.new_secret()
        gate = pairing.Gate(time.monotonic)
        say(f"the pairing code is {pairing.format_code(secret)}")
        return Tls(tls.paired_destination(secret, gate), Security.PAIR, gate=gate)
    if config.tls:
        from tvmm.migration import tls

        return Tls(tls.destination(_key_directory(config.keys or default_keys)), Security.TLS)
    return Insecure()


def _key_directory(path: str) -> KeyDirectory:
    from pathlib import Path

    from tvmm.migration.keys import KeyDirectory

    if not path:
        raise ConfigError("TLS wants a directory with keys", "give its name; 'tvmm keys init' makes one")
    return KeyDirectory(Path(path))
