"""Requests and replies of the transmission phase, without IO: what the C engine does, in plain Python.

It asks for block status, and in tests it is the oracle of the engine. Any number of requests may be under way on one
connection; replies come in any order, a structured or extended one in chunks, those of several requests mixed. What a
server must not do is a `ProtocolError`, after which the connection is of no use: where the next reply would begin
nobody knows.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ProtocolError
from tvmm.nbd import constants as nbd
from tvmm.nbd.constants import Chunk, Command, CommandFlag, Error
from tvmm.nbd.handshake import readable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Answer", "Conversation", "Extent", "Request", "encode_request", "errno_of"]

REQUEST = Struct(">IHHQQI")
EXTENDED_REQUEST = Struct(">IHHQQQ")
SIMPLE_REPLY = Struct(">IIQ")
STRUCTURED_REPLY = Struct(">IHHQI")
EXTENDED_REPLY = Struct(">IHHQQQ")
MAGIC = Struct(">I")

DONE = 1
"""The flag of the last chunk of a reply."""
ERROR_KIND = 1 << 15
KNOWN_ERRORS = frozenset(int(error) for error in Error)
LENGTH_32, LENGTH_64 = (1 << 32) - 1, (1 << 63) - 1


class Request(NamedTuple):
    """One request. `cookie` is what the reply has too; `data` of a write; offset and length in bytes."""

    command: Command
    cookie: int
    offset: int = 0
    length: int = 0
    flags: int = 0
    data: bytes = b""


class Extent(NamedTuple):
    """A part of an export of which something holds; of "base:allocation" bit 0 is a hole, bit 1 zeroes."""

    length: int
    flags: int


class Answer(NamedTuple):
    """What has come of a request: `error` is an errno, 0 for success; `text` what the server says about it."""

    request: Request
    error: int = 0
    data: bytes = b""
    extents: tuple[Extent, ...] = ()
    text: str = ""


def encode_request(request: Request, *, extended: bool = False) -> bytes:
    """As bytes. Raises `ValueError` for what cannot be said."""
    most = LENGTH_64 if extended else LENGTH_32
    if not 0 <= request.length <= most or not 0 <= request.offset <= nbd.MAX_SIZE:
        raise ValueError("offset or length of a request is out of range")
    command, flags = request.command, request.flags
    if (command == Command.WRITE) != bool(request.data) or (request.data and len(request.data) != request.length):
        raise ValueError("a write has as much data as it is long, and nothing else has any")
    if extended:
        flags |= CommandFlag.PAYLOAD_LEN if command == Command.WRITE else 0
        head = EXTENDED_REQUEST.pack(
            nbd.EXTENDED_REQUEST_MAGIC, flags, command, request.cookie, request.offset, request.length
        )
    else:
        head = REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, request.cookie, request.offset, request.length)
    return head + request.data


def errno_of(number: int) -> int:
    """The errno that an error of the protocol stands for: what is not known means EINVAL."""
    return number if number in KNOWN_ERRORS else int(Error.EINVAL)


class _Pending:
    """A request whose answer is not complete."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.data = bytearray(request.length) if request.command == Command.READ else bytearray()
        self.parts: list[tuple[int, int]] = []
        self.extents: tuple[Extent, ...] = ()
        self.error = 0
        self.text = ""

    def fill(self, offset: int, length: int, data: bytes | None) -> None:
        """A part of what is read, each byte at most once; None: zeroes."""
        request = self.request
        start, end = offset - request.offset, offset - request.offset + length
        if request.command != Command.READ:
            raise ProtocolError(f"data in the answer to a {request.command.name}")
        if not length or start < 0 or end > request.length:
            raise ProtocolError("data that was not asked for")
        if any(start < other_end and other_start < end for other_start, other_end in self.parts):
            raise ProtocolError("the same data twice")
        self.parts.append((start, end))
        if data is not None:
            self.data[start:end] = data

    def answer(self) -> Answer:
        """The end of it."""
        request = self.request
        if self.error:
            return Answer(request, self.error, text=self.text)
        if request.command == Command.READ and sum(end - start for start, end in self.parts) != request.length:
            raise ProtocolError("an answer to a read without all of the data")
        if request.command == Command.BLOCK_STATUS and not self.extents:
            raise ProtocolError("an answer about block status without any")
        return Answer(request, data=bytes(self.data), extents=self.extents)


