"""TLS 1.3 with certificates on both sides, between the two ends of a migration.

`Endpoint` is one end, made from keys (`destination`, `source`) or from a pairing code (`paired_destination`,
`paired_source`). It secures the control connection, a Trio stream, with `Endpoint.secure`, and the connections for
pages with `Endpoint.lane`: there TLS authenticates both ends and carries a key, with which `tvmm.migration.sealed`
encrypts the pages, faster than TLS does. Both make the handshake, and then the destination says in one byte whether
it lets the source in: in TLS 1.3 a client is done before the server has looked at its certificate, so a source that
does not wait for that byte would learn at its first read, somewhere in the middle of a migration, that it was never
let in.

Order of checks: OpenSSL verifies signature, dates, revocation, purpose and, at the source, the name; only a peer that
the authority vouches for gets to `Endpoint._admit`, which parses its certificate again.

Defaults of OpenSSL that stay: the three ciphers of TLS 1.3 and ephemeral key exchange. Changed: nothing older than
1.3, no tickets (a session is never resumed: it would go round certificate and revocation list), strict X.509, no common
names for host names, no authorities of the system.
"""

from __future__ import annotations

import os
import ssl
import threading
from typing import TYPE_CHECKING, NamedTuple, cast

import trio

from tvmm.errors import HostError, ProtocolError, TvmmError
from tvmm.migration import pairing
from tvmm.migration.pairing import Refusal, Refused
from tvmm.migration.plain_thread import PlainThreadStream, prepare
from tvmm.migration.sealed import KEY_BYTES, SealedStream
from tvmm.migration.tls_errors import Side, closed, explain, is_wrong_certificate, refused
from tvmm.migration.tls_handshake import TlsHandshake

if TYPE_CHECKING:
    import socket

    from tvmm.migration.keys import KeyDirectory
    from tvmm.migration.plain_thread import Wakeable

__all__ = [
    "HANDSHAKE_SECONDS",
    "Endpoint",
    "SecureLane",
    "client_context",
    "destination",
    "paired_destination",
    "paired_source",
    "server_context",
    "source",
]

HANDSHAKE_SECONDS = 10.0
"""For the handshake and the admission together: whoever only connects, or sends a byte now and then, must not keep a
task or a thread."""
WELCOME = 0
"""The byte for a source that is let in; others are a `Refusal`."""

SERVER_AUTH, CLIENT_AUTH = "1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"
"""Extended usages (RFC 5280, 4.2.1.12)."""


def server_context(keys: KeyDirectory) -> ssl.SSLContext:
    """The destination's side of `keys`. Raises `UserError` if they are not complete, or no longer valid."""
    return _with_keys(_context(ssl.PROTOCOL_TLS_SERVER), keys)


def client_context(keys: KeyDirectory) -> ssl.SSLContext:
    """The source's side of `keys`. Raises `UserError` if they are not complete, or no longer valid."""
    return _with_keys(_context(ssl.PROTOCOL_TLS_CLIENT), keys)


def destination(keys: KeyDirectory) -> Endpoint:
    """The end that listens, known by its certificate."""
    return Endpoint(server_context(keys), server=True)


def source(keys: KeyDirectory, tls_hostname: str = "") -> Endpoint:
    """The end that connects. The destination's certificate has to be for `tls_hostname`, or what was connected to."""
    return Endpoint(client_context(keys), server=False, name=tls_hostname)


def paired_destination(secret: bytes, gate: pairing.Gate) -> Endpoint:
    """The end that listens, for the one source that has the code of `secret`, as `gate` lets it in."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _with_credentials(context, pairing.credentials(secret, destination=True))
    return Endpoint(context, server=True, gate=gate, paired=True)


def paired_source(secret: bytes) -> Endpoint:
    """The end that connects, to the one destination that has printed the code of `secret`.

    To be made once for all connections of a migration: another one would be another source.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    _with_credentials(context, pairing.credentials(secret, destination=False))
    return Endpoint(context, server=False, name=pairing.DESTINATION_NAME, paired=True)


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.hostname_checks_common_name = False
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    else:
        context.check_hostname = True
    return context


def _with_keys(context: ssl.SSLContext, keys: KeyDirectory) -> ssl.SSLContext:
    keys.check()
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    try:
        context.load_verify_locations(cafile=keys.authority)
        context.load_verify_locations(cafile=keys.crl)
        context.load_cert_chain(keys.host)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror
        raise HostError(f"the keys in {keys.path} cannot be used: {reason}", "see 'tvmm keys show'") from error
    return context


