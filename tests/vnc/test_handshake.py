"""From the first byte to the screen: every version, security type and way to fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.rfb_pair import Pair
from tests.support.rfb_viewer import Refused, RfbViewer, Steps
from tvmm.errors import ProtocolError
from tvmm.vnc.errors import RfbError, RfbMisuse
from tvmm.vnc.events import Authenticated, Rejected, WantsIn
from tvmm.vnc.handshake import HANDSHAKE_BYTES
from tvmm.vnc.security_types import (
    Failed,
    NoSecurity,
    Passed,
    SecurityType,
    Send,
    StartTls,
    Wrap,
)
from tvmm.vnc.security_types import Step as SecurityStep
from tvmm.vnc.session import Session, SessionOptions
from tvmm.vnc.states import TRANSITIONS, State, Step, after

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSIONS = (3, 7, 8)


class Xor:
    """Records: a length of one byte, and bytes with each bit turned. 255 is forged."""

    def encrypt(self, data: bytes) -> bytes:
        pieces = [data[at : at + 100] for at in range(0, len(data), 100)]
        return b"".join(bytes((len(piece),)) + bytes(byte ^ 0xFF for byte in piece) for piece in pieces)

    def decrypt(self, data: bytearray) -> bytes:
        opened = bytearray()
        while data and len(data) > data[0]:
            if data[0] == 255:
                raise ProtocolError("a forged record")
            opened += bytes(byte ^ 0xFF for byte in data[1 : 1 + data[0]])
            del data[: 1 + data[0]]
        return bytes(opened)


class Question:
    """A security type that sends four bytes and wants them back turned around; then whatever `then` says."""

    name = "question"

    def __init__(
        self, number: int = 2, *, before: Sequence[SecurityStep] = (), then: Sequence[SecurityStep] = ()
    ) -> None:
        self.number = number
        self.before = before
        self.then = then or [Passed("somebody")]
        self.peers: list[str] = []

    def begin(self, peer: str) -> Question:
        self.peers.append(peer)
        return self

    def start(self) -> Sequence[SecurityStep]:
        return [*self.before, Send(b"what")]

    def receive(self, data: bytearray) -> Sequence[SecurityStep]:
        if len(data) < 4:
            return []
        answer = bytes(data[:4])
        del data[:4]
        return self.then if answer == b"tahw" else [Failed("the answer is wrong")]


def turn(viewer: RfbViewer) -> Steps:
    """The viewer's half of `Question`."""
    viewer.send((yield 4)[::-1])


def wrong(viewer: RfbViewer) -> Steps:
    """The same, wrong."""
    viewer.send((yield 4))


@pytest.mark.parametrize("minor_version", VERSIONS)
@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_without_security(minor_version: int, pieces: int) -> None:
    """Every version gets to the screen, however its bytes come."""
    pair = Pair(RfbViewer(minor_version=minor_version), pieces=pieces)
    pair.settle()
    assert pair.viewer.running
    assert (pair.viewer.width, pair.viewer.height, pair.viewer.name) == (200, 70, "näme")
    assert pair.events == [Authenticated("none", "", False), WantsIn(True)]
    assert pair.session.minor_version == minor_version
    assert pair.session.state is State.RUNNING


@pytest.mark.parametrize("minor_version", VERSIONS)
@pytest.mark.parametrize("pieces", [0, 1])
def test_with_security(minor_version: int, pieces: int) -> None:
    """An exchange in several steps, with its result."""
    kind = Question()
    viewer = RfbViewer(minor_version=minor_version, security=2, exchanges={2: turn}, shared=False)
    pair = Pair(viewer, types=[kind, NoSecurity()], pieces=pieces)
    pair.settle()
    assert viewer.running
    assert pair.events == [Authenticated("question", "somebody", False), WantsIn(False)]
    assert viewer.offered == ((2,) if minor_version == 3 else (2, 1))
    assert pair.session.user == "somebody"


@pytest.mark.parametrize("minor_version", VERSIONS)
def test_failure_has_a_reason_from_38_on(minor_version: int) -> None:
    """Older viewers are told the result only."""
    viewer = RfbViewer(minor_version=minor_version, security=2, exchanges={2: wrong})
    pair = Pair(viewer, types=[Question()])
    with pytest.raises(Refused) as caught:
        pair.settle()
    assert str(caught.value) == ("the answer is wrong" if minor_version == 8 else "")
    assert pair.events == [Rejected("the answer is wrong")]
    assert pair.session.state is State.CLOSED


@pytest.mark.parametrize("minor_version", VERSIONS)
def test_nothing_to_offer(minor_version: int) -> None:
    """Without a security type nobody gets in, and is told so."""
    pair = Pair(RfbViewer(minor_version=minor_version), types=[])
    with pytest.raises(Refused, match="here"):
        pair.settle()
    assert isinstance(pair.events[0], Rejected)


def test_33_knows_two_types() -> None:
    """What it does not know is not named to it."""
    pair = Pair(RfbViewer(minor_version=3), types=[Question(19)])
    with pytest.raises(Refused, match=r"3\.7"):
        pair.settle()
    pair = Pair(RfbViewer(minor_version=3), types=[Question(19), NoSecurity()])
    pair.settle()
    assert pair.viewer.offered == (1,)


@pytest.mark.parametrize(
    ("said", "meant"),
    [("003.003", 3), ("003.004", 3), ("003.005", 3), ("003.006", 3), ("003.007", 7), ("003.008", 8), ("003.889", 8)],
)
def test_versions_that_viewers_say(said: str, meant: int) -> None:
    """Others than the three count as the one below them (7.1.1)."""
    session = Session([NoSecurity()])
    session.receive(f"RFB {said}\n".encode(), 0)
    session.next_event()
    assert session.minor_version == meant


