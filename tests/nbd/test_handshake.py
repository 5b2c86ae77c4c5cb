"""The client's handshake against a server that does everything, and one that does everything wrong."""

from __future__ import annotations

import re
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.nbd_server import ALL_FLAGS, Facts, HangUp, ServerHalf
from tvmm.errors import ImageError
from tvmm.nbd.constants import MAX_OPTION_REPLY, NBDMAGIC, OLDSTYLE, OPTION_REPLY_MAGIC, Flag, Option, Reply
from tvmm.nbd.handshake import DoesNotFit, Export, Handshake, Phase


def shake(facts: Facts, export: str = "", *, tls: bool = False, step: int = 1 << 20) -> tuple[Export, list[str]]:
    """Both halves back to back, `step` bytes at a time: what was agreed on, and the options that were asked for."""
    server = ServerHalf(facts)
    client = Handshake("server", export, tls=tls)
    to_client, to_server = bytearray(server.taken()), bytearray()
    closed = False
    while client.phase is not Phase.DONE:
        if client.phase is Phase.WANTS_TLS:
            server.starts_tls, server.secure = False, True
            to_server += client.tls_made()
        elif to_client:
            data = bytes(to_client[:step])
            del to_client[:step]
            to_server += client.receive(data)
        elif closed:
            client.closed()
        else:
            assert to_server or server.stalled, "both wait"
            if server.stalled:
                raise TimeoutError
            try:
                to_client += server.receive(bytes(to_server))
            except HangUp:
                to_client += server.taken()
                closed = True
            to_server.clear()
    assert client.export is not None
    return client.export, server.seen


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_everything_that_is_offered_is_used(step: int) -> None:
    """Size, flags, blocks, structured replies, block status; in pieces of any length."""
    facts = Facts({"disk": bytearray(3 << 20)}, block_sizes=(512, 4096, 1 << 20))
    export, seen = shake(facts, "disk", step=step)
    assert export == Export(3 << 20, ALL_FLAGS, 512, 4096, 1 << 20, True, False, 7, "disk")
    assert seen == ["EXTENDED_HEADERS", "STRUCTURED_REPLY", "SET_META_CONTEXT", "GO"]
    assert export.has(Flag.SEND_TRIM)
    assert not export.has(Flag.READ_ONLY)


def test_extended_headers() -> None:
    """They stand for structured replies too."""
    export, seen = shake(Facts(extended=True))
    assert (export.structured, export.extended) == (False, True)
    assert "STRUCTURED_REPLY" not in seen


def test_old_servers() -> None:
    """Without GO, without structured replies, without the fixed style, with the zeroes: the name is enough."""
    for no_zeroes in (False, True):
        export, seen = shake(Facts(go=False, structured=False, no_zeroes=no_zeroes))
        assert (export.size, export.structured, export.minimum_block) == (1 << 20, False, 1)
        assert seen[-1] == "EXPORT_NAME"
        export, seen = shake(Facts(fixed=False, no_zeroes=no_zeroes))
        assert (export.size, seen) == (1 << 20, ["EXPORT_NAME"])


def test_tls() -> None:
    """It comes first; all that was learned before is not asked for before."""
    for kind in ("offered", "required"):
        _, seen = shake(Facts(tls=kind), tls=True)
        assert seen[:2] == ["STARTTLS", "EXTENDED_HEADERS"]


MISSING = [
    (Facts({"a": bytearray(), "b c": bytearray()}), False, "has no export 'x'; there are: 'a', 'b c'"),
    (Facts({"a": bytearray()}), False, "there is: 'a'"),
    (Facts({}), False, "the server says: no such export"),
    (Facts({}, listing=False), False, "no export 'x'"),
    (Facts({}, go=False), False, "closed the connection when it was asked for export 'x'; it may have none"),
    (Facts(tls="required"), False, "wants TLS; say tls=on or nbds://"),
    (Facts(tls="no"), True, "has no TLS"),
    (Facts(fixed=False), True, "is too old for TLS"),
]


@pytest.mark.parametrize(("facts", "tls", "words"), MISSING)
def test_what_is_not_there(facts: Facts, tls: bool, words: str) -> None:
    """One line says what is missing, and what there is."""
    with pytest.raises(ImageError, match=re.escape(words)):
        shake(facts, "x", tls=tls)


def reply(option: Option, kind: int, data: bytes = b"", length: int | None = None) -> bytes:
    """An answer of the handshake, with any length."""
    return pack(">QIII", OPTION_REPLY_MAGIC, option, kind, len(data) if length is None else length) + data