def _with_credentials(context: ssl.SSLContext, credentials: pairing.Credentials) -> None:
    context.load_verify_locations(cadata=credentials.authority.decode("ascii"))
    # The key is to be read from a file by its name; this one is in memory alone and has no other name.
    descriptor = os.memfd_create("tvmm-pairing", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(credentials.own)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


class SecureLane(NamedTuple):
    """What `Endpoint.lane` makes: a stream, and who is at the other end (DER)."""

    stream: SealedStream
    peer_certificate: bytes


class _Remembering:
    """A context for `trio.SSLStream` that keeps what the connection has to send.

    Trio drops the alert that OpenSSL has written when a handshake fails, and the peer would never learn the reason.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.outgoing = ssl.MemoryBIO()

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_side: bool, server_hostname: str | None
    ) -> ssl.SSLObject:
        """As `ssl.SSLContext.wrap_bio`."""
        self.outgoing = outgoing
        return self._context.wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=server_hostname)


class Endpoint:
    """One end of a migration: it makes its connections secure, and lets in whom it should.

    `name` is what a client looks for in the certificate, in place of the host that it connected to; a `gate` decides
    about sources with a pairing code. May be used by any number of tasks and threads.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server: bool,
        name: str = "",
        gate: pairing.Gate | None = None,
        paired: bool = False,
    ) -> None:
        self.context = context
        self._server = server
        self._name = name
        self._gate = gate
        self._gate_lock = threading.Lock()
        self._paired = paired

    async def secure(
        self, transport: trio.abc.Stream, peer: str, host: str = ""
    ) -> trio.SSLStream[trio.abc.Stream]:
        """Make the handshake on `transport`; `peer` is what messages call the other end.

        A client needs `host`, the name or address that it has connected to. The stream tells an end in order (b"") from
        a cut (`trio.BrokenResourceError`). Closes `transport` if it fails: with `UserError` for what the user of the
        source can mend, `ProtocolError` for the rest.
        """
        side, wanted = self._side(peer, host)
        context = _Remembering(self.context)
        stream: trio.SSLStream[trio.abc.Stream] = trio.SSLStream(
            transport, cast("ssl.SSLContext", context), server_hostname=wanted, server_side=self._server
        )
        try:
            with trio.fail_after(HANDSHAKE_SECONDS):
                try:
                    await stream.do_handshake()
                except trio.BrokenResourceError:
                    if alert := context.outgoing.read():
                        await transport.send_all(alert)
                    raise
                if self._server:
                    await self._welcome(stream)
                else:
                    answer = await stream.receive_some(1)
                    self._check_answer(answer, side)
        except BaseException as error:
            await trio.aclose_forcefully(transport)
            raised = self._failed(error, side)
            if raised is error:
                raise
            raise raised from error
        return stream

    def explain(self, error: BaseException, peer: str) -> TvmmError:
        """What to raise for the `trio.BrokenResourceError` of a stream that `secure` has made."""
        return explain(error.__cause__, Side(peer, self._server, self._paired, self._name))

    async def _welcome(self, stream: trio.SSLStream[trio.abc.Stream]) -> None:
        try:
            self._admit(cast("bytes", stream.getpeercert(binary_form=True)))
        except Refused as refused:
            await stream.send_all(bytes([refused.reason]))
            raise
        await stream.send_all(bytes([WELCOME]))

    def lane(
        self, connection: socket.socket, peer: str, host: str = "", *, waker: Wakeable | None = None
    ) -> SecureLane:
        """As `secure`, for a connected socket on which a thread sends pages. It belongs to the lane from now on.

        TLS ends with the source's key for what follows. Waits, in the calling thread; `waker` gets it out with
        `InterruptedError`.
        """
        side, wanted = self._side(peer, host)
        try:
            prepare(connection)
            wrapped = self.context.wrap_socket(
                connection,
                server_side=self._server,
                server_hostname=wanted,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
            )
        except OSError as error:
            connection.close()
            raise explain(error, side) from error
        handshake = TlsHandshake(wrapped, side, waker, HANDSHAKE_SECONDS)
        try:
            certificate = handshake.run()
            key = self._take_key(handshake, certificate, side) if self._server else self._give_key(handshake, side)
        except BaseException as error:
            handshake.close()
            self._count(error.__cause__)
            raise
        stream = PlainThreadStream(handshake.detach(), waker)
        return SecureLane(SealedStream(stream, key, peer), certificate)

    def _take_key(self, handshake: TlsHandshake, certificate: bytes, side: Side) -> bytes:
        try:
            self._admit(certificate)
        except Refused as refused:
            handshake.send(bytes([refused.reason]))
            raise
        handshake.send(bytes([WELCOME]))
        key = handshake.receive(KEY_BYTES)
        if len(key) < KEY_BYTES:
            raise closed(side)
        return key

    def _give_key(self, handshake: TlsHandshake, side: Side) -> bytes:
        self._check_answer(handshake.receive(1), side)
        key = os.urandom(KEY_BYTES)
        handshake.send(key)
        return key

    def _side(self, peer: str, host: str) -> tuple[Side, str | None]:
        """What errors are told with, and the name that OpenSSL is to look for."""
        if self._server:
            return Side(peer, True, self._paired), None
        # A link-local address may name an interface, which no certificate does.
        name = self._name or host.partition("%")[0]
        if not name:
            raise ValueError("a client has to say which host it connected to")
        return Side(peer, False, self._paired, name), name

    def _admit(self, certificate: bytes) -> None:
        """Raise `Refused` unless a source with `certificate` (DER), which is of our authority, may come in."""
        from cryptography import x509

        from tvmm.migration.authority import usages

        extended, name_count = usages(x509.load_der_x509_certificate(certificate))
        if CLIENT_AUTH not in extended:
            raise Refused(Refusal.WRONG_USAGE)
        if not name_count:
            raise Refused(Refusal.NO_NAME)
        if self._gate is not None:
            with self._gate_lock:
                self._gate.admit(certificate)

    def _check_answer(self, answer: bytes | bytearray, side: Side) -> None:
        """Raise unless the destination's first byte is a welcome."""
        if not answer:
            raise closed(side)
        if answer[0] != WELCOME:
            raise refused(answer[0], side)

    def _failed(self, error: BaseException, side: Side) -> BaseException:
        """What to raise for an error out of a handshake on a Trio stream."""
        if isinstance(error, trio.TooSlowError):
            return ProtocolError(f"the handshake with {side.peer} has stalled for {HANDSHAKE_SECONDS:.3g} s")
        if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
            self._count(error.__cause__)
            return explain(error.__cause__, side)
        return error

    def _count(self, cause: BaseException | None) -> None:
        if self._gate is not None and is_wrong_certificate(cause):
            with self._gate_lock:
                self._gate.count_wrong()
