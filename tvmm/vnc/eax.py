"""AES in EAX mode (Bellare, Rogaway, Wagner: The EAX Mode of Operation, 2004): encrypted, and nobody can change it.

`cryptography` has none, so it is built here as the paper has it, from its counter mode and its CMAC.
"""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC

__all__ = ["TAG_BYTES", "Eax"]

TAG_BYTES = 16


class Eax:
    """One key, of 16 or 32 bytes. A nonce must not be used twice with it."""

    def __init__(self, key: bytes) -> None:
        self._aes = algorithms.AES(key)
        # OMAC number n of a text is the CMAC of n as a block, and the text. The three blocks are the same for ever.
        self._omacs = [CMAC(self._aes) for _ in range(3)]
        for number, omac in enumerate(self._omacs):
            omac.update(number.to_bytes(16, "big"))

    def encrypt(self, nonce: bytes, header: bytes, text: bytes) -> bytes:
        """`text` encrypted, and the tag that vouches for it and for `header`."""
        start = self._omac(0, nonce)
        sealed = self._crypt(start, text)
        return sealed + self._tag(start, header, sealed)

    def decrypt(self, nonce: bytes, header: bytes, sealed: bytes) -> bytes | None:
        """The text of what `encrypt` has made; None if somebody else has made it."""
        if len(sealed) < TAG_BYTES:
            return None
        start = self._omac(0, nonce)
        text, tag = sealed[:-TAG_BYTES], sealed[-TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(start, header, text)):
            return None
        return self._crypt(start, text)

    def _omac(self, number: int, text: bytes) -> bytes:
        omac = self._omacs[number].copy()
        omac.update(text)
        return omac.finalize()

    def _crypt(self, start: bytes, text: bytes) -> bytes:
        """Counter mode: the same in both directions."""
        context = Cipher(self._aes, modes.CTR(start)).encryptor()
        return context.update(text) + context.finalize()

    def _tag(self, start: bytes, header: bytes, sealed: bytes) -> bytes:
        parts = (start, self._omac(1, header), self._omac(2, sealed))
        first, second, third = (int.from_bytes(part, "big") for part in parts)
        return (first ^ second ^ third).to_bytes(TAG_BYTES, "big")
