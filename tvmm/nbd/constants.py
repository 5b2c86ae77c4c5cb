"""Numbers of the NBD protocol (proto.md of the NBD project), and the bounds on what a server may send."""

from __future__ import annotations

from enum import IntEnum, IntFlag

__all__ = [
    "BASE_ALLOCATION",
    "CLIENT_FIXED_NEWSTYLE",
    "CLIENT_NO_ZEROES",
    "DEFAULT_PORT",
    "ERROR_BIT",
    "EXTENDED_REPLY_MAGIC",
    "EXTENDED_REQUEST_MAGIC",
    "IHAVEOPT",
    "MAX_BLOCK",
    "MAX_CHUNK",
    "MAX_ERROR_TEXT",
    "MAX_EXPORTS",
    "MAX_EXTENTS",
    "MAX_OPTION_REPLIES",
    "MAX_OPTION_REPLY",
    "MAX_SIZE",
    "MAX_STRING",
    "NBDMAGIC",
    "OLDSTYLE",
    "OPTION_REPLY_MAGIC",
    "REQUEST_MAGIC",
    "SIMPLE_REPLY_MAGIC",
    "STRUCTURED_REPLY_MAGIC",
    "Chunk",
    "Command",
    "CommandFlag",
    "Error",
    "Flag",
    "Info",
    "Option",
    "Reply",
    "ServerFlag",
]

DEFAULT_PORT = 10809

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OLDSTYLE = 0x00420281861253
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
EXTENDED_REQUEST_MAGIC = 0x21E41C71
EXTENDED_REPLY_MAGIC = 0x6E8A278C

MAX_STRING = 4096
"""Bytes of a name or a text (proto.md, "Conventions"): a longer one only fills memory."""
MAX_OPTION_REPLY = 64 << 10
"""Bytes of one reply in the handshake; the largest real one is a name and a description. The length is the server's."""
MAX_OPTION_REPLIES = 2000
"""Replies to one option: a server that never acknowledges would be read for ever."""
MAX_EXPORTS = 1000
"""Names that are kept of a list."""
MAX_CHUNK = (32 << 20) + 8
"""Bytes of one chunk of a reply: no request of ours asks for more, and the length is the server's."""
MAX_EXTENTS = 1 << 16
"""In one answer about block status."""
MAX_ERROR_TEXT = 300
"""Characters of a server's words that are shown."""
MAX_SIZE = (1 << 63) - 1
"""Bytes of an export: what a file offset can say."""
MAX_BLOCK = 32 << 20
"""Bytes of a block size that a server may ask for."""

BASE_ALLOCATION = "base:allocation"


class ServerFlag(IntFlag):
    """Of the greeting."""

    FIXED_NEWSTYLE, NO_ZEROES = 1, 2


CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES = 1, 2


class Flag(IntFlag):
    """Of an export ("transmission flags")."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11
    BLOCK_STATUS_PAYLOAD = 1 << 12


class Option(IntEnum):
    """What a client asks for in the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


ERROR_BIT = 1 << 31
"""In the kind of a reply: it refuses."""


class Reply(IntEnum):
    """What a server answers; those with the top bit refuse."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = ERROR_BIT + 1
    ERR_POLICY = ERROR_BIT + 2
    ERR_INVALID = ERROR_BIT + 3
    ERR_PLATFORM = ERROR_BIT + 4
    ERR_TLS_REQD = ERROR_BIT + 5
    ERR_UNKNOWN = ERROR_BIT + 6
    ERR_SHUTDOWN = ERROR_BIT + 7
    ERR_BLOCK_SIZE_REQD = ERROR_BIT + 8
    ERR_TOO_BIG = ERROR_BIT + 9
    ERR_EXT_HEADER_REQD = ERROR_BIT + 10


class Info(IntEnum):
    """Kinds of `Reply.INFO`."""

    EXPORT, NAME, DESCRIPTION, BLOCK_SIZE = 0, 1, 2, 3


class Command(IntEnum):
    """Requests in the transmission phase."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """Of a request."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4
    PAYLOAD_LEN = 1 << 5


class Chunk(IntEnum):
    """Kinds of chunks of a structured or extended reply."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


class Error(IntEnum):
    """The errnos of the protocol, which are Linux's; a server that sends another one means EINVAL."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108