class Conversation:
    """One connection after its handshake. `context`: the number of "base:allocation", if it was agreed on."""

    def __init__(self, *, structured: bool = False, extended: bool = False, context: int | None = None) -> None:
        self._structured = structured
        self._extended = extended
        self._context = context
        self._pending: dict[int, _Pending] = {}
        self._in = bytearray()

    @property
    def outstanding(self) -> tuple[Request, ...]:
        """What has no answer yet."""
        return tuple(pending.request for pending in self._pending.values())

    def send(self, request: Request) -> bytes:
        """What to send. Raises `ValueError` for a request that cannot be made here."""
        if request.cookie in self._pending:
            raise ValueError("that cookie is in use")
        if request.command == Command.BLOCK_STATUS and self._context is None:
            raise ValueError("block status was not agreed on")
        data = encode_request(request, extended=self._extended)
        if request.command != Command.DISCONNECT:
            self._pending[request.cookie] = _Pending(request)
        return data

    def receive(self, data: bytes) -> list[Answer]:
        """Answers that are complete. Raises `ProtocolError`."""
        self._in += data
        return list(self._answers())

    def _answers(self) -> Iterator[Answer]:
        while len(self._in) >= MAGIC.size:
            took = self._simple() if self._magic() == nbd.SIMPLE_REPLY_MAGIC else self._chunk()
            if took is None:
                return
            if isinstance(took, _Pending):
                del self._pending[took.request.cookie]
                yield took.answer()

    def _magic(self) -> int:
        magic = int(MAGIC.unpack_from(self._in)[0])
        expected = (
            (nbd.EXTENDED_REPLY_MAGIC,)
            if self._extended
            else (nbd.SIMPLE_REPLY_MAGIC, nbd.STRUCTURED_REPLY_MAGIC)[: 1 + self._structured]
        )
        if magic not in expected:
            raise ProtocolError(f"an answer with the magic {magic:#x}")
        return magic

    def _simple(self) -> _Pending | None:
        if len(self._in) < SIMPLE_REPLY.size:
            return None
        _, error, cookie = SIMPLE_REPLY.unpack_from(self._in)
        pending = self._of(cookie)
        request = pending.request
        if self._structured and request.command in (Command.READ, Command.BLOCK_STATUS) and not error:
            raise ProtocolError(f"a simple answer to a {request.command.name}, where structured ones were agreed on")
        length = request.length if request.command == Command.READ and not error else 0
        if len(self._in) < SIMPLE_REPLY.size + length:
            return None
        if error:
            pending.error = errno_of(error)
        elif length:
            pending.fill(request.offset, length, bytes(self._in[SIMPLE_REPLY.size : SIMPLE_REPLY.size + length]))
        del self._in[: SIMPLE_REPLY.size + length]
        return pending

    def _chunk(self) -> _Pending | bool | None:
        """The reply that ends with a chunk; True for one in the middle of it, None if the chunk is not here yet."""
        form = EXTENDED_REPLY if self._extended else STRUCTURED_REPLY
        if len(self._in) < form.size:
            return None
        if self._extended:
            _, flags, kind, cookie, _, length = form.unpack_from(self._in)
        else:
            _, flags, kind, cookie, length = form.unpack_from(self._in)
        if length > nbd.MAX_CHUNK:
            raise ProtocolError(f"a chunk of {length} bytes; {nbd.MAX_CHUNK} are the limit")
        pending = self._of(cookie)
        if len(self._in) < form.size + length:
            return None
        payload = bytes(self._in[form.size : form.size + length])
        del self._in[: form.size + length]
        self._take(pending, kind, payload, last=bool(flags & DONE))
        return pending if flags & DONE else True

    def _of(self, cookie: int) -> _Pending:
        pending = self._pending.get(cookie)
        if pending is None:
            raise ProtocolError(f"an answer to request {cookie:#x}, which was not made")
        return pending

    def _take(self, pending: _Pending, kind: int, payload: bytes, *, last: bool) -> None:
        if kind & ERROR_KIND:
            self._take_error(pending, kind, payload)
        elif kind == Chunk.NONE:
            if payload or not last:
                raise ProtocolError("a chunk for nothing that has something, or is not the last")
        elif kind == Chunk.OFFSET_DATA:
            if len(payload) <= 8:
                raise ProtocolError("a chunk of data without any")
            pending.fill(int.from_bytes(payload[:8], "big"), len(payload) - 8, payload[8:])
        elif kind == Chunk.OFFSET_HOLE:
            if len(payload) != 12:
                raise ProtocolError(f"a hole of {len(payload)} bytes, not 12")
            pending.fill(int.from_bytes(payload[:8], "big"), int.from_bytes(payload[8:], "big"), None)
        elif kind == (Chunk.BLOCK_STATUS_EXT if self._extended else Chunk.BLOCK_STATUS):
            self._take_status(pending, payload)
        else:
            raise ProtocolError(f"a chunk of kind {kind}, which was not agreed on")

    def _take_error(self, pending: _Pending, kind: int, payload: bytes) -> None:
        length = int.from_bytes(payload[4:6], "big") if len(payload) >= 6 else 0
        wanted = 6 + length + (8 if kind == Chunk.ERROR_OFFSET else 0)
        # An error of a kind to come begins like the others.
        if len(payload) < wanted or (kind in (Chunk.ERROR, Chunk.ERROR_OFFSET) and len(payload) != wanted):
            raise ProtocolError("an error that is not as long as it says")
        number = int.from_bytes(payload[:4], "big")
        if not number:
            raise ProtocolError("an error that is none")
        if not pending.error:
            pending.error, pending.text = errno_of(number), readable(payload[6 : 6 + length])

    def _take_status(self, pending: _Pending, payload: bytes) -> None:
        request = pending.request
        if request.command != Command.BLOCK_STATUS:
            raise ProtocolError(f"block status in the answer to a {request.command.name}")
        head, width = (8, 8) if self._extended else (4, 4)
        count, rest = divmod(len(payload) - head, 2 * width)
        if count < 1 or rest or count > nbd.MAX_EXTENTS:
            raise ProtocolError("block status of a length that is none")
        if self._extended and int.from_bytes(payload[4:8], "big") != count:
            raise ProtocolError("block status with another number of extents than it says")
        if int.from_bytes(payload[:4], "big") != self._context:
            raise ProtocolError("block status of a context that was not asked for")
        if pending.extents:
            raise ProtocolError("block status twice")
        numbers = [int.from_bytes(payload[at : at + width], "big") for at in range(head, len(payload), width)]
        found = tuple(Extent(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True))
        if not all(extent.length for extent in found):
            raise ProtocolError("block status with an extent of no length")
        pending.extents = found
