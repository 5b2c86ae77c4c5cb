"""What a client makes of a server's bytes, in plain Python: the twin of the C that reads replies.

Written for whole streams and few requests: what it has come to when the bytes end is what the C has come to, however
the bytes were divided on their way.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from tests.support.nbd_peer import (
    CHUNK,
    CHUNK_MAGIC,
    DATA,
    DONE,
    ERROR,
    ERROR_OFFSET,
    EXTENDED_CHUNK,
    EXTENDED_CHUNK_MAGIC,
    HOLE,
    NONE,
    READ,
    SIMPLE,
    SIMPLE_MAGIC,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.nbd_peer import Request
    from tvmm.kvm.nbd import NbdTransmission

__all__ = ["Twin"]

ERRORS_MAX, TEXT_MAX, ERROR_MAX = 64, 4096, 6 + 4096 + 64


class Lost(Exception):
    """The connection is of no use any more."""


class Short(Exception):
    """The bytes end here."""


class Under:
    """A request under way."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.data = bytearray(request.length)
        self.there = bytearray(request.length)
        self.errors = 0

    def fill(self, start: int, data: bytes, *, whole: int) -> None:
        """A part of a read, of which `whole` bytes are announced."""
        if self.request.type != READ or whole <= 0 or start < 0 or start + whole > self.request.length:
            raise Lost
        if any(self.there[start : start + whole]):
            raise Lost
        self.there[start : start + whole] = b"\1" * whole
        self.data[start : start + len(data)] = data


class Twin:
    """`results` has those that are over, by cookie: their data, or None for those that failed."""

    def __init__(self, about: NbdTransmission, requests: Iterable[Request]) -> None:
        self.about = about
        self.under = {request.cookie: Under(request) for request in requests}
        self.results: dict[int, bytes | None] = {}
        self.lost = False

    def feed(self, stream: bytes) -> None:
        """All that the server says."""
        try:
            at = 0
            while at < len(stream):
                at = self._one(stream, at)
        except Short:
            return
        except Lost:
            self.lost = True

    def _one(self, stream: bytes, at: int) -> int:
        magic = int.from_bytes(_take(stream, at, 4))
        match magic:
            case 0x6744_6698:
                assert magic == SIMPLE_MAGIC
                return self._simple(stream, at)
            case 0x668E_33EF if self.about.structured and not self.about.extended:
                assert magic == CHUNK_MAGIC
                _, flags, kind, cookie, length = CHUNK.unpack(_take(stream, at, CHUNK.size))
                return self._chunk(stream, at + CHUNK.size, flags, kind, self._find(cookie), length)
            case 0x6E8A_278C if self.about.extended:
                assert magic == EXTENDED_CHUNK_MAGIC
                _, flags, kind, cookie, offset, length = EXTENDED_CHUNK.unpack(_take(stream, at, EXTENDED_CHUNK.size))
                under = self._find(cookie)
                if offset != under.request.offset:
                    raise Lost
                return self._chunk(stream, at + EXTENDED_CHUNK.size, flags, kind, under, length)
        raise Lost

    def _find(self, cookie: int) -> Under:
        if cookie not in self.under:
            raise Lost
        return self.under[cookie]

    def _finish(self, under: Under) -> None:
        del self.under[under.request.cookie]
        if under.errors:
            self.results[under.request.cookie] = None
            return
        if under.request.type == READ and not all(under.there):
            raise Lost
        self.results[under.request.cookie] = bytes(under.data)

    def _failed(self, under: Under, error: int) -> None:
        under.errors += 1
        if error == errno.ESHUTDOWN or under.errors > ERRORS_MAX:
            raise Lost

    def _simple(self, stream: bytes, at: int) -> int:
        if self.about.extended:
            raise Lost
        _, error, cookie = SIMPLE.unpack(_take(stream, at, SIMPLE.size))
        at += SIMPLE.size
        under = self._find(cookie)
        reads = under.request.type == READ
        if (reads and self.about.structured) or under.errors or any(under.there):
            raise Lost
        if error:
            self._failed(under, error)
        elif reads:
            data = stream[at : at + under.request.length]
            under.fill(0, data, whole=under.request.length)
            at = _end(stream, at, under.request.length)
        self._finish(under)
        return at

    def _chunk(self, stream: bytes, at: int, flags: int, kind: int, under: Under, length: int) -> int:
        if kind == NONE:
            if length or not flags & DONE:
                raise Lost
        elif kind & 0x8000:
            self._error(under, kind, length, stream, at)
        elif kind == DATA:
            if length <= 8:
                raise Lost
            start = int.from_bytes(_take(stream, at, 8)) - under.request.offset
            under.fill(start, stream[at + 8 : at + length], whole=length - 8)
        elif kind == HOLE:
            if length != 12:
                raise Lost
            payload = _take(stream, at, 12)
            size = int.from_bytes(payload[8:])
            start = int.from_bytes(payload[:8]) - under.request.offset
            under.fill(start, b"", whole=size)
        else:
            raise Lost
        end = _end(stream, at, length)
        if flags & DONE:
            self._finish(under)
        return end

    def _error(self, under: Under, kind: int, length: int, stream: bytes, at: int) -> None:
        if not 6 <= length <= ERROR_MAX:
            raise Lost
        payload = _take(stream, at, length)
        error, text, rest = int.from_bytes(payload[:4]), int.from_bytes(payload[4:6]), length - 6
        if not error or text > min(rest, TEXT_MAX):
            raise Lost
        if (kind == ERROR and text != rest) or (kind == ERROR_OFFSET and text + 8 != rest):
            raise Lost
        if kind == ERROR_OFFSET:
            place = int.from_bytes(payload[6 + text :]) - under.request.offset
            if not 0 <= place < under.request.length:
                raise Lost
        self._failed(under, error)


def _take(stream: bytes, at: int, length: int) -> bytes:
    if at + length > len(stream):
        raise Short
    return stream[at : at + length]


def _end(stream: bytes, at: int, length: int) -> int:
    if at + length > len(stream):
        raise Short
    return at + length
