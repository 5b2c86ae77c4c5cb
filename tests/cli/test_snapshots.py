"""What `tvmm save` and `tvmm restore` say and ask, without a machine."""

from __future__ import annotations

import io
import json
import os
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests.support.snapshot_files import write_small
from tvmm.cli import main
from tvmm.cli.parser import parse
from tvmm.cli.restore import host_options
from tvmm.cli.save_display import progress_rows, summary_lines
from tvmm.cli.snapshot_secret import answer, new_secret
from tvmm.cli.verbs import VERBS
from tvmm.control.save_info import save_info, save_status_of
from tvmm.errors import ConfigError, UserError
from tvmm.snapshot.format import KeySource
from tvmm.snapshot.status import NO_SAVE, SaveParameters, SaveStatus

if TYPE_CHECKING:
    from pathlib import Path

DONE = SaveStatus("completed", "/a.snap", 1 << 30, 1 << 30, 64 << 20, 65 << 20, 500.0, 450.0, live_by="dirty-log")


def test_a_status_goes_to_clients_and_back() -> None:
    """As JSON; hostile answers are errors."""
    assert save_status_of(json.loads(json.dumps(save_info(DONE)))) == DONE
    assert save_status_of(save_info(NO_SAVE)) == NO_SAVE
    failed = DONE._replace(state="failed", error="the disk is full", error_hint="buy one")
    assert save_status_of(save_info(failed)).error == "the disk is full; buy one"
    for info in ({}, {"status": "odd"}, {"status": "active", "done": "many"}):
        with pytest.raises(ValueError, match="the machine tells"):
            save_status_of(info)


def test_what_is_shown() -> None:
    """While it goes on, and at the end."""
    rows = dict(progress_rows(DONE._replace(state="active", done=1 << 29)))
    assert rows["phase"] == "writing memory"
    assert rows["RAM"] == "512M of 1G"
    assert summary_lines("web", DONE)[0] == "web was saved in /a.snap in 500ms; the guest was paused for 450ms"
    assert "it has ended" in summary_lines("web", DONE._replace(stopped=True))[0]
    assert "encrypted" in summary_lines("web", DONE._replace(encrypted=True))[1]


def test_options_stand_anywhere() -> None:
    """Also between the name, which may be left out, and the file."""
    verb = next(verb for verb in VERBS if verb.name == "save")
    for line in ("web a.snap --live", "web --live a.snap", "--live web a.snap"):
        assert parse(verb, line.split()) == {"name": "web", "file": "a.snap", "live": True}
    with pytest.raises(ConfigError, match="unexpected argument 'b'"):
        parse(verb, ["web", "--live", "a.snap", "b"])


def test_secrets_come_from_files(tmp_path: Path) -> None:
    """The first line of one, the bytes of another; and what is wrong with them."""
    words, key, short = tmp_path / "words", tmp_path / "key", tmp_path / "short"
    words.write_text("open sesame\nand more\n")
    key.write_bytes(bytes(range(32)))
    short.write_bytes(b"1")
    assert new_secret({}) == {}
    assert new_secret({"passphrase_file": str(words)}) == {"passphrase": "open sesame"}
    assert new_secret({"key_file": str(key)}) == {"key": bytes(range(32)).hex()}
    assert answer({"passphrase_file": str(words)})(KeySource(1)).data == b"open sesame"
    with pytest.raises(UserError, match="has 1 bytes"):
        new_secret({"key_file": str(short)})
    with pytest.raises(UserError, match="encrypted with a key file"):
        answer({})(KeySource(2))
    with pytest.raises(ConfigError, match="a passphrase and a key file"):
        SaveParameters(passphrase="a", key=b"b").check()
    with pytest.raises(ConfigError, match="the key has 1 bytes"):
        SaveParameters(key=b"b").check()
    with pytest.raises(ConfigError, match="no character"):
        SaveParameters(passphrase="\ud800").check()


def test_a_passphrase_comes_out_of_a_pipe() -> None:
    """As of <(pass show web), whose writer takes its time."""
    reader, writer = os.pipe()

    def write() -> None:
        os.write(writer, b"open sesame\n")
        os.close(writer)

    timer = threading.Timer(0.05, write)
    timer.start()
    try:
        assert new_secret({"passphrase_file": f"/dev/fd/{reader}"}) == {"passphrase": "open sesame"}
    finally:
        timer.join()
        os.close(reader)


def test_secrets_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in one line, which never tells to write over a file that is there."""
    latin, key = tmp_path / "latin", tmp_path / "key"
    latin.write_bytes("s\u00e9same".encode("latin-1"))
    key.write_bytes(bytes(5000))
    for options, why in (
        ({"passphrase_file": str(latin)}, "latin is not UTF-8 text"),
        ({"passphrase_file": os.devnull}, "the first line of passphrase file /dev/null has 0 characters"),
        ({"key_file": str(key)}, "more than 4096 bytes"),
        ({"key_file": str(key), "passphrase_file": str(latin)}, "give one of them"),
    ):
        with pytest.raises(UserError, match=why) as caught:
            new_secret(options)
        assert "> /" not in str(caught.value)
    with pytest.raises(UserError, match="give one of them"):
        answer({"key_file": "a", "passphrase_file": "b"})
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UserError, match="a passphrase is wanted, and there is no terminal"):
        new_secret({"encrypt": True})


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (EOFError(), "no passphrase was given"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), "what was typed is not UTF-8 text"),
    ],
)
def test_what_is_typed_is_no_passphrase(error: Exception, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-D, and keys of another encoding than the terminal's."""

    def typed(prompt: str) -> str:
        raise error

    monkeypatch.setattr("getpass.getpass", typed)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(UserError, match=why):
        answer({})(KeySource(1))


def test_what_does_not_go_together_is_told_before_a_passphrase_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No machine is needed for that either."""
    assert main(["save", "nobody", "--live", "--encrypt", "a.snap"]) == 2
    assert "a live snapshot cannot be encrypted" in capsys.readouterr().err


def test_a_file_is_described_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For people and for programs; a damaged one in a line."""
    path = tmp_path / "a.snap"
    write_small(str(path))
    assert main(["restore", str(path), "--info"]) == 0
    out = capsys.readouterr().out
    assert "name       golden" in out
    assert "disk       /a.img (disk0, 1M)" in out
    assert "options    --disk /a.img --disk /b.img,readonly=on" in out
    assert main(["restore", str(path), "--verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verified"]
    assert found["options"] == {"memory": "2M", "disk": ["/a.img", "/b.img,readonly=on"]}
    with path.open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"damage")
    assert main(["restore", str(path), "--verify"]) == 2
    assert "checksum of chunk 0 of pc.ram differs" in capsys.readouterr().err
    assert main(["restore", str(path), "--json"]) == 2


def test_what_a_file_uses_of_the_host_is_shown() -> None:
    """Everything that can be a path, as it could be given anew."""
    options = {
        "memory": "2M", "serial": "file=/etc/a b", "net": ["tap,br=br0"],
        "device": ["virtio-rng", "virtconsole,chardev=unix=/tmp/h"],
    }  # fmt: skip
    assert host_options(options) == (
        "--net tap,br=br0 --serial 'file=/etc/a b' --device virtconsole,chardev=unix=/tmp/h"
    )
