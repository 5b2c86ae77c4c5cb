"""What a snapshot says about its machine: one record, encoded as `tvmm.state_codec` says.

It has the same facts, processors and sections as a migration, and beside them what a migration's user gives twice: the
options of the machine. It is as untrusted as the rest of the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.board_facts import Facts, check_facts
from tvmm.errors import ImageError, ProtocolError
from tvmm.snapshot.format import MAX_DESCRIPTION_BYTES, PAGE_BYTES, BlockPlace, Header, check_places
from tvmm.state import Section, unpack_sections
from tvmm.state_codec import decode, encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvmm.snapshot.options import Options

__all__ = [
    "IMAGE_BLOCKS",
    "Description",
    "DiskFile",
    "ImageFile",
    "options_of_record",
    "options_record",
    "pack_description",
    "parse_description",
]

IMAGE_BLOCKS = ("image.kernel", "image.initrd")
"""Blocks with the bytes of these files, which a restored machine needs when its guest resets."""

MAX_BLOCKS = 64
"""RAM, video memory and images are four."""
MAX_TEXT = 4096
"""Of a path or of an option's value, which the kernel limits too."""
MAX_OPTIONS = 4096
MAX_DISKS = 4096
LAST_NS = (1 << 63) - 1


class ImageFile(NamedTuple):
    """A kernel or initrd that is in the block of that name, `bytes` long. `path` is where it was, for people."""

    block: str
    path: str
    bytes: int


class DiskFile(NamedTuple):
    """The image of a disk when the machine was saved: `mtime_ns` in Unix time; -1 for what has no such time."""

    id: str
    path: str
    bytes: int
    mtime_ns: int


class Description(NamedTuple):
    """`saved_at_ns` is in Unix time; `program` the tvmm that wrote it. `options` are those of `MachineConfig.parse`, as
    (name, values) with one value for those that are given once. `cpu` is an encoded `CpuDescription`, `sections` what
    `pack_sections` makes.
    """

    name: str
    saved_at_ns: int
    program: str
    running: bool
    options: tuple[tuple[str, tuple[str, ...]], ...]
    facts: Facts
    cpu: bytes
    sections: bytes
    blocks: tuple[BlockPlace, ...]
    images: tuple[ImageFile, ...] = ()
    disks: tuple[DiskFile, ...] = ()

    def image(self, block: str) -> ImageFile | None:
        """The image in the block of that name, if there is one."""
        return next((image for image in self.images if image.block == block), None)

    def state(self) -> list[Section]:
        """The sections. Raises `ImageError` for what is none."""
        try:
            return unpack_sections(self.sections)
        except ProtocolError as error:
            raise ImageError(f"its description: {error}") from error

    def ram_blocks(self) -> tuple[BlockPlace, ...]:
        """Those that are the guest's."""
        return tuple(place for place in self.blocks if place.name not in IMAGE_BLOCKS)


def pack_description(description: Description) -> bytes:
    """As it is in the file, before it is encrypted."""
    return encode(description, MAX_DESCRIPTION_BYTES)


def parse_description(data: bytes, header: Header) -> Description:
    """What `pack_description` made, for a file with that header. Raises `ImageError` for anything else."""
    try:
        found = decode(data, (Description, BlockPlace, ImageFile, DiskFile), MAX_DESCRIPTION_BYTES)
        if type(found) is not Description:
            raise ImageError("its description is none")
        _check_texts(found)
        check_facts(found.facts)
    except ProtocolError as error:
        raise ImageError(f"its description: {error}") from error
    _check_blocks(found, header)
    _check_files(found)
    return found


def options_record(options: Options) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """`options` as they are in a description."""
    return tuple((name, (value,) if isinstance(value, str) else tuple(value)) for name, value in options.items())


def options_of_record(description: Description, lists: Sequence[str]) -> Mapping[str, str | list[str]]:
    """The options back; those in `lists` may be given several times. Raises `ImageError`."""
    options: dict[str, str | list[str]] = {}
    for name, values in description.options:
        if name in lists:
            options[name] = list(values)
        elif len(values) == 1:
            options[name] = values[0]
        else:
            raise ImageError(f"its option {name} has {len(values)} values")
    return options


def _text(value: object) -> bool:
    return type(value) is str and len(value) <= MAX_TEXT


def _check_texts(found: Description) -> None:
    fine = (
        _text(found.name) and found.name.isprintable()
        and type(found.saved_at_ns) is int and 0 <= found.saved_at_ns <= LAST_NS
        and _text(found.program) and found.program.isprintable()
        and type(found.running) is bool
        and type(found.cpu) is bytes and type(found.sections) is bytes
        and type(found.options) is tuple and len(found.options) <= MAX_OPTIONS
    )  # fmt: skip
    if not fine:
        raise ImageError("its description has a field of the wrong type")
    for option in found.options:
        if type(option) is not tuple or len(option) != 2 or not _text(option[0]) or type(option[1]) is not tuple:
            raise ImageError("its description has something that is no option")
        if len(option[1]) > MAX_OPTIONS or not all(map(_text, option[1])):
            raise ImageError("its description has an option with something that is no text")
    if len({name for name, _ in found.options}) < len(found.options):
        raise ImageError("its description has an option twice")


def _check_blocks(found: Description, header: Header) -> None:
    if type(found.blocks) is not tuple or not 0 < len(found.blocks) <= MAX_BLOCKS:
        raise ImageError("its description has no list of blocks")
    for place in found.blocks:
        numbers = type(place) is BlockPlace and type(place.pages) is int and type(place.offset) is int
        if not numbers or not _text(place.name) or not place.name.isprintable():
            raise ImageError("its description has something that is no block")
    if len({place.name for place in found.blocks}) < len(found.blocks):
        raise ImageError("its description has a block twice")
    check_places(found.blocks, header)


def _check_files(found: Description) -> None:
    if type(found.images) is not tuple or type(found.disks) is not tuple or len(found.disks) > MAX_DISKS:
        raise ImageError("its description has no list of files")
    blocks = {place.name: place for place in found.blocks if place.name in IMAGE_BLOCKS}
    for image in found.images:
        if type(image) is not ImageFile or not _text(image.path) or type(image.bytes) is not int:
            raise ImageError("its description has something that is no image")
        if image.block not in blocks or not 0 < image.bytes <= blocks.pop(image.block).pages * PAGE_BYTES:
            raise ImageError("its description has an image without a block")
    if blocks:
        raise ImageError("its description has a block without an image")
    for disk in found.disks:
        fine = type(disk) is DiskFile and _text(disk.id) and _text(disk.path)
        if not fine or type(disk.bytes) is not int or type(disk.mtime_ns) is not int:
            raise ImageError("its description has something that is no disk")
