"""``tvmm sendkey [NAME] KEYS``: press a combination of keys on a machine's keyboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import control, named
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
  tvmm sendkey web ctrl-alt-delete
  tvmm sendkey alt-f2               only one machine runs: no need to name it
  tvmm sendkey web h i ret          one after the other
"""

_MORE = """\
Names are QEMU's: a to z, 0 to 9, ret, spc, esc, tab, backspace, shift, ctrl, alt, alt_r, meta_l,
up, pgdn, f1, kp_5 and so on.
"""

ANSWER_SECONDS = 10.0
"""What an answer may take, besides the time that keys are held."""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.completers import attach, machine_names

    parser.describe("Press keys on a running machine's keyboard.", _EXAMPLES, _MORE)
    words = parser.add_argument(
        "words", metavar="[NAME] KEYS", nargs="+", help="machine, if more than one runs; keys, joined by '-' if at once"
    )
    parser.add_argument("--hold", metavar="MS", default="100", help="how long to hold them, in milliseconds")
    attach(words, machine_names)


def run(options: Mapping[str, Any]) -> int:
    """Press each combination, one after the other."""
    from tvmm.config.units import parse_integer
    from tvmm.devices.keys import qcodes

    hold_ms = parse_integer(options.get("hold", "100"), "hold", 1, 60_000)
    words = list(options["words"])
    # A machine may be called like a key; then it has to be named.
    first = words[0].split("-")
    name = words.pop(0) if len(words) > 1 and not _is_combination(first) else None
    combinations = [word.split("-") for word in words]
    for keys in combinations:
        for key in keys:
            if key not in qcodes():
                raise _no_key(key)
    with control(named({"name": name}), timeout=ANSWER_SECONDS + hold_ms / 1000) as client:
        for keys in combinations:
            values = [{"type": "qcode", "data": key} for key in keys]
            client.execute("send-key", **{"keys": values, "hold-time": hold_ms})
    return 0


def _is_combination(words: list[str]) -> bool:
    from tvmm.devices.keys import qcodes

    return all(word in qcodes() for word in words)


def _no_key(word: str) -> ConfigError:
    from tvmm.config.options import nearest
    from tvmm.devices.keys import qcodes

    near = nearest(word, list(qcodes()))
    hint = f"did you mean {near!r}?" if near else "'tvmm sendkey --help' shows how keys are called"
    return ConfigError(f"no key is called {word!r}", hint)
