"""RSA-AES (types 5, 6, 129 and 130 of rfbproto): keys are agreed on with RSA, what follows is AES in EAX mode.

::

    server                                     viewer
    public key                    ──>
                                  <──          public key (made for this connection)
    random, for the viewer's key  ──>
                                  <──          random, for the server's key
    ═══════ from here on in messages: length (u16), AES-EAX of the text ═════════════
    hash of both public keys      ──>
                                  <──          hash of both public keys
    1: name and password, or
    2: password                   ──>
                                  <──          length (u8), name, length (u8), password
    ═══════ "ne" types go on in the clear here ══════════════════════════════════════

A message's nonce is its number in its direction, as 128 bits, little-endian; its header is its length. The key of the
direction to the viewer is a hash of the viewer's random and the server's, the key of the other one of the same in
reverse. Types 5 and 6 take 16 bytes of SHA-1, 129 and 130 take SHA-256; SHA-1 is not asked for more than the mixing of
random bytes.

A viewer knows the server by its key's fingerprint alone, which it shows: there are no certificates. The random bytes
are in the padding of PKCS #1 1.5, which is known for telling attackers whether it was right. Here a wrong one is taken
for other random bytes: the hash that follows is wrong then, and the answer is the same as to any wrong hash.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, NamedTuple

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tvmm.vnc.eax import TAG_BYTES, Eax
from tvmm.vnc.errors import RfbError
from tvmm.vnc.security_types import Failed, Send, Wrap
from tvmm.vnc.vnc_auth import REFUSED, ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.vnc.passwords import Passwords
    from tvmm.vnc.security_types import Exchange, Step

__all__ = ["KEY_BITS", "RSA_AES_TYPES", "EaxCodec", "RsaAes", "RsaKey"]

KEY_BITS = 2048
"""Of the server's key. Viewers make one of the same size for each connection, which takes time if it is larger."""
MIN_VIEWER_BITS, MAX_VIEWER_BITS = 1024, 4096
"""Of a viewer's key. Encrypting for a larger one takes time that a stranger must not have; the protocol allows 8192."""
MAX_EXPONENT_BITS = 32
"""Of a viewer's key, for the same reason: all that exist use 65537."""
MESSAGE_BYTES = 8192
"""Text in a message that is sent: what other servers send at most."""
_HEADER = 2
_NAME_AND_PASSWORD, _PASSWORD = b"\1", b"\2"


class _Kind(NamedTuple):
    number: int
    name: str
    hash: str
    key_bytes: int
    all_encrypted: bool


RSA_AES_TYPES = {
    kind.number: kind
    for kind in (
        _Kind(5, "RA2", "sha1", 16, True),
        _Kind(6, "RA2ne", "sha1", 16, False),
        _Kind(129, "RA2_256", "sha256", 32, True),
        _Kind(130, "RA2ne_256", "sha256", 32, False),
    )
}
"""By number. The "ne" types encrypt who the viewer is and nothing else."""


class RsaKey:
    """The server's key. `private` is None to make a new one, which takes a tenth of a second or so."""

    def __init__(self, private: rsa.RSAPrivateKey | None = None) -> None:
        self.private = rsa.generate_private_key(65537, KEY_BITS) if private is None else private
        numbers = self.private.public_key().public_numbers()
        self.bytes = (self.private.key_size + 7) // 8
        size = self.private.key_size.to_bytes(4, "big")
        self.public = size + numbers.n.to_bytes(self.bytes, "big") + numbers.e.to_bytes(self.bytes, "big")
        """As it goes to viewers: bits, modulus, exponent."""

    @property
    def fingerprint(self) -> str:
        """What viewers show, to be compared: 8 bytes, hexadecimal, with hyphens."""
        return hashlib.sha1(self.public, usedforsecurity=False).digest()[:8].hex("-")

    def decrypt(self, sealed: bytes) -> bytes | None:
        """The text of `sealed`, which has the key's size; None if it has none."""
        try:
            return self.private.decrypt(sealed, padding.PKCS1v15())
        except ValueError:
            return None


