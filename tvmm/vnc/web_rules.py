"""What the web console answers to a request: a table of files, two websockets, and who may have them. Pure.

Whoever has the token may watch and type. It comes in the URL that is printed at start, once; the page then has it in a
cookie that scripts cannot read and that other sites' pages cannot make the browser send (HttpOnly, SameSite=Strict),
and takes it out of the address bar. The page comes as the answer to that first request and not after a redirect: a
browser that was led here by another page, as a moved machine's does, would follow the redirect without the cookie.

Cookies ignore ports, so their name has a part that differs between consoles on one host.

Against pages of other sites in the same browser there are three more checks. `Host` has to be an address or one of the
names that were told (a page that makes its own name lead to this address, DNS rebinding, comes with that name). A
websocket's `Origin` has to be this very console. And nothing may frame the page.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tvmm.vnc.web import PageFile

__all__ = ["Channel", "Reply", "Rules", "console_url", "refusal"]

Headers = list[tuple[bytes, bytes]]

MAX_FIELDS = 8
"""Fields in a query; more are refused before they are taken apart."""

MAX_COOKIES = 64
"""Cookies that are looked at: other servers on this host leave theirs, too."""

CHANNELS = {"/vnc": "binary", "/panel": None}
"""Websockets and the subprotocol that each speaks if the browser offers it."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_PORT = re.compile(r"[0-9]{1,5}")

NO_TOKEN = "Open the whole address that was printed at start, with its token."
BAD_HOST = "This console does not go by that name. Use its address, or name it among the console's hosts."
FOREIGN = "Only the console's own page may open its websockets."


class Reply(NamedTuple):
    """An ordinary answer."""

    status: int
    headers: Headers
    body: bytes


class Channel(NamedTuple):
    """An accepted websocket: its path, and the headers of the answer with status 101."""

    path: str
    headers: Headers


def console_url(host: str, port: int, token: str, *, secure: bool) -> str:
    """The address to open; `host` is an address or a name without brackets."""
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{shown}:{port}/?token={token}"


def refusal(status: int, words: str, *extra: tuple[bytes, bytes]) -> Reply:
    """An error in words, as plain text, with more headers if need be."""
    return Reply(status, [*_COMMON, (b"content-type", b"text/plain; charset=utf-8"), *extra], f"{words}\n".encode())


_COMMON: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
]


