"""Dirty trackers with a real vCPU: what it writes, and nothing else, is found, through slots that start anywhere."""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.kvm.lane_rig import Ram
from tvmm.errors import HostError
from tvmm.kvm.calls import ffi
from tvmm.kvm.dirty_log import DirtyRings, DirtyTracker, KvmBitmapTracker, KvmRingTracker
from tvmm.kvm.lanes import LaneGroup, LaneReceiver, LaneSender, LaneStop
from tvmm.kvm.pages import PAGE, PageBitmap
from tvmm.kvm.serve import Waker
from tvmm.kvm.system import Kvm, kernel_mode_is_emulated
from tvmm.kvm.vcpu import step
from tvmm.memory.regions import Region, RegionTable
from tvmm.vcpu.registers import Registers, write_registers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SIZES = (("low", 100), ("high", 1400))
LAYOUT = (
    Region(0, 37 * PAGE, "low", 0),
    Region(37 * PAGE, 63 * PAGE, "low", 37 * PAGE),
    Region(0x20_0000, 130 * PAGE, "high", 70 * PAGE),
    Region(0x40_0000, 1200 * PAGE, "high", 200 * PAGE),
)
"""Slots that are not at a 64th page of their block, nor of 64 pages; pages 0 to 69 of `high` are not the guest's."""
CODE, CODE_PAGES = 0x1000, range(4)
RING = 1024
RING_FULL = 31
"""KVM_EXIT_DIRTY_RING_FULL."""
SPARE = 50
"""Less than the entries that KVM keeps free in a ring for what the guest does until it leaves."""
DONE = 0x99 << 8 | 1
"""What a step returns for OUT 0x99, AL."""


class Devices:
    """Marks that a test makes in a device's place."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, int]] = []
        self.kept: Any = None
        self.on = False

    def start(self) -> None:
        """Keep them."""
        self.on = True

    def stop(self) -> None:
        """Not any more."""
        self.on = False

    def pending_words(self, block_name: str) -> Any:
        """Those of a block, to look at."""
        words = ffi.new("uint64_t[]", 1 << 10)
        for name, page in self.marks:
            if name == block_name:
                words[page // 64] |= 1 << page % 64
        self.kept = words
        return words

    def merge_into(self, block_name: str, words: Any) -> None:
        """Hand over those of a block."""
        for name, page in self.marks:
            if name == block_name:
                words[page // 64] |= 1 << page % 64
        self.marks = [mark for mark in self.marks if mark[0] != block_name]


class Rig:
    """A vCPU in real mode with 4 GiB segments, which increments the first byte of the pages that it is told."""

    def __init__(self, stack: ExitStack, kind: str) -> None:
        with Kvm() as kvm:
            if kind == "ring" and not kvm.check_extension("DIRTY_LOG_RING_ACQ_REL"):
                pytest.skip("KVM has no dirty rings")
            self.vm = kvm.create_vm()
        stack.callback(self.vm.close)
        self.vm.create_irqchip()
        self.rings = DirtyRings(self.vm, RING, 1) if kind == "ring" else None
        if self.rings is not None:
            stack.callback(self.rings.close)
        self.ram = Ram(stack, SIZES)
        stack.callback(self.vm.release_memory)
        self.regions = RegionTable()
        self.blocks = {block.name: block for block in self.ram.blocks}
        for slot, region in enumerate(LAYOUT):
            self.regions.add(region)
            view = self.blocks[region.block].view[region.offset : region.offset + region.size]
            self.vm.set_memory(slot, region.gpa, view)
        self.vcpu = self.vm.create_vcpu(0)
        stack.callback(self.vcpu.close)
        if self.rings is not None:
            self.rings.add(self.vcpu)
        sregs = self.vcpu.get_sregs()
        for name in ("cs", "ds", "es", "ss"):
            segment = getattr(sregs, name)
            segment.base = segment.selector = 0
            segment.limit, segment.g = 0xFFFF_FFFF, 1
        self.vcpu.set_sregs(sregs)
        self.devices = Devices()
        self.tracker: DirtyTracker = (
            KvmRingTracker(self.rings, self.vm, self, self.devices)
            if self.rings is not None
            else KvmBitmapTracker(self.vm, self, self.devices, manual=kind != "plain", exact=kind == "exact")
        )
        stack.callback(self.tracker.stop)
        self.bitmap = PageBitmap.of(self.ram.pages)

    def touch(self, pages: Sequence[tuple[str, int]], exits_after: int = SPARE) -> None:
        """Have the guest write to (block, page) of each, and leave KVM after each `exits_after`."""
        code = b""
        for start in range(0, len(pages), exits_after):
            for page in pages[start : start + exits_after]:
                code += b"\x67\xfe\x05" + gpa_of(*page).to_bytes(4, "little")
            code += b"\xe6\x99"
        self.load(code)
        for _ in range(0, len(pages), exits_after):
            assert step(self.vcpu.raw, 0) == DONE

    def load(self, code: bytes) -> None:
        """What the guest does next."""
        self.ram.blocks[0].view[CODE : CODE + len(code)] = code
        write_registers(self.vcpu, Registers(rip=CODE))

    def found(self) -> set[tuple[str, int]]:
        """What a look finds; the bitmap is empty afterwards, and KVM's as after the lanes."""
        added = self.tracker.sync(self.bitmap)
        found = {
            (name, page)
            for name, pages in zip(self.bitmap.names, self.bitmap.pages, strict=True)
            for page in range(pages)
            if self.bitmap.test(name, page)
        }
        assert added == len(found) == self.bitmap.count()
        self.send(self.ram)
        return found

    def send(self, target: Ram) -> None:
        """A round over one lane, with everything that a lane does before it reads."""
        ours, theirs = socket.socketpair()
        waker = Waker()
        with ours, theirs:
            group = LaneGroup(self.ram.pages, self.bitmap, log=self.tracker.log, chunk_pages=256)
            sender = LaneSender(ours.fileno(), group, waker)
            receiver = LaneReceiver(theirs.fileno(), target.pages, waker)
            while (stop := sender.send_round(1, 1)) is LaneStop.STALLED:
                assert receiver.receive(1) is LaneStop.STALLED
            assert stop is LaneStop.ROUND_END
            assert receiver.receive() is LaneStop.ROUND_END
        waker.close()
        assert self.bitmap.count() == 0


