"""Encryption of snapshot files: AES-256-GCM for each chunk, the table and the description.

The key is made from a passphrase by scrypt, or from the bytes of a key file by HKDF, in both cases with a salt of
its own for each file: so no two files have the same key, and a nonce is what is encrypted (chunk, table or
description) and where. What every part is bound to, beside its place, is the file's seed. Which chunks are zero can
be seen: they are holes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tvmm.errors import ImageError
from tvmm.snapshot.format import SALT_BYTES, SCRYPT_LOG_N, SCRYPT_P, SCRYPT_R, KeySource

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    Buffer: TypeAlias = bytes | bytearray | memoryview

__all__ = ["CHUNK", "DESCRIPTION", "TABLE", "TAG_BYTES", "Sealer", "Secret", "new_key_source"]

TAG_BYTES = 16
CHUNK, TABLE, DESCRIPTION = 1, 2, 3
"""What a nonce is for."""
_INFO = b"tvmm snapshot 1"


class Secret(NamedTuple):
    """What the user knows or has: a passphrase, or with `from_file` the bytes of a key file."""

    data: bytes
    from_file: bool = False


def new_key_source(secret: Secret, random: Callable[[int], bytes]) -> KeySource:
    """For a new file."""
    salt = random(SALT_BYTES)
    if secret.from_file:
        return KeySource(2, salt=salt)
    return KeySource(1, SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P, salt)


class Sealer:
    """Encrypts and decrypts the parts of one file. From any thread."""

    def __init__(self, secret: Secret, source: KeySource, seed: bytes) -> None:
        """Takes a tenth of a second for a passphrase. Raises `ImageError` for the wrong kind of secret."""
        if secret.from_file != (source.kind == 2):
            kinds = {1: "a passphrase", 2: "a key file"}
            raise ImageError(f"it was encrypted with {kinds[source.kind]}, and {kinds[3 - source.kind]} is given")
        if source.kind == 2:
            key = HKDF(SHA256(), 32, source.salt, _INFO).derive(secret.data)
        else:
            key = Scrypt(source.salt, 32, 1 << source.log_n, source.r, source.p).derive(secret.data)
        self._cipher = AESGCM(key)
        self._bound = _INFO + seed

    def seal(self, what: int, place: int, data: Buffer) -> bytes:
        """`data` encrypted, its tag behind it. `place` is an offset in the file."""
        return self._cipher.encrypt(_nonce(what, place), data, self._bound)

    def open(self, what: int, place: int, data: Buffer) -> bytes:
        """What was sealed. Raises `ValueError` if it is not that, or the key is another one."""
        try:
            return self._cipher.decrypt(_nonce(what, place), data, self._bound)
        except InvalidTag:
            raise ValueError("it is not what was sealed") from None


def _nonce(what: int, place: int) -> bytes:
    return what.to_bytes(4, "little") + place.to_bytes(8, "little")
