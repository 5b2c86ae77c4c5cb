"""The bytes of the control connection: an opening, then messages, each with its length in front.

::

    opening   magic 8 | kind u8 | security u8 | lowest version u16 | highest version u16 | token 16 | lane u16
    reply     magic 8 | code u8
    message   length u32 | that many bytes in the encoding of `tvmm.state`

All numbers are little-endian. Every connection begins with an opening by the source and a reply by the destination,
both in the clear: so that two sides that were started differently say so in words. If the reply is `GO` and both want
TLS its handshake follows. The opening of a lane, and of a connection for the screen, has the token that the destination
gave out, the others' is zero. What somebody in between makes of these bytes can stop a migration and no more: each side
goes on only in the way that it was told to by its user. Nothing here does IO.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin, get_type_hints

from tvmm.errors import ProtocolError, UserError
from tvmm.state import decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "HIGHEST",
    "LOWEST",
    "MAX_LANES",
    "MAX_MESSAGE",
    "OPENING_BYTES",
    "REPLY_BYTES",
    "TOKEN_BYTES",
    "Inbox",
    "Kind",
    "Opening",
    "Reply",
    "Security",
    "check_types",
    "common_version",
    "pack",
    "read_reply",
    "readable",
]

LOWEST = HIGHEST = 1
"""Versions of the protocol that this tvmm speaks."""

MAGIC = b"tvmm-mig"
_OPENING = struct.Struct("<8sBBHH16sH")
OPENING_BYTES = _OPENING.size
TOKEN_BYTES = 16
REPLY_MAGIC = b"tvmm-rep"
_REPLY = struct.Struct("<8sB")
REPLY_BYTES = _REPLY.size
MAX_LANES = 64
"""Connections for pages. Each costs the destination a thread and a descriptor: a peer does not choose how many."""

_LENGTH = struct.Struct("<I")
MAX_GREETING = 1 << 20
"""Bytes of a message before the machines have been compared: a stranger makes nobody keep more than that."""
MAX_SHOWN = 400
"""Characters of a peer's sentence that a user gets to see."""
MAX_MESSAGE = 16 << 20
"""Bytes of any message: what a peer can have this side keep, three times while it is taken apart. The state of a
machine with every device there is has a fifth of it."""


class Kind(IntEnum):
    """What a connection is for."""

    CONTROL = 1
    LANE = 2
    QUERY = 3
    SCREEN = 4
    REQUESTS = 5
    """Post-copy: pages that are asked for, and what is sent for that."""
    RECOVER = 6
    """Post-copy: a source that has lost its connections."""
    STORAGE = 7
    RAM = 8


class Security(IntEnum):
    """How a connection goes on."""

    PLAIN = 0
    TLS = 1
    PAIR = 2


class Reply(IntEnum):
    """What the destination says to an opening."""

    GO = 0
    WANTS_TLS = 1
    WANTS_PAIRING = 2
    WANTS_PLAIN = 3
    NO_COMMON_VERSION = 4
    NO_SUCH_TOKEN = 5
    TOO_MANY = 6

    def to_bytes(self) -> bytes:  # type: ignore[override]
        """As it is sent."""
        return _REPLY.pack(REPLY_MAGIC, self)


_REPLIES = {
    Reply.WANTS_TLS: ("the destination wants TLS", "add --tls"),
    Reply.WANTS_PAIRING: ("the destination wants a pairing code", "add --pair with the code that it has printed"),
    Reply.WANTS_PLAIN: ("the destination was started without TLS", "add --tls or --pair there too"),
    Reply.NO_COMMON_VERSION: ("the destination's tvmm speaks another migration protocol", "use the same tvmm there"),
    Reply.NO_SUCH_TOKEN: ("the destination does not know this migration", ""),
    Reply.TOO_MANY: ("the destination has as many connections as it takes", "see who else connects to it"),
}


