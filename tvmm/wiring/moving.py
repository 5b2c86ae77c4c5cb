"""A machine as a migration sees it: one that leaves, and one that is to be filled with a guest."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from tvmm.board_facts import adopted_facts, describe_board, differences
from tvmm.board_state import keep_board, load_board, save_board, section_types
from tvmm.errors import ProtocolError, UserError
from tvmm.kvm.dirty_log import make_tracker
from tvmm.kvm.pages import PAGE, ram_hash
from tvmm.kvm.remap import adopt_file, borrow_file
from tvmm.kvm.uffd import can_wait_for_pages
from tvmm.memory.host import host_memory
from tvmm.memory.ram import MAIN_BLOCK
from tvmm.migration.hand_over import MEMFD, can_be_passed, close_all, tap_feature
from tvmm.outcome import STATUS_MIGRATED, Outcome
from tvmm.state import Section, decode, encode
from tvmm.vcpu.compat import CpuDescription, incompatibilities, moved, suggest
from tvmm.vcpu.compat_check import check_description
from tvmm.vcpu.compat_kvm import guest_on, host_under
from tvmm.wiring.cpu_parts import KvmParts
from tvmm.wiring.moving_taps import (
    begin_taps,
    late_taps,
    let_go_of_taps,
    open_others,
    own_taps,
    passable_taps,
    take_taps,
)
from tvmm.wiring.throttle import Throttle
from tvmm.wiring.verification import differing_sections

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence

    from tvmm.kvm.dirty_log import DirtyTracker
    from tvmm.machine import Machine
    from tvmm.migration.disk_files import DiskOrigin, DiskTarget
    from tvmm.migration.messages import Image
    from tvmm.virtio.runner.balloon import BalloonRunner
    from tvmm.wiring.relaying import Relaying

__all__ = ["ArrivingMachine", "LeavingMachine"]

ROOM = 1.25
"""Times a guest's RAM that the host has to have before it is allocated while the guest is awaited."""
REHEARSALS = 10
"""CPython 3.11 makes code faster that has run eight times."""
LINGER_S, LINGER_POLL_S = 1.0, 0.02
"""How long a machine whose guest has moved stays for its control clients: scripts that were written for QEMU, which
stays for ever, ask how it went."""
ANNOUNCE_ROUNDS, ANNOUNCE_FIRST_S, ANNOUNCE_STEP_S = 5, 0.05, 0.1
"""As QEMU has it: some switches are still learning when the first one comes."""


class _MovingMachine:
    def __init__(self, machine: Machine) -> None:
        self.name = machine.name
        self.ram = machine.board.ram
        self._machine = machine
        self._board = machine.board

    async def description(self) -> tuple[tuple[str, str], ...]:
        """See `Guest`."""
        return await trio.to_thread.run_sync(describe_board, self._board)

    async def hashes(self) -> tuple[bytes, ...]:
        """See `Guest`."""
        found = []
        for block in self.ram.blocks.values():
            found.append(await trio.to_thread.run_sync(ram_hash, block.view, None, block.fd))
        return tuple(found)

    def take_disks(self) -> None:
        """See `LeavingGuest`."""
        if self._board.devices is not None:
            self._board.devices.take_disks()

    def release_disks(self) -> None:
        """See `LeavingGuest`."""
        if self._board.devices is not None:
            self._board.devices.release_disks()


