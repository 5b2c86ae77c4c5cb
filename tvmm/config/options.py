"""The option syntax ``first,key=val,key=val``, with QEMU's rule that ``,,`` stands for one comma.

Every group of options goes through `parse_options`, so that a mistyped key is told in the same words
everywhere, with the nearest key that exists. `join_options` is its inverse; the reader of configuration
files turns tables into the command line's spelling with it, and there is one parser for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "choice_of",
    "join_options",
    "nearest",
    "parse_bool",
    "parse_options",
    "split_commas",
    "unknown_name",
]

_TRUE = ("on", "yes", "true")
_FALSE = ("off", "no", "false")


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that `word` was most likely meant to be, or ''."""
    # Not at the top of the file: only mistakes pay for it.
    from difflib import get_close_matches

    by_lower = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if found:
        return by_lower[found[0]]
    starts = [name for lower, name in by_lower.items() if len(word) > 1 and lower.startswith(word.lower())]
    return starts[0] if len(starts) == 1 else ""


def unknown_name(kind: str, word: str, known: Sequence[str], none: str = "there are none") -> ConfigError:
    """The error for a `word` that is none of `known`: nearest match first, then all there are."""
    guess = nearest(word, known)
    listing = f"there are: {', '.join(known)}" if known else none
    return ConfigError(f"unknown {kind} {word!r}", f"did you mean {guess!r}? ({listing})" if guess else listing)


def split_commas(text: str) -> list[str]:
    """The items between single commas; a doubled comma is a comma inside an item."""
    # A NUL cannot come from a command line, and `parse_options` refuses it, so it may stand for the literal
    # comma.
    return [item.replace("\0", ",") for item in text.replace(",,", "\0").split(",")]


def parse_options(
    text: str,
    group: str,
    keys: Sequence[str],
    first: str = "",
    repeated: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The values of ``first,key=val,...`` by key, in the order given.

    An item without ``=`` is allowed in front only, and only if `first` names the key that it stands for. Values of keys
    in `repeated` that are given again are joined with '+'. `aliases` are other names of keys.
    Raises `ConfigError` (naming `group`) for keys other than `keys`, for repeated keys, and for items that
    are empty or lack a value.
    """
    if "\0" in text:
        raise ConfigError(f"{group} {text!r} holds a NUL character")
    values: dict[str, str] = {}
    for index, item in enumerate(split_commas(text)):
        key, equals, value = item.partition("=")
        key = (aliases or {}).get(key, key)
        if not equals and index == 0 and first and item:
            key, value = first, item
        elif not item:
            raise ConfigError(
                f"{group} {text!r} has an empty option" if text else f"{group} is empty",
                "write a literal comma as ',,'" if text else _forms(keys, first),
            )
        elif key not in keys:
            raise unknown_name(f"{group} option", key, keys)
        elif not equals:
            raise ConfigError(f"{group} option {key!r} has no value", f"write {key}=VALUE")
        if key in values and key in repeated:
            value = f"{values[key]}+{value}"
        elif key in values:
            raise ConfigError(f"{group} option {key!r} is given twice")
        values[key] = value
    return values


def _forms(keys: Sequence[str], first: str) -> str:
    """How to write the options of a group."""
    rest = [f"{key}=..." for key in keys if key != first]
    return "write " + ",".join([first.upper(), *rest] if first else rest)


def join_options(values: Mapping[str, str], first: str = "") -> str:
    """`values` as `parse_options` reads them back, with the value of `first` in front, bare if it can be."""
    items = []
    if first in values:
        value = values[first]
        items.append(_escape(value) if value and "=" not in value else f"{first}={_escape(value)}")
    items += [f"{key}={_escape(value)}" for key, value in values.items() if key != first]
    return ",".join(items)


def _escape(value: str) -> str:
    return value.replace(",", ",,")


def parse_bool(value: str | bool, what: str) -> bool:
    """True for on, yes and true, False for off, no and false; `ConfigError` (naming `what`) otherwise."""
    if isinstance(value, bool):
        return value
    word = value.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ConfigError(f"{what} {value!r} is neither on nor off", "write on, yes, true or off, no, false")


def choice_of(value: str, what: str, choices: Sequence[str]) -> str:
    """`value`, if it is one of `choices`; `ConfigError` with the nearest one otherwise."""
    if value not in choices:
        raise unknown_name(what, value, choices)
    return value
