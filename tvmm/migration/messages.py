"""What source and destination tell each other on the control connection.

Messages are records in the encoding of `tvmm.state`. Pages go over connections of their own (`tvmm.kvm.lanes`), in
rounds: each lane says where a round ends, and the destination reads the next one on no lane before it has all of the
last one on every lane.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tvmm.state import Section

__all__ = [
    "FROM_DESTINATION",
    "FROM_SOURCE",
    "Absent",
    "Absentees",
    "Answer",
    "Block",
    "Cancel",
    "Commit",
    "Complete",
    "Copies",
    "Descriptors",
    "Discarded",
    "Failure",
    "Goodbye",
    "Grants",
    "Hello",
    "Image",
    "ImageHashes",
    "Images",
    "Partial",
    "Query",
    "Ready",
    "Received",
    "Recover",
    "Refuse",
    "Rejoin",
    "Resumed",
    "RoundDone",
    "Running",
    "State",
    "Stored",
    "Wants",
    "Watched",
    "Welcome",
]


class Block(NamedTuple):
    """A RAM block: the lanes know it by its place in `Hello.blocks`."""

    name: str
    pages: int


class Wants(NamedTuple):
    """Source, before Hello, if it wants any: features beyond rounds of pages over lanes, by name.

    A destination that does not know this message is one that has none of them.
    """

    features: tuple[str, ...]


class Grants(NamedTuple):
    """Destination, before Welcome, in answer to Wants: which of them it goes along with."""

    features: tuple[str, ...]


class Image(NamedTuple):
    """A disk that can be copied: its device, its size and what the host has allocated for it, both in bytes.

    `file` is the same for two descriptions of one file, and `stamp` says when and where it was changed last: a file
    that has the same at the destination is taken for the same one, even if `file` is not known to be.
    """

    name: str
    size: int
    allocated: int
    file: bytes
    stamp: bytes


class Images(NamedTuple):
    """Source, after Wants with ``storage`` in it: the disks that it could copy. Frames know them by their places."""

    images: tuple[Image, ...]


class Copies(NamedTuple):
    """Destination, after Welcome, if it grants ``storage``: the places of those that it wants."""

    places: tuple[int, ...]


class Stored(NamedTuple):
    """Destination: round `number` of blocks is in its images and stable; the sync at its end took `sync_ns`."""

    number: int
    sync_ns: int = 0


class ImageHashes(NamedTuple):
    """Source, paused: of each image that was copied, in the order of `Copies`, if they are to be verified."""

    hashes: tuple[bytes, ...]


class Hello(NamedTuple):
    """Source: what is to be moved. `session` is 16 random bytes that name this migration.

    `description` is the machine as (name, text) pairs that have to be the same on both sides, `cpu` the record
    `CpuDescription` encoded by itself.
    """

    session: bytes
    name: str
    description: tuple[tuple[str, str], ...]
    cpu: bytes
    blocks: tuple[Block, ...]
    lanes: int
    compress: str = "off"
    verify: bool = False


class Welcome(NamedTuple):
    """Destination: go ahead, with `version` of the protocol. `token` (16 bytes) lets lanes in."""

    version: int
    token: bytes


class Refuse(NamedTuple):
    """Destination: not this machine, or not in this way; nothing has been touched and it goes on waiting."""

    reasons: tuple[str, ...]
    hint: str = ""


class RoundDone(NamedTuple):
    """Destination: round `number` is in place, `nanoseconds` after its first byte came."""

    number: int
    nanoseconds: int = 0


class State(NamedTuple):
    """Source, paused: all but RAM. `last_round` is the one that has the last pages, `hashes` of RAM blocks by their
    order if they are to be verified. `running`: the guest is to run there; otherwise it arrives paused, as it was.
    """

    sections: tuple[Section, ...]
    running: bool
    last_round: int
    hashes: tuple[bytes, ...] = ()


class Ready(NamedTuple):
    """Destination: everything is here and well. `pages_ns`: from the first byte of the last round to its end;
    `restore_ns`: what loading the state took.
    """

    pages_ns: int = 0
    restore_ns: int = 0


class Commit(NamedTuple):
    """Source: the guest is yours; this side has let go of its disks and does not run it again."""


class Running(NamedTuple):
    """Destination: it runs, `resume_ns` after COMMIT had come."""

    resume_ns: int = 0


class Failure(NamedTuple):
    """Destination: the guest is not here and will not be."""

    reason: str
    hint: str = ""


class Cancel(NamedTuple):
    """Source: forget it; the guest stays."""

    reason: str = ""


class Watched(NamedTuple):
    """Source, before Goodbye: so many `viewers` look at the guest's screen here. A connection for that screen follows,
    on which the destination is an RFB server.
    """

    viewers: int


class Descriptors(NamedTuple):
    """Source, on a connection of kind RAM: names of what the descriptors are that come with this message, in their
    order.
    """

    names: tuple[str, ...]


class Goodbye(NamedTuple):
    """Source: your word that it runs has come. Nobody will ask any more."""


class Query(NamedTuple):
    """Source, on a new connection: what has become of `session`?"""

    session: bytes


class Answer(NamedTuple):
    """Destination: ``running``, ``abandoned``, or ``unknown`` if it has never heard of that session."""

    outcome: str


class Absent(NamedTuple):
    """Source, post-copy: pages of a block that the destination does not have, or no longer as they are, to be thrown
    away there: page `first` + n for each bit n that is set, bit 0 of the first byte first.
    """

    block: int
    first: int
    bits: bytes


class Absentees(NamedTuple):
    """Source, before the pause: those are all so far, `pages` of them with those named twice counted twice."""

    pages: int


class Discarded(NamedTuple):
    """Destination: so many pages are missing now, and what there was of them is thrown away."""

    pages: int


class Partial(NamedTuple):
    """Source, before State: RAM is incomplete, and stays so after the last round. `pages` are missing in all."""

    pages: int


class Complete(NamedTuple):
    """Destination: no page is missing any more; the source's memory is not needed. The guest has waited for a page
    `faults` times, half of them for less than `median_fault_ns`.
    """

    faults: int = 0
    median_fault_ns: int = 0


class Recover(NamedTuple):
    """Source, on a new connection: the post-copy of `session` is to go on."""

    session: bytes


class Received(NamedTuple):
    """Destination: pages that have come, as `Absent` names them."""

    block: int
    first: int
    bits: bytes


class Rejoin(NamedTuple):
    """Destination: those were all that have come. `token` (16 bytes) lets the new connections in."""

    token: bytes


class Resumed(NamedTuple):
    """Destination: the new connections are here; pages may come."""


FROM_SOURCE: tuple[type[Any], ...] = (
    *(Wants, Hello, Block, State, Section, Commit, Cancel, Watched, Goodbye, Query),
    *(Absent, Absentees, Partial, Recover, Images, Image, ImageHashes),
)
FROM_DESTINATION: tuple[type[Any], ...] = (
    *(Grants, Welcome, Refuse, RoundDone, Ready, Running, Failure, Answer),
    *(Discarded, Complete, Received, Rejoin, Resumed, Copies, Stored),
)
