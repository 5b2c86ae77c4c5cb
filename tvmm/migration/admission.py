"""What a source says of the machine that it has, and whether that can arrive here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ProtocolError
from tvmm.migration.descriptors import is_trusted
from tvmm.migration.guest import blocks_of
from tvmm.migration.hand_over import MEMFD, only_here, taps_in
from tvmm.migration.messages import Hello, Images, Refuse, Wants
from tvmm.migration.status import COMPRESSIONS
from tvmm.migration.wire import MAX_LANES, readable

if TYPE_CHECKING:
    from tvmm.migration.disk_arrival import ArrivingDisks
    from tvmm.migration.guest import ArrivingGuest
    from tvmm.migration.link import Link

__all__ = ["Request", "granted", "read_request", "why_refused"]

MAX_REASONS = 32
SESSION_BYTES, MAX_NAME = 16, 256
MAX_FEATURES = 32
"""Names of features that a source may want."""
MAX_TEXTS = 4096
"""Pairs in the description of a machine: a peer does not make this side compare for ever."""


class Request(NamedTuple):
    """All that comes before Welcome."""

    hello: Hello
    wants: Wants
    images: Images | None


async def read_request(link: Link) -> Request:
    """The first messages of a source. Raises `LinkLost`, or `ProtocolError` if they are others."""
    wants, images = Wants(()), None
    hello = await link.receive()
    if isinstance(hello, Wants):
        wants, hello = hello, await link.receive()
    if isinstance(hello, Images):
        images, hello = hello, await link.receive()
    if not isinstance(hello, Hello):
        raise ProtocolError("the source does not begin with a greeting")
    return Request(hello, wants, images)


async def why_refused(request: Request, guest: ArrivingGuest, disks: ArrivingDisks, link: Link) -> Refuse | None:
    """Why this is not the machine that can arrive here, over `link`; None if it is.

    Raises `ProtocolError` for what none can be.
    """
    hello = request.hello
    _check_hello(hello, request.wants)
    reasons = list(guest.differences(hello.description, await guest.description()))
    if not reasons and hello.blocks != blocks_of(guest.ram):
        reasons.append("its RAM is laid out differently")
    reasons += guest.cpu_problems(hello.cpu)
    if hello.compress not in COMPRESSIONS:
        reasons.append(f"compression {readable(hello.compress)!r} is not known here")
    # What is wrong with copies of disks says itself what to do.
    hint = "start it with the options of the source" if reasons else ""
    reasons += await disks.problems(request.wants, request.images)
    if reasons:
        return Refuse(tuple(reasons[:MAX_REASONS]), hint)
    busy = await guest.tap_problems(taps_in(granted(request.wants, guest, link)))
    return Refuse(tuple(busy[:MAX_REASONS]), "end who has it, or start it with another ifname=") if busy else None


def granted(wants: Wants, guest: ArrivingGuest, link: Link) -> frozenset[str]:
    """Features that a migration over `link` gets, of those that its source wants."""
    features = frozenset(wants.features[:MAX_FEATURES]) & guest.features()
    if not is_trusted(link.stream):
        features -= only_here(features)
    if MEMFD in features:
        # Nothing has to come after the guest.
        features -= {"postcopy"}
    return features


def _check_hello(hello: Hello, wants: Wants) -> None:
    """Raise `ProtocolError` for what no source says."""
    if len(hello.session) != SESSION_BYTES or len(hello.name) > MAX_NAME or len(hello.description) > MAX_TEXTS:
        raise ProtocolError("the source's greeting has a field of another length")
    if not 1 <= hello.lanes <= MAX_LANES:
        raise ProtocolError(f"the source wants {hello.lanes} connections for pages, 1 to {MAX_LANES} are possible")
    if hello.verify and "postcopy" in wants.features:
        # To compare what is to come later would wait for it, in the pause.
        raise ProtocolError("the source wants its memory compared, and some of it to come later")
