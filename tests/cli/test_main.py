"""What every verb shares: help, version, exit statuses, and what is imported for it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable

import pytest

from tvmm.cli import main
from tvmm.cli.parser import Parser, verb_parser
from tvmm.cli.verbs import VERBS, Verb, find_verb
from tvmm.errors import GuestError, HostError, ProtocolError

PYTHON = [sys.executable, "-m", "tvmm.cli"]

verbs = pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)


def test_no_arguments_teach(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a verb the overview goes to standard error and the status is that of wrong usage."""
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: tvmm VERB" in err


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_overview(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The overview names every verb with its summary, and has examples."""
    assert main([word]) == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    for verb in VERBS:
        assert f"  {verb.name}" in out
        assert verb.summary in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints name and number."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tvmm 0.")


@verbs
def test_help(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    """Each verb has a description, examples, and a line for every option; both ways to ask give it."""
    assert main([verb.name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: tvmm {verb.name}" in out
    assert "examples:\n  " in out
    assert "==SUPPRESS==" not in out
    assert all(len(line) <= 110 for line in out.splitlines())
    assert main(["help", verb.name]) == 0
    assert capsys.readouterr().out == out
    parser = verb_parser(verb)
    assert parser.description
    for action in parser._actions:
        assert action.help, action


@verbs
def test_examples_are_right(verb: Verb) -> None:
    """Every example in a help text is a command line that its verb takes."""
    epilog = verb_parser(verb).epilog or ""
    examples = [line.strip() for line in epilog.splitlines() if "tvmm " in line and line.startswith("  ")]
    assert examples
    for example in examples:
        text = example.partition("   ")[0]
        if "$(" in text:
            text = text.partition("$(")[2].partition(")")[0]
        words = shlex.split(text.partition("|")[0].partition("<")[0].partition("&")[0])
        assert words[0] == "tvmm"
        used = find_verb(words[1])
        assert used is not None
        verb_parser(used).options(words[2:])


def test_run_help_tells_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    """The contract of exit statuses is in the help of run."""
    main(["run", "--help"])
    out = capsys.readouterr().out
    for status in ("0 ", "2 ", "3 ", "128+n ", "odd "):
        assert f"\n  {status}" in out


def raising(error: BaseException) -> Callable[[object], int]:
    """A verb's `run` that ends with `error`."""

    def run(options: object) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (HostError("no", "do that"), 2, "tvmm: no; do that\n"),
        (GuestError("it crashed"), 3, "tvmm: it crashed\n"),
        (ProtocolError("nonsense"), 2, "tvmm: nonsense\n"),
        (ExceptionGroup("tasks", [HostError("no")]), 2, "tvmm: no\n"),
        (ExceptionGroup("a", [ExceptionGroup("b", [GuestError("x")]), HostError("y")]), 3, "tvmm: x\n"),
        (KeyboardInterrupt(), 130, ""),
        (BaseExceptionGroup("tasks", [KeyboardInterrupt()]), 130, ""),
    ],
)
def test_errors_become_statuses(
    error: BaseException,
    status: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is foreseen becomes one line and the status of its kind, also in a group of a task's errors."""
    monkeypatch.setattr("tvmm.cli.ps.run", raising(error))
    assert main(["ps"]) == status
    assert capsys.readouterr().err == text


@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), ExceptionGroup("tasks", [HostError("no"), ZeroDivisionError()])]
)
def test_bugs_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is not turned into a line."""
    monkeypatch.setattr("tvmm.cli.ps.run", raising(error))
    with pytest.raises(type(error)) as caught:
        main(["ps"])
    assert caught.value is error


def test_a_reader_that_leaves_is_no_error() -> None:
    """With a closed pipe as output there is no traceback, and the status is that of SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*PYTHON, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 128 + 13


def test_a_full_disk_is_the_hosts_error() -> None:
    """Output that cannot be written is told in one line."""
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PYTHON, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == "tvmm: the output cannot be written: No space left on device\n"
    assert done.returncode == 2


IMPORTED = "import sys; from tvmm.cli import main; {}; print(*sys.modules)"


def imported_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has imported once it has executed `statement`."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED.format(statement)], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_run_without_options_imports_no_parser() -> None:
    """The shortest way to a guest pays for no argument parser, no TOML, no JSON and no difflib."""
    statement = "from tvmm.cli.run import configure; configure({}, {}, 0, 1)"
    assert not imported_after(statement) & {"argparse", "tomllib", "json", "difflib", "rich", "argcomplete"}


def test_wrong_options_are_told_before_trio_is_imported() -> None:
    """A typing mistake is answered at once."""
    assert not imported_after("main(['run', '--cpus', '0'])") & {
        "trio",
        "tvmm.machine",
        "tvmm.cli.ps",
        "rich",
    }


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Escape sequences appear on a terminal only, and not if the user said no."""
    from tvmm.cli.output import RED, paint

    class Terminal(type(sys.stdout)):  # type: ignore[misc]
        def isatty(self) -> bool:
            return True

    terminal = Terminal.__new__(Terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert paint("x", RED, terminal) == "\x1b[31mx\x1b[m"
    assert paint("x", RED, sys.__stderr__ or sys.stderr) in ("x", "\x1b[31mx\x1b[m")
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", RED, terminal) == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert paint("x", RED, terminal) == "x"


def test_parsers_are_made_for_one_verb() -> None:
    """Each verb's parser knows its own options and no others."""
    names = {verb.name: verb_parser(verb) for verb in VERBS}
    assert "--memory" in names["run"].option_strings()
    assert "--memory" not in names["ps"].option_strings()
    assert all(isinstance(parser, Parser) for parser in names.values())
