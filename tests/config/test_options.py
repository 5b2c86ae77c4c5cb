"""The option syntax shared by all groups."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.config.options import (
    choice_of,
    join_options,
    nearest,
    parse_bool,
    parse_options,
    split_commas,
    unknown_name,
)
from tvmm.errors import ConfigError

KEYS = ("size", "hugepages", "prealloc")

GOOD = {
    "1G": {"size": "1G"},
    "size=1G": {"size": "1G"},
    "1G,prealloc=on": {"size": "1G", "prealloc": "on"},
    "prealloc=on,size=1G": {"prealloc": "on", "size": "1G"},
    "a,,b": {"size": "a,b"},
    "size=a=b": {"size": "a=b"},
    "size=": {"size": ""},
}

BAD = {
    "": "memory is empty",
    ",": "empty option",
    "1G,": "empty option",
    "1G,prealloc": "'prealloc' has no value",
    "1G,size=2G": "'size' is given twice",
    "1G,hugepage=on": "did you mean 'hugepages'",
    "1G,zzz=1": "there are: size, hugepages, prealloc",
    "1G,2G": "unknown memory option '2G'",
    "1G\0": "NUL",
}


@pytest.mark.parametrize(("text", "values"), GOOD.items())
def test_options(text: str, values: dict[str, str]) -> None:
    """A first value may stand alone, ',,' is a comma, and only the first '=' divides."""
    assert parse_options(text, "memory", KEYS, first="size") == values


@pytest.mark.parametrize(("text", "complaint"), BAD.items())
def test_bad_options(text: str, complaint: str) -> None:
    """Each mistake is named in one line that holds what to do about it."""
    with pytest.raises(ConfigError) as caught:
        parse_options(text, "memory", KEYS, first="size")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_first_key_every_item_needs_one() -> None:
    """A bare value in a group that has no first key is an unknown option."""
    with pytest.raises(ConfigError, match="unknown g option 'x'"):
        parse_options("x", "g", KEYS)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(KEYS), st.text(st.characters(exclude_characters="\0"), max_size=12), min_size=1))
def test_options_come_back(values: dict[str, str]) -> None:
    """Whatever the values hold, commas included, they survive being joined and parsed."""
    assert parse_options(join_options(values, first="size"), "memory", KEYS, first="size") == values


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="size=prealoc,1G\0 ", max_size=30))
def test_any_text_is_options_or_a_config_error(text: str) -> None:
    """No text gets another exception out of the parser, or a key that is not in the group."""
    with contextlib.suppress(ConfigError):
        assert set(parse_options(text, "memory", KEYS, first="size")) <= set(KEYS)


def test_three_commas_are_a_comma_and_a_divider() -> None:
    """Doubled commas are taken from the left."""
    assert split_commas("a,,,b") == ["a,", "b"]


@pytest.mark.parametrize("word", ["on", "yes", "true", "ON", "True"])
def test_words_for_true(word: str) -> None:
    """on, yes and true in any case."""
    assert parse_bool(word, "x") is True


@pytest.mark.parametrize("word", ["off", "no", "false", "Off"])
def test_words_for_false(word: str) -> None:
    """off, no and false in any case."""
    assert parse_bool(word, "x") is False


@pytest.mark.parametrize("word", ["", "1", "0", "maybe", "enabled"])
def test_other_words_are_neither(word: str) -> None:
    """Everything else is refused and the words are told."""
    with pytest.raises(ConfigError, match="neither on nor off; write on"):
        parse_bool(word, "x")


def test_a_bool_is_taken_as_it_is() -> None:
    """The library may hand over True and False."""
    assert parse_bool(True, "x") is True
    assert parse_bool(False, "x") is False


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("memroy", "memory"),
        ("MEMORY", "memory"),
        ("appen", "append"),
        ("se", "serial"),
        ("qqq", ""),
        ("", ""),
    ],
)
def test_nearest_word(word: str, match: str) -> None:
    """Slips of the finger and beginnings find the word, noise finds none."""
    assert nearest(word, ["memory", "append", "serial"]) == match


def test_unknown_name_without_candidates() -> None:
    """With nothing to choose from, the hint says so."""
    assert str(unknown_name("machine", "web", [], none="no machine is running")) == (
        "unknown machine 'web'; no machine is running"
    )


def test_choice() -> None:
    """One of the choices passes; another word gets the nearest."""
    assert choice_of("on", "entry", ["on", "off"]) == "on"
    with pytest.raises(ConfigError, match="did you mean 'off'"):
        choice_of("of", "entry", ["on", "off"])
