"""``tvmm balloon``, against a control socket of a machine without a guest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.fakes import running
from tests.control.fake_balloon import FakeBalloon
from tests.control.fakes import FakeMachine
from tvmm.cli import main

Capture = pytest.CaptureFixture[str]
MIB = 1 << 20


class Stubborn(FakeBalloon):
    """Its guest keeps what it has."""

    def set_memory(self, memory: int) -> None:
        """Asked for, and no more."""
        self.wanted = memory


def test_what_there_is(registry: Path, capsys: Capture) -> None:
    """Sizes, what the host has given, what the guest says; for programs as well."""
    with running(registry, FakeMachine("web")):
        assert main(["balloon", "web"]) == 0
        text = capsys.readouterr().out
        assert main(["balloon", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
    rows = {line[:12].strip(): line[12:].strip() for line in text.splitlines()}
    assert rows["memory"] == "256 MiB"
    assert rows["actual"] == "192 MiB"
    assert rows["on this host"] == "100 MiB resident"
    assert rows["guest says"].startswith("total ")
    assert (told["name"], told["actual"], told["resident"]) == ("web", 192 * MIB, 100 * MIB)
    assert told["stats"]["stat-free-memory"] == 5000


@pytest.mark.parametrize(
    ("arguments", "size"),
    [(["web", "64M"], 64), (["64M"], 64), (["web", "+16M"], 208), (["+16M"], 208), (["web", "64M", "--wait"], 64)],
)
def test_another_size(registry: Path, capsys: Capture, arguments: list[str], size: int) -> None:
    """Absolute or more than now, with the machine's name or without."""
    machine = FakeMachine("web")
    with running(registry, machine):
        assert main(["balloon", *arguments]) == 0
    assert machine.the_balloon is not None
    assert machine.the_balloon.size == size * MIB
    assert f"web: the guest has {size} MiB, and is to have {size} MiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["web", "1G"], "has 256M of memory and no more"),
        (["web", "0"], "cannot do without memory"),
        (["web", "lots"], "size 'lots' is not a size"),
        (["web", "--wait"], "nothing to wait for"),
        (["nobody", "64M"], "no machine is named 'nobody'"),
        (["web", "64M", "--timeout", "soon"], "timeout"),
    ],
)
def test_what_is_refused(registry: Path, capsys: Capture, arguments: list[str], words: str) -> None:
    """One line, and nothing is asked of the guest."""
    machine = FakeMachine("web")
    with running(registry, machine):
        assert main(["balloon", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert machine.the_balloon is not None
    assert machine.the_balloon.size == 192 * MIB


def test_a_machine_without_one(registry: Path, capsys: Capture) -> None:
    """It is said so."""
    machine = FakeMachine("web")
    machine.the_balloon = None
    with running(registry, machine):
        for arguments in (["web"], ["web", "64M"]):
            assert main(["balloon", *arguments]) == 2
            assert "No balloon device" in capsys.readouterr().err


def test_a_guest_that_gives_nothing(registry: Path, capsys: Capture) -> None:
    """The wait has an end, and says how far it came."""
    machine = FakeMachine("web")
    machine.the_balloon = stubborn = Stubborn()
    real = stubborn.info
    stubborn.info = lambda: real()._replace(target=stubborn.wanted)  # type: ignore[method-assign]
    stubborn.wanted = 192 * MIB
    with running(registry, machine):
        assert main(["balloon", "web", "64M", "--wait", "--timeout", "300ms"]) == 2
    errors = capsys.readouterr().err
    assert "web: 192 MiB, 128 MiB to go" in errors
    assert "has 192 MiB after 0.3 s, not 64 MiB; it may need what it has" in errors