GARBAGE = {
    "an HTTP server": ("greeting", b"HTTP/1.1 400 Bad Request\r\n", "is no NBD server: it begins with 'HTTP/1.1'"),
    "an SSH server": ("greeting", b"SSH-2.0-OpenSSH_9.2\r\n", "it begins with 'SSH-2.0-'"),
    "noise": ("greeting", b"\xff" * 40, "it begins with ff ff ff"),
    "half a greeting": ("greeting", pack(">Q", NBDMAGIC) + b"12345678ab", "goes on with '12345678'"),
    "the old style": ("greeting", pack(">QQ", NBDMAGIC, OLDSTYLE) + bytes(136), "speaks the old style"),
    "a wrong magic": ("ACK-GO", b"\0" * 20, "an answer to GO with the magic 0x0"),
    "another option": ("ACK-GO", reply(Option.LIST, Reply.ACK), "answered option 3 when it was asked for GO"),
    "a huge length": ("ACK-GO", reply(Option.GO, Reply.INFO, length=0xFFFFFFFF), f"{MAX_OPTION_REPLY} are the limit"),
    "an answer of another kind": ("ACK-GO", reply(Option.GO, Reply.SERVER), "answered GO with 2"),
    "nothing about the export": ("INFO-GO", b"", "without a word about the export"),
    "a short export": ("INFO-GO", reply(Option.GO, Reply.INFO, bytes(5)), "3 bytes about the export"),
    "half an information": ("INFO-GO", reply(Option.GO, Reply.INFO, b"a"), "information that is too short"),
    "an enormous export": (
        "INFO-GO", reply(Option.GO, Reply.INFO, bytes(2) + b"\xff" * 10), "more than any file",
    ),
    "block sizes": (
        "INFO-GO", reply(Option.GO, Reply.INFO, pack(">HIII", 3, 7, 9, 3)), "blocks have 7, 9 and 3 bytes",
    ),
    "block sizes of zero": ("INFO-GO", reply(Option.GO, Reply.INFO, pack(">HIII", 3, 0, 0, 0)), "which cannot be"),
    "block sizes too short": ("INFO-GO", reply(Option.GO, Reply.INFO, pack(">HI", 3, 1)), "that are none"),
    "a policy": ("INFO-GO", reply(Option.GO, Reply.ERR_POLICY, b"nope\x1b"), "does not allow it (export ''): nope?"),
    "an error to come": ("INFO-GO", reply(Option.GO, (1 << 31) + 77, b"moon"), "refuses (export ''): moon"),
    "a short context": (
        "META_CONTEXT-SET_META_CONTEXT", reply(Option.SET_META_CONTEXT, Reply.META_CONTEXT, b"1"), "too short",
    ),
    "more than was asked for": ("ACK-GO", reply(Option.GO, Reply.ACK) + b"x", "sent more than was asked for"),
    "words before TLS": ("ACK-STARTTLS", reply(Option.STARTTLS, Reply.ACK) + b"x", "sent more than was asked for"),
}  # fmt: skip


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage(what: str) -> None:
    """Whatever breaks the protocol is told in one line, at once."""
    name, data, words = GARBAGE[what]
    facts = Facts(tls="offered", spoil={name: lambda _: data})
    with pytest.raises(ImageError) as caught:
        shake(facts, tls="TLS" in name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", [Option.GO, Option.SET_META_CONTEXT])
def test_answers_without_end(option: Option) -> None:
    """A server that never acknowledges is left."""
    kind, data = (Reply.INFO, b"\0\x09") if option == Option.GO else (Reply.META_CONTEXT, b"\0\0\0\1x")
    endless = reply(option, kind, data) * 3000
    with pytest.raises(ImageError, match=f"does not come to an end with {option.name}"):
        shake(Facts(spoil={f"{kind.name}-{option.name}": lambda _: endless}))


def test_a_list_with_a_name_of_any_length() -> None:
    """The length inside of an answer is checked too."""
    entry = reply(Option.LIST, Reply.SERVER, pack(">I", 1 << 30))
    with pytest.raises(ImageError, match="a name that is too long"):
        shake(Facts({"a": bytearray()}, spoil={"SERVER-LIST": lambda _: entry}), "x")


NAMES = ["greeting", "ACK-GO", "INFO-GO", "ACK-STRUCTURED_REPLY", "META_CONTEXT-SET_META_CONTEXT", "SERVER-LIST"]


@pytest.mark.parametrize("name", [*NAMES, "EXPORT_NAME"])
def test_closed_at_any_point(name: str) -> None:
    """The words say where it was."""
    export = "x" if name == "SERVER-LIST" else ""
    with pytest.raises((ImageError, HangUp)) as caught:
        shake(Facts(go=name != "EXPORT_NAME", hang_up={name}), export)
    assert caught.type is HangUp or "closed the connection" in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mangled(data: st.DataObject) -> None:
    """Any message with any bytes changed, cut or added ends with an export, an `ImageError` or a wait for more."""
    name = data.draw(st.sampled_from(NAMES))
    cut = data.draw(st.integers(0, 40))
    noise = data.draw(st.binary(max_size=30))

    def mangle(message: bytes) -> bytes:
        return message[:cut] + noise + message[cut + len(noise) :]

    try:
        shake(Facts(spoil={name: mangle}), data.draw(st.sampled_from(["", "x"])))
    except (ImageError, TimeoutError, HangUp):
        pass
    except AssertionError as error:
        assert str(error).startswith("both wait")  # noqa: PT017


def test_errors_that_may_pass() -> None:
    """A missing export may come yet; a server that is none stays none."""
    with pytest.raises(DoesNotFit):
        shake(Facts({}), "x")
