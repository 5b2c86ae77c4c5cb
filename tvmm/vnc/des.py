"""DES as VNC authentication uses it (RFC 6143, 7.2.2): one block, no chaining, the bits of the key in the wrong order.

56 bits of key, of which a password gives 8 characters: whoever records one exchange can try passwords at leisure. It
is here because every viewer has it.

`cryptography` has no DES but triple DES; with one key three times they are the same.
"""

from __future__ import annotations

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

__all__ = ["CHALLENGE_BYTES", "KEY_BYTES", "des_key", "encrypt_challenge"]

CHALLENGE_BYTES = 16
KEY_BYTES = 8
"""Bytes of a password that count."""

_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def des_key(password: bytes) -> bytes:
    """The key that `password` is; passwords with the same key are the same here."""
    # Parity, which DES ignores: a password's highest bits, reversed.
    key = password[:KEY_BYTES].ljust(KEY_BYTES, b"\0").translate(_REVERSED)
    return bytes(value & 0xFE for value in key)


def encrypt_challenge(password: bytes, challenge: bytes) -> bytes:
    """The response to `challenge`, whose length is a multiple of 8, of who knows `password`."""
    encryptor = Cipher(TripleDES(des_key(password) * 3), modes.ECB()).encryptor()
    return encryptor.update(challenge) + encryptor.finalize()
