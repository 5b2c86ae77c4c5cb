"""Sizes and durations as people write them.

Size units are binary (``k`` = 1024) as in QEMU and ``dd``; a trailing ``iB`` is tolerated, a decimal ``MB``
is not, because nobody can tell which of the two it means. Both parsers work on the digits, not on floats:
``1.1G`` is refused for not being a whole number of bytes instead of being rounded.
"""

from __future__ import annotations

from tvmm.errors import ConfigError

__all__ = [
    "DURATION_FORMS",
    "SIZE_FORMS",
    "format_duration",
    "format_size",
    "parse_duration",
    "parse_integer",
    "parse_size",
]

SIZE_FORMS = "write a size as bytes (4096) or with a binary unit: 64k, 256M, 1.5G, 1T"
DURATION_FORMS = "write a duration in seconds (10) or with a unit: 300ms, 10s, 2m, 1h"

TEXT_LIMIT = 40
"""Longest number looked at: int() takes quadratic time, and no size or duration needs more."""

_SIZE_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE_NAMES = ((40, "T"), (30, "G"), (20, "M"), (10, "k"))
_DURATION_US = {"us": 1, "ms": 1_000, "": 1_000_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000}


def _split(text: str) -> tuple[str, str, str] | None:
    """(digits before the point, digits behind it, unit in lower case), None without a number in front."""
    end = 0
    while end < len(text) and text[end] in "0123456789.":
        end += 1
    whole, point, fraction = text[:end].partition(".")
    if not whole or bool(point) != bool(fraction) or "." in fraction or len(text) > TEXT_LIMIT:
        return None
    return whole, fraction, text[end:].strip().lower()


def _power_of_ten(exponent: int) -> int:
    return int("1" + "0" * exponent)


def parse_size(value: str | int, what: str = "size") -> int:
    """Bytes of ``"256M"``, ``"1.5G"``, ``"64k"`` or ``"4096"``; an int is taken as it is.

    `what` names the value in the message. Raises `ConfigError` for anything else, also below zero.
    """
    if isinstance(value, int):
        if value < 0:
            raise ConfigError(f"{what} {value} is negative", SIZE_FORMS)
        return value
    text = value.strip()
    if text.startswith("-"):
        raise ConfigError(f"{what} {value!r} is negative", SIZE_FORMS)
    whole, fraction, unit = _split(text) or ("", "", "?")
    shift = _SIZE_SHIFTS.get(unit.removesuffix("ib") if len(unit) == 3 else unit)
    if shift is None:
        raise ConfigError(f"{what} {value!r} is not a size", SIZE_FORMS)
    size, rest = divmod(int(whole + fraction) << shift, _power_of_ten(len(fraction)))
    if rest:
        raise ConfigError(f"{what} {value!r} is not a whole number of bytes", SIZE_FORMS)
    return size


def format_size(size: int) -> str:
    """The shortest exact spelling of `size` bytes, one that `parse_size` reads back."""
    for shift, name in _SIZE_NAMES:
        if size and not size & ((1 << shift) - 1):
            return f"{size >> shift}{name}"
    return str(size)


def parse_duration(value: str | int | float, what: str = "duration") -> float:
    """Seconds of ``"300ms"``, ``"10s"``, ``"2m"`` or ``"1.5"``; a number is taken as seconds.

    Raises `ConfigError` for anything else, also below zero, infinite or not a number.
    """
    if isinstance(value, int | float):
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{what} {value} is not a span of time", DURATION_FORMS)
        return float(value)
    text = value.strip()
    if text.startswith("-"):
        raise ConfigError(f"{what} {value!r} is negative", DURATION_FORMS)
    whole, fraction, unit = _split(text) or ("", "", "?")
    scale = _DURATION_US.get(unit)
    if scale is None:
        raise ConfigError(f"{what} {value!r} is not a duration", DURATION_FORMS)
    return int(whole + fraction) * scale / (1_000_000 * _power_of_ten(len(fraction)))


def format_duration(seconds: float) -> str:
    """`seconds` with the unit that reads best, to three digits or so."""
    if seconds >= 3600 and seconds % 3600 == 0:
        return f"{seconds / 3600:g}h"
    if seconds >= 60 and seconds % 60 == 0:
        return f"{seconds / 60:g}m"
    return f"{seconds:.3g}s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:.3g}ms"


def parse_integer(value: str | int, what: str, minimum: int, maximum: int) -> int:
    """A whole number, decimal or with ``0x``. Raises `ConfigError` outside `minimum` to `maximum`."""
    number = value if isinstance(value, int) else _integer_of(value.strip())
    if number is None:
        raise ConfigError(f"{what} {value!r} is not a whole number", f"it goes from {minimum} to {maximum}")
    if not minimum <= number <= maximum:
        raise ConfigError(f"{what} {value} is out of range", f"it goes from {minimum} to {maximum}")
    return number


def _integer_of(text: str) -> int | None:
    digits = text.removeprefix("-")
    base = 16 if digits[:2].lower() == "0x" else 10
    # int() also reads blanks, underscores and the digits of every script.
    if not digits.isascii() or not digits.isalnum() or len(digits) > TEXT_LIMIT:
        return None
    try:
        return int(text, base)
    except ValueError:
        return None
