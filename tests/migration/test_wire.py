"""The control connection's bytes: what is accepted, and that nothing else gets through."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.errors import ProtocolError, UserError
from tvmm.migration.messages import FROM_DESTINATION, FROM_SOURCE, Answer, Block, Cancel, Hello, Ready, Refuse, State
from tvmm.migration.wire import (
    MAX_GREETING,
    MAX_MESSAGE,
    OPENING_BYTES,
    Inbox,
    Kind,
    Opening,
    Reply,
    Security,
    common_version,
    pack,
    read_reply,
    readable,
)
from tvmm.state import Section

SECTION = Section("serial0", 1, 1, b"")
STATE = State((SECTION,), True, 1)
HELLO = Hello(b"s" * 16, "web", (("ram", "64M"),), b"cpu", (Block("pc.ram", 16384),), 2, "zstd", True)


def damaged(message: Any, **fields: Any) -> Any:
    """`message` with something else in some fields."""
    return message._replace(**fields)


def test_messages_come_out_as_they_went_in() -> None:
    """Cut anywhere, and several in one piece."""
    state = State((Section("serial0", 1, 1, b"\0" * 1000),), True, 7, (b"h" * 32,))
    data = pack(HELLO) + pack(state) + pack(Cancel("because"))
    for step in (1, 7, len(data)):
        inbox, found = Inbox(FROM_SOURCE), []
        for start in range(0, len(data), step):
            inbox.receive(data[start : start + step])
            while (message := inbox.next_message()) is not None:
                found.append(message)
        assert found == [HELLO, state, Cancel("because")]


def test_wanted_never_asks_for_what_belongs_to_the_next_message() -> None:
    """So that a reader that takes no more than that stops at the end of a message."""
    data, inbox, at = pack(HELLO), Inbox(FROM_SOURCE), 0
    while inbox.next_message() is None:
        count = inbox.wanted()
        inbox.receive(data[at : at + count])
        at += count
    assert at == len(data)


@pytest.mark.parametrize("length", [0, MAX_GREETING + 1, (1 << 32) - 1])
def test_a_length_out_of_range_ends_it(length: int) -> None:
    """Before anything is kept for it."""
    inbox = Inbox(FROM_SOURCE)
    inbox.receive(struct.pack("<I", length))
    with pytest.raises(ProtocolError, match="announces a message"):
        inbox.next_message()


def test_the_other_sides_messages_are_none() -> None:
    """A destination does not get a destination's message."""
    inbox = Inbox(FROM_SOURCE)
    inbox.receive(pack(Ready()))
    with pytest.raises(ProtocolError):
        inbox.next_message()


def test_a_record_that_is_no_message_is_refused() -> None:
    """Parts of messages do not come alone: `Block` is in a greeting or nowhere."""
    inbox = Inbox(FROM_DESTINATION)
    inbox.receive(pack(Block("pc.ram", 1)))
    with pytest.raises(ProtocolError):
        inbox.next_message()


@pytest.mark.parametrize(
    "message",
    [
        damaged(HELLO, session="text"),
        damaged(HELLO, description=("ram", "64M")),
        damaged(HELLO, description=((1, "64M"),)),
        damaged(HELLO, blocks=(("pc.ram", 1),)),
        damaged(HELLO, blocks=(damaged(Block("pc.ram", 1), pages="1"),)),
        damaged(HELLO, lanes=True),
        damaged(HELLO, verify=1),
        damaged(STATE, sections=(b"",)),
        damaged(STATE, running=1),
        damaged(STATE, sections=(damaged(SECTION, data="text"),)),
        damaged(Cancel(), reason=None),
    ],
)
def test_every_field_has_its_type(message: object) -> None:
    """Also inside of records and tuples."""
    inbox = Inbox(FROM_SOURCE)
    inbox.receive(pack(message))
    with pytest.raises(ProtocolError, match=r"field \w+ of"):
        inbox.next_message()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    """Nothing else comes out of it."""
    for types in (FROM_SOURCE, FROM_DESTINATION):
        inbox = Inbox(types)
        inbox.receive(data)
        with suppress(ProtocolError):
            while inbox.next_message() is not None:
                pass


@given(st.integers(min_value=0), st.binary(min_size=1, max_size=4))
def test_a_damaged_greeting_is_a_message_or_a_protocol_error(at: int, junk: bytes) -> None:
    """Bytes changed in the middle of a good one."""
    data = bytearray(pack(HELLO))
    at %= len(data)
    data[at : at + len(junk)] = junk
    inbox = Inbox(FROM_SOURCE)
    inbox.receive(bytes(data))
    with suppress(ProtocolError):
        inbox.next_message()


def test_openings() -> None:
    """There and back, and each field out of range."""
    opening = Opening(Kind.LANE, Security.TLS, token=b"t" * 16, lane=3)
    data = opening.to_bytes()
    assert len(data) == OPENING_BYTES
    assert Opening.from_bytes(data) == opening
    for at, byte in ((0, 0), (8, 0), (8, 9), (9, 3), (10, 0), (32 - 1, 0xFF)):
        broken = bytearray(data)
        broken[at] = byte
        with pytest.raises(ProtocolError):
            Opening.from_bytes(bytes(broken))


def test_versions() -> None:
    """The highest that both speak; none is an error that says which there are."""
    assert common_version(Opening(Kind.CONTROL, lowest=1, highest=9)) == 1
    with pytest.raises(ProtocolError, match="2 to 9"):
        common_version(Opening(Kind.CONTROL, lowest=2, highest=9))


@pytest.mark.parametrize("reply", list(Reply))
def test_replies(reply: Reply) -> None:
    """GO lets the source go on; the others are sentences for its user."""
    if reply is Reply.GO:
        read_reply(reply.to_bytes())
    else:
        with pytest.raises(UserError):
            read_reply(reply.to_bytes())


@pytest.mark.parametrize("data", [b"tvmm-rep\x63", b"HTTP/1.1 "])
def test_no_reply(data: bytes) -> None:
    """Of something else that listens there."""
    with pytest.raises(ProtocolError, match="does not speak"):
        read_reply(data)


def test_what_a_peer_says_is_shown_harmlessly() -> None:
    """No control sequences for the user's terminal, and no megabytes."""
    assert readable("a\x1b[2Jb\n") == "a?[2Jb?"
    assert len(readable("x" * 10_000)) < 500


def test_defaults_can_be_left_out() -> None:
    """A message of an older peer lacks fields that came later: those have defaults."""
    assert Refuse(("no",)).hint == ""
    assert Answer("running").outcome == "running"


def test_a_large_state_arrives() -> None:
    """Sections of a machine with much in flight are more than one record may have."""
    state = State(tuple(Section(f"disk{number}", 1, 1, bytes(7 << 20)) for number in range(2)), True, 1)
    inbox = Inbox(FROM_SOURCE, MAX_MESSAGE)
    inbox.receive(pack(state))
    assert inbox.next_message() == state


def test_a_message_that_is_too_large_is_not_sent() -> None:
    """The sender says so, and not its peer."""
    with pytest.raises(ProtocolError, match="Cancel cannot be sent"):
        pack(Cancel("x" * MAX_MESSAGE))