def gpa_of(block: str, page: int) -> int:
    """Where the guest sees a page."""
    for region in LAYOUT:
        if region.block == block and region.offset <= page * PAGE < region.offset + region.size:
            return region.gpa + page * PAGE - region.offset
    raise AssertionError(f"page {page} of {block} is not the guest's")


def writable() -> list[tuple[str, int]]:
    """All pages of the guest but those of its code."""
    return [
        (region.block, page)
        for region in LAYOUT
        for page in range(region.offset // PAGE, (region.offset + region.size) // PAGE)
        if not (region.block == "low" and page in CODE_PAGES)
    ]


@pytest.fixture(params=["manual", "exact", "plain", "ring"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A tracker of each kind."""
    with ExitStack() as stack:
        yield Rig(stack, request.param)


def first_round(rig: Rig) -> None:
    """Tracking starts, and all pages are sent once."""
    rig.tracker.start()
    rig.bitmap.fill()
    rig.send(rig.ram)


def test_what_is_written_is_found(rig: Rig) -> None:
    """Round after round: all pages that the guest wrote since the last look, and no others."""
    source = random.Random(4)
    first_round(rig)
    assert rig.found() == set()
    for count in (1, 3, 60, 200, 1):
        pages = source.sample(writable(), count)
        rig.touch(pages)
        assert rig.found() == set(pages)
    assert rig.found() == set()


def test_free_pages_are_spared_unless_they_were_written(rig: Rig) -> None:
    """By the guest or by a device since the log began; what is written later is found by the next look.

    Only where it is known what was written: the other trackers spare nothing.
    """
    known = isinstance(rig.tracker, KvmBitmapTracker) and rig.tracker._exact
    blocks = {name: pages for name, pages in zip(rig.bitmap.names, rig.bitmap.pages, strict=True) if name != "low"}
    for _ in range(2):
        rig.tracker.start()
        rig.bitmap.fill()
        source = random.Random(7)
        free = {page for page in writable() if page[0] in blocks}
        touched = source.sample(sorted(free), 50)
        marked = source.sample(sorted(free), 5)
        rig.touch(touched)
        rig.devices.marks = list(marked)
        written = {*touched, *marked}
        for name, pages in blocks.items():
            spared = rig.tracker.spare(rig.bitmap, name, [(0, pages // 2), (pages // 2, pages)])
            expected = {page for page in free - written if page[0] == name}
            assert spared == (len(expected) if known else 0)
            assert all(rig.bitmap.test(*page) != known for page in expected)
        assert all(rig.bitmap.test(*page) for page in written)
        again = source.sample(sorted(free - written), 20)
        rig.touch(again)
        rig.bitmap.clear()
        rig.tracker.sync(rig.bitmap)
        assert all(rig.bitmap.test(*page) for page in [*again, *marked])
        assert rig.tracker.spare(rig.bitmap, "low", [(1 << 20, 5), (0, 0)]) == 0
        rig.bitmap.clear()
        rig.tracker.stop()


def test_the_edges_of_slots(rig: Rig) -> None:
    """First and last page of each."""
    first_round(rig)
    for region in LAYOUT[1:]:
        pages = [(region.block, region.offset // PAGE), (region.block, (region.offset + region.size) // PAGE - 1)]
        rig.touch(pages)
        assert rig.found() == set(pages)


def test_a_page_written_between_look_and_read_comes_again(rig: Rig) -> None:
    """The write is in what is read, or in the next look, or in both; never in neither."""
    with ExitStack() as stack:
        target = Ram(stack, SIZES)
        rig.tracker.start()
        rig.bitmap.fill()
        rig.send(target)
        pages = writable()[:300:7]
        rig.touch(pages)
        rig.tracker.sync(rig.bitmap)
        rig.touch(pages)
        rig.send(target)
        rig.touch(pages[::2])
        rig.tracker.sync(rig.bitmap)
        rig.send(target)
        for name in rig.blocks:
            # The program is put there by the host, which is not tracked here.
            skip = len(CODE_PAGES) * PAGE if name == "low" else 0
            wanted = next(block for block in target.blocks if block.name == name)
            assert rig.blocks[name].view[skip:] == wanted.view[skip:]


def test_what_devices_wrote_is_merged(rig: Rig) -> None:
    """Their marks are taken at each look, and they know when they are wanted."""
    assert not rig.devices.on
    first_round(rig)
    assert rig.devices.on
    rig.devices.marks = [("high", 5), ("low", 99)]
    rig.touch([("low", 99), ("low", 50)])
    assert rig.found() == {("high", 5), ("low", 99), ("low", 50)}
    assert rig.found() == set()
    rig.tracker.stop()
    assert not rig.devices.on


def test_stop_and_start_again(rig: Rig) -> None:
    """Afterwards nothing is noted and the guest runs; a second start notes what comes then."""
    first_round(rig)
    rig.touch([("low", 20)])
    rig.tracker.stop()
    rig.tracker.stop()
    rig.touch(writable())
    first_round(rig)
    assert rig.found() == set()
    rig.touch([("high", 300)])
    assert rig.found() == {("high", 300)}


def test_other_blocks_are_refused(rig: Rig) -> None:
    """A bitmap of something else has no place for the bits."""
    rig.tracker.start()
    with pytest.raises(ValueError, match="a bitmap of low"):
        rig.tracker.sync(PageBitmap(["low"], [100]))


@pytest.mark.parametrize("rig", ["ring"], indirect=True)
def test_a_full_ring_is_emptied_on_the_way(rig: Rig) -> None:
    """More pages than a ring has entries: the vCPU leaves the guest, and all of them are found and counted."""
    assert rig.rings is not None
    first_round(rig)
    pages = [page for page in writable() if page[0] == "high"]
    rig.tracker.vcpu_counts()
    rig.touch(pages)
    assert rig.rings.full_exits
    assert rig.found() == set(pages)
    assert rig.tracker.vcpu_counts() == [len(pages)]
    assert rig.tracker.vcpu_counts() == [0]


@pytest.mark.parametrize("rig", ["ring"], indirect=True)
def test_a_ring_never_loses_pages_in_silence(rig: Rig) -> None:
    """A vCPU that stays in KVM for long writes over entries on some hosts: then its step and each later look say so."""
    first_round(rig)
    pages = [page for page in writable() if page[0] == "high"]
    rig.load(b"".join(b"\x67\xfe\x05" + gpa_of(*page).to_bytes(4, "little") for page in pages) + b"\xe6\x99")
    code = step(rig.vcpu.raw, 0)
    error = look_error(rig)
    if error:
        assert error == look_error(rig) == errno.EOVERFLOW
        assert code == DONE or rig.vcpu.raw.data == RING_FULL
        assert kernel_mode_is_emulated()
    else:
        assert code == DONE
        assert rig.bitmap.count() == len(pages)


def look_error(rig: Rig) -> int:
    """The errno of a look, 0 if it succeeds."""
    try:
        rig.tracker.sync(rig.bitmap)
    except OSError as error:
        return error.errno or 0
    return 0


@pytest.mark.parametrize("entries", [3, 1 << 20])
def test_rings_that_kvm_does_not_make(entries: int) -> None:
    """Sizes that it refuses are the user's error."""
    with Kvm() as kvm:
        vm = kvm.create_vm()
    try:
        with pytest.raises(HostError, match="dirty rings"):
            vm.enable_dirty_ring(entries)
    finally:
        vm.close()
