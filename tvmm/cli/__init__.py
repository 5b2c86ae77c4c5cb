# PYTHON_ARGCOMPLETE_OK
"""The command line: the only place that reads argv and the environment.

`main` finds the verb, imports that verb's module alone and turns what it raises into one line and an exit
status. Errors that nobody foresaw are bugs and keep their traceback.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.errors import TvmmError

__all__ = ["main"]

STATUS_USAGE = 2
STATUS_SIGNAL = 128

SIGINT, SIGPIPE = 2, 13

_HELP = ("-h", "--help", "help")

_EXAMPLES = """\
examples:
  tvmm run                                 boot the built-in guest on this terminal
  tvmm run --name web --kernel vmlinuz --append console=ttyS0 --memory 1G
  tvmm stop web                            ask it to power off
  tvmm doctor                              what this host can do, and what it lacks
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` and return the exit status.

    `argv` is without the program's name; None is this process's own.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    _open_standard_descriptors()
    try:
        if "_ARGCOMPLETE" in os.environ:
            from tvmm.cli.completion import complete

            complete()
        return _dispatch(arguments)
    except SystemExit as end:
        # argparse ends like this when it has printed a help text.
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return STATUS_SIGNAL + SIGINT
    except BrokenPipeError:
        _discard_output()
        return STATUS_SIGNAL + SIGPIPE
    except Exception as error:
        return _explain(error)
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        return STATUS_SIGNAL + SIGINT


def _open_standard_descriptors() -> None:
    """Let nothing we open get the number of a standard descriptor that whoever started us has closed.

    Guest output would otherwise be written to whatever that is, a lock or guest memory.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _dispatch(arguments: list[str]) -> int:
    from tvmm.cli.output import flush, say
    from tvmm.cli.verbs import find_verb

    if not arguments:
        print(_overview(), file=sys.stderr)
        return STATUS_USAGE
    word, *rest = arguments
    if word in _HELP:
        if not rest:
            say(_overview())
            flush()
            return 0
        word, rest = rest[0], ["--help"]
    if word == "--version":
        say(f"tvmm {_version()}")
        flush()
        return 0
    verb = find_verb(word)
    if verb is None:
        raise _unknown(word)
    # Without arguments there is nothing to parse, and `tvmm run` starts some milliseconds earlier.
    options: dict[str, Any] = {}
    if rest or verb.needs_arguments:
        from tvmm.cli.parser import parse

        options = parse(verb, rest)
    from importlib import import_module

    status: int = import_module(verb.module).run(options)
    flush()
    return status


def _explain(error: Exception) -> int:
    """Say in one line what the user, the guest or a peer did wrong; raises `error` again if it is a bug."""
    from tvmm.cli.output import RED, OutputError, message
    from tvmm.errors import TvmmError

    known = _only_known(error, TvmmError)
    if not isinstance(known, TvmmError):
        raise error
    if isinstance(known, OutputError):
        _discard_output()
    message(str(known), RED)
    return error_status(known)


def error_status(error: TvmmError) -> int:
    """The exit status of what was done wrong."""
    from tvmm.errors import GuestError
    from tvmm.outcome import STATUS_CRASHED

    return STATUS_CRASHED if isinstance(error, GuestError) else STATUS_USAGE


def _only_known(error: BaseException, kind: type[Exception]) -> Exception | None:
    """`error` if it is of `kind`; of a group the first, if all of them are. Tasks report errors in groups."""
    if isinstance(error, BaseExceptionGroup):
        found = [_only_known(part, kind) for part in error.exceptions]
        return found[0] if all(found) else None
    return error if isinstance(error, kind) else None


def _unknown(word: str) -> Exception:
    from tvmm.cli.verbs import VERBS
    from tvmm.config.options import nearest
    from tvmm.errors import ConfigError

    see = "see 'tvmm --help'"
    if word.startswith("-"):
        guess = nearest(word, ["--help", "--version"])
        hint = f"did you mean {guess!r}? ({see})" if guess else f"options go behind the verb, as in 'tvmm run {word}'"
        return ConfigError(f"unknown option {word!r}", hint)
    guess = nearest(word, [verb.name for verb in VERBS])
    return ConfigError(f"unknown verb {word!r}", f"did you mean {guess!r}? ({see})" if guess else see)


def _overview() -> str:
    from tvmm.cli.verbs import VERBS

    rows = "\n".join(f"  {verb.name:12}{verb.summary}" for verb in VERBS)
    return (
        "usage: tvmm VERB [options]\n\ntvmm runs virtual machines on KVM.\n\n"
        f"verbs:\n{rows}\n\noptions:\n"
        "  -h, --help  show this text; 'tvmm VERB --help' shows the options of a verb\n"
        "  --version   show the version\n\n"
        f"{_EXAMPLES.rstrip()}"
    )


def _version() -> str:
    from tvmm import __version__

    return __version__


def _discard_output() -> None:
    """Let the interpreter flush what is left of standard output into nothing when it exits."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)
