"""Saves over the control socket: what is asked of the machine, and what is refused before."""

from __future__ import annotations

from typing import Any

import pytest

from tests.control.fakes import FakeMachine
from tvmm.control.qmp import CommandFailed
from tvmm.control.verbs import VERBS
from tvmm.errors import ConfigError
from tvmm.snapshot.status import SaveParameters


async def save(machine: FakeMachine, **arguments: Any) -> Any:
    """The answer."""
    return await VERBS["x-save"].run(machine, arguments)


async def test_what_is_asked_for() -> None:
    """A key comes as digits; a path may have bytes that are no UTF-8."""
    machine = FakeMachine()
    await save(machine, path="/a\udcff", stop=True)
    await save(machine, path="/b", key="00" * 16)
    assert machine.saves.asked == [
        ("/a\udcff", SaveParameters(stop=True)), ("/b", SaveParameters(key=bytes(16))),
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800", "a" * 5000], ids=["empty", "nul", "surrogate", "long"])
async def test_paths_that_are_none(path: str) -> None:
    """They come to no system call."""
    with pytest.raises(CommandFailed, match="'path' is no path"):
        await save(FakeMachine(), path=path)


@pytest.mark.parametrize("secret", [{"passphrase": ""}, {"key": ""}, {"key": "00"}, {"passphrase": "\ud800"}], ids=str)
async def test_secrets_that_are_none(secret: dict[str, str]) -> None:
    """Who gives one never gets a file that is not encrypted."""
    machine = FakeMachine()
    with pytest.raises((CommandFailed, ConfigError)):
        await save(machine, path="/a", **secret)
    assert machine.saves.asked == []
