"""argparse with tvmm's manners: errors are `ConfigError` with the nearest match, and help texts teach.

Only what the user gave ends up in the result, so that a configuration file can fill the rest; defaults are
told in the help texts.
"""

from __future__ import annotations

import argparse
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from tvmm.cli.output import flush, say
from tvmm.config.options import nearest
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tvmm.cli.verbs import Verb

__all__ = ["EXIT_STATUSES", "Parser", "add_commands", "add_name", "build_parser", "parse", "verb_parser"]

EXIT_STATUSES = """\
exit status:
  0    the guest powered off, or what was asked for is done
  2    wrong usage, or the host lacks something
  3    the guest crashed
  4    the guest has moved to another tvmm
  5    the guest was saved in a file
  128+n  ended by signal n
  odd    chosen by a guest that wrote to isa-debug-exit
"""


WIDEST = 110
"""Columns that read well."""


def _width() -> int:
    """Columns of the terminal, within what reads well."""
    # Not at the top of the file: whoever asks for no help text starts some milliseconds earlier.
    from shutil import get_terminal_size

    return max(60, min(get_terminal_size((100, 24)).columns, WIDEST)) - 2


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines; the column of explanations starts where most option names fit."""

    def __init__(self, prog: str, width: int = WIDEST) -> None:
        super().__init__(prog, max_help_position=30, width=width)


class Parser(argparse.ArgumentParser):
    """The options of one verb."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", _Formatter)
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **settings)

    def describe(self, description: str, examples: str, more: str = "") -> None:
        """Set the texts above and below the options."""
        self.description = description
        self.epilog = "\n".join(filter(None, [f"examples:\n{examples}", more]))

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError` in place of argparse's two lines and exit."""
        argument, colon, complaint = message.removeprefix("argument ").partition(": ")
        if colon and complaint.startswith("expected one argument"):
            message = f"option {argument} needs a value"
        elif colon:
            message = f"{argument}: {complaint}"
        raise ConfigError(message, f"see '{self.prog} --help'")

    def format_help(self) -> str:
        """As wide as the terminal is. That is looked at here alone: argparse wants a formatter for each option too."""
        self.formatter_class = partial(_Formatter, width=_width())
        return super().format_help()

    def _print_message(self, message: str, file: Any = None) -> None:
        """Where argparse prints its help."""
        say(message.rstrip())
        flush()

    def option_strings(self) -> list[str]:
        """Every spelling of every option, also of the commands below a verb."""
        own = [text for action in self._actions for text in action.option_strings]
        commands = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        below = [command for action in commands for command in action.choices.values()]
        return own + [text for command in below for text in command.option_strings() if text not in own]

    def options(self, arguments: Sequence[str]) -> dict[str, Any]:
        """What `arguments` set, by name. Raises `ConfigError`, and SystemExit once it has printed help."""
        namespace, left = self._in_any_order(arguments)
        unknown = next((text for text in left if text.startswith("-") and text != "--"), None)
        if unknown is not None:
            spelled = unknown.partition("=")[0]
            guess = nearest(spelled, self.option_strings())
            see = f"see '{self.prog} --help'"
            raise ConfigError(f"unknown option {spelled!r}", f"did you mean {guess!r}? ({see})" if guess else see)
        if left:
            raise ConfigError(f"unexpected argument {left[0]!r}", f"see '{self.prog} --help'")
        return vars(namespace)

    def _in_any_order(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """argparse takes ``web`` in ``web --live FILE`` for the file, since the name is optional: what comes before an
        option is to be all. Its way around that reads everything twice, and knows no commands below a verb.
        """
        namespace, left = self.parse_known_args(arguments)
        plain = left and not left[0].startswith("-")
        if plain and not any(isinstance(action, argparse._SubParsersAction) for action in self._actions):
            return self.parse_known_intermixed_args(arguments)
        return namespace, left


def verb_parser(verb: Verb, **settings: Any) -> Parser:
    """The parser of one verb; imports its module."""
    parser = Parser(prog=f"tvmm {verb.name}", **settings)
    fill(parser, verb)
    return parser


def fill(parser: Parser, verb: Verb) -> None:
    """Give `parser` the options of `verb`."""
    import_module(verb.module).add_arguments(parser)


def parse(verb: Verb, arguments: Sequence[str]) -> dict[str, Any]:
    """The options that `arguments` give to `verb`."""
    return verb_parser(verb).options(arguments)


def build_parser(verbs: Sequence[Verb]) -> Parser:
    """One parser with all `verbs` below it, for completion."""
    parser = Parser(prog="tvmm", add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="list the verbs")
    parser.add_argument("--version", action="store_true", help="print the version")
    below = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for verb in verbs:
        fill(below.add_parser(verb.name, help=verb.summary), verb)
    return parser


def add_name(parser: Parser, *, required: bool = False) -> None:
    """The machine that a verb is about."""
    from tvmm.cli.completers import attach, machine_names

    action = parser.add_argument(
        "name",
        metavar="NAME",
        nargs=None if required else "?",
        help="the machine, as 'tvmm ps' lists it; may be left out while only one runs",
    )
    attach(action, machine_names)


def add_commands(parser: Parser, commands: Mapping[str, tuple[Callable[[Any, str], None], object]]) -> None:
    """A verb's own commands. The first of each pair adds the parser of the command that it is given the name of."""
    below = parser.add_subparsers(
        dest="command",
        metavar="COMMAND",
        required=True,
        parser_class=Parser,
        title="commands",
        help="what to do:",
    )
    for name, (add, _) in commands.items():
        add(below, name)
