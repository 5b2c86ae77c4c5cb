"""How records become bytes and, checked, records again. A record is a NamedTuple of plain values and other records.

The encoding describes itself, so that a reader of another version can tell what is new to it and what is missing. A
value is a tag byte and what the tag asks for; numbers and lengths are little-endian; a number has one spelling only.
A record brings its type and the names of its fields the first time that the type occurs, later ones refer to that.

====================  ===================================================================================
tag                   then
====================  ===================================================================================
``00`` ``01`` ``02``  nothing: None, False, True
``03``                8 bytes: an IEEE 754 double, never a NaN
``04`` ``05``         length (a number value), then so many bytes: bytes, UTF-8 text
``06``                count (a number value), then so many values: a tuple
``07``                name, count of fields, names of fields, then the fields' values: a record, type new here.
                      A name is a length (a number value) and so many bytes of ASCII
``08``                index of the type among those defined so far (a number value), then the fields' values
``10`` + n            n = 1 to 8 bytes, the last of them not 0: a number from 128 up
``20`` + n            n = 0 to 8 bytes, the last of them not 0: -1 minus that number
``80`` + n            nothing: the number n, 0 to 127
====================  ===================================================================================

Pickle would run code of the peer; JSON and msgpack know no bytes or no names of types and have no bound on nesting. The
data comes from a peer or a file and may hold anything: `decode` returns values or raises `ProtocolError`, in time and
memory bounded by the length of the data.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_NAME", "MAX_VALUES", "Plain", "build", "decode", "decode_plain", "encode"]

MAX_BYTES = 8 << 20
"""Of one encoded value: a peer cannot have a machine keep more than this for a section."""
MAX_DEPTH = 16
"""Tuples and records inside of one another: a peer could nest a million, and the reader calls itself."""
MAX_VALUES = 1 << 18
"""In one encoded value, with the fields that records take by default: 2 bytes can stand for a whole record."""
MAX_NAME = 64
"""Characters of a type's, field's or section's name: they end up in error messages."""

NONE, FALSE, TRUE, FLOAT, BYTES, TEXT, TUPLE, RECORD, REFERENCE = range(9)
POSITIVE, NEGATIVE, SMALL = 0x10, 0x20, 0x80
LEAST, MOST = -(1 << 63), (1 << 64) - 1


class Plain(NamedTuple):
    """A record as it was found, for the steps that upgrade it: the name of its type, and its fields by name."""

    type_name: str
    fields: dict[str, Any]


# --- writing ---


def encode(value: object, limit: int = MAX_BYTES) -> bytes:
    """`value` as bytes. It is None, bool, int (-2**63 to 2**64 - 1), float, bytes, str, a tuple or a record of these.

    Raises `TypeError` or `ValueError` for anything else: a record that cannot be saved is a bug here.
    """
    out = bytearray()
    _write(value, out, {}, 0)
    if len(out) > limit:
        raise ValueError(f"a record of {len(out)} bytes; at most {limit} can be read again")
    return bytes(out)


def _write_int(value: int, out: bytearray) -> None:
    if 0 <= value < 0x80:
        out.append(SMALL + value)
        return
    if not LEAST <= value <= MOST:
        raise ValueError("a number of more than 64 bits")
    tag, magnitude = (POSITIVE, value) if value >= 0 else (NEGATIVE, -1 - value)
    length = (magnitude.bit_length() + 7) >> 3
    out.append(tag + length)
    out += magnitude.to_bytes(length, "little")


def _write(value: Any, out: bytearray, shapes: dict[type, int], depth: int) -> None:
    kind = type(value)
    if kind is int:
        _write_int(value, out)
    elif kind is bytes:
        out.append(BYTES)
        _write_int(len(value), out)
        out += value
    elif value is None:
        out.append(NONE)
    elif kind is bool:
        out.append(TRUE if value else FALSE)
    elif kind is str:
        raw = value.encode()
        out.append(TEXT)
        _write_int(len(raw), out)
        out += raw
    elif kind is float:
        if math.isnan(value):
            raise ValueError("not a number")
        out.append(FLOAT)
        out += struct.pack("<d", value)
    elif issubclass(kind, tuple):
        if depth == MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} tuples and records inside of one another")
        _write_shape(value, kind, out, shapes)
        for item in value:
            _write(item, out, shapes, depth + 1)
    else:
        raise TypeError(f"a {kind.__name__} cannot be saved")


