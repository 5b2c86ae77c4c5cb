"""What went wrong in a handshake, in a sentence: tables from OpenSSL's codes to what the user can do. No IO.

There are two ways to learn it. What this end finds wrong with the peer's certificate has a code of X509_verify_cert(3);
what the peer finds wrong with ours comes as an alert (RFC 8446, 6.2), whose name OpenSSL gives as the reason.

The source is commanded by a user who waits for the answer, and gets `UserError`s with a hint. The destination must
outlive whoever connects to it: all that a peer does is a `ProtocolError`.
"""

from __future__ import annotations

import ssl
from typing import NamedTuple

from tvmm.errors import ProtocolError, TvmmError, UserError
from tvmm.migration.pairing import REASONS, Refusal

__all__ = ["Side", "closed", "explain", "is_wrong_certificate", "refused"]


class Side(NamedTuple):
    """Whose error it is to explain, and with whom; `paired` if a pairing code vouches for both ends."""

    peer: str
    server: bool
    paired: bool = False
    name: str = ""
    """The name that the client looked for in the certificate."""


class _Sentence(NamedTuple):
    text: str
    hint: str


_ISSUE = "issue a new one on the CA's host with 'tvmm keys issue HOST', and 'tvmm keys import' it there"
_SAME_CA = "both hosts need certificates of one CA: 'tvmm keys issue' on its host, 'tvmm keys import' on the other"
_CODES = "both ends need the same pairing code; 'tvmm run --incoming ... --pair' prints it"
_NEW_CODE = "start the destination again for another code"
_SHOW = "'tvmm keys show' on both hosts tells what they have"

_EXPIRED = _Sentence("the certificate of {peer} has expired", _ISSUE)
_NOT_YET = _Sentence("the certificate of {peer} is not valid yet", "compare the clocks of both hosts")
_NOT_OURS = _Sentence("the certificate of {peer} is not of this host's CA", _SAME_CA)
_REVOKED = _Sentence("the certificate of {peer} has been revoked", _ISSUE)
_NAME = _Sentence(
    "the certificate of {peer} is not for {name!r}",
    "connect by a name that 'tvmm keys show' lists there, name it with --tls-hostname, or issue one with --san",
)
_PURPOSE = _Sentence("the certificate of {peer} is for another use", _ISSUE)
_NO_CRL = _Sentence("this host's revocation list is not of its CA", "import one that 'tvmm keys export-crl' makes")
_CRL_OLD = _Sentence("this host's revocation list has expired", "import one that 'tvmm keys export-crl' makes")

VERIFY: dict[int, _Sentence] = {
    3: _NO_CRL,
    7: _NOT_OURS,
    9: _NOT_YET,
    10: _EXPIRED,
    12: _CRL_OLD,
    18: _NOT_OURS,
    19: _NOT_OURS,
    20: _NOT_OURS,
    21: _NOT_OURS,
    23: _REVOKED,
    26: _PURPOSE,
    30: _NOT_OURS,
    62: _NAME,
    64: _NAME,
}
"""By the code of X509_verify_cert: CRL missing, signature wrong, not yet valid, expired, CRL expired, self-signed leaf
and chain, no issuer, no chain, revoked, purpose, key identifiers differ, host name, address."""

UNKNOWN_CODE = _Sentence("the certificate of {peer} is not accepted", _SHOW)

