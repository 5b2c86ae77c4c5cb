"""Video memory with a real vCPU: what it writes is found by who looks at the screen, and by a migration as well."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tvmm.config.memory import MemoryConfig
from tvmm.errors import HostError
from tvmm.kvm.dirty_log import DirtyRings, DirtyTracker, KvmBitmapTracker, KvmRingTracker, with_vram
from tvmm.kvm.pages import PAGE, PageBitmap
from tvmm.kvm.system import Kvm
from tvmm.kvm.vcpu import step
from tvmm.kvm.vram import VRAM_SLOT, VramMemory
from tvmm.memory.ram import VRAM_BLOCK, GuestRam
from tvmm.vcpu.registers import Registers, write_registers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.kvm

PAGES = 256
HERE, THERE = 0xC000_0000, 0xD000_0000
CODE = 0x1000
DONE = 0x99 << 8 | 1
"""What a step returns for OUT 0x99, AL."""
RING = 1024


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
        self.ram = GuestRam(MemoryConfig(2 << 20))
        stack.callback(self.ram.close)
        self.ram.add_block(VRAM_BLOCK, PAGES * PAGE)
        stack.callback(self.vm.release_memory)
        self.vm.set_memory(0, 0, self.ram.blocks["pc.ram"].view)
        self.vram = VramMemory(self.vm, self.ram, has_rings=self.rings is not None)
        self.watch = self.vram.watch
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
        devices = with_vram(None, self.vram)
        self.tracker: DirtyTracker = (
            KvmRingTracker(self.rings, self.vm, self.ram, devices, [(VRAM_SLOT, VRAM_BLOCK)])
            if self.rings is not None
            else KvmBitmapTracker(self.vm, self.ram, devices)
        )
        stack.callback(self.tracker.stop)
        self.bitmap = PageBitmap(list(self.ram.blocks), [block.size // PAGE for block in self.ram.blocks.values()])

    def touch(self, pages: Sequence[int], base: int = HERE) -> None:
        """Have the guest write."""
        code = b"".join(b"\x67\xfe\x05" + (base + page * PAGE).to_bytes(4, "little") for page in pages) + b"\xe6\x99"
        self.ram.blocks["pc.ram"].view[CODE : CODE + len(code)] = code
        write_registers(self.vcpu, Registers(rip=CODE))
        assert step(self.vcpu.raw, 0) == DONE

    def taken(self) -> list[int] | None:
        """Pages of a look at the screen."""
        found = self.watch.take()
        return None if found is None else [page for page, byte in enumerate(found) if byte]

    def migrated(self) -> list[int]:
        """Pages of a migration's look."""
        self.bitmap.clear()
        self.tracker.sync(self.bitmap)
        return [page for page in range(PAGES) if self.bitmap.test(VRAM_BLOCK, page)]


