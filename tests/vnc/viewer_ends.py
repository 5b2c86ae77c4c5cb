"""The viewer's half of the security exchanges, and whoever joins the two halves in memory."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Sequence
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tvmm.vnc.des import encrypt_challenge
from tvmm.vnc.rsa_aes import RSA_AES_TYPES, EaxCodec
from tvmm.vnc.security_types import Exchange, Failed, Passed, Send, StartTls, Step, Wrap


class Talk(Protocol):
    """A connection as the viewer has it."""

    heard: bytearray

    def say(self, data: bytes) -> None:
        """Send."""

    def hear(self, size: int) -> bytes:
        """The next bytes, which must be there."""


class Wire:
    """An exchange as a session runs it: plain, or in TLS once the exchange says so.

    The viewer's side is `say` and `hear`; `outcome` is how it ended.
    """

    def __init__(self, exchange: Exchange, viewer_context: ssl.SSLContext | None = None) -> None:
        self.exchange = exchange
        self.outcome: Passed | Failed | None = None
        self.codec: object = None
        self.heard = bytearray()
        self._pending = bytearray()
        self._viewer_context = viewer_context
        self._server: ssl.SSLObject | None = None
        self.viewer: ssl.SSLObject | None = None
        self._do(exchange.start())

    def say(self, data: bytes) -> None:
        """Bytes of the viewer, through TLS if there is TLS."""
        if self.viewer is not None and self._server is not None:
            self.viewer.write(data)
            data = _read(self._server)
        self._pending += data
        if self.outcome is None:
            self._do(self.exchange.receive(self._pending))

    def hear(self, size: int) -> bytes:
        """The next `size` bytes for the viewer, which must be there."""
        assert len(self.heard) >= size, "the server has not said so much"
        data = bytes(self.heard[:size])
        del self.heard[:size]
        return data

    @property
    def unread(self) -> bytes:
        """What the exchange has left of the viewer's bytes."""
        return bytes(self._pending)

    def _do(self, steps: Sequence[Step]) -> None:
        for step in steps:
            assert self.outcome is None, "an exchange goes on after its end"
            if isinstance(step, Send):
                if self._server is not None and self.viewer is not None:
                    self._server.write(step.data)
                    self.heard += _read(self.viewer)
                else:
                    self.heard += step.data
            elif isinstance(step, StartTls):
                assert isinstance(step.context, ssl.SSLContext)
                self._handshake(step.context)
            elif isinstance(step, Wrap):
                self.codec = step.codec
            else:
                self.outcome = step

    def _handshake(self, context: ssl.SSLContext) -> None:
        assert self._viewer_context is not None, "TLS was not expected"
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._server = context.wrap_bio(up, down, server_side=True)
        self.viewer = self._viewer_context.wrap_bio(down, up, server_hostname="localhost")
        for _ in range(8):
            for end in (self.viewer, self._server):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        assert self.viewer.cipher() is not None


def _read(end: ssl.SSLObject) -> bytes:
    data = bytearray()
    while True:
        try:
            data += end.read(65536)
        except ssl.SSLWantReadError:
            return bytes(data)


def answer_challenge(wire: Talk, password: str) -> None:
    """VNC authentication as a viewer does it."""
    wire.say(encrypt_challenge(password.encode(), wire.hear(16)))


def choose_subtype(wire: Talk, subtype: int) -> list[int]:
    """VeNCrypt up to the choice of a subtype; returns those that were offered."""
    assert wire.hear(2) == b"\0\2"
    wire.say(b"\0\2")
    assert wire.hear(1) == b"\0"
    offered = [int.from_bytes(wire.hear(4), "big") for _ in range(wire.hear(1)[0])]
    wire.say(subtype.to_bytes(4, "big"))
    return offered


def say_plain(wire: Talk, user: str, password: str) -> None:
    """VeNCrypt's Plain as a viewer does it."""
    name, secret = user.encode(), password.encode()
    wire.say(len(name).to_bytes(4, "big") + len(secret).to_bytes(4, "big") + name + secret)


class RsaViewer:
    """RSA-AES as a viewer does it."""

    def __init__(self, number: int, bits: int = 2048) -> None:
        self.kind = RSA_AES_TYPES[number]
        self.key = rsa.generate_private_key(65537, bits)
        numbers = self.key.public_key().public_numbers()
        size = bits // 8
        self.public = bits.to_bytes(4, "big") + numbers.n.to_bytes(size, "big") + numbers.e.to_bytes(size, "big")
        self.random = b"\x5a" * self.kind.key_bytes
        self.fingerprint = ""

    def login(self, wire: Talk, user: str, password: str) -> None:
        """All of it, checking what the server says."""
        codec = self.agree(wire)
        with_name = codec.next_message(wire.heard) == b"\1"
        name, secret = (user.encode() if with_name else b""), password.encode()
        wire.say(codec.encrypt(bytes([len(name)]) + name + bytes([len(secret)]) + secret))

    def agree(self, wire: Talk) -> EaxCodec:
        """Up to the hashes; returns the viewer's codec."""
        size = int.from_bytes(wire.heard[:4], "big") // 8
        server = wire.hear(4 + 2 * size)
        self.fingerprint = hashlib.sha1(server).digest()[:8].hex("-")
        modulus, exponent = (int.from_bytes(server[at : at + size], "big") for at in (4, 4 + size))
        sealed = rsa.RSAPublicNumbers(exponent, modulus).public_key().encrypt(self.random, padding.PKCS1v15())
        wire.say(self.public + len(sealed).to_bytes(2, "big") + sealed)
        theirs = self.key.decrypt(wire.hear(int.from_bytes(wire.hear(2), "big")), padding.PKCS1v15())
        assert len(theirs) == self.kind.key_bytes

        def digest(data: bytes) -> bytes:
            return hashlib.new(self.kind.hash, data).digest()

        ours_to_server, server_to_us = digest(theirs + self.random), digest(self.random + theirs)
        codec = EaxCodec(ours_to_server[: self.kind.key_bytes], server_to_us[: self.kind.key_bytes])
        assert codec.next_message(wire.heard) == digest(server + self.public)
        wire.say(codec.encrypt(digest(self.public + server)))
        return codec
