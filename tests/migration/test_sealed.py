"""Encrypted pieces over a stream that is made of bytes: sizes, and everything that somebody on the way can do."""

from __future__ import annotations

import os
import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tvmm.errors import ProtocolError
from tvmm.migration.sealed import KEY_BYTES, PIECE_BYTES, SealedStream

KEY = bytes(range(KEY_BYTES))
TAG = 16


class Bytes:
    """A `ThreadStream` that keeps what is sent, and gives no more than `at_once` bytes at a time."""

    def __init__(self, data: bytes = b"", at_once: int = 1 << 30) -> None:
        self.data = bytearray(data)
        self.at_once = at_once
        self.closed = False

    def send_all(self, data: memoryview) -> None:
        """See `ThreadStream`."""
        self.data += data

    def recv_into(self, buffer: memoryview) -> int:
        """See `ThreadStream`."""
        count = min(len(buffer), len(self.data), self.at_once)
        buffer[:count] = self.data[:count]
        del self.data[:count]
        return count

    def close(self) -> None:
        """See `ThreadStream`."""
        self.closed = True


def sent(*pieces: bytes) -> bytes:
    """What goes over the wire for them."""
    wire = Bytes()
    sender = SealedStream(wire, KEY, "the destination")
    for piece in pieces:
        sender.send_all(memoryview(piece))
    return bytes(wire.data)


def received(wire: bytes, buffer: int = 1 << 20, at_once: int = 1 << 30) -> bytes:
    """What comes out, up to the end."""
    receiver = SealedStream(Bytes(wire, at_once), KEY, "the source")
    data, view = bytearray(), memoryview(bytearray(buffer))
    while got := receiver.recv_into(view):
        data += view[:got]
    return bytes(data)


@pytest.mark.parametrize("buffer", [1, 7, PIECE_BYTES - 1, PIECE_BYTES, 1 << 20])
@pytest.mark.parametrize("at_once", [1000, 1 << 30])
def test_all_sizes(buffer: int, at_once: int) -> None:
    """Whatever is sent comes out, into buffers of any size and from a connection that gives little at a time."""
    sizes = (1, 3, 4096) if buffer < 10 else (1, 3, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 5)
    pieces = [os.urandom(size) for size in sizes]
    assert received(sent(*pieces), buffer, at_once) == b"".join(pieces)


def test_the_bytes() -> None:
    """As the module says, by another hand."""
    aead, plain = AESGCM(KEY), (b"one", b"x" * (PIECE_BYTES + 1))
    expected = b""
    for number, piece in enumerate((plain[0], plain[1][:PIECE_BYTES], plain[1][PIECE_BYTES:])):
        head = struct.pack("<I", len(piece) + TAG)
        expected += head + aead.encrypt(number.to_bytes(12, "big"), piece, head)
    assert sent(*plain) == expected


def test_other_items_than_bytes() -> None:
    """A view of words is sent as its bytes, and received into words."""
    wire = Bytes()
    SealedStream(wire, KEY, "").send_all(memoryview(bytes(range(16))).cast("Q"))
    words = memoryview(bytearray(16)).cast("Q")
    assert SealedStream(wire, KEY, "").recv_into(words) == 16
    assert words.tobytes() == bytes(range(16))


def test_nothing_is_no_piece() -> None:
    """It would be the end for a receiver."""
    assert sent(b"") == b""


ONE, TWO = sent(b"first"), sent(b"first", b"second")[len(sent(b"first")) :]


@pytest.mark.parametrize(
    "wire",
    [TWO, TWO + ONE, ONE + ONE, ONE[:-1] + bytes([ONE[-1] ^ 1]), ONE[:5] + bytes([ONE[5] ^ 1]) + ONE[6:]],
    ids=["left out", "other order", "repeated", "tag", "content"],
)
def test_pieces_that_somebody_touched(wire: bytes) -> None:
    """None of what follows comes out."""
    with pytest.raises(ProtocolError, match="an encrypted piece from the source was changed on its way"):
        received(wire + TWO)


def test_another_key() -> None:
    """Opens nothing."""
    receiver = SealedStream(Bytes(ONE), bytes(KEY_BYTES), "the source")
    with pytest.raises(ProtocolError, match="was changed on its way"):
        receiver.recv_into(memoryview(bytearray(10)))


@pytest.mark.parametrize("length", [0, TAG, PIECE_BYTES + TAG + 1, (1 << 32) - 1])
def test_lengths_that_cannot_be(length: int) -> None:
    """Nothing is waited for, and no memory asked for."""
    with pytest.raises(ProtocolError, match=f"an encrypted piece of {length} bytes, {PIECE_BYTES + TAG} are allowed"):
        received(struct.pack("<I", length) + bytes(100))


@pytest.mark.parametrize("cut", range(1, len(ONE)))
def test_a_cut_within_a_piece(cut: int) -> None:
    """Is no end. Between two it is one, which the lane's frames and the control connection do not take for theirs."""
    with pytest.raises(ProtocolError, match="the source closed a connection for pages within an encrypted piece"):
        received(ONE[:cut])


def test_close() -> None:
    """Closes what is below."""
    wire = Bytes()
    SealedStream(wire, KEY, "").close()
    assert wire.closed
