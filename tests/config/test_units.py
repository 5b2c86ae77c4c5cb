"""Sizes, durations and whole numbers as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.config.units import format_duration, format_size, parse_duration, parse_integer, parse_size
from tvmm.errors import ConfigError

SIZES = {
    "4096": 4096,
    "0": 0,
    "64k": 64 << 10,
    "64K": 64 << 10,
    "256M": 256 << 20,
    "256MiB": 256 << 20,
    "1G": 1 << 30,
    "1.5G": 3 << 29,
    "0.5k": 512,
    "2T": 2 << 40,
    " 1G ": 1 << 30,
    "1 G": 1 << 30,
}

NO_SIZES = [
    "",
    "M",
    "1.1G",
    "-1G",
    "-5",
    "1.G",
    ".5G",
    "1.2.3",
    "256MB",
    "lots",
    "1e9",
    "0x10",
    "٣",
    "1_000",
    "9" * 50,
]

DURATIONS = {"300ms": 0.3, "10s": 10.0, "2m": 120.0, "1.5": 1.5, "1h": 3600.0, "250us": 0.00025, "0": 0.0}

NO_DURATIONS = ["", "s", "-1s", "10 days", "1:30", "inf", "nan", "1.s", "5x"]


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_sizes(text: str, size: int) -> None:
    """Binary units in either case, fractions that give whole bytes, and plain bytes are read."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", NO_SIZES)
def test_bad_sizes_name_the_accepted_forms(text: str) -> None:
    """What is not a size is refused, with examples of what is."""
    with pytest.raises(ConfigError, match="size") as caught:
        parse_size(text)
    assert "256M" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_number_is_a_size_in_bytes() -> None:
    """The library may hand over an int; a negative one is refused."""
    assert parse_size(12345) == 12345
    with pytest.raises(ConfigError, match="negative"):
        parse_size(-1)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 1 << 60))
def test_sizes_come_back(size: int) -> None:
    """Every number of bytes survives being written and read."""
    assert parse_size(format_size(size)) == size


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    """No text gets another exception, or a negative size, out of the parser."""
    complaint = ""
    try:
        assert parse_size(text) >= 0
    except ConfigError as error:
        complaint = str(error)
    assert "\n" not in complaint


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items())
def test_durations(text: str, seconds: float) -> None:
    """Units from microseconds to hours, and bare seconds, are read."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", NO_DURATIONS)
def test_bad_durations_name_the_accepted_forms(text: str) -> None:
    """What is not a duration is refused, with examples of what is."""
    with pytest.raises(ConfigError, match="duration") as caught:
        parse_duration(text)
    assert "300ms" in caught.value.hint


@pytest.mark.parametrize("value", [-1, -0.5, float("inf"), float("nan")])
def test_numbers_that_are_no_duration(value: float) -> None:
    """Negative, infinite and undefined numbers are refused like text."""
    with pytest.raises(ConfigError, match="span of time"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.3, "300ms"),
        (1, "1s"),
        (10, "10s"),
        (90, "90s"),
        (120, "2m"),
        (7200, "2h"),
        (0.00025, "0.25ms"),
    ],
)
def test_durations_are_written_with_the_unit_that_reads_best(seconds: float, text: str) -> None:
    """Milliseconds below a second; minutes and hours when they are whole."""
    assert format_duration(seconds) == text
    if seconds >= 0.001:
        assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("0x1f", 31), ("0X1F", 31), ("-3", -3)])
def test_whole_numbers(text: str, number: int) -> None:
    """Decimal and hexadecimal numbers in the range are read."""
    assert parse_integer(text, "n", -10, 100) == number


@pytest.mark.parametrize("text", ["", "1.5", "ten", "0x", "1_0", "--1", "²", "1" * 5000])
def test_what_is_no_whole_number_names_the_range(text: str) -> None:
    """Other spellings are refused and the range is told."""
    with pytest.raises(ConfigError, match="not a whole number") as caught:
        parse_integer(text, "n", 1, 9)
    assert "from 1 to 9" in caught.value.hint


@pytest.mark.parametrize("value", ["0", "10", 0, 10])
def test_a_number_outside_the_range_names_it(value: str | int) -> None:
    """The range is told for numbers that are outside of it."""
    with pytest.raises(ConfigError, match="out of range; it goes from 1 to 9"):
        parse_integer(value, "n", 1, 9)
