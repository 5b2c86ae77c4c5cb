"""The state of a paused machine as versioned sections.

A `Section` is one part of the machine by a stable name, with the version of its format and one record, encoded as
`tvmm.state_codec` says. The same sections serve migration, snapshot files and cloning.

A reader takes what an older tvmm wrote by upgrade steps on plain fields. It takes what a newer one wrote if that one
says so (`minimum`) and uses no field that is new to it. Anything else is refused in a sentence, before any device is
touched.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.errors import ProtocolError
from tvmm.state_codec import MAX_NAME, Plain, build, decode, decode_plain, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "Section",
    "SectionType",
    "decode",
    "encode",
    "load_sections",
    "pack_sections",
    "unpack_sections",
]

MAX_PACKED_BYTES = 64 << 20
"""Of all sections of a machine together: what a peer can have this side keep."""
MAX_SECTIONS = 4096
"""Of a machine: many times what the largest has."""
MAX_VERSION = 0xFFFF



class Section(NamedTuple):
    """One part of a machine. `name` is stable, such as ``serial0`` or ``virtio/disk0``, `data` its encoded record.

    `version` counts the formats of this section, `minimum` is the oldest reader that understands it.
    """

    name: str
    version: int
    minimum: int
    data: bytes


class SectionType(NamedTuple):
    """What this tvmm knows about a section.

    `version` is what it writes, `minimum` the oldest reader for that, `oldest` the oldest version that it reads.
    `types` are the records that may occur, the section's own first. ``upgrades[n]`` turns the fields of version n, in
    place, into those of n + 1; records in them are `Plain`. Where there is none the default values of new fields do.
    `required` is False for a section that a machine may lack, since older ones did not write it.
    """

    name: str
    version: int
    types: tuple[type[Any], ...]
    minimum: int = 1
    oldest: int = 1
    upgrades: Mapping[int, Callable[[dict[str, Any]], None]] = MappingProxyType({})
    required: bool = True

    def save(self, name: str, record: tuple[Any, ...]) -> Section:
        """The section called `name` with `record` in it."""
        if type(record) is not self.types[0]:
            raise TypeError(f"section {name} holds a {self.types[0].__name__}, not a {type(record).__name__}")
        return Section(name, self.version, self.minimum, encode(record))

    def load(self, section: Section) -> Any:
        """The record in `section`. Raises `ProtocolError` naming the section and what is wrong."""
        try:
            self._check_version(section)
            record = self._decode(section)
        except ProtocolError as error:
            raise ProtocolError(f"section {section.name}: {error}") from None
        return record

    def _check_version(self, section: Section) -> None:
        theirs, minimum = section.version, section.minimum
        if not 1 <= minimum <= theirs <= MAX_VERSION:
            raise ProtocolError(f"its version {theirs} with minimum {minimum} cannot be")
        if minimum > self.version:
            known = f"version {minimum} is needed, this tvmm knows {self.version}"
            raise ProtocolError(f"version {theirs} is too new: {known}")
        if theirs < self.oldest:
            raise ProtocolError(f"version {theirs} is too old: this tvmm reads {self.oldest} to {self.version}")

    def _decode(self, section: Section) -> Any:
        steps = [self.upgrades[old] for old in range(section.version, self.version) if old in self.upgrades]
        own = self.types[0]
        if not steps:
            record = decode(section.data, self.types)
            if type(record) is not own:
                raise ProtocolError(f"it does not hold a {own.__name__}")
            return record
        plain = decode_plain(section.data)
        if type(plain) is not Plain or plain.type_name != own.__name__:
            raise ProtocolError(f"it does not hold a {own.__name__}")
        try:
            for step in steps:
                step(plain.fields)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            # A step takes the fields of its version for granted; a hostile record lacks them.
            raise ProtocolError(f"its fields of version {section.version} are not what they must be") from error
        return build(plain, {kind.__name__: kind for kind in self.types})


def load_sections(sections: Iterable[Section], known: Mapping[str, SectionType]) -> dict[str, Any]:
    """The records of `sections` by name. `known` are the sections that this machine has.

    Raises `ProtocolError` if a section is unknown, is there twice, is missing, or cannot be read.
    """
    records: dict[str, Any] = {}
    for section in sections:
        kind = known.get(section.name)
        if kind is None:
            raise ProtocolError(f"section {section.name} is of a part that this machine has not")
        if section.name in records:
            raise ProtocolError(f"section {section.name} is there twice")
        records[section.name] = kind.load(section)
    for name, kind in known.items():
        if kind.required and name not in records:
            raise ProtocolError(f"section {name} is missing")
    return records


def pack_sections(sections: Iterable[Section]) -> bytes:
    """All sections of a machine as one string of bytes."""
    return encode(tuple(sections), MAX_PACKED_BYTES)


def unpack_sections(data: bytes) -> list[Section]:
    """The sections in what `pack_sections` made. Raises `ProtocolError`."""
    found = decode(data, (Section,), MAX_PACKED_BYTES)
    if type(found) is not tuple or len(found) > MAX_SECTIONS:
        raise ProtocolError(f"state of a machine is not a list of at most {MAX_SECTIONS} sections")
    for section in found:
        _check_section(section)
    return list(found)


def _check_section(section: object) -> None:
    """Raise `ProtocolError` unless each field is of its type; the loader checks the values."""
    if type(section) is not Section:
        raise ProtocolError("state of a machine holds something that is no section")
    if type(section.name) is not str or not 0 < len(section.name) <= MAX_NAME or not section.name.isprintable():
        raise ProtocolError("a section has no proper name")
    if type(section.version) is not int or type(section.minimum) is not int or type(section.data) is not bytes:
        raise ProtocolError(f"section {section.name} has a field of the wrong type")