def _write_shape(value: Any, kind: type, out: bytearray, shapes: dict[type, int]) -> None:
    """What comes before the values of a tuple or a record."""
    if kind is tuple:
        out.append(TUPLE)
        _write_int(len(value), out)
        return
    known = shapes.get(kind)
    if known is not None:
        out.append(REFERENCE)
        _write_int(known, out)
        return
    shapes[kind] = len(shapes)
    out.append(RECORD)
    _write_name(kind.__name__, out)
    _write_int(len(value._fields), out)
    for field in value._fields:
        _write_name(field, out)


def _write_name(name: str, out: bytearray) -> None:
    _write_int(len(name), out)
    out += name.encode("ascii")


# --- reading ---


class _Shape(NamedTuple):
    """A type that the data has defined. `kind` is None where plain records are wanted.

    `whole` is whether `fields` are those of the type, in its order; `weight` is how many values a record counts for.
    """

    name: str
    fields: tuple[str, ...]
    kind: type[Any] | None
    whole: bool
    weight: int


def decode(data: bytes, types: Sequence[type[Any]], limit: int = MAX_BYTES) -> Any:
    """The value in `data`, with records of `types` only, told apart by their class name.

    A field that is absent takes its default. Raises `ProtocolError` for what is no encoded value or not one of these.
    """
    return _Reader(data, {kind.__name__: kind for kind in types}, limit).all()


def decode_plain(data: bytes, limit: int = MAX_BYTES) -> Any:
    """The value in `data`, with any record in it as `Plain`. Raises `ProtocolError` as `decode` does."""
    return _Reader(data, None, limit).all()


