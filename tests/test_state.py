"""The codec of records, and sections with their versions."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tvmm.errors import ProtocolError
from tvmm.state import Section, SectionType, decode, encode, load_sections, pack_sections, unpack_sections
from tvmm.state_codec import MAX_BYTES, MAX_DEPTH, MAX_VALUES, Plain, decode_plain

if TYPE_CHECKING:
    from collections.abc import Callable


class Leaf(NamedTuple):
    """A record in another."""

    number: Any = 0
    raw: Any = b""


class Tree(NamedTuple):
    """A record with others in it."""

    name: Any
    leaves: Any = ()
    flag: Any = False


class Wide(NamedTuple):
    """Many fields, all with a default."""

    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    e: int = 0
    f: int = 0
    g: int = 0
    h: int = 0


TYPES = (Leaf, Tree, Wide)

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.integers(-300, 300)
    | st.floats(allow_nan=False)
    | st.binary(max_size=40)
    | st.text(max_size=20)
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple)
        | st.tuples(inner, inner).map(Leaf._make)
        | st.tuples(inner, inner, st.booleans()).map(Tree._make)
    ),
    max_leaves=20,
)


def same(left: object, right: object) -> bool:
    """Equal, and of the same types throughout: a record is not its tuple, True is not 1, -0.0 is not 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(left) == repr(right)


def depth(value: object) -> int:
    """How many tuples and records are inside of one another."""
    return 1 + max(map(depth, value), default=0) if isinstance(value, tuple) else 0


@settings(max_examples=400, deadline=None)
@given(VALUES)
def test_a_value_comes_back_as_it_was(value: object) -> None:
    """Each value that can be encoded is decoded to the same value of the same type, with no other spelling."""
    assume(depth(value) <= MAX_DEPTH)
    data = encode(value)
    found = decode(data, TYPES)
    assert same(found, value)
    assert encode(found) == data


EDGES = (0, 1, 127, 128, 255, 256, 65535, 65536, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


@pytest.mark.parametrize("number", [*EDGES, *(-1 - edge for edge in EDGES if edge < 1 << 63)])
def test_numbers_at_the_edges(number: int) -> None:
    """The largest and smallest of each length come back."""
    assert decode(encode(number), ()) == number


@settings(max_examples=600, deadline=None)
@given(st.binary(max_size=200))
@example(b"\x07\x81a\x80")
@example(b"\x06\x14\xff\xff\xff\xff")
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever the bytes are, there is a value or a ProtocolError; a value has no other spelling than these bytes."""
    for plain in (False, True):
        refusal = ""
        try:
            found = decode_plain(data) if plain else decode(data, TYPES)
        except ProtocolError as error:
            refusal = str(error)
        assert len(refusal) < 300
        if not refusal and b"\x07" not in data:
            assert encode(found) == data


@settings(max_examples=600, deadline=None)
@given(VALUES, st.data())
def test_changed_bytes_are_read_or_refused(value: object, draw: st.DataObject) -> None:
    """An encoded value with bytes changed, cut or put in gives a value or a ProtocolError."""
    assume(depth(value) <= MAX_DEPTH)
    data = bytearray(encode(value))
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(data)))
        data[at : at + draw.draw(st.integers(0, 2))] = draw.draw(st.binary(max_size=2))
    try:
        decode(bytes(data), TYPES)
    except ProtocolError:
        return


def _defined(name: bytes, *fields: bytes) -> bytes:
    """A record's definition."""
    out = bytes([7, 0x80 + len(name)]) + name + bytes([0x80 + len(fields)])
    return out + b"".join(bytes([0x80 + len(field)]) + field for field in fields)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "ends before"),
        (b"\x04\x85abc", "a string of 5"),
        (b"\x80\x80", "goes on after its end, at byte 1"),
        (b"\x11\x7f", "not spelt"),
        (b"\x12\xff\x00", "not spelt"),
        (b"\x21\x00", "not spelt"),
        (b"\x28\xff\xff\xff\xff\xff\xff\xff\xff", "not spelt"),
        (b"\x19" + bytes(9), "0x19 where a value begins"),
        (b"\x10", "not spelt"),
        (b"\x09", "0x09 where a value begins"),
        (b"\x30", "0x30 where a value begins"),
        (b"\x04\x20", "a string of -1"),
        (b"\x06\x18" + b"\xff" * 8, "a tuple of 18446744073709551615"),
        (b"\x05\x81\xff", "not UTF-8"),
        (b"\x03\x00\x00\x00\x00\x00\x00\xf8\x7f", "not a number"),
        (b"\x08\x80", "type's index"),
        (_defined(b"Nobody"), "record Nobody is not known here"),
        (_defined(b"No body"), "a name that cannot be one"),
        (_defined(b"Leaf", b"more") + b"\x80", "record Leaf has no field 'more' here"),
        (_defined(b"Leaf", b"raw", b"raw") + b"\x80\x80", "record Leaf has a field twice"),
        (_defined(b"Tree", b"flag") + b"\x01", "record Tree lacks the field 'name'"),
        (b"\x06\x82" + 2 * (_defined(b"Leaf", b"raw") + b"\x80"), "defines Leaf twice"),
        (b"\x06\x81" * (MAX_DEPTH + 1) + b"\x00", "inside of one another"),
    ],
)
def test_refusals_say_what_is_wrong(data: bytes, complaint: str) -> None:
    """Each kind of bad data is named."""
    with pytest.raises(ProtocolError, match=complaint):
        decode(data, TYPES)


