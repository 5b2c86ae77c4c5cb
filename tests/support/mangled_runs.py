"""One migration of a fake guest over a wire that damages it, and what must be true of it whatever that does."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from tests.support.copied_disks import GuestDisk, target_in
from tests.support.mangling import MangledWire
from tests.support.moving_guests import World
from tvmm.config.incoming import MigrationAddress
from tvmm.errors import IncomingFailed, UserError
from tvmm.migration import tls
from tvmm.migration.destination import DestinationState
from tvmm.migration.incoming import Incoming
from tvmm.migration.link import listen
from tvmm.migration.outgoing import Outgoing
from tvmm.migration.secure import Insecure, Tls
from tvmm.migration.source import TERMINAL, SourceState
from tvmm.migration.status import MigrationParameters
from tvmm.migration.wire import Kind, Security

if TYPE_CHECKING:
    from tvmm.migration.secure import Securer

__all__ = ["PATIENCE", "Ending", "mangled_run"]

PATIENCE = {"answer_s": 1.5, "running_s": 1.5, "ask_s": 3.0, "wait_s": 2.5}
"""How the two sides are hurried: most runs are not to end for want of it, on a busy host either."""
LIMIT_SECONDS = 100.0
"""Far above the sum of all patience: a run that takes so long hangs."""
DISK_BYTES = 1 << 20
TRIES = 20
"""Of the user of a post-copy, before the network is in order."""
RESTING = (DestinationState.WAITING, DestinationState.RUNNING, DestinationState.ABANDONED)


class Ending(NamedTuple):
    """How a run ended. `error` is what the source's user was told."""

    source: SourceState
    destination: DestinationState
    error: str


async def mangled_run(seed: int) -> Ending:
    """Run it, and raise `AssertionError` for what must not be; any other exception is one that got out."""
    random = Random(seed)
    secured = random.random() < 0.1
    copied = random.random() < 0.3
    postcopy = random.choice(("off", "off", "now"))
    parameters = MigrationParameters(
        random.choice((1500, 3000)),
        connections=random.choice((1, 2, 3)),
        compress=random.choice(("off", "off", "zstd")),
        verify=postcopy == "off" and random.random() < 0.3,
        copy_storage=copied,
        postcopy=postcopy,
    )
    world = World(shared=random.random() < 0.2)
    world.source.fail_save = random.random() < 0.03
    world.destination.fail_load = random.random() < 0.03
    world.destination.fail_start = random.random() < 0.05
    leaving = arriving = None
    cancel_at = random.randrange(60) if random.random() < 0.15 else -1

    def on_piece() -> None:
        nonlocal cancel_at
        cancel_at -= 1
        if not cancel_at:
            assert leaving is not None
            # Refused where the guest runs over there, and pages of it are here.
            with suppress(UserError):
                leaving.cancel()

    try:
        with (
            ExitStack() as stack,
            tempfile.TemporaryDirectory(prefix="tvmm-") as directory,
            trio.fail_after(LIMIT_SECONDS),
        ):
            disk, copy = _copied_disk(world, Path(directory), seed) if copied else (None, Path())
            if disk is not None:
                stack.callback(disk.close)
            here = MigrationAddress("unix", path=f"{directory}/wire")
            there = MigrationAddress("unix", path=f"{directory}/there")
            wire = MangledWire(
                here.path,
                there.path,
                seed,
                random.choice((0.0, 0.01, 0.03, 0.1, 0.4)),
                lies=not secured and random.random() < 0.5,
                lane_pieces="message" if parameters.compress != "off" else "frame",
                tls=secured,
                on_piece=on_piece,
            )
            out_security, in_security = _securers(secured)
            arriving = Incoming(world.destination, in_security, lambda status: None, lambda line: None)
            leaving = Outgoing(world.source, here, parameters, out_security, lambda status: None)

            async def arrive() -> None:
                try:
                    await arriving.run(listeners)
                except IncomingFailed:
                    assert arriving.state is DestinationState.ABANDONED

            async with listen(there) as listeners, trio.open_nursery() as nursery:
                await nursery.start(wire.run)
                nursery.start_soon(arrive)
                nursery.start_soon(_mend, leaving, wire)
                state = await leaving.run(trio.Event())
                while arriving.state not in RESTING:
                    await trio.sleep(0.02)
                ending = Ending(state, arriving.state, leaving.status.error)
                _check(world, ending, wire)
                nursery.cancel_scope.cancel()
            if disk is not None:
                assert disk.changes is None
                if state is SourceState.DONE and world.running and not wire.touched(Kind.STORAGE, Kind.CONTROL):
                    assert copy.read_bytes() == disk.path.read_bytes(), ending
    finally:
        world.close()
    return ending


def _copied_disk(world: World, folder: Path, seed: int) -> tuple[GuestDisk, Path]:
    """A disk of the source that is to be copied, and where to."""
    disk = GuestDisk(folder / "disk0", DISK_BYTES, DISK_BYTES // 2, seed)
    world.source.disks.append(disk)
    world.destination.targets.append(target_in(folder / "copy"))
    return disk, folder / "copy"


async def _mend(leaving: Outgoing, wire: MangledWire) -> None:
    """The user of a post-copy that is cut, who lets it go on, and in the end has the network mended."""
    tries = 0
    while True:
        await trio.sleep(0.05)
        if leaving.state in (SourceState.CUT, SourceState.UNHEARD):
            tries += 1
            if tries > TRIES:
                wire.heal()
            with suppress(UserError):
                leaving.recover(None)


def _securers(secured: bool) -> tuple[Securer, Securer]:
    if not secured:
        return Insecure(), Insecure()
    import time

    from tvmm.migration import pairing

    secret = pairing.new_secret()
    gate = pairing.Gate(time.monotonic)
    return (
        Tls(tls.paired_source(secret), Security.PAIR, "localhost"),
        Tls(tls.paired_destination(secret, gate), Security.PAIR, gate=gate),
    )


def _check(world: World, ending: Ending, wire: MangledWire) -> None:
    """The guest is on one side at most, `World` sees to that; here: it is on neither only where that has a reason."""
    source, destination, error = ending
    assert source in TERMINAL, ending
    assert (source in (SourceState.FAILED, SourceState.UNCERTAIN)) == bool(error), ending
    assert error.isprintable(), ending
    if source in (SourceState.FAILED, SourceState.CANCELLED) and not world.source.kept_paused:
        assert world.running == {"source"}, ending
        assert world.disk.holder is world.source, ending
        assert destination is not DestinationState.RUNNING, ending
    elif source is SourceState.FAILED:
        # Given back by a liar while the destination had the disk.
        assert world.running == {"destination"}, ending
    elif source is SourceState.UNCERTAIN:
        assert world.source.kept_paused, ending
    elif world.running:
        # Or a liar has said that it runs there.
        assert world.running == {"destination"}, ending
        if not wire.touched(Kind.LANE, Kind.REQUESTS, Kind.CONTROL, Kind.RECOVER):
            assert _ram(world.destination) == _ram(world.source), ending
    assert (destination is DestinationState.RUNNING) == ("destination" in world.running), ending


def _ram(side: Any) -> bytes:
    return bytes(side.ram.blocks["pc.ram"].view)