class _Reader:
    """One pass over encoded data."""

    def __init__(self, data: bytes, types: Mapping[str, type[Any]] | None, limit: int) -> None:
        if len(data) > limit:
            raise ProtocolError(f"encoded state of {len(data)} bytes; at most {limit} are taken")
        self._data = data
        self._types = types
        self._at = 0
        self._shapes: list[_Shape] = []
        # A whole record takes more bytes than it has fields, so this refuses only what leaves nearly all of them out.
        self._budget = min(MAX_VALUES, 4 * len(data) + 64)

    def all(self) -> Any:
        """The one value that the data consists of."""
        value = self._value(0)
        if self._at != len(self._data):
            raise ProtocolError(f"encoded state goes on after its end, at byte {self._at}")
        return value

    def _spend(self, values: int) -> None:
        self._budget -= values
        if self._budget < 0:
            raise ProtocolError("encoded state holds too many values")

    def _take(self, length: int) -> bytes:
        start = self._at
        if length > len(self._data) - start:
            raise ProtocolError(f"encoded state ends in the middle of a value, at byte {start}")
        self._at = start + length
        return self._data[start : self._at]

    def _tag(self) -> int:
        try:
            tag = self._data[self._at]
        except IndexError:
            raise ProtocolError("encoded state ends before its value does") from None
        self._at += 1
        return tag

    def _number(self, tag: int) -> int:
        """The number that begins with `tag`."""
        if tag >= SMALL:
            return tag - SMALL
        length = tag & 0xF
        if tag & 0xF0 not in (POSITIVE, NEGATIVE) or length > 8:
            raise ProtocolError(f"encoded state has {tag:#04x} where a value begins, at byte {self._at - 1}")
        raw = self._take(length)
        value = int.from_bytes(raw, "little")
        positive = tag & 0xF0 == POSITIVE
        if (length and not raw[-1]) or (positive and value < 0x80) or (not positive and value >= 1 << 63):
            raise ProtocolError(f"encoded state has a number that is not spelt as it must be, before byte {self._at}")
        return value if positive else -1 - value

    def _length(self, what: str, limit: int) -> int:
        """A length or count that is not above `limit`."""
        length = self._number(self._tag())
        if not 0 <= length <= limit:
            raise ProtocolError(f"encoded state has {what} of {length}, at byte {self._at}; {limit} at most can be")
        return length

    def _left(self) -> int:
        return len(self._data) - self._at

    def _value(self, depth: int) -> Any:
        tag = self._tag()
        if tag >= POSITIVE:
            return self._number(tag)
        if tag == BYTES:
            return self._take(self._length("a string", self._left()))
        if tag <= TRUE:
            return (None, False, True)[tag]
        if tag == TUPLE:
            self._enter(depth)
            count = self._length("a tuple", self._left())
            self._spend(count)
            return tuple([self._value(depth + 1) for _ in range(count)])
        if tag == REFERENCE:
            self._enter(depth)
            return self._record(self._shapes[self._length("a type's index", len(self._shapes) - 1)], depth)
        if tag == RECORD:
            self._enter(depth)
            return self._record(self._define(), depth)
        if tag == TEXT:
            return self._text()
        if tag == FLOAT:
            value = struct.unpack("<d", self._take(8))[0]
            if math.isnan(value):
                raise ProtocolError(f"encoded state has a float that is not a number, before byte {self._at}")
            return value
        raise ProtocolError(f"encoded state has {tag:#04x} where a value begins, at byte {self._at - 1}")

    def _enter(self, depth: int) -> None:
        if depth == MAX_DEPTH:
            raise ProtocolError(f"encoded state has more than {MAX_DEPTH} tuples and records inside of one another")

    def _text(self) -> str:
        raw = self._take(self._length("a text", self._left()))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise ProtocolError(f"encoded state has a text that is not UTF-8, before byte {self._at}") from None

    def _name(self) -> str:
        raw = self._take(self._length("a name", MAX_NAME))
        if not raw.isascii() or not raw.decode().isidentifier():
            raise ProtocolError(f"encoded state has a name that cannot be one, before byte {self._at}")
        return raw.decode()

    def _define(self) -> _Shape:
        name = self._name()
        if any(shape.name == name for shape in self._shapes):
            raise ProtocolError(f"encoded state defines {name} twice")
        kind = None if self._types is None else self._types.get(name)
        if kind is None and self._types is not None:
            raise ProtocolError(f"record {name} is not known here")
        count = self._length(f"a count of fields of {name}", self._left())
        fields = tuple([self._name() for _ in range(count)])
        if kind is not None:
            check_fields(kind, fields)
            shape = _Shape(name, fields, kind, fields == kind._fields, 1 + len(kind._fields))
        else:
            shape = _Shape(name, fields, None, False, 1 + count)
        if len(set(fields)) != count:
            raise ProtocolError(f"record {name} has a field twice")
        self._shapes.append(shape)
        return shape

    def _record(self, shape: _Shape, depth: int) -> Any:
        self._spend(shape.weight)
        values = [self._value(depth + 1) for _ in shape.fields]
        if shape.kind is None:
            return Plain(shape.name, dict(zip(shape.fields, values, strict=True)))
        if shape.whole:
            return shape.kind._make(values)
        return shape.kind(**dict(zip(shape.fields, values, strict=True)))


def check_fields(kind: type[Any], fields: Iterable[str]) -> None:
    """Raise `ProtocolError` if a record of `kind` cannot be made of `fields`."""
    given = set(fields)
    unknown = sorted(given.difference(kind._fields))
    if unknown:
        raise ProtocolError(f"record {kind.__name__} has no field {unknown[0]!r} here")
    missing = [field for field in kind._fields if field not in given and field not in kind._field_defaults]
    if missing:
        raise ProtocolError(f"record {kind.__name__} lacks the field {missing[0]!r}")


def build(value: Any, types: Mapping[str, type[Any]]) -> Any:
    """`value` with each `Plain` in it as a record of `types`. Raises `ProtocolError` as `decode` does."""
    if type(value) is Plain:
        kind = types.get(value.type_name)
        if kind is None:
            raise ProtocolError(f"record {value.type_name} is not known here")
        check_fields(kind, value.fields)
        return kind(**{field: build(item, types) for field, item in value.fields.items()})
    if type(value) is tuple:
        return tuple([build(item, types) for item in value])
    return value