class LeavingMachine(_MovingMachine):
    """A `LeavingGuest`. `local`: the destination is on this host, and sees what is in the page cache."""

    stage = "finish-migrate"
    """What the machine's state is called while it is held."""

    def __init__(self, machine: Machine, *, local: bool) -> None:
        super().__init__(machine)
        self._local = local
        self._tracker: DirtyTracker | None = None
        self._throttle: Throttle | None = None
        self._kept = self._ended = False

    def cpu(self) -> bytes:
        """See `LeavingGuest`."""
        return encode(guest_on(self._board))

    def images(self) -> tuple[Image, ...]:
        """See `LeavingGuest`."""
        from tvmm.wiring.disk_copies import images_of

        return images_of(self._board.devices)

    def open_images(self, places: Sequence[int]) -> list[DiskOrigin]:
        """See `LeavingGuest`."""
        from tvmm.wiring.disk_copies import open_origins

        return open_origins(self._board.devices, places)

    def taps(self) -> Mapping[str, Sequence[int]]:
        """See `LeavingGuest`."""
        return passable_taps(self._board.devices)

    def let_go_of_taps(self, names: Collection[str]) -> None:
        """See `LeavingGuest`."""
        let_go_of_taps(self._board.devices, names)

    def tracker(self) -> DirtyTracker:
        """See `LeavingGuest`."""
        balloon = self._balloon()
        exact = balloon is not None and balloon.gives_hints
        self._tracker = make_tracker(self._board, self._board.device_log, exact=exact)
        return self._tracker

    def _balloon(self) -> BalloonRunner | None:
        devices = self._board.devices
        return devices.balloon.runner if devices is not None and devices.balloon is not None else None

    def begin_hints(self, spare: Callable[[str, Sequence[tuple[int, int]]], int]) -> None:
        """See `LeavingGuest`."""
        balloon = self._balloon()
        if balloon is not None:
            balloon.begin_hints(partial(spare, MAIN_BLOCK))

    def stop_hints(self) -> None:
        """See `LeavingGuest`."""
        balloon = self._balloon()
        if balloon is not None:
            balloon.stop_hints()

    def end_hints(self) -> None:
        """See `LeavingGuest`."""
        balloon = self._balloon()
        if balloon is not None:
            balloon.end_hints()

    @asynccontextmanager
    async def on_reset(self, call: Callable[[], None]) -> AsyncIterator[None]:
        """See `LeavingGuest`."""
        listeners = self._machine.reset_listeners
        listeners.append(call)
        try:
            yield
        finally:
            listeners.remove(call)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[bool]:
        """See `LeavingGuest`."""
        machine, motion = self._machine, self._machine.motion
        if not self._local and self._board.devices is not None:
            # What is written back now does not have to be in the pause.
            await trio.to_thread.run_sync(self._board.devices.flush_disks)
        async with motion.lock:
            self._refuse_ended()
            was_running = motion.running
            await motion.stop()
            motion.stage = self.stage
            try:
                self._refuse_ended()
                yield was_running
            finally:
                motion.stage = "postmigrate" if self._ended or self._kept else ""
                if was_running and not motion.stage and machine.outcome is None:
                    motion.start()
                elif not self._ended:
                    keep_board(self._board)

    def _refuse_ended(self) -> None:
        """What the guest has asked for comes first: there may be no guest after it, or another one."""
        if self._machine.outcome is not None or self._machine.supervisor.is_busy:
            raise UserError("the guest has powered off, or is about to reset or to stop", "migrate it when it runs")

    async def save(self) -> tuple[Section, ...]:
        """See `LeavingGuest`."""
        devices = self._board.devices
        if devices is not None:
            await trio.to_thread.run_sync(partial(devices.flush_disks, local=self._local))
        return tuple(await save_board(self._board, KvmParts()))

    def throttle(self, percent: int) -> None:
        """See `LeavingGuest`."""
        if self._throttle is not None or percent:
            self._throttle = self._throttle or Throttle(self._machine, self._tracker)
            self._throttle.hold(percent)

    def end(self, peer: str, open_screen: Callable[[], Awaitable[trio.abc.Stream]]) -> int:
        """See `LeavingGuest`."""
        self._ended = True
        machine = self._machine
        machine.farewell = Outcome("migrated", STATUS_MIGRATED, peer)
        if self._board.devices is not None and self._board.devices.vsock is not None:
            self._board.devices.vsock.leave()
        relaying: Relaying | None = None
        if machine.relayed is not None or machine.viewers is not None:
            from tvmm.wiring.relaying import Relaying

            relaying = Relaying(machine, peer, open_screen, compressed=not self._local)
        machine.start_task(partial(self._end_soon, machine.farewell, relaying), "farewell")
        return relaying.viewers if relaying is not None else 0

    async def _end_soon(self, outcome: Outcome, relaying: Relaying | None) -> None:
        """Viewers stay for as long as they like; clients that have heard of the end may ask about it."""
        if relaying is not None:
            await relaying.run()
        with trio.move_on_after(LINGER_S):
            while self._machine.control_clients():
                await trio.sleep(LINGER_POLL_S)
        self._machine.supervisor.post(outcome)

    def serve_pages(self, peer: str) -> None:
        """See `LeavingGuest`."""

        def refuse() -> None:
            raise UserError(
                f"the guest runs at {peer} and gets its memory from here",
                "'tvmm info' shows how far it is; 'tvmm migrate --recover' goes on after a broken connection",
            )

        self._machine.before_resume = refuse

    def keep_paused(self) -> None:
        """See `LeavingGuest`."""
        self._kept = True
        self._machine.before_resume = self.take_disks

    def let_go_of_memory(self) -> None:
        """See `LeavingGuest`. Viewers see what the guest shows for as long as they are here."""
        for block in self.ram.blocks.values():
            block.forget_pages()
            borrow_file(block, block.fd)

    def go_on(self) -> None:
        """See `LeavingGuest`."""
        self._kept = False
        self._machine.before_resume = lambda: None


