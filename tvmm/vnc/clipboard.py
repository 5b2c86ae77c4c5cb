"""The extended clipboard: text in UTF-8 that is announced first and fetched when somebody pastes it.

Only text is spoken. What a viewer provides is compressed, so what comes out is bounded too, and no more is inflated
than is kept. Sizes in `caps` are 0, which makes both sides announce each text and wait to be asked for it.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from tvmm.vnc.errors import RfbError

__all__ = [
    "ANNOUNCED_ACTIONS",
    "CAPS",
    "NOTIFY",
    "PEEK",
    "PROVIDE",
    "REQUEST",
    "TEXT",
    "TEXT_BYTES",
    "ClipboardMessage",
    "announce",
    "capabilities",
    "parse_clipboard",
    "provide",
    "request",
]

TEXT = 1
FORMATS = 0xFFFF
CAPS, REQUEST, PEEK, NOTIFY, PROVIDE = (1 << bit for bit in range(24, 29))
ACTIONS = 0xFF << 24
ANNOUNCED_ACTIONS = CAPS | REQUEST | PEEK | NOTIFY | PROVIDE

TEXT_BYTES = 1 << 20
"""Of a text in UTF-8, in both directions. A KiB of a viewer's can inflate to a MiB, and a MiB of it to a GiB."""
_SIZE = struct.Struct(">I")


class ClipboardMessage(NamedTuple):
    """One message of a viewer: the action, the formats it is about, and the text of `PROVIDE` (None: too long)."""

    action: int
    formats: int
    text: str | None = None


def parse_clipboard(payload: bytes) -> ClipboardMessage:
    """A message without its header and length. Raises `RfbError` for what is not one."""
    if len(payload) < 4:
        raise RfbError(f"a clipboard message of {len(payload)} bytes")
    (flags,) = _SIZE.unpack_from(payload)
    action, formats = flags & ACTIONS, flags & FORMATS
    if action & CAPS:
        if len(payload) < 4 + 4 * formats.bit_count():
            raise RfbError("a clipboard's capabilities without their sizes")
        return ClipboardMessage(CAPS, formats)
    if action not in (REQUEST, PEEK, NOTIFY, PROVIDE):
        raise RfbError(f"a clipboard message with the actions {action >> 24:#x}")
    if action == PROVIDE and formats & TEXT:
        return ClipboardMessage(action, formats, _inflated(payload[4:]))
    return ClipboardMessage(action, formats)


def _inflated(data: bytes) -> str | None:
    """The text, which is the first of the formats. What follows it is not looked at."""
    inflater = zlib.decompressobj()
    limit = _SIZE.size + TEXT_BYTES
    try:
        content = inflater.decompress(data, limit)
    except zlib.error as error:
        raise RfbError(f"a clipboard that cannot be inflated: {error}") from error
    if len(content) < _SIZE.size:
        raise RfbError("a clipboard without the text's length")
    (length,) = _SIZE.unpack_from(content)
    if length > TEXT_BYTES:
        return None
    if len(content) < _SIZE.size + length:
        raise RfbError(f"a clipboard with less than its {length} bytes of text")
    text = content[_SIZE.size : _SIZE.size + length].decode("utf-8", "replace")
    return text.removesuffix("\0").replace("\r\n", "\n")


def _message(flags: int, content: bytes = b"", kind: int = 3) -> bytes:
    return struct.pack(">BxxxiI", kind, -(4 + len(content)), flags) + content


def capabilities() -> bytes:
    """What is understood here, as a message of the server."""
    return _message(ANNOUNCED_ACTIONS | TEXT, _SIZE.pack(0))


def announce(*, text: bool) -> bytes:
    """Whether there is a text here that can be asked for."""
    return _message(NOTIFY | (TEXT if text else 0))


def request() -> bytes:
    """Ask for the viewer's text."""
    return _message(REQUEST | TEXT)


def provide(text: str) -> bytes:
    """The text. Raises `ValueError` if it is longer than `TEXT_BYTES`."""
    data = text.replace("\r\n", "\n").replace("\n", "\r\n").encode("utf-8", "replace") + b"\0"
    if len(data) > TEXT_BYTES:
        raise ValueError(f"a clipboard of {len(data)} bytes, of at most {TEXT_BYTES}")
    return _message(PROVIDE | TEXT, zlib.compress(_SIZE.pack(len(data)) + data))
