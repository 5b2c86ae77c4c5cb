"""Security exchanges: published vectors, whole logins with real TLS, and viewers that send anything."""

from __future__ import annotations

import datetime
import functools
import ssl

import pytest
from cryptography.hazmat.primitives.asymmetric import padding
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vnc.viewer_ends import RsaViewer, Wire, answer_challenge, choose_subtype, say_plain
from tvmm.vnc.des import encrypt_challenge
from tvmm.vnc.eax import Eax
from tvmm.vnc.errors import RfbError
from tvmm.vnc.passwords import Passwords
from tvmm.vnc.rsa_aes import EaxCodec, RsaAes, RsaKey
from tvmm.vnc.security import Means, Policy, auth_words, security_types
from tvmm.vnc.security_types import Failed, NoSecurity, Passed, SecurityType, Send, StartTls, Wrap
from tvmm.vnc.tls_context import anonymous_context, ffdhe2048, throw_away_context
from tvmm.vnc.vencrypt import (
    PLAIN,
    TLS_NONE,
    TLS_PLAIN,
    TLS_VNC,
    X509_NONE,
    X509_PLAIN,
    X509_VNC,
    VeNCrypt,
    subtype_name,
)
from tvmm.vnc.vnc_auth import REFUSED, VncAuthentication

NOW = datetime.datetime.now(datetime.UTC)
FULL, VIEW = "full-password-of-some-length", "only-to-look"


def never() -> float:
    """No password here has an end."""
    raise AssertionError("the clock was asked")


def passwords(**users: str) -> Passwords:
    """A full and a view-only password, and those of users."""
    return Passwords(never, full=FULL, view_only=VIEW, users=users)


@functools.cache
def server_key() -> RsaKey:
    """The server's RSA key."""
    return RsaKey()


@functools.cache
def certificate() -> ssl.SSLContext:
    """The server's TLS with a certificate."""
    return throw_away_context(["127.0.0.1"], NOW).context


@functools.cache
def anonymous() -> ssl.SSLContext:
    """The server's TLS without."""
    context = anonymous_context()
    assert context is not None
    return context


def trusting() -> ssl.SSLContext:
    """A viewer that takes any certificate, as most do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def nameless(ciphers: str) -> ssl.SSLContext:
    """A viewer that wants no certificate."""
    context = trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    return context


def vencrypt(known: Passwords, *subtypes: int) -> VeNCrypt:
    """The type with all that it needs."""
    return VeNCrypt(known, subtypes, certificate=certificate(), anonymous=anonymous())


# --- vectors ---


def test_des_vectors() -> None:
    """DES with the key's bits in reverse: the key of password files, which is known, encrypts as it is known to."""
    fixed = bytes([23, 82, 107, 6, 35, 78, 88, 7])
    assert encrypt_challenge(fixed, b"password").hex() == "dbd83cfd727a1458"
    # FIPS 46's classic, through the reversal.
    key = bytes(int(f"{value:08b}"[::-1], 2) for value in bytes.fromhex("133457799bbcdff1"))
    assert encrypt_challenge(key, bytes.fromhex("0123456789abcdef")).hex() == "85e813540f0ab405"
    assert encrypt_challenge(b"eightchars", bytes(16)) == encrypt_challenge(b"eightcha", bytes(16))


@pytest.mark.parametrize(
    ("text", "key", "nonce", "header", "sealed"),
    [
        (
            "",
            "233952DEE4D5ED5F9B9C6D6FF80FF478",
            "62EC67F9C3A4A407FCB2A8C49031A8B3",
            "6BFB914FD07EAE6B",
            "E037830E8389F27B025A2D6527E79D01",
        ),
        (
            "F7FB",
            "91945D3F4DCBEE0BF45EF52255F095A4",
            "BECAF043B0A23D843194BA972C66DEBD",
            "FA3BFD4806EB53FA",
            "19DD5C4C9331049D0BDAB0277408F67967E5",
        ),
        (
            "1A47CB4933",
            "01F74AD64077F2E704C0F60ADA3DD523",
            "70C3DB4F0D26368400A10ED05D2BFF5E",
            "234A3463C1264AC6",
            "D851D5BAE03A59F238A23E39199DC9266626C40F80",
        ),
        (
            "CA40D7446E545FFAED3BD12A740A659FFBBB3CEAB7",
            "8395FCF1E95BEBD697BD010BC766AAC3",
            "22E7ADD93CFC6393C57EC0B3C17D6B44",
            "126735FCC320D25A",
            "CB8920F87A6C75CFF39627B56E3ED197C552D295A7CFC46AFC253B4652B1AF3795B124AB6E",
        ),
    ],
)
def test_eax_vectors(text: str, key: str, nonce: str, header: str, sealed: str) -> None:
    """The vectors of the paper, in both directions, and nothing for what was changed."""
    eax = Eax(bytes.fromhex(key))
    plain, result = bytes.fromhex(text), bytes.fromhex(sealed)
    assert eax.encrypt(bytes.fromhex(nonce), bytes.fromhex(header), plain) == result
    assert eax.decrypt(bytes.fromhex(nonce), bytes.fromhex(header), result) == plain
    assert eax.decrypt(bytes.fromhex(nonce), b"", result) is None
    assert eax.decrypt(bytes(16), bytes.fromhex(header), result) is None
    assert eax.decrypt(bytes.fromhex(nonce), bytes.fromhex(header), result[:-1] + bytes([result[-1] ^ 1])) is None
    assert eax.decrypt(bytes.fromhex(nonce), bytes.fromhex(header), result[:15]) is None