class Opening(NamedTuple):
    """The first bytes of a connection."""

    kind: Kind
    security: Security = Security.PLAIN
    lowest: int = LOWEST
    highest: int = HIGHEST
    token: bytes = bytes(TOKEN_BYTES)
    lane: int = 0

    def to_bytes(self) -> bytes:
        """As it is sent."""
        return _OPENING.pack(
            MAGIC, self.kind, self.security, self.lowest, self.highest, self.token, self.lane
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Opening:
        """Raises `ProtocolError` for what is none."""
        magic, kind, security, lowest, highest, token, lane = _OPENING.unpack(data)
        if magic != MAGIC:
            raise ProtocolError("the peer does not speak tvmm's migration protocol")
        known = kind in tuple(Kind) and security in tuple(Security)
        if not known or not 1 <= lowest <= highest or lane >= MAX_LANES:
            raise ProtocolError("the peer's opening has a field out of range")
        return cls(Kind(kind), Security(security), lowest, highest, token, lane)


def read_reply(data: bytes) -> None:
    """Return if it says `GO`. Raises `UserError` with what the destination wants, `ProtocolError` for no reply."""
    magic, code = _REPLY.unpack(data)
    if magic != REPLY_MAGIC or code not in tuple(Reply):
        raise ProtocolError("the peer does not speak tvmm's migration protocol")
    if code != Reply.GO:
        raise UserError(*_REPLIES[Reply(code)])


def common_version(opening: Opening) -> int:
    """The highest version that both sides speak. Raises `ProtocolError` if there is none."""
    version = min(opening.highest, HIGHEST)
    if version < max(opening.lowest, LOWEST):
        raise ProtocolError(
            f"the source speaks versions {opening.lowest} to {opening.highest} of the migration protocol, "
            f"this tvmm {LOWEST} to {HIGHEST}"
        )
    return version


def pack(message: Any) -> bytes:
    """A message as it is sent. Raises `ProtocolError` for one that the peer would have to refuse."""
    try:
        data = encode(message, MAX_MESSAGE)
    except ValueError as error:
        raise ProtocolError(f"{type(message).__name__} cannot be sent: {error}") from error
    return _LENGTH.pack(len(data)) + data


class Inbox:
    """Bytes in, messages out. `limit` may be raised once the peer is known."""

    def __init__(self, types: Sequence[type[Any]], limit: int = MAX_GREETING) -> None:
        self.limit = limit
        self._types = types
        self._data = bytearray()

    def receive(self, data: bytes) -> None:
        """What has come in."""
        self._data += data

    def wanted(self) -> int:
        """How many bytes are missing to the end of what has begun; at least 1."""
        if len(self._data) < _LENGTH.size:
            return _LENGTH.size - len(self._data)
        return max(1, _LENGTH.size + self._length() - len(self._data))

    def _length(self) -> int:
        (length,) = _LENGTH.unpack_from(self._data)
        # A length is believed no further than this: the buffer grows with what really comes.
        if not 0 < length <= self.limit:
            raise ProtocolError(f"the peer announces a message of {length} bytes, {self.limit} are allowed here")
        return int(length)

    def next_message(self) -> Any | None:
        """The next whole message, None if there is none yet. Raises `ProtocolError` for anything else."""
        if len(self._data) < _LENGTH.size:
            return None
        end = _LENGTH.size + self._length()
        if len(self._data) < end:
            return None
        data = bytes(memoryview(self._data)[_LENGTH.size : end])
        del self._data[:end]
        message = decode(data, self._types, MAX_MESSAGE)
        if type(message) not in self._types:
            raise ProtocolError(f"the peer sent a {type(message).__name__} where a message belongs")
        check_types(message)
        return message


@cache
def _hints(kind: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def check_types(record: Any) -> None:
    """Raise `ProtocolError` unless every field of a record has the type that it is annotated with, all the way down.

    The codec makes sure of names; what is in a field is whatever the peer put there.
    """
    for name, hint in _hints(type(record)).items():  # type: ignore[arg-type]
        if not _fits(getattr(record, name), hint):
            raise ProtocolError(f"field {name} of {type(record).__name__} has something else in it")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is not tuple:
        if type(value) is not hint:
            return False
        if hasattr(hint, "_fields"):
            check_types(value)
        return True
    if type(value) is not tuple:
        return False
    parts = get_args(hint)
    if len(parts) == 2 and parts[1] is Ellipsis:
        return all(_fits(item, parts[0]) for item in value)
    return len(value) == len(parts) and all(_fits(item, part) for item, part in zip(value, parts, strict=True))


def readable(text: str) -> str:
    """What a peer says, for a terminal: no control characters, and not long."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[:MAX_SHOWN])
    return shown if len(text) <= MAX_SHOWN else f"{shown}..."
