"""What ``--vnc`` says, as types that are offered and lines that are printed."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from tests.vnc.viewer_ends import Wire, answer_challenge
from tvmm.config.vnc import VncConfig
from tvmm.errors import HostError, UserError
from tvmm.migration.keys import KeyDirectory
from tvmm.vnc.access import RSA_KEY_NAME, Access, open_access, rsa_key
from tvmm.vnc.security_types import Passed
from tvmm.vnc.vencrypt import VeNCrypt
from tvmm.vnc.vnc_auth import VncAuthentication

NOW = datetime.datetime.now(datetime.UTC)


def access(text: str) -> Access:
    """What that much of a command line opens."""
    return open_access(VncConfig.parse(text), NOW.timestamp, ["here.example"])


def numbers(opened: Access) -> list[int]:
    """Types, with subtypes in place of VeNCrypt."""
    found: list[int] = []
    for one in opened.types:
        found += one.subtypes if isinstance(one, VeNCrypt) else [one.number]
    return found


def private(path: Path, text: str) -> Path:
    """A file that nobody else can read."""
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_loopback() -> None:
    """Who is on this host comes in, and there is nothing to tell."""
    opened = access(":0,max-viewers=3")
    assert (numbers(opened), opened.lines, opened.auth) == ([1], (), ("none", ""))
    assert opened.limits.viewers == 3
    assert opened.certificate is None
    with pytest.raises(UserError, match="asks for no password"):
        opened.set_password("x")
    with pytest.raises(UserError, match="asks for no password"):
        opened.expire_password("now")


def test_everywhere_else() -> None:
    """A password is made up and printed, with two fingerprints and a warning."""
    opened = access("0.0.0.0:5900")
    assert numbers(opened) == [261, 262, 258, 259, 129, 5, 130, 6, 2]
    assert opened.auth == ("vencrypt", "x509-vnc")
    warning, password, certificate, key = opened.lines
    assert "is weak" in warning
    assert certificate.startswith("VNC certificate SHA-256 ")
    assert key.startswith("VNC key for RSA-AES ")
    wire = Wire(opened.types[-1].begin(""))
    answer_challenge(wire, password.split()[2])
    assert wire.outcome == Passed()


def test_tls_only() -> None:
    """No warning, and no type in the clear."""
    opened = access("0.0.0.0:5900,tls=on")
    assert numbers(opened) == [261, 262, 258, 259, 129, 5]
    assert not any("weak" in line for line in opened.lines)
    assert numbers(access(":0,tls=on")) == [260, 257]


def test_files(tmp_path: Path) -> None:
    """Passwords out of files are not printed."""
    full, view = private(tmp_path / "full", "secret-full\n"), private(tmp_path / "view", "view-secret\n")
    users = private(tmp_path / "users", "anna:users-secret\n")
    text = f"0.0.0.0:5900,password-file={full},view-only-password-file={view},users-file={users}"
    opened = access(text)
    assert not any("secret" in line or "VNC password" in line for line in opened.lines)
    assert opened.passwords.check_user(b"anna", b"users-secret")
    found = [one for one in opened.types if isinstance(one, VncAuthentication)]
    wire = Wire(found[0].begin(""))
    answer_challenge(wire, "view-secret")
    assert wire.outcome == Passed(view_only=True)
    full.chmod(0o644)
    with pytest.raises(HostError, match="others can read"):
        access(text)


def test_passwords_change_and_end() -> None:
    """As QMP has it."""
    opened = access("unix:/x,password=on")
    opened.set_password("another")
    assert opened.passwords.check_password(b"another")
    opened.expire_password("+10")
    assert opened.passwords.expires == NOW.timestamp() + 10
    opened.expire_password("now")
    assert opened.passwords.check_password(b"another") is None
    opened.expire_password("never")
    assert opened.passwords.check_password(b"another")
    opened.set_password("")
    assert opened.passwords.check_password(b"") is None


def test_keys(tmp_path: Path) -> None:
    """The certificate is that of migrations, nobody is anonymous, and the RSA key stays the same."""
    tmp_path.chmod(0o700)
    directory = KeyDirectory(tmp_path)
    directory.init("localhost", [], NOW)
    text = f":0,password=on,tls=on,keys={tmp_path}"
    first, second = access(text), access(text)
    assert numbers(first) == [261, 262, 129, 5]
    assert first.lines[1:] == second.lines[1:]
    inventory = directory.inventory()
    assert inventory.host is not None
    assert first.lines[1] == f"VNC certificate SHA-256 {inventory.host.sha256}"
    assert (tmp_path / RSA_KEY_NAME).stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir() if "rsa" in path.name} == {RSA_KEY_NAME}
    with pytest.raises(HostError, match="cannot read"):
        access(f":0,tls=on,keys={tmp_path}/nowhere")


def test_rsa_key_files(tmp_path: Path) -> None:
    """What is no key is told; where none can be kept, one is made for this time."""
    path = tmp_path / "key"
    for text in ("", "nonsense"):
        with pytest.raises(HostError, match="is no private key"):
            rsa_key(private(path, text))
    assert rsa_key(tmp_path / "nowhere" / "key").bytes == 256
    assert not (tmp_path / "nowhere").exists()