class ArrivingMachine(_MovingMachine):
    """An `ArrivingGuest`."""

    _came_as: CpuDescription | None = None

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._lent: dict[str, int] = {}
        """Memory that is the guest's once it starts."""
        self._late_taps = late_taps(self._board.devices)
        self._opening_taps = trio.Lock()
        self._features = frozenset({MEMFD}) if can_be_passed(self.ram) else frozenset()

    async def rehearse(self) -> None:
        """See `ArrivingGuest`: what the board has is put into it once more."""
        board = self._board
        host_under(board)
        for _ in range(REHEARSALS):
            # Each takes some ms.
            await trio.lowlevel.checkpoint()
            await load_board(board, decode(encode(tuple(await save_board(board, KvmParts()))), (Section,)), KvmParts())

    @asynccontextmanager
    async def prepared(self) -> AsyncIterator[None]:
        """Within the block the devices rest, and nobody can start the machine."""
        motion = self._machine.motion
        async with motion.lock:
            await motion.stop()
            motion.stage = "inmigrate"
        for name, tap in self._late_taps.items():
            self._machine.on_warning(f"{name}: {tap.why}; a guest that comes from there brings it along")
        try:
            yield
        finally:
            close_all(self._lent)

    def has_room(self) -> bool:
        """See `ArrivingGuest`. Not for a machine with a balloon, where much of it may never be needed."""
        if self._board.devices is not None and self._board.devices.balloon is not None:
            return False
        _, available, _ = host_memory(0)
        return available > ROOM * self.ram.size

    def features(self) -> frozenset[str]:
        """See `ArrivingGuest`."""
        postcopy = {"postcopy"} if can_wait_for_pages(self.ram.blocks[MAIN_BLOCK]) else set()
        taps = {tap_feature(tap.name) for tap in self._late_taps.values() if not tap.is_here}
        return self._features | ({"storage"} if self._fills_disks else set()) | taps | postcopy

    @property
    def _fills_disks(self) -> bool:
        return any(disk.copy for disk in self._machine.config.disks)

    def copy_problems(self, images: tuple[Image, ...] | None) -> Sequence[str]:
        """See `ArrivingGuest`."""
        if images is None and not self._fills_disks:
            return ()
        from tvmm.wiring.disk_copies import copy_problems

        return copy_problems(self._board.devices, self._machine.config, images)

    def open_targets(self, images: tuple[Image, ...]) -> list[DiskTarget | None]:
        """See `ArrivingGuest`."""
        from tvmm.wiring.disk_copies import open_targets

        return open_targets(self._board.devices, self._machine.config, images)

    def cpu_problems(self, cpu: bytes) -> Sequence[str]:
        """See `ArrivingGuest`."""
        theirs = decode(cpu, (CpuDescription,))
        try:
            check_description(theirs)
        except ValueError as error:
            raise ProtocolError(f"the source's description of its processors: {error}") from error
        host = host_under(self._board)
        found = incompatibilities(theirs, host)
        option = suggest(theirs, host) if found else ""
        if option:
            found.append(f"'tvmm run {option}' on both sides would do")
        self._came_as = moved(theirs, host)
        return [sentence.rstrip(".") for sentence in found]

    def differences(self, theirs: tuple[tuple[str, str], ...], ours: tuple[tuple[str, str], ...]) -> Sequence[str]:
        """See `ArrivingGuest`."""
        # Both users get to read it.
        words = ("at the destination", "at the source")
        found = differences(ours, theirs, words, adopted_facts(self._machine.config))
        if any(sentence.startswith("memory size ") for sentence in found):
            # Blocks and where they lie follow from it.
            found = [each for each in found if each.startswith("memory size ") or not each.startswith("memory ")]
        return found

    async def borrow_memory(self, files: dict[str, int]) -> None:
        """See `ArrivingGuest`."""
        await trio.to_thread.run_sync(self._borrow, files)

    def _borrow(self, files: dict[str, int]) -> None:
        for name, block in self.ram.blocks.items():
            # Huge pages of a private mapping are to be had only when touched, or not at all.
            if block.page_size == PAGE:
                borrow_file(block, files[name])
                self._lent[name] = files.pop(name)
            else:
                adopt_file(block, files[name])
                del files[name]

    def _keep_memory(self) -> None:
        """What was lent is the guest's from now on."""
        for name in list(self._lent):
            adopt_file(self.ram.blocks[name], self._lent[name])
            del self._lent[name]

    async def tap_problems(self, coming: Collection[str]) -> Sequence[str]:
        """See `ArrivingGuest`."""
        if not self._late_taps:
            return ()
        async with self._opening_taps:
            return await trio.to_thread.run_sync(open_others, self._late_taps, coming)

    async def take_taps(self, taps: Mapping[str, list[int]]) -> None:
        """See `ArrivingGuest`."""
        if self._late_taps:
            await trio.to_thread.run_sync(take_taps, self._late_taps, taps)

    async def load(self, sections: tuple[Section, ...], ran_at_ns: int) -> None:
        """See `ArrivingGuest`."""
        await load_board(self._board, sections, KvmParts(ran_at_ns))
        self._board.came_as = self._came_as

    async def loaded_otherwise(self, sections: tuple[Section, ...]) -> Sequence[str]:
        """See `ArrivingGuest`."""
        parts = KvmParts()
        again = await save_board(self._board, parts)
        return differing_sections(sections, again, section_types(self._board, parts))

    def take_disks(self) -> None:
        """See `ArrivingGuest`."""
        super().take_disks()
        address = self._machine.config.incoming and self._machine.config.incoming.address
        if self._board.devices is not None and not (address and address.is_local):
            self._board.devices.forget_disks()

    async def start(self, running: bool) -> None:
        """See `ArrivingGuest`."""
        machine = self._machine
        if self._fills_disks:
            from tvmm.wiring.disk_copies import keep_targets

            keep_targets(self._board.devices)
        if self._late_taps:
            await trio.to_thread.run_sync(begin_taps, self._late_taps)
        self._keep_memory()
        async with machine.motion.lock:
            machine.motion.arrive(running=running and not machine.config.paused)
        machine.guest_has_arrived()

    def show_screen(self, stream: trio.abc.Stream) -> None:
        """See `ArrivingGuest`."""
        if self._machine.screen is None:
            raise UserError("this machine has no screen for the source's viewers")
        from tvmm.wiring.relaying import serve_relayed

        self._machine.start_task(partial(serve_relayed, self._machine, stream), "relayed viewers")

    def announce(self) -> None:
        """See `ArrivingGuest`."""
        devices = self._board.devices
        if devices is not None and devices.nets:
            self._machine.start_task(self._announce, "announce")

    async def _announce(self) -> None:
        assert self._board.devices is not None
        nets = list(self._board.devices.nets.values())
        for number in range(ANNOUNCE_ROUNDS):
            # A guest that moves on this soon is announced by the next host: a word from here would turn switches back.
            for net in nets if not self._machine.motion.stage else ():
                net.announce_arrival(by_guest=not number)
            if not number and self._late_taps:
                # It is for others, and takes its time: guest and source have not waited for it.
                await trio.to_thread.run_sync(own_taps, self._late_taps, self._machine.on_warning)
            await trio.sleep(ANNOUNCE_FIRST_S + number * ANNOUNCE_STEP_S)