@pytest.fixture(params=["bitmap"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Mapped."""
    with ExitStack() as stack:
        made = Rig(stack, request.param)
        made.vram.move(None, HERE)
        yield made


both = pytest.mark.parametrize("rig", ["bitmap", "ring"], indirect=True)


def test_both_find_everything(rig: Rig) -> None:
    """Whoever comes first takes nothing from the other."""
    rig.watch.turn_on()
    assert rig.taken() is None
    rig.tracker.start()
    rig.migrated()
    assert rig.taken() == []
    rig.touch([0, 63, 64, 255])
    assert rig.taken() == [0, 63, 64, 255]
    rig.touch([3, 64])
    assert rig.migrated() == [0, 3, 63, 64, 255]
    assert rig.taken() == [3, 64]
    rig.touch([3])
    assert (rig.migrated(), rig.taken()) == ([3], [3])
    assert (rig.migrated(), rig.taken()) == ([], [])
    rig.watch.turn_off()
    rig.touch([9])
    assert rig.migrated() == [9]
    rig.watch.turn_on()
    assert rig.taken() is None
    rig.tracker.stop()
    rig.touch([10])
    assert rig.taken() == [10]


@both
def test_a_migration_follows_the_bar(rig: Rig) -> None:
    """What was written before a move, and after it, is found; a move marks all. Unmapped, nothing is written."""
    rig.tracker.start()
    rig.migrated()
    rig.touch([5])
    assert rig.migrated() == [5]
    rig.touch([6])
    rig.vram.move(HERE, THERE)
    assert rig.migrated() == list(range(PAGES))
    rig.migrated()
    rig.touch([7], THERE)
    assert rig.migrated() == [7]
    rig.vram.move(THERE, None)
    assert rig.migrated() == list(range(PAGES))
    assert rig.migrated() == []
    rig.vram.move(None, HERE)
    rig.migrated()
    rig.touch([8])
    assert rig.migrated() == [8]


@both
def test_a_migration_starts_while_it_is_nowhere(rig: Rig) -> None:
    """And the log is on as soon as there is one."""
    rig.vram.move(HERE, None)
    rig.tracker.start()
    assert rig.migrated() == []
    rig.vram.move(None, THERE)
    rig.migrated()
    rig.touch([1, 2], THERE)
    assert rig.migrated() == [1, 2]
    rig.tracker.stop()
    rig.tracker.stop()


@pytest.mark.parametrize("rig", ["ring"], indirect=True)
def test_with_rings_a_watch_knows_nothing(rig: Rig) -> None:
    """Everything is compared; the rings are the migration's alone."""
    rig.watch.turn_on()
    rig.touch([1])
    assert rig.taken() is None
    assert rig.taken() is None


def test_nothing_is_lost_between_looks(rig: Rig) -> None:
    """A vCPU that writes without a rest, two that look: the copies of both are what the memory is in the end."""
    rig.watch.turn_on()
    rig.tracker.start()
    screen, copy = bytearray(rig.vram.view), bytearray(rig.vram.view)

    def refresh(pages: list[int] | None, into: bytearray) -> None:
        for page in range(PAGES) if pages is None else pages:
            into[page * PAGE : (page + 1) * PAGE] = rig.vram.view[page * PAGE : (page + 1) * PAGE]

    def write() -> None:
        for number in range(200):
            rig.touch([(number * 7 + index * 13) % PAGES for index in range(20)])

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        refresh(rig.taken(), screen)
        refresh(rig.migrated(), copy)
    writer.join()
    refresh(rig.taken(), screen)
    refresh(rig.migrated(), copy)
    assert screen == copy == bytes(rig.vram.view)
    assert sum(screen[::PAGE]) % 256 == 200 * 20 % 256


def test_nothing_is_lost_while_it_moves(rig: Rig) -> None:
    """The same while the memory is taken away and put back all the time; accesses in between go to nobody."""
    rig.watch.turn_on()
    rig.tracker.start()
    screen, copy = bytearray(rig.vram.view), bytearray(rig.vram.view)
    pages = [index * 13 % PAGES for index in range(100)]
    code = b"".join(b"\x67\xfe\x05" + (HERE + page * PAGE).to_bytes(4, "little") for page in pages) + b"\xe6\x99"
    rig.ram.blocks["pc.ram"].view[CODE : CODE + len(code)] = code
    done = threading.Event()

    def refresh(found: list[int] | None, into: bytearray) -> None:
        for page in range(PAGES) if found is None else found:
            into[page * PAGE : (page + 1) * PAGE] = rig.vram.view[page * PAGE : (page + 1) * PAGE]

    def write() -> None:
        for _ in range(100):
            write_registers(rig.vcpu, Registers(rip=CODE))
            while step(rig.vcpu.raw, 0) != DONE:
                pass
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    moves = 0
    while not done.is_set():
        rig.vram.move(HERE, None)
        rig.vram.move(None, HERE)
        moves += 1
        refresh(rig.taken(), screen)
        refresh(rig.migrated(), copy)
    writer.join()
    refresh(rig.taken(), screen)
    refresh(rig.migrated(), copy)
    assert moves > 1
    assert any(screen)
    assert screen == copy == bytes(rig.vram.view)


def test_a_place_that_kvm_refuses(rig: Rig) -> None:
    """On top of RAM: it is nowhere then, and the bytes can be reached by way of the bus."""
    rig.vram.move(HERE, 0x10_0000)
    assert rig.vram.address is None
    assert rig.vram.refusals == 1
    rig.watch.turn_on()
    assert rig.taken() is None
    rig.vram.write(4 * PAGE, 8, 1 << 63)
    rig.vram.write(PAGES * PAGE - 2, 4, 0x0403_0201)
    rig.vram.write(PAGES * PAGE, 4, 1)
    assert rig.taken() == [4, 255]
    assert rig.vram.read(4 * PAGE, 8) == 1 << 63
    assert rig.vram.read(PAGES * PAGE - 2, 4) == 0xFFFF_0201
    rig.vram.move(None, HERE)
    assert rig.vram.address == HERE


def test_a_log_that_kvm_refuses(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch stays off and says why; a migration does not start."""

    def refuse(slot: int, *, on: bool) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(rig.vm, "set_dirty_logging", refuse)
    with pytest.raises(HostError, match="Cannot allocate memory"):
        rig.watch.turn_on()
    assert not rig.watch.is_on
    with pytest.raises(HostError, match="Cannot allocate memory"):
        rig.vram.start()


def test_a_look_that_fails(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is not known then, nor the next time; after that it is again."""
    rig.watch.turn_on()
    assert rig.taken() is None
    with monkeypatch.context() as patch:
        patch.setattr(rig.vram._raw, "vm_fd", -1)
        assert rig.taken() is None
        with pytest.raises(OSError, match="KVM_GET_DIRTY_LOG"):
            rig.vram.merge_into(rig.vram._pending)
    rig.touch([2])
    assert rig.taken() is None
    rig.touch([3])
    assert rig.taken() == [3]


def test_memory_of_odd_sizes_is_refused() -> None:
    """Bitmaps are of whole words."""
    with ExitStack() as stack:
        with Kvm() as kvm:
            vm = kvm.create_vm()
        stack.callback(vm.close)
        ram = GuestRam(MemoryConfig(2 << 20))
        stack.callback(ram.close)
        ram.add_block(VRAM_BLOCK, 65 * PAGE)
        with pytest.raises(ValueError, match="video memory"):
            VramMemory(vm, ram)
