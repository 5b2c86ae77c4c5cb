"""Passwords, users, ends of passwords, and the files that they are in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.errors import HostError, UserError
from tvmm.vnc.des import encrypt_challenge
from tvmm.vnc.passwords import (
    GENERATED_LENGTH,
    PASSWORD_LIMIT,
    USERS_LIMIT,
    Grant,
    Passwords,
    expiry_time,
    generate_password,
    parse_users,
)
from tvmm.vnc.private_files import FILE_LIMIT, read_password, read_private, read_users


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_both_passwords() -> None:
    """Each lets in with its rights; an empty one lets nobody in."""
    known = Passwords(Clock(), full="full-one", view_only="view-one")
    assert known.check_password(b"full-one") == Grant()
    assert known.check_password(b"view-one") == Grant(view_only=True)
    for wrong in (b"", b"full-on", b"full-one ", b"full-one\0", b"\xff", b"x" * 5000):
        assert known.check_password(wrong) is None
    nobody = Passwords(Clock())
    assert nobody.check_password(b"") is None
    assert nobody.check_response(bytes(16), encrypt_challenge(b"", bytes(16))) is None


def test_passwords_change() -> None:
    """The next viewer needs the new one."""
    known = Passwords(Clock(), full="first")
    known.set_password("second")
    assert known.check_password(b"first") is None
    assert known.check_password(b"second") == Grant()
    known.set_password("")
    assert known.check_password(b"") is None


def test_passwords_end() -> None:
    """From its end on a password lets nobody in, to look neither; users have no end."""
    clock = Clock()
    known = Passwords(clock, full="full", view_only="view", users={"anna": "hers"})
    known.expire(clock.now + 10)
    clock.now += 9.5
    assert known.check_password(b"full") == Grant()
    clock.now += 0.5
    assert known.is_expired
    assert known.check_password(b"full") is None
    assert known.check_password(b"view") is None
    assert known.check_response(bytes(16), encrypt_challenge(b"full", bytes(16))) is None
    assert known.check_user(b"anna", b"hers") == Grant("anna")
    known.expire(None)
    assert known.check_password(b"view") == Grant(view_only=True)


def test_any_name_goes_with_the_password_while_there_are_no_users() -> None:
    """The name is told, and cannot spoil a log."""
    known = Passwords(Clock(), full="full", view_only="view")
    assert known.check_user(b"any", b"full") == Grant("any")
    assert known.check_user(b"a\nb\xff", b"view") == Grant("a?b\ufffd", view_only=True)
    assert known.check_user(b"any", b"") is None
    assert known.check_user(b"x" * 256, b"full") is None


def test_what_is_no_password() -> None:
    """One line each, without the password in it."""
    for wrong in ("a\nb", "a\0", "x" * (PASSWORD_LIMIT + 1), "\udcff", "\x7f"):
        with pytest.raises(UserError) as caught:
            Passwords(Clock(), full=wrong)
        assert wrong not in str(caught.value)
    known = Passwords(Clock(), full="full", view_only="12345678-view")
    with pytest.raises(UserError, match="same first 8 bytes"):
        known.set_password("12345678-full")
    assert known.check_password(b"full") == Grant()
    with pytest.raises(UserError, match="same first 8 bytes"):
        Passwords(Clock(), full="same", view_only="same")
    with pytest.raises(UserError, match="same first 8 bytes"):
        Passwords(Clock(), full="C)bc", view_only="\xe9bc")


def test_generated_passwords() -> None:
    """Printable, long, and another one each time."""
    made = {generate_password() for _ in range(50)}
    assert len(made) == 50
    for password in made:
        assert len(password) == GENERATED_LENGTH >= 12
        assert password.isascii()
        assert password.isalnum()
        assert not set(password) & set("0OIl1")


def test_users() -> None:
    """A name and a password on each line; a password may have colons."""
    text = "# who\n\nanna:one\r\nbert:two:three\nc d: four \n"
    assert parse_users(text) == {"anna": "one", "bert": "two:three", "c d": " four "}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "names nobody"),
        ("# only\n", "names nobody"),
        ("anna", "line 1 of users has no colon"),
        ("anna:x\n:secret", "line 2 of users names no user"),
        ("anna:", "line 1 of users names no user"),
        ("anna:a\nanna:b", "line 2 of users names a user for the second time"),
        ("a\x01:secret", "line 1 of users names no user"),
        ("\n".join(f"u{number}:secret" for number in range(USERS_LIMIT + 1)), "more than 1024 users"),
    ],
)
def test_bad_users(text: str, complaint: str) -> None:
    """The line is told, what is in it is not."""
    with pytest.raises(UserError) as caught:
        parse_users(text, "users")
    assert complaint in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "when"),
    [("now", 50.0), ("never", None), ("+0", 50.0), ("+60", 110.0), ("0", 0.0), ("1700000000", 1_700_000_000.0)],
)
def test_expiry(text: str, when: float | None) -> None:
    """QEMU's four forms."""
    assert expiry_time(text, 50.0) == when


@given(st.text(max_size=20))
def test_any_expiry_is_a_time_or_refused(text: str) -> None:
    """Nothing else comes out."""
    try:
        when = expiry_time(text, 50.0)
    except UserError:
        return
    assert when is None or 0 <= when < 1 << 41


@pytest.mark.parametrize("text", ["", "+", "-1", "+-1", "1.5", " 1", "1_0", "٣", "9" * 15, "9" * 400, "NOW", "1e3"])
def test_bad_expiry(text: str) -> None:
    """What is no time."""
    with pytest.raises(UserError, match="no time for a password to end"):
        expiry_time(text, 50.0)


def private(path: Path, data: bytes, mode: int = 0o600) -> Path:
    """A file with `data`."""
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_files(tmp_path: Path) -> None:
    """One line is the password, and users are lines."""
    for data, password in ((b"secret", "secret"), (b"secret\r\n", "secret"), (b" a b \n", " a b "), (b"\xc3\xa9", "é")):
        assert read_password(private(tmp_path / "password", data)) == password
    assert read_users(private(tmp_path / "users", b"anna:one\n")) == {"anna": "one"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o777])
def test_files_that_others_can_read(tmp_path: Path, mode: int) -> None:
    """They are refused, with what to do."""
    with pytest.raises(HostError, match="others can read"):
        read_password(private(tmp_path / "password", b"secret", mode))


def test_files_that_are_none(tmp_path: Path) -> None:
    """Each in one line."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "directory").mkdir(mode=0o700)
    for name, complaint in (("missing", "cannot read"), ("pipe", "is not a file"), ("directory", "cannot read")):
        with pytest.raises(HostError, match=complaint):
            read_private(tmp_path / name)
    with pytest.raises(HostError, match="larger than 1 MiB"):
        read_private(private(tmp_path / "large", bytes(FILE_LIMIT + 1)))
    for data, complaint in ((b"", "is empty"), (b"one\ntwo\n", "control character"), (b"\xff", "not text in UTF-8")):
        with pytest.raises(UserError, match=complaint):
            read_password(private(tmp_path / "wrong", data))
