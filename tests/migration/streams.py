"""Connected streams for tests of what is between the two ends."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def stream_pair() -> Iterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """Both ends of a connection, closed at the end of the block."""
    one, other = map(trio.SocketStream, trio.socket.socketpair())
    try:
        yield one, other
    finally:
        one.socket.close()
        other.socket.close()
