"""Where one JSON message ends and the next begins, in a stream without newlines.

Only brackets, quotes and backslashes are looked at; whether what they enclose is JSON is for the decoder to
say.
"""

from __future__ import annotations

import re

__all__ = ["MAX_DEPTH", "MAX_MESSAGE_BYTES", "MAX_PENDING_BYTES", "BadSyntax", "Framer", "LimitExceeded"]

MAX_MESSAGE_BYTES = 64 << 10
"""Bytes in one message. A client that never closes its bracket would have us keep all that it sends."""
MAX_DEPTH = 32
"""Brackets open at once. The decoder recurses, and a message is one byte a level."""
MAX_PENDING_BYTES = 2 * MAX_MESSAGE_BYTES
"""Bytes that were received and not looked at. Keeps the bound also when the owner reads faster than it
executes."""


class BadSyntax(Exception):
    """The client sent what cannot be part of a message. It has been skipped."""


class LimitExceeded(Exception):
    """The client exceeded a limit. There is no going on."""


class Framer:
    """Cuts the stream of bytes into bracketed messages. Looks at each byte once."""

    # Where something changes: outside of strings and inside. Bytes that JSON has no use for in that place are
    # among them, so that a client can get itself out of a half-sent message by a control character or 0xff
    # (the specification, "Forcing the JSON parser into known-good state").
    OUTSIDE = re.compile(rb'["{}\[\]\x00-\x08\x0b\x0c\x0e-\x1f\x80-\xff]')
    INSIDE = re.compile(rb'["\\\x00-\x1f]')
    BLANKS = re.compile(rb"[ \t\r\n]*")
    START = re.compile(rb"[\n{\[]")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._exceeded = False
        self._skipping = False
        """Between a syntax error, which has been answered, and the next place where a message may begin."""
        self._restart()

    def _restart(self) -> None:
        self._position = 0
        self._depth = 0
        self._in_string = False

    @property
    def pending_bytes(self) -> int:
        """Bytes that are kept."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Append `data`, unless that makes more than is kept: then nothing is kept at all."""
        if len(self._buffer) + len(data) > MAX_PENDING_BYTES:
            self._exceeded = True
            self._buffer.clear()
        elif not self._exceeded:
            self._buffer += data

    def next_message(self) -> bytes | None:
        """The next message, from bracket to bracket, or None if there is none yet.

        Raises `BadSyntax` once for each stretch of bytes that cannot be part of one, `LimitExceeded` when a
        limit is.
        """
        if self._exceeded:
            raise LimitExceeded(f"more than {MAX_PENDING_BYTES} bytes are waiting to be read")
        if not self._depth and not self._find_start():
            return None
        while True:
            symbols = self.INSIDE if self._in_string else self.OUTSIDE
            found = symbols.search(self._buffer, self._position)
            if found is None:
                break
            self._position = found.end()
            if self._position > MAX_MESSAGE_BYTES:
                break
            if self._step(found[0]):
                message = bytes(self._buffer[: self._position])
                self._drop()
                return message
        # What is left over has nothing of interest but, perhaps, a backslash whose other half is to come.
        self._position = max(self._position, len(self._buffer))
        if self._position > MAX_MESSAGE_BYTES:
            self._drop()
            raise LimitExceeded(f"a message has more than {MAX_MESSAGE_BYTES} bytes")
        return None

    def _find_start(self) -> bool:
        """Drop what is before the opening bracket of the next message; whether there is one."""
        buffer = self._buffer
        if self._skipping:
            start = self.START.search(buffer)
            del buffer[: start.start() if start else len(buffer)]
            self._skipping = start is None
        blanks = self.BLANKS.match(buffer)
        del buffer[: blanks.end() if blanks else 0]
        if not buffer:
            return False
        if buffer[0] in b"{[":
            return True
        self._skipping = True
        raise BadSyntax("the message does not begin with an opening bracket")

    def _step(self, symbol: bytes) -> bool:
        """Take one symbol into account; whether it ends the message."""
        if self._in_string:
            if symbol == b'"':
                self._in_string = False
            elif symbol == b"\\":
                self._position += 1
            else:
                self._fail("a string holds a control character")
        elif symbol == b'"':
            self._in_string = True
        elif symbol in b"{[":
            self._depth += 1
            if self._depth > MAX_DEPTH:
                self._drop()
                raise LimitExceeded(f"a message has more than {MAX_DEPTH} levels")
        elif symbol in b"}]":
            self._depth -= 1
            return self._depth == 0
        else:
            self._fail(f"a message holds the byte {symbol[0]:#04x}")
        return False

    def _fail(self, description: str) -> None:
        self._drop()
        self._skipping = True
        raise BadSyntax(description)

    def _drop(self) -> None:
        del self._buffer[: self._position]
        self._restart()