def test_the_group_is_that_of_rfc_7919() -> None:
    """Its ends are those that are printed there, and it is a safe prime."""
    prime = ffdhe2048()
    assert f"{prime:X}".startswith("FFFFFFFFFFFFFFFFADF85458A2BB4A9AAFDC5620273D3CF1")
    assert f"{prime:X}".endswith("886B423861285C97FFFFFFFFFFFFFFFF")
    for number in (prime, (prime - 1) // 2):
        assert all(pow(base, number - 1, number) == 1 for base in (2, 3, 5, 7))


# --- the types of RFB 3.3 ---


def test_none() -> None:
    """Everybody may come in, without a word."""
    assert Wire(NoSecurity().begin("")).outcome == Passed()


@pytest.mark.parametrize(
    ("password", "outcome"),
    [
        (FULL, Passed()),
        (FULL[:8], Passed()),
        (VIEW, Passed(view_only=True)),
        ("full-pas", Passed()),
        ("full-pa", Failed(REFUSED)),
        ("", Failed(REFUSED)),
        ("wrong", Failed(REFUSED)),
    ],
)
def test_vnc_authentication(password: str, outcome: Passed | Failed) -> None:
    """Eight characters of either password count."""
    wire = Wire(VncAuthentication(passwords()).begin("peer"))
    answer_challenge(wire, password)
    assert wire.outcome == outcome


def test_challenges_are_random_and_for_one_viewer() -> None:
    """No answer is good for another challenge."""
    offer = VncAuthentication(passwords())
    first, second = Wire(offer.begin("")), Wire(offer.begin(""))
    answer = encrypt_challenge(FULL.encode(), first.hear(16))
    assert second.hear(16) != encrypt_challenge(FULL.encode(), bytes(16))
    second.say(answer)
    assert second.outcome == Failed(REFUSED)


def test_answers_come_in_pieces_and_what_follows_is_left() -> None:
    """An exchange waits for what it needs, and takes no more."""
    wire = Wire(VncAuthentication(passwords(), lambda size: bytes(size)).begin(""))
    answer = encrypt_challenge(FULL.encode(), wire.hear(16))
    wire.say(answer[:15])
    assert wire.outcome is None
    wire.say(answer[15:] + b"\1")
    assert wire.outcome == Passed()
    assert wire.unread == b"\1"


# --- VeNCrypt ---


CERTIFIED = [(X509_NONE, "none"), (X509_VNC, "vnc"), (X509_PLAIN, "plain")]
NAMELESS = [(TLS_NONE, "none"), (TLS_VNC, "vnc"), (TLS_PLAIN, "plain")]


def go_on(wire: Wire, inside: str, password: str) -> None:
    """What comes after TLS."""
    if inside == "vnc":
        answer_challenge(wire, password)
    elif inside == "plain":
        say_plain(wire, "anna", password)


@pytest.mark.parametrize(("subtype", "inside"), CERTIFIED)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_vencrypt_with_a_certificate(subtype: int, inside: str, version: ssl.TLSVersion) -> None:
    """Real TLS, then the way in that was chosen."""
    viewer = trusting()
    viewer.minimum_version = viewer.maximum_version = version
    wire = Wire(vencrypt(passwords(), X509_PLAIN, subtype).begin(""), viewer)
    assert choose_subtype(wire, subtype) == [X509_PLAIN, subtype]
    assert wire.hear(1) == b"\1"
    go_on(wire, inside, FULL)
    assert wire.outcome == Passed("anna" if inside == "plain" else "")
    assert wire.viewer is not None
    assert wire.viewer.getpeercert(binary_form=True)


@pytest.mark.parametrize(("subtype", "inside"), NAMELESS)
@pytest.mark.parametrize("ciphers", ["ADH", "AECDH"])
def test_vencrypt_without_a_certificate(subtype: int, inside: str, ciphers: str) -> None:
    """Anonymous key exchange over numbers and over curves; never without encryption."""
    wire = Wire(vencrypt(passwords(), subtype).begin(""), nameless(ciphers))
    choose_subtype(wire, subtype)
    assert wire.hear(1) == b"\1"
    assert wire.viewer is not None
    name, _, bits = wire.viewer.cipher() or ("", "", 0)
    assert name.startswith(ciphers)
    assert bits >= 128
    go_on(wire, inside, VIEW)
    assert wire.outcome == (Passed() if inside == "none" else Passed("anna" if inside == "plain" else "", True))


@pytest.mark.parametrize(("subtype", "inside"), CERTIFIED[1:])
def test_vencrypt_wrong_password(subtype: int, inside: str) -> None:
    """TLS alone lets nobody in."""
    wire = Wire(vencrypt(passwords(), subtype).begin(""), trusting())
    choose_subtype(wire, subtype)
    wire.hear(1)
    go_on(wire, inside, "wrong")
    assert wire.outcome == Failed(REFUSED)


def test_users_have_names() -> None:
    """With users, a name goes with its own password only, and no password goes with any name."""
    known = passwords(anna="a-password", bert="b-password")
    for name, password, outcome in (
        ("anna", "a-password", Passed("anna")),
        ("bert", "b-password", Passed("bert")),
        ("anna", "b-password", Failed(REFUSED)),
        ("carl", "a-password", Failed(REFUSED)),
        ("", FULL, Failed(REFUSED)),
        ("anna", FULL, Failed(REFUSED)),
        ("anna", "", Failed(REFUSED)),
    ):
        wire = Wire(vencrypt(known, PLAIN).begin(""))
        choose_subtype(wire, PLAIN)
        say_plain(wire, name, password)
        assert wire.outcome == outcome, name


def test_nothing_before_tls_counts_inside() -> None:
    """What somebody slips in behind the choice of TLS is left for TLS, which will not like it."""
    exchange = vencrypt(passwords(), X509_PLAIN).begin("")
    exchange.start()
    smuggled = bytes(7) + b"\4" + b"anna"
    data = bytearray(b"\0\2" + X509_PLAIN.to_bytes(4, "big") + smuggled)
    steps = exchange.receive(data)
    assert isinstance(steps[-1], StartTls)
    assert data == smuggled


@pytest.mark.parametrize("version", [b"\0\0", b"\0\1", b"\0\3", b"\1\2", b"\xff\xff"])
def test_other_versions(version: bytes) -> None:
    """Only version 0.2 is spoken."""
    wire = Wire(vencrypt(passwords(), X509_VNC).begin(""))
    wire.say(version)
    assert wire.heard == b"\0\2\xff"
    assert isinstance(wire.outcome, Failed)


@pytest.mark.parametrize("subtype", [0, 1, 2, 19, PLAIN, TLS_NONE, X509_NONE, 263, 0xFFFF_FFFF])
def test_subtypes_that_were_not_offered(subtype: int) -> None:
    """A viewer cannot choose an easier way than those it was offered."""
    wire = Wire(vencrypt(passwords(), X509_VNC, X509_PLAIN).begin(""))
    choose_subtype(wire, subtype)
    assert isinstance(wire.outcome, Failed)


@pytest.mark.parametrize("lengths", [(256, 1), (1, 256), (0xFFFF_FFFF, 0xFFFF_FFFF), (0, 1 << 31)])
def test_long_names_are_not_waited_for(lengths: tuple[int, int]) -> None:
    """A length that is too large ends it before a byte of the name has come."""
    wire = Wire(vencrypt(passwords(), PLAIN).begin(""))
    choose_subtype(wire, PLAIN)
    wire.say(b"".join(length.to_bytes(4, "big") for length in lengths))
    assert isinstance(wire.outcome, Failed)


def test_what_cannot_be_offered() -> None:
    """A subtype needs its context, and has to exist."""
    with pytest.raises(ValueError, match="needs a context"):
        VeNCrypt(passwords(), [X509_VNC], anonymous=object())
    with pytest.raises(ValueError, match="no subtype"):
        VeNCrypt(passwords(), [263])
    with pytest.raises(ValueError, match="at least one"):
        VeNCrypt(passwords(), [])
    assert [subtype_name(number) for number in (PLAIN, TLS_NONE, X509_VNC)] == ["plain", "tls-none", "x509-vnc"]


# --- RSA-AES ---


@pytest.mark.parametrize("number", [5, 6, 129, 130])
def test_rsa_aes(number: int) -> None:
    """A whole login with a password, and what comes after it."""
    viewer = RsaViewer(number)
    wire = Wire(RsaAes(number, passwords(), server_key()).begin(""))
    viewer.login(wire, "", VIEW)
    assert wire.outcome == Passed(view_only=True)
    assert (wire.codec is not None) is (number in (5, 129))
    assert viewer.fingerprint == server_key().fingerprint


def test_rsa_aes_goes_on_with_its_codec() -> None:
    """The session's bytes go through the codec that the exchange has used."""
    wire = Wire(RsaAes(129, passwords(), server_key()).begin(""))
    viewer = RsaViewer(129, 1024)
    codec = viewer.agree(wire)
    assert codec.next_message(wire.heard) == b"\2"
    wire.say(codec.encrypt(b"\0" + bytes([len(FULL)]) + FULL.encode()) + codec.encrypt(b"\1")[:10])
    assert wire.outcome == Passed()
    server = wire.codec
    assert isinstance(server, EaxCodec)
    text = bytes(range(256)) * 100
    assert codec.decrypt(bytearray(server.encrypt(text))) == text
    assert len(wire.unread) == 10


def test_rsa_aes_users() -> None:
    """Names are asked for if there are any."""
    known = passwords(anna="a-password")
    for password, outcome in (("a-password", Passed("anna")), (FULL, Failed(REFUSED))):
        wire = Wire(RsaAes(129, known, server_key()).begin(""))
        RsaViewer(129, 1024).login(wire, "anna", password)
        assert wire.outcome == outcome
        assert wire.codec is not None, "the refusal is for the viewer alone"


def test_rsa_aes_bad_padding_looks_like_a_bad_hash() -> None:
    """Nobody learns whether random bytes were padded well."""
    heard: list[tuple[int, object]] = []
    for damage in (False, True):
        wire = Wire(RsaAes(129, passwords(), server_key()).begin(""))
        viewer = RsaViewer(129, 1024)
        wire.hear(4 + 2 * server_key().bytes)
        good = server_key().private.public_key().encrypt(bytes(32), padding.PKCS1v15())
        wire.say(viewer.public + b"\1\0" + (b"\1" * 256 if damage else good))
        assert wire.outcome is None
        wire.say(b"\0\x20" + bytes(48))
        heard.append((len(wire.heard), wire.outcome))
    assert heard[0] == heard[1] == (2 + 128 + 2 + 32 + 16, Failed(REFUSED))


@pytest.mark.parametrize(
    "key",
    [
        (1023).to_bytes(4, "big"),
        (4097).to_bytes(4, "big"),
        bytes(4),
        b"\xff" * 4,
        (1024).to_bytes(4, "big") + bytes(256),
        (1024).to_bytes(4, "big") + b"\xff" * 256,
        (1024).to_bytes(4, "big") + b"\xff" * 128 + bytes(127) + b"\1",
        (1024).to_bytes(4, "big") + b"\xff" * 128 + bytes(127) + b"\2",
        (1024).to_bytes(4, "big") + b"\xff" * 127 + b"\xfe" + bytes(125) + b"\1\0\1",
        (2048).to_bytes(4, "big") + bytes(255) + b"\xff" + bytes(253) + b"\1\0\1",
    ],
)
def test_rsa_aes_keys_that_are_none(key: bytes) -> None:
    """Sizes that cost, numbers that are no key."""
    wire = Wire(RsaAes(129, passwords(), server_key()).begin(""))
    wire.say(key)
    assert isinstance(wire.outcome, Failed)


def test_codec_messages() -> None:
    """Long texts take several messages; none can be changed, left out, or sent twice."""
    out, back = EaxCodec(bytes(16), bytes([1]) * 16), EaxCodec(bytes([1]) * 16, bytes(16))
    text = bytes(20_000)
    sealed = bytearray(out.encrypt(text))
    assert len(sealed) == 20_000 + 3 * 18
    first = bytes(sealed[: 8192 + 18])
    part = sealed[:-1]
    assert back.decrypt(part) == text[:16384]
    assert len(part) == 20_000 - 16_384 + 17
    assert back.decrypt(sealed[-(20_000 - 16_384 + 18) :]) == text[16384:]
    for wrong in (first, bytes(18), out.encrypt(b"x")[:-1] + b"\0"):
        with pytest.raises(RfbError):
            back.decrypt(bytearray(wrong))
    assert out.encrypt(b"") == b""


# --- what is offered ---


def numbers(types: list[SecurityType]) -> list[int]:
    """Type numbers, VeNCrypt's replaced by its subtypes."""
    found: list[int] = []
    for one in types:
        found += one.subtypes if isinstance(one, VeNCrypt) else [one.number]
    return found


@pytest.mark.parametrize(
    ("policy", "users", "expected", "words"),
    [
        (Policy(), False, [1], ("none", "")),
        (Policy(encryption="offered"), False, [260, 257, 1], ("vencrypt", "x509-none")),
        (Policy(encryption="required"), False, [260, 257], ("vencrypt", "x509-none")),
        (Policy(password=True), False, [2], ("vnc", "")),
        (
            Policy(password=True, encryption="offered"),
            False,
            [261, 262, 258, 259, 129, 5, 130, 6, 2],
            ("vencrypt", "x509-vnc"),
        ),
        (Policy(password=True, encryption="required"), False, [261, 262, 258, 259, 129, 5], ("vencrypt", "x509-vnc")),
        (Policy(encryption="required"), True, [262, 259, 129, 5], ("vencrypt", "x509-plain")),
        (
            Policy(password=True, encryption="offered"),
            True,
            [262, 261, 259, 258, 129, 5, 130, 6, 2],
            ("vencrypt", "x509-plain"),
        ),
        (Policy(), True, [], ("invalid", "")),
        (Policy(clear_users=True), True, [256], ("vencrypt", "plain")),
    ],
)
def test_offers(policy: Policy, users: bool, expected: list[int], words: tuple[str, str]) -> None:
    """No policy offers less than it says; names are never asked for in the clear unless that was asked for."""
    known = Passwords(never, users={"anna": "secret"} if users else None)
    types = security_types(known, policy, Means(object(), object(), server_key()))
    assert numbers(types) == expected
    assert auth_words(types) == words


def test_offers_without_means() -> None:
    """Without means to encrypt, a server that has to offers nothing."""
    assert security_types(passwords(), Policy(True, "required")) == []
    assert numbers(security_types(passwords(), Policy(True, "offered"))) == [2]


# --- hostile viewers ---


def hostile(offer: SecurityType, pieces: list[bytes]) -> None:
    """Feed an exchange; whatever comes, it goes on or ends, keeps a bounded number of bytes, and raises nothing."""
    exchange = offer.begin("peer")
    steps = list(exchange.start())
    data = bytearray()
    for piece in pieces:
        if any(isinstance(step, Passed | Failed | StartTls) for step in steps):
            break
        data += piece
        more = exchange.receive(data)
        for step in more:
            assert isinstance(step, Send | StartTls | Wrap | Passed | Failed)
        assert sum(isinstance(step, Passed | Failed) for step in more) <= 1
        steps += more
        if not any(isinstance(step, Passed | Failed | StartTls) for step in steps):
            assert len(data) < 70_000, "an exchange waits for more than it can need"
    assert not any(isinstance(step, Passed) for step in steps), "in by accident"


interesting = st.one_of(
    st.binary(max_size=64),
    st.sampled_from([b"\0\2", b"\0\2" + PLAIN.to_bytes(4, "big"), bytes(8), b"\0\0\4\0", b"\0\0\x08\0", b"\xff" * 16]),
    st.builds(lambda count, value: bytes([value]) * count, st.integers(0, 1100), st.integers(0, 255)),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(interesting, max_size=8))
def test_any_bytes(pieces: list[bytes]) -> None:
    """Each type takes any bytes in any pieces."""
    known = passwords(anna="a-password")
    hostile(VncAuthentication(known), pieces)
    hostile(vencrypt(known, PLAIN, X509_PLAIN, TLS_VNC), pieces)
    hostile(vencrypt(known, PLAIN), [b"\0\2", PLAIN.to_bytes(4, "big"), *pieces])
    for number in (5, 129):
        hostile(RsaAes(number, known, server_key()), pieces)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=40), max_size=6), st.booleans())
def test_any_bytes_inside_rsa_aes(texts: list[bytes], raw: bool) -> None:
    """A viewer that has agreed on keys says anything, in messages or not."""
    wire = Wire(RsaAes(129, passwords(), server_key()).begin(""))
    codec = _viewer().agree(wire)
    for text in texts:
        wire.say(text if raw else codec.encrypt(text))
    assert not isinstance(wire.outcome, Passed)


@functools.cache
def _viewer() -> RsaViewer:
    return RsaViewer(129, 1024)

