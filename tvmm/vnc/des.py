"""DES as VNC authentication uses it (RFC 6143, 7.2.2): one block, no chaining, the bits of the key in the wrong order.

56 bits of key, of which a password gives 8 characters: whoever records one exchange can try passwords at leisure. It
is here because every viewer has it.

`cryptography` has no DES but triple DES; with one key three times they are the same.
"""

from __future__ import annotations

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

__all__ = ["CHALLENGE_BYTES", "KEY_BYTES", "encrypt_challenge"]

CHALLENGE_BYTES = 16
KEY_BYTES = 8
"""Bytes of a password that count."""

_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def encrypt_challenge(password: bytes, challenge: bytes) -> bytes:
    """The response to `challenge`, whose length is a multiple of 8, of who knows `password`."""
    key = password[:KEY_BYTES].ljust(KEY_BYTES, b"\0").translate(_REVERSED)
    encryptor = Cipher(TripleDES(key * 3), modes.ECB()).encryptor()
    return encryptor.update(challenge) + encryptor.finalize()