class EaxCodec:
    """Messages of AES-EAX in both directions. What it sends is numbered, and so is what it takes."""

    def __init__(self, to_viewer: bytes, from_viewer: bytes) -> None:
        self._out, self._in = Eax(to_viewer), Eax(from_viewer)
        self._sent = self._taken = 0

    def encrypt(self, data: bytes) -> bytes:
        """The messages that carry `data`."""
        messages = []
        for start in range(0, len(data), MESSAGE_BYTES):
            text = data[start : start + MESSAGE_BYTES]
            header = len(text).to_bytes(_HEADER, "big")
            messages += [header, self._out.encrypt(_nonce(self._sent), header, text)]
            self._sent += 1
        return b"".join(messages)

    def decrypt(self, data: bytearray) -> bytes:
        """What the whole messages in front of `data` carry; they are taken from it. Raises `RfbError`.

        Of a message that is not whole `data` keeps at most 64 KiB: it is the length's largest value.
        """
        texts = []
        while (text := self.next_message(data)) is not None:
            texts.append(text)
        return b"".join(texts)

    def next_message(self, data: bytearray) -> bytes | None:
        """What the first message of `data` carries; None if it is not whole. Raises `RfbError`."""
        if len(data) < _HEADER:
            return None
        header = bytes(data[:_HEADER])
        end = _HEADER + int.from_bytes(header, "big") + TAG_BYTES
        if len(data) < end:
            return None
        text = self._in.decrypt(_nonce(self._taken), header, bytes(data[_HEADER:end]))
        if text is None:
            raise RfbError("a message of the viewer was changed on its way")
        self._taken += 1
        del data[:end]
        return text


def _nonce(number: int) -> bytes:
    return number.to_bytes(16, "little")