def test_absent_fields_take_their_defaults() -> None:
    """Fields in any order, and without those that have a default."""
    assert decode(_defined(b"Tree", b"flag", b"name") + b"\x02\x85", TYPES) == Tree(5, (), True)
    assert decode_plain(_defined(b"Tree", b"flag", b"odd") + b"\x02\x85") == Plain("Tree", {"flag": True, "odd": 5})


def test_what_cannot_be_saved_is_a_bug() -> None:
    """Types and numbers that have no encoding raise where they are written."""
    for value in ([], {}, bytearray(), object(), memoryview(b""), (1, [2])):
        with pytest.raises(TypeError, match="cannot be saved"):
            encode(value)
    for number in (1 << 64, -(1 << 63) - 1, float("nan")):
        with pytest.raises(ValueError, match="number"):
            encode(number)
    with pytest.raises(ValueError, match="at most"):
        encode(bytes(MAX_BYTES))


def test_data_over_the_cap_is_not_looked_at() -> None:
    """One byte too many is refused before anything else."""
    with pytest.raises(ProtocolError, match=f"at most {MAX_BYTES} are taken"):
        decode(bytes(MAX_BYTES + 1), ())


def test_too_many_values_are_refused() -> None:
    """The count of values has a cap of its own."""
    with pytest.raises(ProtocolError, match="too many values"):
        decode(b"\x06\x13" + (MAX_VALUES + 1).to_bytes(3, "little") + bytes(MAX_VALUES + 1), ())


@pytest.mark.parametrize(
    "data",
    [
        b"\x06\x13" + (200_000).to_bytes(3, "little") + b"\x06\x80" * 200_000,
        b"\x06\x13" + (100_000).to_bytes(3, "little") + b"\x06\x81\x00" * 100_000,
        b"\x06\x13" + (100_001).to_bytes(3, "little") + _defined(b"Wide") + b"\x08\x80" * 100_000,
        b"\x06\x13" + (70_000).to_bytes(3, "little") + b"\x14\x00\x00\x00\x01" * 70_000,
        b"\x04\x13" + (1_000_000).to_bytes(3, "little") + bytes(1_000_000),
    ],
    ids=["tuples", "tuples-of-one", "defaults", "numbers", "bytes"],
)
def test_memory_is_bounded_by_the_data(data: bytes) -> None:
    """No kind of value takes more than 40 times its encoded length, whether the data is taken in the end or not."""
    tracemalloc.start()
    refusal = ""
    try:
        decode(data, TYPES)
    except ProtocolError as error:
        refusal = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert refusal in ("", "encoded state holds too many values")
    assert peak < 40 * len(data) + 65536


# --- sections ---


def _double(fields: dict[str, Any]) -> None:
    """From version 1 to 2: the number was half of it."""
    fields["number"] = 2 * fields.pop("half")


def _leaves(fields: dict[str, Any]) -> None:
    """From version 2 to 3: the raw bytes were a record of their own."""
    fields["raw"] = fields["raw"].fields["data"]


KIND = SectionType("leaf", 3, (Leaf,), minimum=2, upgrades={1: _double, 2: _leaves})


def _plain(name: str, **fields: bytes) -> bytes:
    """An encoded record of encoded fields."""
    return _defined(name.encode(), *(field.encode() for field in fields)) + b"".join(fields.values())


def test_a_section_comes_back() -> None:
    """What is saved is loaded."""
    section = KIND.save("leaf/1", Leaf(7, b"x"))
    assert section[:3] == ("leaf/1", 3, 2)
    assert load_sections([section], {"leaf/1": KIND}) == {"leaf/1": Leaf(7, b"x")}