class Rules:
    """The rules of one console.

    ``token``: what to show, ASCII without spaces (`secrets.token_urlsafe(32)`). ``names``: host names that the console
    goes by besides `localhost` and any address. ``secure``: whether it is served through TLS.
    """

    def __init__(self, token: str, files: Mapping[str, PageFile], names: Iterable[str] = (), *, secure: bool) -> None:
        self._token = token.encode("ascii")
        self._files = files
        self._names = {"localhost", *(name.lower().rstrip(".") for name in names)}
        self._secure = secure
        self.cookie = f"tvmm-{hashlib.sha256(self._token).hexdigest()[:12]}"

    def answer(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> Reply | Channel:
        """What a request gets. `headers` have lower-case names, as h11 gives them; nothing raises."""
        host = _only(headers, b"host")
        if host is None or not self._is_ours(host):
            return refusal(403, BAD_HOST)
        try:
            # Latin-1 keeps whatever bytes there are apart; non-ASCII ones match nothing below.
            path, _, query = target.decode("latin-1").partition("?")
            shown = parse_qs(query, max_num_fields=MAX_FIELDS).get("token", [])
        except ValueError:
            return refusal(400, "The address has too many fields.")
        by_url = len(shown) == 1 and self._fits(shown[0])
        if not by_url and (shown or not self._has_cookie(headers)):
            return refusal(403, NO_TOKEN)
        if path in CHANNELS:
            return self._channel(path, method, headers, host, by_url)
        if method not in (b"GET", b"HEAD"):
            return refusal(405, "This console is only for reading and for websockets.")
        if path not in self._files:
            return refusal(404, "There is no such page.")
        return self._page(self._files[path], headers, host, by_url)

    def _page(self, file: PageFile, headers: Sequence[tuple[bytes, bytes]], host: str, by_url: bool) -> Reply:
        extra: Headers = [(b"etag", file.etag.encode()), (b"content-type", file.media_type.encode())]
        if by_url:
            secure = "; Secure" if self._secure else ""
            value = f"{self.cookie}={self._token.decode()}; Path=/; HttpOnly; SameSite=Strict{secure}"
            extra.append((b"set-cookie", value.encode()))
        extra.append((b"content-security-policy", self._policy(host).encode()))
        if _only(headers, b"if-none-match") == file.etag:
            return Reply(304, [*_COMMON, *extra], b"")
        return Reply(200, [*_COMMON, *extra], file.body)

    def _policy(self, host: str) -> str:
        """Nothing but this console's own files. noVNC needs `data:` for JPEG rectangles and for the guest's pointer.

        Not every browser takes `'self'` to include websockets, so they are named.
        """
        socket = f"{'wss' if self._secure else 'ws'}://{host}"
        return (
            f"default-src 'self'; img-src 'self' data:; connect-src 'self' {socket}; "
            "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def _channel(
        self, path: str, method: bytes, headers: Sequence[tuple[bytes, bytes]], host: str, by_url: bool
    ) -> Reply | Channel:
        key = _only(headers, b"sec-websocket-key")
        if method != b"GET" or key is None or "websocket" not in _listed(headers, b"upgrade"):
            return refusal(426, "This address is a websocket.", (b"upgrade", b"websocket"))
        if _only(headers, b"sec-websocket-version") != "13":
            return refusal(426, "Websocket version 13 is spoken here.", (b"sec-websocket-version", b"13"))
        origins = [value for name, value in headers if name == b"origin"]
        # A program has no origin; it is no page that misuses somebody's cookie if it knows the token itself.
        if (origins or not by_url) and not (len(origins) == 1 and self._is_own_origin(origins[0], host)):
            return refusal(403, FOREIGN)
        digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
        answer: Headers = [
            (b"upgrade", b"websocket"),
            (b"connection", b"upgrade"),
            (b"sec-websocket-accept", base64.b64encode(digest)),
        ]
        spoken = CHANNELS[path]
        if spoken and spoken in _listed(headers, b"sec-websocket-protocol"):
            answer.append((b"sec-websocket-protocol", spoken.encode()))
        return Channel(path, answer)

    def _is_own_origin(self, origin: bytes, host: str) -> bool:
        """The scheme may be that of a proxy that does TLS in front of this console."""
        scheme, _, rest = origin.decode("latin-1").lower().partition("://")
        return scheme in ("http", "https") and rest == host

    def _fits(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode(), self._token)

    def _has_cookie(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        cookies = b";".join(value for name, value in headers if name == b"cookie").split(b";", MAX_COOKIES)
        wanted = self.cookie.encode()
        values = [value for name, _, value in (each.strip().partition(b"=") for each in cookies) if name == wanted]
        return len(values) == 1 and hmac.compare_digest(values[0], self._token)

    def _is_ours(self, host: str) -> bool:
        """Whether `host`, a lower-case Host header, is an address or a name of this console."""
        name, port = _split(host)
        if port and not _PORT.fullmatch(port):
            return False
        if name.startswith("["):
            return name.endswith("]") and _is_address(name[1:-1], 6)
        return _is_address(name, 4) or (_NAME.fullmatch(name) is not None and name in self._names)


def _split(host: str) -> tuple[str, str]:
    """Name and port of NAME, NAME:PORT or [ADDRESS]:PORT."""
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and not host.endswith("]") else (host, "")


def _is_address(text: str, version: int) -> bool:
    try:
        # An IPv6 zone (`%eth0`) is no part of a URL's host, and could hold anything.
        return "%" not in text and ipaddress.ip_address(text).version == version
    except ValueError:
        return False


def _only(headers: Sequence[tuple[bytes, bytes]], wanted: bytes) -> str | None:
    """The value of a header that has to be there once, in lower case for Host; None if it is not, or is not ASCII."""
    values = [value for name, value in headers if name == wanted]
    if len(values) != 1 or not values[0].isascii():
        return None
    text = values[0].decode("ascii")
    return text.lower() if wanted == b"host" else text


def _listed(headers: Sequence[tuple[bytes, bytes]], wanted: bytes) -> set[str]:
    """The items of a header that is a list, in lower case."""
    values = ",".join(value.decode("latin-1") for name, value in headers if name == wanted)
    return {each.strip().lower() for each in values.split(",")}