class RsaAes:
    """One of the four types, by `number`, with the server's `key`. `random` makes that many random bytes."""

    def __init__(
        self, number: int, passwords: Passwords, key: RsaKey, random: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self.kind = RSA_AES_TYPES[number]
        self.number = number
        self.name = self.kind.name
        self.key = key
        self.passwords = passwords
        self.random = random

    def begin(self, peer: str) -> Exchange:
        """An exchange that begins with the server's public key."""
        return _RsaAesExchange(self)


class _RsaAesExchange:
    def __init__(self, offer: RsaAes) -> None:
        self._offer = offer
        self._kind = offer.kind
        self._random = offer.random(offer.kind.key_bytes)
        self._viewer_key = b""
        self._codec: EaxCodec | None = None
        self._text = bytearray()
        """Of the viewer's messages, as far as nothing has been made of it."""
        self._receive: Callable[[bytearray], list[Step] | None] = self._public_key

    def start(self) -> list[Step]:
        return [Send(self._offer.key.public)]

    def receive(self, data: bytearray) -> list[Step]:
        """Go on as far as `data` goes, and not a byte further than the exchange does."""
        steps: list[Step] = []
        while (more := self._receive(data)) is not None:
            steps += more
            if more and not isinstance(more[-1], Send):
                break
        return steps

    def _public_key(self, data: bytearray) -> list[Step] | None:
        if len(data) < 4:
            return None
        bits = int.from_bytes(data[:4], "big")
        if not MIN_VIEWER_BITS <= bits <= MAX_VIEWER_BITS:
            return [Failed(f"the viewer's key has {bits} bits, not {MIN_VIEWER_BITS} to {MAX_VIEWER_BITS}")]
        size = (bits + 7) // 8
        if len(data) < 4 + 2 * size:
            return None
        self._viewer_key = bytes(data[: 4 + 2 * size])
        del data[: 4 + 2 * size]
        sealed = _encrypt_for(self._viewer_key, size, self._random)
        if sealed is None:
            return [Failed("the viewer's key is none")]
        self._receive = self._viewer_random
        return [Send(len(sealed).to_bytes(2, "big") + sealed)]

    def _viewer_random(self, data: bytearray) -> list[Step] | None:
        if len(data) < 2:
            return None
        size = int.from_bytes(data[:2], "big")
        if size != self._offer.key.bytes:
            return [Failed("the viewer's random bytes are not for this server's key")]
        if len(data) < 2 + size:
            return None
        theirs = self._offer.key.decrypt(bytes(data[2 : 2 + size]))
        del data[: 2 + size]
        if theirs is None or len(theirs) != self._kind.key_bytes:
            theirs = secrets.token_bytes(self._kind.key_bytes)
        to_viewer, from_viewer = self._key(theirs + self._random), self._key(self._random + theirs)
        self._codec = EaxCodec(to_viewer, from_viewer)
        self._receive = self._hash
        ours = self._digest(self._offer.key.public + self._viewer_key)
        return [Send(self._codec.encrypt(ours))]

    def _hash(self, data: bytearray) -> list[Step] | None:
        expected = self._digest(self._viewer_key + self._offer.key.public)
        text = self._take(data, len(expected))
        if text is None or isinstance(text, Failed):
            return None if text is None else [text]
        if not hmac.compare_digest(text, expected):
            return [Failed(REFUSED)]
        self._receive = self._credentials
        subtype = _NAME_AND_PASSWORD if self._offer.passwords.has_users else _PASSWORD
        assert self._codec is not None
        return [Send(self._codec.encrypt(subtype))]

    def _credentials(self, data: bytearray) -> list[Step] | None:
        # Two lengths of one byte each: nothing here can be too long.
        ends = 1
        for _ in range(2):
            text = self._peek(data, ends)
            if text is None or isinstance(text, Failed):
                return None if text is None else [text]
            ends += text[ends - 1] + 1
        ends -= 1
        text = self._take(data, ends)
        if text is None or isinstance(text, Failed):
            return None if text is None else [text]
        if self._text:
            return [Failed("the viewer sent more than was asked for")]
        length = text[0]
        name, password = text[1 : 1 + length], text[2 + length :]
        passwords = self._offer.passwords
        grant = passwords.check_user(name, password) if passwords.has_users else passwords.check_password(password)
        wrap: list[Step] = []
        if self._kind.all_encrypted:
            assert self._codec is not None
            wrap = [Wrap(self._codec)]
        # Whether it may come in is the first thing that the codec carries.
        return [*wrap, ending(grant)]

    def _peek(self, data: bytearray, size: int) -> bytes | Failed | None:
        """The first `size` bytes of the text that was not taken yet; None if there are not so many."""
        assert self._codec is not None
        while len(self._text) < size:
            try:
                message = self._codec.next_message(data)
            except RfbError:
                return Failed(REFUSED)
            if message is None:
                return None
            self._text += message
        return bytes(self._text[:size])

    def _take(self, data: bytearray, size: int) -> bytes | Failed | None:
        text = self._peek(data, size)
        if isinstance(text, bytes):
            del self._text[:size]
        return text

    def _digest(self, data: bytes) -> bytes:
        return hashlib.new(self._kind.hash, data).digest()

    def _key(self, data: bytes) -> bytes:
        return self._digest(data)[: self._kind.key_bytes]


def _encrypt_for(public: bytes, size: int, text: bytes) -> bytes | None:
    """`text` for the key `public`, whose numbers have `size` bytes; None if that is no key."""
    modulus, exponent = (int.from_bytes(public[at : at + size], "big") for at in (4, 4 + size))
    if modulus.bit_length() < MIN_VIEWER_BITS or not modulus & 1 or exponent.bit_length() > MAX_EXPONENT_BITS:
        return None
    try:
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        return key.encrypt(text, padding.PKCS1v15()).rjust(size, b"\0")
    except (ValueError, UnsupportedAlgorithm, InternalError):
        return None
