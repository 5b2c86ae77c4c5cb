"""Which connections need protection: all but those that do not leave this host."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["host_of", "require_secure"]

WAYS_OUT = (
    "use certificates (--tls, made with 'tvmm keys init'), a one-time code (--pair), "
    "or send everything readable for anybody on the way with --insecure"
)


def require_secure(
    address: str,
    *,
    tls: bool,
    pair: bool,
    insecure: bool,
    resolve: Callable[[str], Sequence[str]] | None = None,
) -> None:
    """Raise `ConfigError` if a migration over `address` could be read or changed by others.

    `address` is ``unix:PATH``, or ``HOST:PORT`` with or without ``tcp:`` before it, as for connecting or listening;
    ``*`` and an empty host are all addresses of this host. A name is local only if each address that it has is a
    loopback one, since nobody knows which of them a connection takes. `resolve` gives the addresses of a name; the
    system's own way may take seconds, so call this from a thread or before the event loop runs.
    """
    if tls or pair or insecure or address.startswith("unix:"):
        return
    host = host_of(address)
    if host in ("", "*"):
        raise ConfigError("a migration would be accepted from any host without protection", WAYS_OUT)
    found = [host] if _is_address(host) else list((resolve or _resolve)(host))
    outside = next((text for text in found if not _is_loopback(text)), None)
    if outside is not None or not found:
        shown = host if outside in (host, None) else f"{host} ({outside})"
        raise ConfigError(f"{shown} is not this host, and a migration carries all of the guest's memory", WAYS_OUT)


def host_of(address: str) -> str:
    """The host in ``tcp:HOST:PORT`` or ``HOST:PORT``; brackets around an IPv6 address go. Raises `ConfigError`."""
    text = address.removeprefix("tcp:")
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal():
        raise ConfigError(f"{address!r} is not an address", "write HOST:PORT, tcp:HOST:PORT or unix:PATH")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1]
    return host


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _resolve(host: str) -> list[str]:
    """The addresses of `host`, by the system's resolver."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise ConfigError(f"the host {host!r} cannot be found: {reason}", "check it, or give an address") from error
    return [str(entry[4][0]) for entry in found]