@pytest.mark.parametrize("said", [b"RFB 003.002\n", b"RFB 004.001\n", b"RFB 003.0080", b"GET / HTTP/1", b"\0" * 12])
def test_no_version(said: bytes) -> None:
    """What is no version, or none of RFB 3, ends it with a reason."""
    session = Session([NoSecurity()])
    session.take_output()
    session.receive(said, 0)
    with pytest.raises(RfbError):
        session.next_event()
    assert session.state is State.CLOSED
    assert b"".join(session.take_output()).startswith(bytes(4))
    session.receive(b"more", 0)
    assert session.next_event() is None


def test_a_type_that_was_not_offered() -> None:
    """Ends it; from 3.8 on with a reason."""
    pair = Pair(RfbViewer(security=1), types=[Question()])
    with pytest.raises(RfbError, match="not offered"):
        pair.settle()
    with pytest.raises(Refused, match="offered"):
        pair.viewer.receive(b"".join(pair.session.take_output()))


@pytest.mark.parametrize("pieces", [0, 1])
def test_tls_is_between_what_was_plain_and_what_is_not(pieces: int) -> None:
    """Output up to StartTls can be taken before the rest is made."""
    context = object()
    kind = Question(19, before=[Send(b"plain"), StartTls(context)])
    session = Session([kind])
    session.take_output()
    session.receive(b"RFB 003.008\n\x13", 0)
    assert session.next_event() == StartTls(context)
    assert b"".join(session.take_output()) == b"\x01\x13plain"
    assert session.next_event() is None
    assert session.state is State.UPGRADE
    session.tls_ready()
    assert b"".join(session.take_output()) == b"what"
    session.receive(b"tahw", 0)
    assert session.next_event() == Authenticated("question", "somebody", False)


def test_bytes_before_tls_are_refused() -> None:
    """Or somebody on the way could put words into the viewer's mouth."""
    session = Session([Question(19, before=[StartTls(None)])])
    session.receive(b"RFB 003.008\n\x13tahw", 0)
    with pytest.raises(RfbError, match="before the TLS"):
        session.next_event()


def test_records_of_a_security_type() -> None:
    """After Wrap all bytes in both directions are records, also those that have come already."""
    codec = Xor()
    session = Session([Question(5, before=[Send(b"plain"), Wrap(codec)])], SessionOptions())
    session.take_output()
    session.receive(b"RFB 003.008\n\x05" + codec.encrypt(b"tahw\x01"), 0)
    assert session.next_event() == Authenticated("question", "somebody", False)
    assert b"".join(session.take_output()) == b"\x01\x05plain" + codec.encrypt(b"what") + codec.encrypt(bytes(4))
    assert session.next_event() == WantsIn(True)
    session.admit(10, 20, "x")
    assert codec.decrypt(bytearray(b"".join(session.take_output())))[:4] == b"\0\x0a\0\x14"
    with pytest.raises(RfbError, match="forged"):
        session.receive(b"\xff" * 256, 0)
    assert session.state is State.CLOSED


@pytest.mark.parametrize("view_only", [False, True])
def test_view_only(view_only: bool) -> None:
    """By the security type or by the server's options."""
    kind = Question(then=[Passed("guest", view_only)])
    pair = Pair(RfbViewer(security=2, exchanges={2: turn}), types=[kind])
    pair.settle()
    assert pair.session.view_only is view_only
    assert Session([kind], SessionOptions(view_only=True)).view_only


def test_peer_is_told_to_the_security_type() -> None:
    """It counts failures by it."""
    kind = Question()
    session = Session([kind], peer="192.0.2.1")
    session.receive(b"RFB 003.008\n\x02", 0)
    session.next_event()
    assert kind.peers == ["192.0.2.1"]


def test_too_much_before_it_is_let_in() -> None:
    """What waits is bounded."""
    session = Session([Question()])
    session.receive(b"RFB 003.008\n\x02", 0)
    session.next_event()
    session.receive(bytes(3), 0)
    with pytest.raises(RfbError, match="before it was let in"):
        session.receive(bytes(HANDSHAKE_BYTES), 0)


def test_refusal_closes() -> None:
    """Nothing is sent; the shell closes."""
    session = Session([NoSecurity()])
    session.receive(b"RFB 003.008\n\x01\x00", 0)
    assert isinstance(session.next_event(), Authenticated)
    assert session.next_event() == WantsIn(False)
    assert session.next_event() is None
    session.take_output()
    session.refuse()
    assert session.state is State.CLOSED
    assert not session.take_output()
    assert not session.reading


def test_misuse_is_another_error() -> None:
    """Of the caller, and changes nothing."""
    session = Session([NoSecurity()])
    for call in (session.tls_ready, session.refuse, lambda: session.admit(1, 1, "")):
        with pytest.raises(RfbMisuse):
            call()
    with pytest.raises(RfbMisuse):
        session.updates.plan(0)
    assert session.plan(0) is None
    assert session.state is State.VERSION


def test_the_table_is_whole() -> None:
    """Every state is reached, can be left, and everything else is a misuse."""
    reached = {State.VERSION}
    while more := {to for (at, _), to in TRANSITIONS.items() if at in reached} - reached:
        reached |= more
    assert reached == set(State)
    for state in State:
        for step in Step:
            if (state, step) in TRANSITIONS:
                assert after(state, step) in State
            else:
                with pytest.raises(RfbMisuse):
                    after(state, step)


def test_no_security_is_a_security_type() -> None:
    """As the protocol has it."""
    kind: SecurityType = NoSecurity()
    assert (kind.number, kind.begin("").start()) == (1, [Passed()])
    assert not kind.begin("").receive(bytearray(b"x"))
