"""The words before a stream through a machine's vsock socket, as Firecracker and Cloud Hypervisor have them.

A program connects to the socket and writes ``CONNECT PORT`` and a newline. When the guest has taken the connection,
the answer is ``OK NUMBER`` and a newline, where the number is the port of the host's end, and then the stream begins.
If the guest does not take it, the connection is closed without a word.
"""

from __future__ import annotations

__all__ = ["LINE_LIMIT", "MAX_PORT", "connect_line", "parse_answer", "parse_connect"]

LINE_LIMIT = 32
"""Bytes in a line, with its newline: a client that sends more before one is none."""
MAX_PORT = 0xFFFF_FFFE
"""All ones stand for any port (5.10.4 and vsock(7))."""


def connect_line(port: int) -> bytes:
    """What a client writes."""
    return b"CONNECT %d\n" % port


def parse_connect(line: bytes) -> int | None:
    """The port that a line, with its newline, asks for; None if it asks for none."""
    words = line.split()
    if len(words) != 2 or words[0].upper() != b"CONNECT" or not line.endswith(b"\n"):
        return None
    return _number(words[1])


def parse_answer(line: bytes) -> int | None:
    """The host's port in an answer; None if it is none."""
    words = line.split()
    if len(words) != 2 or words[0] != b"OK" or not line.endswith(b"\n"):
        return None
    return _number(words[1])


def _number(word: bytes) -> int | None:
    # isdigit of bytes is about ASCII alone.
    if not word.isdigit() or len(word) > 10 or int(word) > MAX_PORT:
        return None
    return int(word)
