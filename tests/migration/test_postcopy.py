"""Post-copy over real sockets and a real userfaultfd, with guests that are no more than RAM: cuts at every point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.migration.ends import Ends, check_one_guest, connected
from tests.migration.rig import Group
from tests.support.cut_wire import Cutter
from tests.support.moving_guests import World
from tests.support.patience import PATIENT
from tvmm.config.incoming import MigrationAddress
from tvmm.errors import ProtocolError, UserError
from tvmm.kvm.pages import PageBitmap
from tvmm.kvm.uffd import can_wait_for_pages
from tvmm.migration import incoming, postcopy_source, tls
from tvmm.migration.absent import pieces_of, take_piece
from tvmm.migration.destination import DestinationState
from tvmm.migration.link import Link, LinkLost, open_connection
from tvmm.migration.messages import FROM_DESTINATION, Absent, Recover
from tvmm.migration.postcopy_service import PageService
from tvmm.migration.secure import Tls
from tvmm.migration.source import SourceState
from tvmm.migration.status import MigrationStatus
from tvmm.migration.wire import Kind, Opening, Security

NOW = PATIENT._replace(connections=2, postcopy="now")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a source waits before it tries again is a moment here."""
    monkeypatch.setattr(postcopy_source, "LAST_WORD_SECONDS", 0.1)
    monkeypatch.setattr(postcopy_source, "AGAIN_SECONDS", 0.02)


@pytest.fixture
def world() -> Iterator[World]:
    """A guest at its source."""
    made = World()
    if not can_wait_for_pages(made.source.ram.blocks["pc.ram"]):
        pytest.skip("needs userfaultfd")
    yield made
    made.close()


def check_moved(world: World, ends: Ends) -> None:
    """The guest runs there alone, with every byte."""
    assert ends.out.state is SourceState.DONE
    assert ends.incoming.state is DestinationState.RUNNING
    assert world.running == {"destination"}
    assert world.disk.holder is world.destination
    assert bytes(world.destination.ram.blocks["pc.ram"].view) == bytes(world.source.ram.blocks["pc.ram"].view)


def cut_once(ends: Ends) -> None:
    """The source breaks off as soon as the guest has gone, the first time."""
    told = ends.out._changed

    def changed(status: MigrationStatus) -> None:
        told(status)
        if status.state == "postcopy-active" and not ends.out.status.postcopy.cuts:  # type: ignore[union-attr]
            ends.out.pause()

    ends.out._changed = changed


async def test_a_guest_goes_before_its_memory(world: World, tmp_path: Path) -> None:
    """At once after the first pass, if that is wanted."""
    async with connected(world, tmp_path, parameters=NOW) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        check_moved(world, ends)
        status = ends.out.status
        assert status.state == "completed"
        assert status.postcopy is not None
        await ends.incoming_over.wait()



BEFORE_COMMIT = ("Absent", "Absentees", "Discarded", "Partial", "State", "Ready")
BEHIND_COMMIT = ("Commit", "Running", "Complete")


