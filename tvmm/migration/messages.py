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
    "Answer",
    "Block",
    "Cancel",
    "Commit",
    "Failure",
    "Goodbye",
    "Grants",
    "Hello",
    "Query",
    "Ready",
    "Refuse",
    "RoundDone",
    "Running",
    "State",
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


class Goodbye(NamedTuple):
    """Source: your word that it runs has come. Nobody will ask any more."""


class Query(NamedTuple):
    """Source, on a new connection: what has become of `session`?"""

    session: bytes


class Answer(NamedTuple):
    """Destination: ``running``, ``abandoned``, or ``unknown`` if it has never heard of that session."""

    outcome: str


FROM_SOURCE: tuple[type[Any], ...] = (Wants, Hello, Block, State, Section, Commit, Cancel, Watched, Goodbye, Query)
FROM_DESTINATION: tuple[type[Any], ...] = (Grants, Welcome, Refuse, RoundDone, Ready, Running, Failure, Answer)
