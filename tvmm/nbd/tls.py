"""TLS to an NBD server: one connection's records over any Trio stream, and the sentences for what goes wrong.

Not `trio.SSLStream`: the first connections are made before the machine's event loop has the disk, and go on there.
What is kept here belongs to no loop.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import trio

from tvmm.errors import ConfigError, HostError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    T = TypeVar("T")

__all__ = ["Credentials", "TlsLayer", "explain", "make_context"]

RECORDS = 1 << 18
"""Bytes that are read or written at a time: some records."""

VERIFY = {
    9: ("is not valid yet", "compare the clocks of both hosts"),
    10: ("has expired", "have a new one made for the server"),
    18: ("vouches for itself", "name it, or the CA that it is from, with tls_ca=FILE"),
    19: ("is of a CA that is not known here", "name the CA with tls_ca=FILE"),
    20: ("is of a CA that is not known here", "name the CA with tls_ca=FILE"),
    21: ("is of a CA that is not known here", "name the CA with tls_ca=FILE"),
    26: ("is for another use", "have one made for a server"),
    62: ("is not for {name!r}", "say tls_hostname=NAME with a name that it has"),
    64: ("is not for {name!r}", "say tls_hostname=NAME with a name that it has"),
}
"""By the code of X509_verify_cert(3)."""

WANTS_CERTIFICATE = ("wants a certificate of this host", "name one with tls_cert=FILE and tls_key=FILE")
ALERTS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": WANTS_CERTIFICATE,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": WANTS_CERTIFICATE,
    "TLSV1_ALERT_UNKNOWN_CA": ("does not know the CA of this host's certificate", "see tls_cert="),
    "SSLV3_ALERT_BAD_CERTIFICATE": ("does not accept this host's certificate", "see tls_cert="),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": ("says that this host's certificate has expired", "see tls_cert="),
    "TLSV1_ALERT_ACCESS_DENIED": ("does not let this host in", "look at the server's configuration"),
    "TLSV1_ALERT_PROTOCOL_VERSION": ("speaks no TLS of 1.2 or newer", "use a newer server"),
    "UNSUPPORTED_PROTOCOL": ("speaks no TLS of 1.2 or newer", "use a newer server"),
    "WRONG_VERSION_NUMBER": ("answers with something that is not TLS", "look at the address"),
}
"""By OpenSSL's reason."""


class Credentials(NamedTuple):
    """PEM files, '' where there is none: without `ca` the system's authorities are asked. `hostname` is looked for in
    the server's certificate."""

    hostname: str
    ca: str = ""
    certificate: str = ""
    key: str = ""


def make_context(credentials: Credentials) -> ssl.SSLContext:
    """What connections are made with. Raises `ConfigError` or `HostError` for files that are of no use."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    what = credentials.ca
    try:
        if credentials.ca:
            context.load_verify_locations(cafile=credentials.ca)
        else:
            context.load_default_certs()
        what = credentials.certificate
        if credentials.certificate:
            context.load_cert_chain(credentials.certificate, credentials.key or None, password=_no_password)
    except FileNotFoundError as error:
        names = " or ".join(filter(None, {what, credentials.key if what == credentials.certificate else ""}))
        raise ConfigError(f"the TLS file {names} does not exist", "see tls_ca=, tls_cert= and tls_key=") from error
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise ConfigError(f"the TLS file {what} is of no use: {reason}", "PEM files are needed") from error
    except OSError as error:
        raise HostError(f"the TLS file {what} cannot be read: {error.strerror}", "get the right to read it") from error
    return context


def _no_password() -> str:
    raise ConfigError("the TLS key is encrypted", "use one without a password: nobody could be asked for it")


def explain(error: BaseException, place: str, hostname: str) -> UserError:
    """What to raise for an error of OpenSSL with the server at `place`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text, hint = VERIFY.get(error.verify_code, (f"is not accepted: {error.verify_message}", "see tls_ca="))
        return HostError(f"the certificate of NBD server {place} {text.format(name=hostname)}", hint)
    reason = getattr(error, "reason", None) or ""
    if reason in ALERTS:
        text, hint = ALERTS[reason]
        return HostError(f"NBD server {place} {text}", hint)
    told = reason.replace("_", " ").lower() or "the connection was closed"
    return HostError(f"TLS with NBD server {place} failed: {told}", "see what is said there")


class TlsLayer:
    """One connection. `receive_some` and `send_all` may be called at the same time, each by one task."""

    def __init__(self, context: ssl.SSLContext, hostname: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)

    async def handshake(self, stream: trio.abc.Stream) -> None:
        """Raises `ssl.SSLError` or `trio.BrokenResourceError`."""
        lock = trio.Lock()
        try:
            await self._until_done(stream, lock, self._object.do_handshake)
        finally:
            # The alert that says why, or the last word of the handshake.
            await self._flush(stream, lock)

    async def receive_some(self, stream: trio.abc.Stream, lock: trio.Lock) -> bytes:
        """Bytes, b"" at the end. `lock` is that of all who send on `stream`."""
        try:
            return await self._until_done(stream, lock, lambda: self._object.read(RECORDS))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    async def send_all(self, stream: trio.abc.Stream, lock: trio.Lock, data: bytes) -> None:
        """All of it."""
        self._object.write(data)
        await self._flush(stream, lock)

    async def _until_done(self, stream: trio.abc.Stream, lock: trio.Lock, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await self._flush(stream, lock)
                data = await stream.receive_some(RECORDS)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()

    async def _flush(self, stream: trio.abc.Stream, lock: trio.Lock) -> None:
        async with lock:
            data = self._outgoing.read()
            if data:
                await stream.send_all(data)
