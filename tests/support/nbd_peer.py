"""The server's half of NBD's transmission phase, in plain Python: requests out of bytes, and replies of all kinds.

Nothing is shared with tvmm's half. What a `Peer` answers is what its `answer` makes of each request; the functions that
make replies make wrong ones too, if they are told to.
"""

from __future__ import annotations

import errno
import socket
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

import trio

from tvmm.kvm.nbd import NbdTransmission

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "ALL_FLAGS",
    "DATA",
    "DISCONNECT",
    "DONE",
    "ERROR",
    "ERROR_OFFSET",
    "FLUSH",
    "HOLE",
    "NONE",
    "READ",
    "TRIM",
    "WRITE",
    "ZEROES",
    "Chunks",
    "NbdDisk",
    "Peer",
    "Request",
    "simple",
    "take_requests",
]

COMPACT, EXTENDED = Struct(">IHHQQI"), Struct(">IHHQQQ")
COMPACT_MAGIC, EXTENDED_MAGIC = 0x2560_9513, 0x21E4_1C71
SIMPLE, CHUNK, EXTENDED_CHUNK = Struct(">IIQ"), Struct(">IHHQI"), Struct(">IHHQQQ")
SIMPLE_MAGIC, CHUNK_MAGIC, EXTENDED_CHUNK_MAGIC = 0x6744_6698, 0x668E_33EF, 0x6E8A_278C
READ, WRITE, DISCONNECT, FLUSH, TRIM, ZEROES = 0, 1, 2, 3, 4, 6
FUA, NO_HOLE, DF, PAYLOAD_LENGTH = 1, 2, 4, 32
DONE = 1
NONE, DATA, HOLE, ERROR, ERROR_OFFSET = 0, 1, 2, 0x8001, 0x8002
HAS_FLAGS, CAN_FLUSH, CAN_FUA, CAN_TRIM, CAN_ZERO, CAN_DF, CAN_MULTI = 1, 4, 8, 32, 64, 128, 256
ALL_FLAGS = HAS_FLAGS | CAN_FLUSH | CAN_FUA | CAN_TRIM | CAN_ZERO | CAN_DF | CAN_MULTI
RECEIVE = 1 << 20


class Request(NamedTuple):
    """One, as the client sent it."""

    flags: int
    type: int
    cookie: int
    offset: int
    length: int
    data: bytes = b""


def take_requests(buffer: bytearray, about: NbdTransmission) -> Iterable[Request]:
    """Those that are whole, which leave the buffer. Raises `AssertionError` for what no client may send."""
    head, magic = (EXTENDED, EXTENDED_MAGIC) if about.extended else (COMPACT, COMPACT_MAGIC)
    while len(buffer) >= head.size:
        found, *fields = head.unpack_from(buffer)
        assert found == magic
        request = Request(*fields)
        check_request(request, about)
        end = head.size + (request.length if request.type == WRITE else 0)
        if len(buffer) < end:
            return
        data = bytes(buffer[head.size : end])
        del buffer[:end]
        yield request._replace(data=data)


def check_request(request: Request, about: NbdTransmission) -> None:
    """That the export allows it."""
    needed = {FLUSH: CAN_FLUSH, TRIM: CAN_TRIM, ZEROES: CAN_ZERO}.get(request.type, 0)
    allowed = FUA if about.flags & CAN_FUA else 0
    allowed |= {
        READ: DF if about.structured and about.flags & CAN_DF else 0,
        WRITE: PAYLOAD_LENGTH if about.extended else 0,
        ZEROES: NO_HOLE,
    }.get(request.type, 0)
    assert request.type in (READ, WRITE, DISCONNECT, FLUSH, TRIM, ZEROES)
    assert not needed & ~about.flags
    assert not request.flags & ~allowed
    assert request.flags & FUA == 0 or request.type in (WRITE, ZEROES, TRIM)
    assert bool(request.flags & PAYLOAD_LENGTH) == (about.extended and request.type == WRITE)
    if request.type in (FLUSH, DISCONNECT):
        assert (request.offset, request.length) == (0, 0)
    else:
        assert request.length
        assert request.offset % about.minimum_block == request.length % about.minimum_block == 0
    if request.type in (READ, WRITE):
        assert request.length <= about.maximum_payload


def simple(request: Request, error: int = 0, data: bytes = b"") -> bytes:
    """A simple reply."""
    return SIMPLE.pack(SIMPLE_MAGIC, error, request.cookie) + data


