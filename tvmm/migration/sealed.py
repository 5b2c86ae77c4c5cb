"""Pages encrypted in large pieces, with a key that was agreed on under TLS.

TLS encrypts 16 KiB at a time and Python's ssl calls the kernel up to three times for each, which costs more than the
encryption. Here a piece is up to 256 KiB, one call, and encrypted by the AES-256-GCM of cryptography's OpenSSL:

    0 length u32    4 ciphertext    4 + length - 16 tag

little endian; `length` is that of ciphertext and tag, and is authenticated with them. The nonce is the piece's number
on this connection, 12 bytes big endian, from 0 (NIST SP 800-38D, 8.2.1): pieces that were changed, left out, repeated
or put in another order do not open. The sender makes the key, of 32 random bytes, for this connection and direction
alone and sends it as the last thing under TLS: nobody else has it, and whoever learns the certificates' keys later
does not. That nothing is cut off at the end is for what is in the pieces to say: lanes end rounds, and the control
connection, which is TLS throughout, decides.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tvmm.errors import ProtocolError

if TYPE_CHECKING:
    from tvmm.migration.senders import ThreadStream

__all__ = ["KEY_BYTES", "PIECE_BYTES", "SealedStream"]

KEY_BYTES = 32
PIECE_BYTES = 256 << 10
"""Of plain bytes, at most."""
_LENGTH = struct.Struct("<I")
_TAG_BYTES, _NONCE_BYTES = 16, 12
_MAX_LENGTH = PIECE_BYTES + _TAG_BYTES


class SealedStream:
    """A `ThreadStream` over another one, which carries pieces. `peer` is what messages call the other end.

    One end sends, with `send_all`, and the other one receives: a key is not for two directions.
    """

    def __init__(self, stream: ThreadStream, key: bytes, peer: str) -> None:
        self.close = stream.close
        self._stream = stream
        self._aead = AESGCM(key)
        self._peer = peer
        self._number = 0
        self._piece = memoryview(bytearray(_LENGTH.size + _MAX_LENGTH))
        self._open = memoryview(bytearray(PIECE_BYTES))
        self._rest = self._open[:0]

    def send_all(self, data: memoryview) -> None:
        """See `ThreadStream`."""
        with data.cast("B") as view:
            for start in range(0, len(view), PIECE_BYTES):
                self._stream.send_all(self._seal(view[start : start + PIECE_BYTES]))

    def _seal(self, data: memoryview) -> memoryview:
        length = len(data) + _TAG_BYTES
        piece = self._piece[: _LENGTH.size + length]
        _LENGTH.pack_into(piece, 0, length)
        self._aead.encrypt_into(self._nonce(), data, piece[: _LENGTH.size], piece[_LENGTH.size :])
        return piece

    def recv_into(self, buffer: memoryview) -> int:
        """See `ThreadStream`. Raises `ProtocolError` too: what came is not what was sent, or was cut within a piece."""
        with buffer.cast("B") as view:
            if not self._rest:
                length = self._receive()
                if not length:
                    return 0
                size = length - _TAG_BYTES
                if size <= len(view):
                    return self._unseal(length, view[:size])
                self._unseal(length, self._open[:size])
                self._rest = self._open[:size]
            count = min(len(view), len(self._rest))
            view[:count] = self._rest[:count]
            self._rest = self._rest[count:]
            return count

    def _receive(self) -> int:
        """The next piece, into the buffer: its length, 0 at the end."""
        if not self._fill(self._piece[: _LENGTH.size], may_end=True):
            return 0
        (length,) = _LENGTH.unpack_from(self._piece)
        if not _TAG_BYTES < length <= _MAX_LENGTH:
            raise ProtocolError(f"{self._peer} sent an encrypted piece of {length} bytes, {_MAX_LENGTH} are allowed")
        self._fill(self._piece[_LENGTH.size : _LENGTH.size + length], may_end=False)
        return int(length)

    def _unseal(self, length: int, target: memoryview) -> int:
        head, sealed = self._piece[: _LENGTH.size], self._piece[_LENGTH.size : _LENGTH.size + length]
        try:
            return self._aead.decrypt_into(self._nonce(), sealed, head, target)
        except InvalidTag:
            raise ProtocolError(f"an encrypted piece from {self._peer} was changed on its way") from None

    def _fill(self, buffer: memoryview, *, may_end: bool) -> bool:
        done = 0
        while done < len(buffer):
            got = self._stream.recv_into(buffer[done:])
            if not got:
                if may_end and not done:
                    return False
                raise ProtocolError(f"{self._peer} closed a connection for pages within an encrypted piece")
            done += got
        return True

    def _nonce(self) -> bytes:
        self._number += 1
        return (self._number - 1).to_bytes(_NONCE_BYTES, "big")
