"""Processes that are killed at each moment of a migration: one running guest is left or a paused source, never two."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.migrating import Chain, Place, Way, bridged
from tests.support.netns import network_namespace
from tests.support.process import call, command, until
from tvmm.control.client import QmpClient
from tvmm.control.registry import find

pytestmark = [pytest.mark.guest, pytest.mark.timeout(240)]

VERB_SECONDS = 90
"""A source that was not told how it ended asks for half a minute."""


class Moment(NamedTuple):
    """The `number`th event of a name, with some word in its data, from the one or the other side."""

    side: str
    event: str
    word: str = ""
    number: int = 1

    def __str__(self) -> str:
        return "-".join(filter(None, [self.side, self.event, self.word, str(self.number)])).lower()


MOMENTS = (
    Moment("source", "MIGRATION", "setup"),
    Moment("source", "MIGRATION", "active"),
    Moment("source", "MIGRATION_PASS", "", 1),
    Moment("source", "MIGRATION_PASS", "", 2),
    Moment("source", "MIGRATION", "device"),
    Moment("source", "STOP"),
    Moment("destination", "MIGRATION", "active"),
    Moment("destination", "RESUME"),
    Moment("destination", "MIGRATION", "completed"),
)
"""In the order in which they come, about: between the last three lies the moment from which the guest is the
destination's."""
WAYS = (Way("unix", ("--connections", "2")), Way("tcp", tls=True))
ATTEMPTS = 20
BANDWIDTH = "40M"
"""So that there is time for more than one pass."""


@pytest.fixture(autouse=True)
def bridge() -> Iterator[None]:
    """Nothing of this reaches the host's network."""
    with network_namespace(), bridged():
        yield


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """A guest that works, and is about to be moved."""
    with Chain(tmp_path, "pci", "") as chain:
        yield chain


def client(place: Place) -> QmpClient:
    """Of its control socket, which may be there a moment after the machine has said where it waits."""
    control = find(Path(os.environ["TVMM_RUNTIME_DIR"]), place.name).paths.control
    until(control.exists)
    return QmpClient(control)


def wait_for(moment: Moment, events: QmpClient) -> None:
    """Return when it has come."""
    seen = 0
    while seen < moment.number:
        event = events.wait_event(moment.event, timeout=30)
        assert event is not None, f"{moment} did not come"
        seen += moment.word in ("", event.get("data", {}).get("status"))