@pytest.mark.parametrize("name", BEFORE_COMMIT)
async def test_a_cut_before_commit_leaves_the_guest_here(
    world: World, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without post-copy, whatever is missing there by then."""
    # Behind Ready it waits to be asked.
    monkeypatch.setattr(incoming, "ANSWER_SECONDS", 0.5)
    cutter = Cutter(name)
    async with connected(world, tmp_path, cutter, NOW) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert cutter.done
        check_one_guest(world, ends)
        await ends.incoming_over.wait()
        assert ends.incoming.state is DestinationState.ABANDONED


@pytest.mark.parametrize("name", BEHIND_COMMIT)
async def test_a_cut_behind_commit_is_mended(
    world: World, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the source itself; a lost Commit is found out, and the guest stays here."""
    if name == "Complete":
        # The source has its answer by another connection, and does not say goodbye on this one.
        monkeypatch.setattr(incoming, "ANSWER_SECONDS", 3.0)
    cutter = Cutter(name)
    async with connected(world, tmp_path, cutter, NOW) as ends:
        state = await ends.out.run(trio.Event())
        assert cutter.done, ends.out.status.reason
        if name == "Commit":
            assert state is SourceState.FAILED
            check_one_guest(world, ends)
            return
        check_moved(world, ends)
        assert ends.out.status.reason == ""
        assert ends.out.status.postcopy is not None
        assert ends.out.status.downtime_ms is not None
        await ends.incoming_over.wait()


@pytest.mark.parametrize("name", ["Recover", "Received", "Rejoin", "Resumed"])
async def test_a_cut_while_it_is_mended(world: World, tmp_path: Path, name: str) -> None:
    """The next attempt does it."""
    first, second = Cutter("Running"), Cutter(name)

    def both(message: str) -> bool:
        return first(message) and second(message)

    async with connected(world, tmp_path, both, NOW) as ends:
        first.wire = second.wire = ends.wire
        await ends.out.run(trio.Event())
        assert second.done
        check_moved(world, ends)


async def test_pages_that_are_lost_on_the_way(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither side waits for ever: the source that has sent them all comes anew, and sends them again."""
    monkeypatch.setattr(postcopy_source, "COMPLETE_SECONDS", 0.5)
    take, lost = PageService._take_pages, list[PageService]()

    async def lose_once(self: PageService) -> None:
        if lost:
            await take(self)
            return
        lost.append(self)
        await trio.sleep_forever()

    monkeypatch.setattr(PageService, "_take_pages", lose_once)
    async with connected(world, tmp_path, parameters=NOW) as ends:
        await ends.out.run(trio.Event())
        assert lost
        check_moved(world, ends)
        assert ends.out.status.postcopy is not None
        assert ends.out.status.postcopy.cuts


async def test_a_pause_waits_for_the_user(world: World, tmp_path: Path) -> None:
    """Both sides say so, nothing is connected by itself, and cancelling is refused."""
    states: list[str] = []
    async with connected(world, tmp_path, parameters=NOW) as ends, trio.open_nursery() as nursery:
        told = ends.out._changed

        def changed(status: MigrationStatus) -> None:
            states.append(status.state)
            told(status)
            if status.state == "postcopy-active" and states.count("postcopy-active") == 1:
                ends.out.pause()

        ends.out._changed = changed
        nursery.start_soon(ends.out.run, trio.Event())
        while not (ends.out.status.postcopy and ends.out.status.postcopy.waiting):
            await trio.sleep(0.01)
        while ends.incoming.state is not DestinationState.SEVERED:
            await trio.sleep(0.01)
        assert ends.out.status.state == ends.incoming.status.state == "postcopy-paused"
        assert world.running == {"destination"}
        with pytest.raises(UserError, match="cannot be taken back"):
            ends.out.cancel()
        with pytest.raises(UserError, match="cannot create the socket"):
            await ends.incoming.recover(MigrationAddress("unix", path="/nowhere/at/all"))
        ends.out.recover(None)
        await ends.incoming_over.wait()
        while ends.out.state is not SourceState.DONE:
            await trio.sleep(0.01)
        check_moved(world, ends)
    changes = [state for state, before in zip(states, ["", *states], strict=False) if state != before]
    assert [state for state in changes if state.startswith("postcopy")] == [
        "postcopy-active",
        "postcopy-paused",
        "postcopy-recover-setup",
        "postcopy-recover",
        "postcopy-active",
    ]


async def test_a_wrong_address_is_not_kept(world: World, tmp_path: Path) -> None:
    """The guest is where it was, which is what users are told, and where the next recovery looks for it."""
    async with connected(world, tmp_path, parameters=NOW) as ends, trio.open_nursery() as nursery:
        cut_once(ends)

        async def waits() -> None:
            while not (ends.out.status.postcopy and ends.out.status.postcopy.waiting):
                await trio.sleep(0.01)

        nursery.start_soon(ends.out.run, trio.Event())
        await waits()
        peer = ends.out.status.peer
        ends.out.recover(MigrationAddress("unix", path=str(tmp_path / "nowhere")))
        while "nowhere" not in (ends.out.status.error or ""):
            await trio.sleep(0.01)
        await waits()
        assert ends.out.status.error.count("tvmm run --incoming") == 0
        assert ends.out.status.peer == peer
        ends.out.recover(None)
        while ends.out.state is not SourceState.DONE:
            await trio.sleep(0.01)
        assert ends.out.status.peer == peer
        check_moved(world, ends)


async def test_certificates(world: World, tmp_path: Path) -> None:
    """Requests and their pages are encrypted like all else, through a thread that no event loop holds up."""
    group = Group(tmp_path / "keys")
    beta = group.join("beta", "localhost")
    near = Tls(tls.source(group.alpha), Security.TLS, "localhost")
    far = Tls(tls.destination(beta), Security.TLS)
    parameters = NOW._replace(tls=True)
    async with connected(world, tmp_path, parameters=parameters, secured=(near, far)) as ends:
        told = ends.out._changed
        cuts: list[str] = []

        def changed(status: MigrationStatus) -> None:
            told(status)
            if status.state == "postcopy-active" and not cuts:
                cuts.append(status.state)
                ends.out.pause()
            elif status.postcopy is not None and status.postcopy.waiting and len(cuts) == 1:
                cuts.append(status.state)
                trio.lowlevel.current_trio_token().run_sync_soon(ends.out.recover, None)

        ends.out._changed = changed
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        assert cuts == ["postcopy-active", "postcopy-paused"]
        check_moved(world, ends)


async def test_strangers_recover_nothing(world: World, tmp_path: Path) -> None:
    """Not with a wrong token, nor with a wrong session, nor before there is anything to recover."""
    async with connected(world, tmp_path, parameters=NOW) as ends:
        there = MigrationAddress("unix", path=str(tmp_path / "there"))
        with pytest.raises(UserError, match="does not know this migration"):
            await open_connection(there, Opening(Kind.RECOVER, token=bytes(16)))
        cut_once(ends)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.out.run, trio.Event())
            while ends.incoming.state is not DestinationState.SEVERED:
                await trio.sleep(0.01)
            with pytest.raises(UserError, match="does not know this migration"):
                await open_connection(there, Opening(Kind.RECOVER, token=b"t" * 16))
            link = Link(await open_connection(there, Opening(Kind.RECOVER, token=ends.out._token)), FROM_DESTINATION)
            await link.send(Recover(b"s" * 16))
            with pytest.raises(LinkLost):
                await link.receive()
            assert ends.incoming.state is DestinationState.SEVERED
            ends.out.recover(None)
        check_moved(world, ends)


LIES = [(9, 0, b"\1"), (0, 4, b"\1"), (0, 0, b""), (0, 512, b"\1"), (0, -8, b"\1")]


@pytest.mark.parametrize("message", [Absent(*fields) for fields in LIES])
def test_bitmaps_of_a_liar(message: Absent) -> None:
    """Blocks and pages that there are not, and pages that are no multiple of 8, change nothing."""
    bitmap = PageBitmap(("pc.ram",), (512,))
    with pytest.raises(ProtocolError):
        take_piece(message, bitmap)
    assert not bitmap.count()


def test_bitmaps_there_and_back() -> None:
    """Also of a block whose last word is not full."""
    bitmap = PageBitmap(("pc.ram", "vga.vram"), (200_000, 70))
    for page in (0, 7, 8, 131_071, 131_072, 199_999):
        bitmap.mark("pc.ram", page)
    bitmap.mark("vga.vram", 69)
    other = PageBitmap(bitmap.names, bitmap.pages)
    assert sum(take_piece(piece, other) for piece in pieces_of(Absent, bitmap)) == 7
    assert all(bytes(other.words(name)) == bytes(bitmap.words(name)) for name in bitmap.names)
