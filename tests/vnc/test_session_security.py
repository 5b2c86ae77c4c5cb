"""Security types inside of whole sessions: what comes after them reaches the viewer as it should."""

from __future__ import annotations

import ssl

import pytest

from tests.vnc.test_exchanges import FULL, anonymous, certificate, passwords, server_key
from tests.vnc.viewer_ends import RsaViewer, answer_challenge, choose_subtype, say_plain
from tvmm.vnc.errors import RfbError
from tvmm.vnc.events import Authenticated, Rejected
from tvmm.vnc.rsa_aes import EaxCodec, RsaAes
from tvmm.vnc.security_types import SecurityType, StartTls
from tvmm.vnc.session import Session
from tvmm.vnc.states import State
from tvmm.vnc.vencrypt import PLAIN, X509_PLAIN, X509_VNC, VeNCrypt
from tvmm.vnc.vnc_auth import REFUSED, VncAuthentication


class Line:
    """A session, and what its viewer hears."""

    def __init__(self, offer: SecurityType) -> None:
        self.session = Session([offer], peer="192.0.2.1")
        self.heard = bytearray()
        self.events: list[object] = []
        self._listen()
        assert self.hear(12) == b"RFB 003.008\n"
        self.say(b"RFB 003.008\n")
        assert self.hear(2) == bytes([1, offer.number])
        self.say(bytes([offer.number]))

    def say(self, data: bytes) -> None:
        self.session.receive(data, 0)
        self._listen()

    def hear(self, size: int) -> bytes:
        assert len(self.heard) >= size
        data = bytes(self.heard[:size])
        del self.heard[:size]
        return data

    def _listen(self) -> None:
        while (event := self.session.next_event()) is not None:
            self.events.append(event)
        self.heard += b"".join(self.session.take_output())


def test_vnc_authentication() -> None:
    """The result follows."""
    line = Line(VncAuthentication(passwords()))
    answer_challenge(line, FULL)
    assert line.hear(4) == bytes(4)
    assert line.events == [Authenticated("VNC authentication", "", False)]
    assert line.session.state is State.INIT
    wrong = Line(VncAuthentication(passwords()))
    answer_challenge(wrong, "wrong")
    assert wrong.heard == b"\0\0\0\1" + len(REFUSED).to_bytes(4, "big") + REFUSED.encode()
    assert wrong.events == [Rejected(REFUSED)]


@pytest.mark.parametrize("number", [5, 6, 129, 130])
@pytest.mark.parametrize("right", [True, False])
def test_rsa_aes(number: int, right: bool) -> None:
    """The result is the first thing that is encrypted after the exchange, if anything is."""
    line = Line(RsaAes(number, passwords(), server_key()))
    viewer = RsaViewer(number, 1024)
    codec = viewer.agree(line)
    assert codec.next_message(line.heard) == b"\2"
    password = (FULL if right else "wrong").encode()
    line.say(codec.encrypt(b"\0" + bytes([len(password)]) + password))
    rest = codec.decrypt(line.heard) if viewer.kind.all_encrypted else bytes(line.heard)
    assert rest[:4] == (0 if right else 1).to_bytes(4, "big")
    if right:
        line.say(codec.encrypt(b"\1") if viewer.kind.all_encrypted else b"\1")
        assert line.session.state is State.ADMISSION


def test_changed_messages_end_the_session() -> None:
    """Also after the exchange."""
    line = Line(RsaAes(129, passwords(), server_key()))
    codec: EaxCodec = RsaViewer(129, 1024).agree(line)
    line.say(codec.encrypt(b"\0" + bytes([len(FULL)]) + FULL.encode()))
    with pytest.raises(RfbError):
        line.say(b"\0\1" + bytes(17))
    assert line.session.state is State.CLOSED


@pytest.mark.parametrize("subtype", [X509_VNC, X509_PLAIN])
def test_vencrypt_asks_for_tls(subtype: int) -> None:
    """The shell makes TLS, and what goes on inside is the same session."""
    offer = VeNCrypt(passwords(), [subtype], certificate=certificate(), anonymous=anonymous())
    line = Line(offer)
    choose_subtype(line, subtype)
    assert line.hear(1) == b"\1"
    (event,) = line.events
    assert isinstance(event, StartTls)
    assert isinstance(event.context, ssl.SSLContext)
    line.session.tls_ready()
    line.say(b"")
    if subtype == X509_VNC:
        answer_challenge(line, FULL)
    else:
        say_plain(line, "anna", FULL)
    assert line.hear(4) == bytes(4)
    assert line.session.user == ("" if subtype == X509_VNC else "anna")


def test_bytes_before_tls_end_the_session() -> None:
    """They would count as if they had come inside."""
    line = Line(VeNCrypt(passwords(), [X509_PLAIN], certificate=certificate()))
    line.say(b"\0\2")
    with pytest.raises(RfbError, match="before the TLS handshake"):
        line.say(X509_PLAIN.to_bytes(4, "big") + b"\0\0\0\4")


def test_plain_in_the_clear() -> None:
    """Only where it was asked for, and then without TLS."""
    line = Line(VeNCrypt(passwords(anna="hers"), [PLAIN]))
    assert choose_subtype(line, PLAIN) == [PLAIN]
    say_plain(line, "anna", "hers")
    assert line.hear(4) == bytes(4)
