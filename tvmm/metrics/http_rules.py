"""What the endpoint for Prometheus answers to a request: one page, for whoever may have it. Pure.

Against pages of other sites in a browser on this host: `Host` has to be an address or ``localhost``. A page that makes
its own name lead to this address (DNS rebinding) comes with that name. Other hosts may go by a name where a token is
shown or nobody minds.
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PATH", "Page", "Reply", "Rules", "refusal"]

PATH = "/metrics"

_COMMON = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


class Reply(NamedTuple):
    """An answer that is known already: a refusal."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Page(NamedTuple):
    """The numbers are to be sent, in the form that `accept`, a header, asks for; `head`: without the numbers."""

    accept: str
    head: bool


def refusal(status: int, words: str, *extra: tuple[bytes, bytes]) -> Reply:
    """An error in words, as plain text, with more headers if need be."""
    return Reply(status, [*_COMMON, (b"content-type", b"text/plain; charset=utf-8"), *extra], f"{words}\n".encode())


class Rules:
    """The rules of one endpoint. `token`: what to show, '' for nothing. `any_host`: whatever name it is called by."""

    def __init__(self, token: str = "", *, any_host: bool = False) -> None:
        self._token = token.encode()
        self._any_host = any_host

    def answer(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> Reply | Page:
        """What a request gets. `headers` have lower-case names, as h11 gives them; nothing raises."""
        if not self._any_host and not _is_here(_only(headers, b"host")):
            return refusal(403, "This endpoint goes by its address, not by that name.")
        if self._token and not self._is_shown(_only(headers, b"authorization")):
            return refusal(401, "Show the token: Authorization: Bearer ...", (b"www-authenticate", b"Bearer"))
        if target.partition(b"?")[0] != PATH.encode():
            return refusal(404, f"There is nothing but {PATH}.")
        if method not in (b"GET", b"HEAD"):
            return refusal(405, "This endpoint is only for reading.", (b"allow", b"GET, HEAD"))
        return Page((_only(headers, b"accept") or b"").decode("latin-1"), method == b"HEAD")

    def _is_shown(self, authorization: bytes | None) -> bool:
        scheme, _, token = (authorization or b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)


def _only(headers: Sequence[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    """The value of a header that comes once."""
    values = [value for name, value in headers if name == wanted]
    return values[0] if len(values) == 1 else None


def _is_here(host: bytes | None) -> bool:
    name = (host or b"").decode("latin-1").lower()
    if not name.endswith("]"):
        rest, colon, port = name.rpartition(":")
        if colon and not port.isdecimal():
            return False
        name = rest if colon else name
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return True
