"""Requests and their answers: the plain twin of the engine, against a plain server and a server that cheats."""

from __future__ import annotations

import errno
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.nbd_server import Facts, ServerHalf
from tvmm.errors import ProtocolError
from tvmm.nbd.codec import Answer, Conversation, Extent, Request, encode_request, errno_of
from tvmm.nbd.constants import (
    EXTENDED_REPLY_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    CommandFlag,
)
from tvmm.nbd.handshake import Handshake, Phase

STYLES = {"simple": {"structured": False}, "structured": {}, "extended": {"extended": True}}


def connect(facts: Facts) -> tuple[ServerHalf, Conversation]:
    """Both ends after their handshake."""
    server, client = ServerHalf(facts), Handshake("server", "")
    data = server.taken()
    while client.phase is not Phase.DONE:
        data = server.receive(client.receive(data))
    found = client.export
    assert found is not None
    return server, Conversation(
        structured=found.structured, extended=found.extended, context=found.allocation
    )


class Pair:
    """A connection with its memory of cookies."""

    def __init__(self, facts: Facts) -> None:
        self.server, self.client = connect(facts)
        self.cookie = 100

    def ask(self, command: Command, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> Answer:
        """One request to its end."""
        self.cookie += 1
        sent = self.client.send(Request(command, self.cookie, offset, length or len(data), flags, data))
        (answer,) = self.client.receive(self.server.receive(sent))
        return answer


@pytest.mark.parametrize("style", STYLES)
def test_every_command(style: str) -> None:
    """What was written is read, zeroed and trimmed; errors come with the server's words where there is room."""
    export = bytearray(1 << 20)
    pair = Pair(Facts({"": export}, chunk=8192, **STYLES[style]))  # type: ignore[arg-type]
    assert pair.ask(Command.WRITE, 4096, data=b"ab" * 10000, flags=CommandFlag.FUA).error == 0
    assert pair.ask(Command.READ, 4090, 20000).data == bytes(6) + (b"ab" * 10000)[:19994]
    assert pair.ask(Command.FLUSH).error == 0
    assert pair.ask(Command.WRITE_ZEROES, 4096, 4096).error == 0
    assert pair.ask(Command.TRIM, 8192, 4096).error == 0
    assert export[4096:12288] == bytes(8192)
    answer = pair.ask(Command.READ, 1 << 20, 512)
    assert answer.error == errno.EINVAL
    assert answer.text == ("" if style == "simple" else "it did not work")
    assert pair.client.outstanding == ()


@pytest.mark.parametrize("style", ["structured", "extended"])
def test_block_status(style: str) -> None:
    """Holes and data by their lengths."""
    export = bytearray(1 << 20)
    export[8192:12288] = b"x" * 4096
    pair = Pair(Facts({"": export}, **STYLES[style]))  # type: ignore[arg-type]
    answer = pair.ask(Command.BLOCK_STATUS, 0, 65536)
    assert answer.extents == (Extent(8192, 3), Extent(4096, 0), Extent(65536 - 12288, 3))


def test_replies_in_any_order_and_mixed() -> None:
    """Chunks of two reads alternate, and the second is complete first."""
    client = Conversation(structured=True)
    client.send(Request(Command.READ, 1, 0, 4))
    client.send(Request(Command.READ, 2, 8, 4))

    def chunk(cookie: int, kind: int, flags: int, data: bytes) -> bytes:
        return pack(">IHHQI", STRUCTURED_REPLY_MAGIC, flags, kind, cookie, len(data)) + data

    stream = (
        chunk(1, Chunk.OFFSET_DATA, 0, pack(">Q", 2) + b"cd")
        + chunk(2, Chunk.OFFSET_HOLE, 0, pack(">QI", 8, 2))
        + chunk(2, Chunk.OFFSET_DATA, 1, pack(">Q", 10) + b"yz")
        + chunk(1, Chunk.OFFSET_DATA, 1, pack(">Q", 0) + b"ab")
    )
    answers = [answer for byte in stream for answer in client.receive(bytes([byte]))]
    assert [(answer.request.cookie, answer.data) for answer in answers] == [(2, b"\0\0yz"), (1, b"abcd")]


def test_requests_that_cannot_be_made() -> None:
    """Mistakes of ours are told before they are sent."""
    client = Conversation()
    client.send(Request(Command.READ, 1, 0, 4))
    for request in (
        Request(Command.READ, 1, 0, 4),
        Request(Command.BLOCK_STATUS, 2, 0, 4),
        Request(Command.READ, 3, 0, 1 << 32),
        Request(Command.READ, 3, 1 << 63, 1),
        Request(Command.WRITE, 3, 0, 4, 0, b"12345"),
        Request(Command.READ, 3, 0, 4, 0, b"1234"),
    ):
        with pytest.raises(ValueError, match=r"cookie|agreed|range|data"):
            client.send(request)
    assert len(encode_request(Request(Command.WRITE_ZEROES, 3, 0, 1 << 32), extended=True)) == 32


def test_unknown_errors_mean_einval() -> None:
    """Only the numbers of the protocol are passed on."""
    assert [errno_of(number) for number in (5, 28, 95, 108, 0x1234)] == [5, 28, 95, 108, errno.EINVAL]


def structured(kind: int, data: bytes = b"", flags: int = 1, cookie: int = 1, length: int | None = None) -> bytes:
    """One chunk."""
    count = len(data) if length is None else length
    return pack(">IHHQI", STRUCTURED_REPLY_MAGIC, flags, kind, cookie, count) + data


LIES = {
    "a wrong magic": (Command.READ, b"\1" * 16, "the magic 0x1010101"),
    "another style": (Command.READ, pack(">IHHQQQ", EXTENDED_REPLY_MAGIC, 1, 0, 1, 0, 0), "the magic 0x6e8a278c"),
    "a wrong cookie": (Command.READ, pack(">IIQ", SIMPLE_REPLY_MAGIC, 0, 9), "request 0x9, which was not made"),
    "a simple read": (Command.READ, pack(">IIQ", SIMPLE_REPLY_MAGIC, 0, 1) + bytes(8), "structured ones were agreed"),
    "a huge chunk": (Command.READ, structured(Chunk.OFFSET_DATA, length=1 << 31), "are the limit"),
    "data for a flush": (Command.FLUSH, structured(Chunk.OFFSET_DATA, bytes(9)), "data in the answer to a FLUSH"),
    "data from elsewhere": (Command.READ, structured(Chunk.OFFSET_DATA, pack(">Q", 4) + bytes(8)), "not asked for"),
    "data before": (Command.READ, structured(Chunk.OFFSET_DATA, pack(">Qq", 1 << 63, 0)), "not asked for"),
    "a long hole": (Command.READ, structured(Chunk.OFFSET_HOLE, pack(">QI", 0, 0xFFFFFFFF)), "not asked for"),
    "an empty hole": (Command.READ, structured(Chunk.OFFSET_HOLE, pack(">QI", 0, 0)), "not asked for"),
    "a wrong hole": (Command.READ, structured(Chunk.OFFSET_HOLE, bytes(5)), "5 bytes, not 12"),
    "the same twice": (
        Command.READ,
        structured(Chunk.OFFSET_HOLE, pack(">QI", 0, 8), 0) + structured(Chunk.OFFSET_HOLE, pack(">QI", 7, 1)),
        "the same data twice",
    ),
    "too little": (Command.READ, structured(Chunk.OFFSET_HOLE, pack(">QI", 0, 7)), "without all of the data"),
    "no data": (Command.READ, structured(Chunk.OFFSET_DATA, bytes(8)), "without any"),
    "nothing, in the middle": (Command.READ, structured(Chunk.NONE, flags=0), "not the last"),
    "nothing, with something": (Command.READ, structured(Chunk.NONE, b"x"), "has something"),
    "an unknown kind": (Command.READ, structured(77), "a chunk of kind 77"),
    "a short error": (Command.READ, structured(Chunk.ERROR, bytes(3)), "not as long as it says"),
    "a long error": (Command.READ, structured(Chunk.ERROR, pack(">IH", 5, 9)), "not as long as it says"),
    "no error": (Command.READ, structured(Chunk.ERROR, pack(">IH", 0, 0)), "an error that is none"),
    "status of a read": (Command.READ, structured(Chunk.BLOCK_STATUS, bytes(12)), "block status in the answer"),
    "status of nothing": (Command.BLOCK_STATUS, structured(Chunk.BLOCK_STATUS, bytes(4)), "a length that is none"),
    "status of another": (Command.BLOCK_STATUS, structured(Chunk.BLOCK_STATUS, bytes(12)), "was not asked for"),
    "an extent of nothing": (
        Command.BLOCK_STATUS, structured(Chunk.BLOCK_STATUS, pack(">III", 7, 0, 0)), "of no length",
    ),
    "no status": (Command.BLOCK_STATUS, structured(Chunk.NONE), "block status without any"),
}  # fmt: skip


@pytest.mark.parametrize("what", LIES)
def test_lies(what: str) -> None:
    """What a server must not do ends the conversation with a reason."""
    command, data, words = LIES[what]
    client = Conversation(structured=True, context=7)
    client.send(Request(command, 1, 0, 0 if command == Command.FLUSH else 8))
    with pytest.raises(ProtocolError) as caught:
        client.receive(data)
    assert words in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(style=st.sampled_from(list(STYLES)), noise=st.binary(max_size=80), step=st.integers(1, 40))
def test_noise(style: str, noise: bytes, step: int) -> None:
    """Any bytes are answers, a `ProtocolError`, or the beginning of an answer."""
    client = Conversation(structured=style == "structured", extended=style == "extended", context=7)
    client.send(Request(Command.READ, 1, 0, 8))
    magics = (SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, EXTENDED_REPLY_MAGIC)
    data = pack(">I", magics[list(STYLES).index(style)]) + noise
    try:
        for at in range(0, len(data), step):
            client.receive(data[at : at + step])
    except ProtocolError:
        pass
