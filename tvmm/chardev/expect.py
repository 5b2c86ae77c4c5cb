"""Waiting for words on a serial line, as `expect` does: each wait goes on where the last one stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.chardev.port import skipped_note
from tvmm.errors import GuestError

if TYPE_CHECKING:
    from re import Pattern

    from tvmm.chardev.feed import Follower

__all__ = ["EXPECT_LIMIT", "Expect"]

EXPECT_LIMIT = 1 << 20
"""Bytes without a match after which a wait gives up: a guest that babbles must not fill this process."""
PIECE = 1 << 16
SHOWN = 200


class Expect:
    """A reader of the line that searches what it reads. One wait at a time."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._unread = b""

    async def wait(self, pattern: str | bytes | Pattern[bytes]) -> bytes:
        """All output up to the end of the first match of `pattern`.

        Of what the guest writes while nobody waits, the last 64 KiB are kept; where more went by, the output begins
        with a note that says how much.

        Raises `GuestError` when the output ends, or `EXPECT_LIMIT` bytes go by, without a match.
        """
        while (end := _find(pattern, self._unread)) < 0:
            if len(self._unread) > EXPECT_LIMIT:
                raise GuestError(f"{EXPECT_LIMIT} bytes went by without {pattern!r}")
            piece = await self._follower.wait(PIECE)
            if piece is None:
                raise GuestError(f"the serial line ended before {pattern!r}; last was {self._unread[-SHOWN:]!r}")
            self._follower.took(piece)
            if piece.missed:
                self._unread = skipped_note(piece.missed)
            self._unread += bytes(piece.data)
        found, self._unread = self._unread[:end], self._unread[end:]
        return found


def _find(pattern: str | bytes | Pattern[bytes], text: bytes) -> int:
    """Where the first match ends, -1 if there is none."""
    if isinstance(pattern, str):
        pattern = pattern.encode()
    if isinstance(pattern, bytes):
        start = text.find(pattern)
        return start if start < 0 else start + len(pattern)
    match = pattern.search(text)
    return match.end() if match else -1