class Chunks:
    """Makes the chunks of replies, with headers as agreed, or the other kind."""

    def __init__(self, *, extended: bool) -> None:
        self.extended = extended

    def chunk(self, request: Request, kind: int, payload: bytes = b"", flags: int = 0, length: int = -1) -> bytes:
        """Any."""
        length = len(payload) if length < 0 else length
        if self.extended:
            head = EXTENDED_CHUNK_MAGIC, flags, kind, request.cookie, request.offset, length
            return EXTENDED_CHUNK.pack(*head) + payload
        return CHUNK.pack(CHUNK_MAGIC, flags, kind, request.cookie, length) + payload

    def none(self, request: Request) -> bytes:
        """The end of a reply."""
        return self.chunk(request, NONE, flags=DONE)

    def data(self, request: Request, offset: int, data: bytes, flags: int = 0) -> bytes:
        """At `offset` of the export."""
        return self.chunk(request, DATA, offset.to_bytes(8) + data, flags)

    def hole(self, request: Request, offset: int, length: int, flags: int = 0) -> bytes:
        """Zeroes."""
        return self.chunk(request, HOLE, offset.to_bytes(8) + length.to_bytes(4), flags)

    def error(
        self, request: Request, error: int, text: bytes = b"", flags: int = DONE, offset: int = -1, kind: int = 0
    ) -> bytes:
        """With an `offset`, an error there; `kind` is another one's."""
        payload = error.to_bytes(4) + len(text).to_bytes(2) + text
        if offset >= 0:
            return self.chunk(request, kind or ERROR_OFFSET, payload + offset.to_bytes(8), flags)
        return self.chunk(request, kind or ERROR, payload, flags)


class NbdDisk:
    """What a good server has: bytes, and an answer to each request. `log` has all of them in the order they came."""

    def __init__(self, size: int, about: NbdTransmission) -> None:
        self.bytes = bytearray(size)
        self.about = about
        self.log: list[Request] = []
        self.chunks = Chunks(extended=about.extended)
        self.flushed = bytes(size)

    def read(self, offset: int, length: int) -> bytes:
        """What is there."""
        return bytes(self.bytes[offset : offset + length])

    def carry_out(self, request: Request) -> int:
        """Do it: an errno, or 0."""
        self.log.append(request)
        start, end = request.offset, request.offset + request.length
        if end > len(self.bytes):
            return errno.EINVAL
        match request.type:
            case 1:
                self.bytes[start:end] = request.data
            case 4 | 6:
                self.bytes[start:end] = bytes(request.length)
            case 3:
                self.flushed = bytes(self.bytes)
        return 0

    def answer(self, request: Request) -> bytes:
        """Carry it out; the shortest reply that was agreed."""
        error = self.carry_out(request)
        data = self.read(request.offset, request.length) if request.type == READ else b""
        if not (self.about.structured or self.about.extended):
            return simple(request, error, data if not error else b"")
        if error:
            return self.chunks.error(request, error, b"no")
        return self.chunks.data(request, request.offset, data, DONE) if data else self.chunks.none(request)


class Peer:
    """A server at the end of a socket pair. `answer` makes replies; b"" for none yet, None to close the connection."""

    def __init__(self, about: NbdTransmission, answer: Callable[[Request], bytes | None]) -> None:
        client, mine = socket.socketpair()
        self.about = about
        self.client = client
        """To be given to a link, and closed then."""
        self.answer = answer
        self.socket = trio.socket.from_stdlib_socket(mine)
        self.said_goodbye = False

    async def serve(self) -> None:
        """Until the client, or `answer`, ends it."""
        buffer = bytearray()
        with self.socket:
            goes_on = True
            while goes_on:
                try:
                    received = await self.socket.recv(RECEIVE)
                except (OSError, trio.ClosedResourceError):
                    return
                buffer += received
                replies, goes_on = self._replies(buffer)
                await self.send(replies)
                goes_on &= received != b""

    def _replies(self, buffer: bytearray) -> tuple[bytes, bool]:
        """To the requests in the buffer, up to the one that ends it; whether none did."""
        replies = b""
        for request in take_requests(buffer, self.about):
            self.said_goodbye |= request.type == DISCONNECT
            reply = None if self.said_goodbye else self.answer(request)
            if reply is None:
                return replies, False
            replies += reply
        return replies, True

    def close(self) -> None:
        """From this side."""
        self.socket.close()

    async def send(self, data: bytes) -> None:
        """All of it, or as much as the client wants."""
        view = memoryview(data)
        try:
            while view:
                view = view[await self.socket.send(view) :]
        except (OSError, trio.ClosedResourceError):
            return
