"""The verb for certificates, as a user of two hosts types it."""

from __future__ import annotations

import datetime
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import tvmm
from tests.cli.test_completion import completions
from tests.cli.test_errors import one_line
from tests.cli.test_main import imported_after
from tvmm.cli import main
from tvmm.cli.keys import _own_names

NOW = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's own files are, at a time of day that does not matter."""
    monkeypatch.setattr("tvmm.cli.keys._now", lambda: NOW)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    # Programs that are started from there are to be those of this tree.
    monkeypatch.setenv("PYTHONPATH", str(Path(tvmm.__file__).parent.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def output(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """What a command that succeeds prints."""
    assert main(line.split(" ")) == 0
    return capsys.readouterr().out


def test_two_hosts(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    """A CA here, a bundle carried in a file, and keys there."""
    assert "host    " in output(capsys, "keys init --san 10.0.0.1")
    assert (home / "config" / "tvmm" / "keys" / "ca.key").exists()
    assert output(capsys, "keys issue beta --san 10.0.0.2") == "beta.tvmm-keys.pem\n"
    assert stat.S_IMODE((home / "beta.tvmm-keys.pem").stat().st_mode) == 0o600
    assert main("keys import beta.tvmm-keys.pem --keys there".split()) == 0
    out, err = capsys.readouterr()
    assert out.startswith("this host is beta (beta, 10.0.0.2) until ")
    assert "delete beta.tvmm-keys.pem now" in err
    shown = output(capsys, "keys show --keys there")
    assert "this host  beta\n" in shown
    assert "its key is on another host" in shown
    assert "365 days left" in shown
    here = output(capsys, "keys show")
    assert ", its key is here" in here
    assert "beta,10.0.0.2" in here


def test_the_hosts_names(capsys: pytest.CaptureFixture[str]) -> None:
    """What others may call this host is in its certificate; what only this host can use is not."""
    output(capsys, "keys init --san extra.example.org --san 203.0.113.9")
    names = json.loads(output(capsys, "keys show --json"))["host"]["names"]
    assert names[0] == os.uname().nodename.lower()
    assert {"extra.example.org", "203.0.113.9"} <= set(names)
    assert not {"127.0.0.1", "::1", "localhost"} & set(names)


def test_own_names_do_not_need_a_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a host that cannot look itself up, and has no address, has a name."""

    def nothing(*arguments: object, **settings: object) -> object:
        raise OSError("nothing there")

    monkeypatch.setattr("socket.getaddrinfo", nothing)
    monkeypatch.setattr("socket.socket", nothing)
    monkeypatch.setattr("socket.getfqdn", lambda: "localhost.localdomain")
    monkeypatch.setattr("socket.gethostname", lambda: "alpha")
    assert _own_names() == ["alpha"]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """All that the table has, for programs."""
    output(capsys, "keys init")
    output(capsys, "keys issue beta")
    output(capsys, "keys revoke beta")
    found = json.loads(output(capsys, "keys show --json"))
    assert found["is_ca"] is True
    assert found["host"]["days_left"] == 365
    assert len(found["ca"]["sha256"]) == 64
    (beta,) = [one for one in found["issued"] if one["subject"] == "beta"]
    assert beta["revoked"]
    assert found["crl"] == {"number": 2, "revoked": {beta["serial"]: beta["revoked"]}}


def test_revoking(capsys: pytest.CaptureFixture[str]) -> None:
    """By host or serial number; the list goes to the other host through a pipe."""
    output(capsys, "keys init")
    output(capsys, "keys issue beta")
    output(capsys, "keys import beta.tvmm-keys.pem --keys there")
    serial = json.loads(output(capsys, "keys show --json --keys there"))["host"]["serial"]
    assert output(capsys, f"keys revoke {serial}") == f"revoked {serial} of beta\n"
    assert "revoked 20" in output(capsys, "keys show")
    piped = output(capsys, "keys export-crl")
    Path("crl.pem").write_text(piped)
    assert output(capsys, "keys import crl.pem --keys there") == "revocation list 2: 1 revoked\n"
    assert ", revoked 20" in output(capsys, "keys show --keys there")


def test_through_pipes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """- is standard output and input: no file with a private key is left anywhere."""
    output(capsys, "keys init")
    bundle = output(capsys, "keys issue beta --out -")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bundle.encode())))
    assert output(capsys, "keys import - --keys there").startswith("this host is beta")


BAD = {
    "keys": "the following arguments are required: COMMAND",
    "keys isue": "invalid choice: 'isue'",
    "keys issue": "the following arguments are required: HOST; see 'tvmm keys issue --help'",
    "keys issue beta --sann x": "did you mean '--san'?",
    "keys show": "there is no key directory",
    "keys show --keys /dev/null": "/dev/null is not a directory",
    "keys issue beta": "there is no key directory",
    "keys revoke beta": "there is no key directory",
    "keys export-crl": "there is no key directory",
    "keys init --san a_b/c": "'a_b/c' is neither a host name nor an IP address",
    "keys import nothing": "cannot read nothing: No such file or directory",
    "keys import /dev/null": "it has no PEM blocks",
    "keys import /dev/zero": "it is too large",
    "keys import .": "cannot read .: Is a directory",
    "keys init --keys /proc/x": "cannot make the key directory /proc/x",
}


@pytest.mark.parametrize(("line", "complaint"), BAD.items())
def test_bad_input(line: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says what is wrong, and the status is that of wrong usage."""
    assert main(line.split(" ")) == 2
    assert complaint in one_line(capsys)


def test_no_file_is_overwritten_and_none_is_left(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    """A bundle that is there stays; where none can be made, nothing is issued, and no empty file stays behind."""
    output(capsys, "keys init")
    (home / "beta.tvmm-keys.pem").write_text("precious")
    assert main("keys issue beta".split()) == 2
    assert "beta.tvmm-keys.pem is there already" in one_line(capsys)
    assert (home / "beta.tvmm-keys.pem").read_text() == "precious"
    assert main("keys issue beta --out none/x".split()) == 2
    assert "cannot make none/x: No such file" in one_line(capsys)
    assert main(["keys", "issue", "a b"]) == 2
    assert not list(home.glob("a b*"))
    assert len(json.loads(output(capsys, "keys show --json"))["issued"]) == 1


def test_a_terminal_gets_no_private_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stay in its history."""
    output(capsys, "keys init")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main("keys issue beta --out -".split()) == 2
    assert "a private key is nothing for a terminal" in one_line(capsys)


@pytest.mark.parametrize("command", ["init", "issue", "import", "show", "revoke", "export-crl"])
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A description, examples, and lines that fit."""
    out = output(capsys, f"keys {command} --help")
    assert f"usage: tvmm keys {command}" in out
    assert "examples:\n  tvmm keys" in out or "examples:\n  ssh" in out
    assert "--keys DIR" in out
    assert all(len(line) <= 110 for line in out.splitlines())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tvmm keys i", ["init", "issue", "import"]),
        ("tvmm keys issue --s", ["--san"]),
        ("tvmm keys revoke be", ["beta"]),
        ("tvmm keys revoke --keys there be", []),
        ("tvmm keys import beta.tv", ["beta.tvmm-keys.pem"]),
    ],
)
def test_completion(line: str, offered: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands, their options, bundles, and the hosts that have certificates."""
    output(capsys, "keys init")
    output(capsys, "keys issue beta")
    assert sorted(completions(line, tmp_path)) == sorted(offered)


def test_the_home_directory_is_the_default(home: Path) -> None:
    """Where XDG_CONFIG_HOME is not set."""
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": ""}
    subprocess.run(
        [sys.executable, "-m", "tvmm.cli", "keys", "init"],
        env=environment,
        check=True,
        capture_output=True,
    )
    assert (home / ".config" / "tvmm" / "keys" / "host.pem").exists()


def test_cryptography_is_for_who_needs_it() -> None:
    """Neither other verbs nor a help text, nor a machine's migration package by itself, imports it."""
    heavy = {"cryptography", "ssl", "tvmm.migration.authority"}
    assert not imported_after("main(['keys', '--help'])") & (heavy - {"ssl"})
    assert not imported_after("import tvmm.migration, tvmm.migration.security, tvmm.migration.keys") & heavy
    assert "cryptography" not in imported_after("import tvmm.migration.pairing, tvmm.migration.secure")
    assert not imported_after("from tvmm.cli.run import configure; configure({}, {}, 0, 1)") & heavy