def test_an_older_section_is_upgraded_step_by_step() -> None:
    """Version 1 goes through both steps, version 2 through the second."""
    box = _plain("Box", data=b"\x04\x81z")
    old = Section("l", 1, 1, _plain("Leaf", half=b"\x84", raw=box))
    assert KIND.load(old) == Leaf(8, b"z")
    assert KIND.load(Section("l", 2, 1, _plain("Leaf", number=b"\x84", raw=box))) == Leaf(4, b"z")


def test_a_newer_section_is_read_if_its_writer_says_so() -> None:
    """With a minimum that is known here and known fields only."""
    data = encode(Leaf(1))
    assert KIND.load(Section("l", 9, 3, data)) == Leaf(1)
    with pytest.raises(ProtocolError, match="section l: version 9 is too new: version 4 is needed, this tvmm knows 3"):
        KIND.load(Section("l", 9, 4, data))
    with pytest.raises(ProtocolError, match="section l: record Leaf has no field 'extra' here"):
        KIND.load(Section("l", 4, 1, _plain("Leaf", extra=b"\x80")))


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        (Section("l", 1, 2, b""), "section l: its version 1 with minimum 2 cannot be"),
        (Section("l", 0, 0, b""), "cannot be"),
        (Section("l", -1, 1, b""), "cannot be"),
        (Section("l", 1 << 40, 1, b""), "cannot be"),
        (Section("l", 3, 3, encode(5)), "does not hold a Leaf"),
        (Section("l", 3, 3, encode(Tree(5))), "section l: record Tree is not known here"),
        (Section("l", 2, 2, encode(5)), "does not hold a Leaf"),
        (Section("l", 2, 2, encode(Leaf(1, b"no record"))), "its fields of version 2 are not what they must be"),
        (Section("l", 1, 1, encode(Leaf(1))), "its fields of version 1 are not what they must be"),
    ],
)
def test_bad_sections_are_refused(section: Section, complaint: str) -> None:
    """Versions that cannot be, other records, and fields that an upgrade step cannot work with."""
    with pytest.raises(ProtocolError, match=complaint):
        KIND.load(section)


def test_a_version_that_is_no_longer_read() -> None:
    """Too old is said as such."""
    with pytest.raises(ProtocolError, match="section l: version 2 is too old: this tvmm reads 3 to 3"):
        KIND._replace(oldest=3).load(Section("l", 2, 1, b""))


def test_the_set_of_sections_must_be_the_machines() -> None:
    """One unknown, one twice and one missing are refused; one that is not required may be missing."""
    leaf = KIND.save("a", Leaf())
    with pytest.raises(ProtocolError, match="section a is of a part that this machine has not"):
        load_sections([leaf], {})
    with pytest.raises(ProtocolError, match="section a is there twice"):
        load_sections([leaf, leaf], {"a": KIND})
    with pytest.raises(ProtocolError, match="section b is missing"):
        load_sections([leaf], {"a": KIND, "b": KIND})
    assert load_sections([leaf], {"a": KIND, "b": KIND._replace(required=False)}) == {"a": Leaf()}


def test_a_record_of_another_type_is_not_saved() -> None:
    """That would be a bug here, found by the writer."""
    with pytest.raises(TypeError, match="section l holds a Leaf, not a Tree"):
        KIND.save("l", Tree(1))


def test_sections_pack_and_unpack() -> None:
    """A list of sections as bytes, and back."""
    sections = [KIND.save("a", Leaf(5)), KIND.save("b", Leaf(6, bytes(70_000)))]
    assert unpack_sections(pack_sections(sections)) == sections


@pytest.mark.parametrize(
    "value",
    [
        5,
        (5,),
        (Section("", 1, 1, b""),),
        (Section("a\n", 1, 1, b""),),
        (Section("a" * 65, 1, 1, b""),),
        (Section("a", True, 1, b""),),
        (Section("a", 1, 1, "x"),),  # type: ignore[arg-type]
        (Section("a", 1, 1, b""),) * 5000,
    ],
)
def test_what_is_no_list_of_sections_is_refused(value: object) -> None:
    """Fields of other types, empty or endless names, and too many."""
    with pytest.raises(ProtocolError):
        unpack_sections(encode(value))


@pytest.mark.parametrize("make", [lambda: None, lambda: Leaf(3)], ids=["none", "record"])
def test_packed_value_that_is_no_tuple(make: Callable[[], object]) -> None:
    """A single value, or a record of another kind."""
    with pytest.raises(ProtocolError):
        unpack_sections(encode(make()))
