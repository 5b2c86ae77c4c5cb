"""From configuration to backend, and what that imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chardev.fakes import FakeActions
from tvmm.chardev.factory import open_backend
from tvmm.config.serial import SerialConfig
from tvmm.errors import ConfigError


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        ("stdio", "StdioBackend"),
        ("none", "NoneBackend"),
        ("pty,link={tmp}/link", "PtyBackend"),
        ("file={tmp}/log,append=on", "FileBackend"),
        ("unix={tmp}/sock", "UnixBackend"),
        ("tcp=127.0.0.1:0", "TcpBackend"),
    ],
)
async def test_every_kind_can_be_acquired(spelling: str, kind: str, tmp_path: Path) -> None:
    """Each spelling of `--serial` gives its backend, which can be acquired and undone."""
    config = SerialConfig.parse(spelling.format(tmp=tmp_path))
    backend = open_backend(config, FakeActions())
    assert type(backend).__name__ == kind
    if kind != "StdioBackend":
        async with backend:
            assert backend.patience >= 0


def test_unknown_kind_is_refused() -> None:
    """A record that was not checked does not get a backend."""
    with pytest.raises(ConfigError, match="carrier pigeon"):
        open_backend(SerialConfig(kind="carrier pigeon"), FakeActions())


def test_stdio_imports_only_what_it_needs() -> None:
    """The way to the first byte on a terminal loads no other backend, and little besides Trio."""
    program = (
        "import sys, trio; before = set(sys.modules)\n"
        "import tvmm.chardev.factory, tvmm.chardev.stdio\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name for name in loaded if not name.startswith("tvmm")} <= {"termios"}
    assert {name.rpartition(".")[2] for name in loaded if name.startswith("tvmm.chardev.")} == {
        "descriptor", "factory", "feed", "history", "port", "stdio", "terminal",
    }  # fmt: skip