ALERTS: dict[str, _Sentence] = {
    "TLSV1_ALERT_UNKNOWN_CA": _Sentence("{peer} does not know the CA of this host's certificate", _SAME_CA),
    "TLSV1_ALERT_DECRYPT_ERROR": _Sentence("{peer} does not know the CA of this host's certificate", _SAME_CA),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": _Sentence(
        "{peer} says that this host's certificate has expired", "issue and import a new one, or compare the clocks"
    ),
    "SSLV3_ALERT_CERTIFICATE_REVOKED": _Sentence("{peer} says that this host's certificate has been revoked", _ISSUE),
    "SSLV3_ALERT_BAD_CERTIFICATE": _Sentence("{peer} does not accept this host's certificate", _SHOW),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _Sentence("{peer} does not accept this host's certificate", _SHOW),
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": _Sentence("{peer} does not accept this host's certificate", _SHOW),
    "TLSV1_ALERT_ACCESS_DENIED": _Sentence("{peer} does not let this host in", _SHOW),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _Sentence("{peer} wants a certificate of this host", _SAME_CA),
    "SSLV3_ALERT_HANDSHAKE_FAILURE": _Sentence(
        "{peer} wants a certificate or a cipher that this host does not have", _SAME_CA
    ),
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": _Sentence("{peer} has no certificate", _SAME_CA),
    "TLSV1_ALERT_PROTOCOL_VERSION": _Sentence("{peer} does not speak TLS 1.3", "use the same tvmm on both hosts"),
    "UNSUPPORTED_PROTOCOL": _Sentence("{peer} does not speak TLS 1.3", "use the same tvmm on both hosts"),
}
"""By OpenSSL's reason. Those with ALERT in them are the peer's words."""

NO_TLS = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "HTTPS_PROXY_REQUEST",
        "UNKNOWN_PROTOCOL",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "NOT_SSL_RECORD_OR_PROTOCOL",
    }
)
"""Reasons for which the peer's first bytes are no TLS record."""

_PLAIN = _Sentence("{peer} does not speak TLS", "give both sides the same of --tls, --pair and --insecure")

_PAIRED = {
    _NOT_OURS: _Sentence("{peer} has another pairing code", _CODES),
    _NAME: _Sentence("{peer} is not the other end of this pairing code", _CODES),
    _PURPOSE: _Sentence("{peer} is not the other end of this pairing code", _CODES),
    ALERTS["TLSV1_ALERT_UNKNOWN_CA"]: _Sentence("{peer} has another pairing code", _CODES),
}
"""What the sentences become where no CA is involved."""

_WRONG = frozenset({"TLSV1_ALERT_UNKNOWN_CA", "TLSV1_ALERT_DECRYPT_ERROR", "SSLV3_ALERT_BAD_CERTIFICATE"})


def is_wrong_certificate(error: BaseException | None) -> bool:
    """Whether a handshake failed because one end's certificate is not of the other's authority."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    return isinstance(error, ssl.SSLError) and error.reason in _WRONG


def explain(error: BaseException | None, side: Side) -> TvmmError:
    """The error to raise in place of `error`, which came out of a handshake or of a connection in use."""
    if isinstance(error, ssl.SSLCertVerificationError):
        sentence = VERIFY.get(error.verify_code)
        if sentence is None:
            text, hint = UNKNOWN_CODE
            sentence = _Sentence(f"{text}: {error.verify_message}", hint)
        return _told(sentence, side)
    if not isinstance(error, ssl.SSLError):
        reason = getattr(error, "strerror", None)
        return ProtocolError(f"the connection with {side.peer} is lost: {reason}") if reason else closed(side)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return closed(side)
    if error.reason in NO_TLS:
        return _told(_PLAIN, side)
    sentence = ALERTS.get(error.reason or "")
    if sentence is not None:
        return _told(sentence, side)
    return ProtocolError(f"TLS with {side.peer} failed: {(error.reason or 'unknown').replace('_', ' ').lower()}")


def closed(side: Side) -> ProtocolError:
    """The peer went away in the middle of a handshake or without saying good-bye: maybe it was cut off."""
    return ProtocolError(f"{side.peer} closed the connection in the middle of TLS; see what is said there")


def refused(number: int, side: Side) -> TvmmError:
    """What a source says that is not let in; `number` is what the destination has sent in place of a welcome."""
    try:
        reason = Refusal(number)
    except ValueError:
        return ProtocolError(f"{side.peer} answers with {number}, which is neither a welcome nor a reason")
    hint = _ISSUE if reason in (Refusal.NO_NAME, Refusal.WRONG_USAGE) else _NEW_CODE
    return UserError(f"{side.peer} does not let this host in: {REASONS[reason]}", hint)


def _told(sentence: _Sentence, side: Side) -> TvmmError:
    text, hint = _PAIRED.get(sentence, sentence) if side.paired else sentence
    text = text.format(peer=side.peer, name=side.name)
    return ProtocolError(text) if side.server else UserError(text, hint)
