"""``tvmm completion bash|zsh|fish``, and what happens when a shell asks for completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.cli.output import say
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser

__all__ = ["SHELLS", "add_arguments", "complete", "run"]

SHELLS = ("bash", "zsh", "fish")

_EXAMPLES = """\
  eval "$(tvmm completion bash)"       put this line into ~/.bashrc
  eval "$(tvmm completion zsh)"        put this line into ~/.zshrc, behind compinit
  tvmm completion fish | source        put this line into ~/.config/fish/config.fish
"""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    parser.describe(
        "Print the code that makes a shell complete tvmm's verbs, options, values and machine names.",
        _EXAMPLES,
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"one of {', '.join(SHELLS)}")


def run(options: Mapping[str, Any]) -> int:
    """Print the setup code."""
    argcomplete = _argcomplete()
    say(argcomplete.shellcode(["tvmm"], shell=options["shell"]))
    return 0


def complete() -> None:
    """Answer the shell, which asked through the environment, and exit the process."""
    from tvmm.cli.parser import build_parser
    from tvmm.cli.verbs import VERBS

    _argcomplete().autocomplete(build_parser(VERBS), always_complete_options="long")


def _argcomplete() -> Any:
    try:
        import argcomplete
    except ImportError:
        raise ConfigError("completion needs the argcomplete library", "pip install argcomplete") from None
    return argcomplete
