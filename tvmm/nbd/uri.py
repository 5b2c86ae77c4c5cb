"""Where an export is: ``nbd://HOST[:PORT]/EXPORT``, ``nbd+unix:///EXPORT?socket=PATH``, and with TLS ``nbds``.

The form is that of the NBD project's uri.md, which leans on RFC 3986. The parts of a URI that no server of NBD has
(a user, a fragment, other queries) are refused and not ignored: they were written for a reason.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes, urlsplit

from tvmm.config.units import parse_integer
from tvmm.errors import ConfigError
from tvmm.nbd.constants import DEFAULT_PORT, MAX_STRING

__all__ = ["NbdAddress", "is_nbd", "parse_uri"]

SCHEMES = {"nbd": (False, False), "nbds": (True, False), "nbd+unix": (False, True), "nbds+unix": (True, True)}
"""Scheme: (with TLS, over a unix socket)."""

UNIX_PATH_LIMIT = 107
FORMS = "write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, nbds for TLS"


class NbdAddress(NamedTuple):
    """Where a server listens and what it is asked for. `path` of a unix socket, or `host` and `port`."""

    export: str = ""
    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    tls: bool = False
    tls_hostname: str = ""

    @property
    def place(self) -> str:
        """The server as messages call it."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def spelling(self) -> str:
        """As a URI that `parse_uri` reads."""
        scheme = "nbds" if self.tls else "nbd"
        name = quote(self.export, safe="/")
        tls = f"tls-hostname={quote(self.tls_hostname, safe='')}" if self.tls_hostname else ""
        if self.path:
            query = "&".join(filter(None, [f"socket={quote(self.path, safe='/')}", tls]))
            return f"{scheme}+unix:///{name}?{query}"
        host = f"[{quote(self.host, safe=':')}]" if ":" in self.host else quote(self.host, safe="")
        port = "" if self.port == DEFAULT_PORT else f":{self.port}"
        return f"{scheme}://{host}{port}/{name}" + (f"?{tls}" if tls else "")


def is_nbd(text: str) -> bool:
    """Whether a disk's name is meant to be a URI of this kind, right or wrong."""
    scheme = text.partition(":")[0].lower()
    return scheme in SCHEMES and ("://" in text or "+" in scheme)


def parse_uri(text: str) -> NbdAddress:
    """The address that `text` spells. Raises `ConfigError`."""
    if not text.isprintable() or len(text) > 3 * MAX_STRING:
        raise ConfigError(f"NBD address {text[:60]!r} has characters that no address has, or too many", FORMS)
    try:
        parts = urlsplit(text)
        host, user = parts.hostname or "", parts.username
    except ValueError as error:
        raise ConfigError(f"NBD address {text!r} is not a URI: {error}", FORMS) from None
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"NBD address {text!r} has the scheme {parts.scheme!r}", FORMS)
    tls, unix = SCHEMES[parts.scheme]
    if user is not None:
        raise ConfigError(f"NBD address {text!r} names a user", "NBD has none: leave it out")
    if parts.fragment:
        raise ConfigError(f"NBD address {text!r} has a '#'", "in the name of an export it is written %23")
    query = _query(text, parts.query, unix)
    export = _decoded(text, parts.path[1:], "the name of the export")
    if len(export.encode()) > MAX_STRING:
        raise ConfigError(f"NBD address {text[:60]!r}...: the name of the export is too long", f"{MAX_STRING} bytes")
    hostname = query.get("tls-hostname", "")
    if hostname and not tls:
        raise ConfigError(f"NBD address {text!r} has tls-hostname without TLS", "the schemes nbds and nbds+unix use it")
    if unix:
        return NbdAddress(export, path=_socket(text, query, parts.netloc), tls=tls, tls_hostname=hostname)
    if not host:
        raise ConfigError(f"NBD address {text!r} names no host", FORMS)
    return NbdAddress(export, _decoded(text, host, "the host"), _port(text, parts.netloc), "", tls, hostname)


def _query(text: str, query: str, unix: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    known = ("socket", "tls-hostname") if unix else ("tls-hostname",)
    for item in query.split("&") if query else ():
        key, _, value = item.partition("=")
        if key not in known:
            hint = "'socket' goes with nbd+unix://" if key == "socket" else f"there are: {', '.join(known)}"
            raise ConfigError(f"NBD address {text!r} has the query {key!r}", hint)
        if key in found:
            raise ConfigError(f"NBD address {text!r} has {key} twice")
        found[key] = _decoded(text, value, key)
    return found


def _socket(text: str, query: dict[str, str], netloc: str) -> str:
    path = query.get("socket", "")
    if netloc:
        raise ConfigError(f"NBD address {text!r} has a host and a unix socket", "write three slashes: nbd+unix:///EXPORT")
    if not path:
        raise ConfigError(f"NBD address {text!r} names no socket", "add ?socket=PATH")
    if len(path.encode()) > UNIX_PATH_LIMIT:
        raise ConfigError(
            f"NBD address {text!r}: the socket's path is too long", f"{UNIX_PATH_LIMIT} bytes are the limit"
        )
    return path


def _port(text: str, netloc: str) -> int:
    # Not `urlsplit(...).port`, which takes " 1" and "1_0" and says nothing of use.
    port = netloc.rpartition(":")[2] if ":" in netloc.rpartition("]")[2] else ""
    return parse_integer(port, f"port of NBD address {text!r}", 1, 65535) if port else DEFAULT_PORT


def _decoded(text: str, part: str, what: str) -> str:
    percents = part.split("%")[1:]
    if any(len(each) < 2 or not set(each[:2]) <= set("0123456789abcdefABCDEF") for each in percents):
        raise ConfigError(f"NBD address {text!r}: {what} has a '%' that stands for nothing", "write a '%' as %25")
    try:
        found = unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"NBD address {text!r}: {what} is not UTF-8") from None
    if "\0" in found:
        raise ConfigError(f"NBD address {text!r}: {what} has a NUL character")
    return found