@contextmanager
def moving(chain: Chain, uri: str, way: Way) -> Iterator[subprocess.Popen[bytes]]:
    """`tvmm migrate`, under way."""
    order = command(*chain.order(uri, way, "--bandwidth", BANDWIDTH))
    with subprocess.Popen(order, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as verb:
        try:
            yield verb
        finally:
            verb.kill()


QUIET_LOOKS = 50
"""At a tenth of a second and more each: a destination notices at once when its source's connections are closed."""


def lock_count(image: Path) -> int:
    """How many open file descriptions have a lock on it."""
    inode = f":{image.stat().st_ino} "
    return sum(inode in line and "OFDLCK" in line for line in Path("/proc/locks").read_text().splitlines())


def end_of(verb: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What `--json` says last."""
    told, said = verb.communicate(timeout=VERB_SECONDS)
    last = json.loads(told.splitlines()[-1])
    assert isinstance(last, dict), said
    return last


def check_running(chain: Chain, place: Place, *, disk: bool = True) -> None:
    """It runs there with its disk, and all that it has is right."""
    until(lambda: place.status() == "running")
    place.mark()
    assert lock_count(chain.image) == 1
    chain.here = place
    said = chain.finish()
    damage = said.damage()
    damage.pop("lost", None)
    if not disk:
        damage.pop("disk_errors", None)
    assert damage == {}, chain.complaints
    assert said.page_writes > 0


def arrived(there: Place) -> bool:
    """Whether the guest has come to a destination that lost its source: it says so, or that it does not have it.

    One to which the source had not even connected goes on waiting and says nothing.
    """
    assert there.process.stderr is not None
    said, quiet = b"", 0
    while b"waiting again" not in said and b"was refused" not in said and quiet < QUIET_LOOKS:
        ready, _, _ = select.select([there.process.stderr], [], [], 0.1)
        if ready:
            said += os.read(there.process.stderr.fileno(), 4096)
        elif there.status() == "running":
            return True
        else:
            quiet += 1
    return False


def outcome(chain: Chain, there: Place, victim: Place, last: dict[str, Any]) -> str:
    """Check what is left when a process was killed; in a word."""
    source = chain.here
    assert lock_count(chain.image) <= 1
    if victim is source:
        if arrived(there):
            check_running(chain, there)
            return "it runs at the destination"
        # It begins anew, and is registered anew.
        until(lambda: there.status() == "inmigrate")
        assert lock_count(chain.image) == 0
        return "the guest ended with the source"
    if last["outcome"] == "moved":
        # It was the destination's: what was killed is the machine that had it.
        assert source.process.wait(30) == 4
        assert lock_count(chain.image) == 0
        return "the guest ended with the destination"
    if last["x-guest"] == "source":
        check_running(chain, source)
        return "it runs at the source"
    assert last["x-guest"] == "unknown"
    assert source.status() not in ("running", "")
    assert lock_count(chain.image) == 0
    status, _, said = call("resume", source.name)
    assert status == 0, said
    # The destination may have written to the disk before it was killed.
    check_running(chain, source, disk=False)
    return "it is paused at the source, and resumed"


def kill(chain: Chain, moment: Moment, victim: str, way: Way) -> str:
    """What is left when `victim` is killed at `moment`, checked and in a word."""
    there, uri = chain.waiting("b", way)
    sides = {"source": chain.here, "destination": there}
    with closing(client(sides[moment.side])) as events, moving(chain, uri, way) as verb:
        wait_for(moment, events)
        sides[victim].process.send_signal(signal.SIGKILL)
        sides[victim].process.wait()
        events.close()
        return outcome(chain, there, sides[victim], end_of(verb))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["source", "destination"])
def test_killed_when_nobody_has_the_disk(chain: Chain, victim: str) -> None:
    """The source has let go of it, and the destination is about to take it: a moment that no event tells of."""
    for attempt in range(ATTEMPTS):
        there, uri = chain.waiting("ba"[attempt % 2], WAYS[0])
        source = chain.here
        killed = {"source": source, "destination": there}[victim]
        with moving(chain, uri, WAYS[0]) as verb:
            if is_let_go(chain.image, verb):
                killed.process.send_signal(signal.SIGKILL)
                killed.process.wait()
                print(f"nobody has the disk, {victim} killed: {outcome(chain, there, killed, end_of(verb))}")
                return
            chain.note(end_of(verb))
            assert source.process.wait(30) == 4
        chain.here = there
        chain.drop(source)
    pytest.skip("the moment was too short to be seen")


def is_let_go(image: Path, verb: subprocess.Popen[bytes]) -> bool:
    """Return at once when nobody has the disk; False if that was not seen before the move was over."""
    while lock_count(image):
        if verb.poll() is not None:
            return False
    return True


@pytest.mark.parametrize("victim", ["source", "destination"])
def test_killed_in_the_pause(chain: Chain, victim: str) -> None:
    """The guest is stopped, and its state under way."""
    assert kill(chain, Moment("source", "STOP"), victim, WAYS[0])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=["unix", "tls"])
@pytest.mark.parametrize("victim", ["source", "destination"])
@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_killed_at_each_moment(chain: Chain, moment: Moment, victim: str, way: Way) -> None:
    """Whoever it is: one guest that runs and is well, none where its machine was killed, and never two."""
    print(f"{moment}, {victim} killed: {kill(chain, moment, victim, way)}")
