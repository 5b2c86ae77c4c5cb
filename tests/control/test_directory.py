"""Whom the registry trusts with its directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tvmm.control import directory
from tvmm.control.registry import machines, register, remove_stale
from tvmm.errors import HostError


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base directory that does not exist yet."""
    return tmp_path / "run"


def _file(base: Path) -> None:
    base.write_text("in the way")


def _link(base: Path) -> None:
    (base.parent / "elsewhere").mkdir()
    base.symlink_to(base.parent / "elsewhere")


def _open_to_others(base: Path) -> None:
    base.mkdir()
    base.chmod(0o777)


@pytest.mark.parametrize(
    ("prepare", "hint"),
    [(_file, "not a directory"), (_link, "not a directory"), (_open_to_others, "others may write")],
)
def test_base_that_cannot_be_trusted(base: Path, prepare: Callable[[Path], None], hint: str) -> None:
    """A base that is no directory, leads elsewhere or can be changed by others is refused with what to do."""
    prepare(base)
    attempts: list[Callable[[], object]] = [
        lambda: register(base, "alpha").__enter__(),
        lambda: machines(base),
        lambda: remove_stale(base),
    ]
    for attempt in attempts:
        with pytest.raises(HostError, match=hint) as caught:
            attempt()
        assert caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_base_of_another_user(base: Path) -> None:
    """A base that another user made first is refused with that user's id."""
    base.mkdir(mode=0o700)
    os.chown(base, 12345, 12345)
    with pytest.raises(HostError, match="12345"), register(base, "alpha"):
        pass


def test_base_that_cannot_be_made() -> None:
    """A place where nothing can be created is a HostError with a hint."""
    base = Path("/proc/tvmm-test")
    with pytest.raises(HostError, match="cannot use") as caught, register(base, "alpha"):
        pass
    assert "TVMM_RUNTIME_DIR" in caught.value.hint


def test_lock_that_somebody_keeps(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that another process has locked for long is a HostError and not a hang."""
    monkeypatch.setattr(directory, "BASE_LOCK_SECONDS", 0.02)
    with register(base, "alpha"), (base / ".lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(HostError, match="has held"):
            machines(base)
