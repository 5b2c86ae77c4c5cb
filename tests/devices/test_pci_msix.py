"""MSI-X: table, masks, pending bits, against a plain reference."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.devices.pci_msix import Msix

ON, MASK_ALL = 0x8000, 0x4000


class Table:
    """A table that notes what it tells: changed vectors as tuples, messages as numbers."""

    def __init__(self, vectors: int = 4) -> None:
        self.told: list[object] = []
        self.polled: list[int] = []
        self.waiting: set[int] = set()
        self.msix = Msix(vectors, lambda *changed: self.told.append(changed), self.told.append, self._poll)

    def _poll(self, index: int) -> bool:
        self.polled.append(index)
        return index in self.waiting

    def fill(self, index: int, address: int, data: int, masked: bool = False) -> None:
        """As a driver programs an entry."""
        self.msix.write(16 * index, 8, address)
        self.msix.write(16 * index + 8, 4, data)
        self.msix.write(16 * index + 12, 4, masked)

    def pba(self) -> int:
        """The pending bits of the first 64 vectors."""
        return self.msix.read(self.msix.pba_offset, 8)

    def take(self) -> list[object]:
        """What was told since the last time."""
        told = list(self.told)
        self.told.clear()
        return told


@pytest.fixture
def table() -> Table:
    """Four vectors, off."""
    return Table()


def test_power_on(table: Table) -> None:
    """Off, with each vector masked by its own bit and the size of the table in the control register."""
    assert table.msix.control == 3
    assert [table.msix.read(offset, 4) for offset in range(0, 64, 4)] == [0, 0, 0, 1] * 4
    assert table.pba() == 0


@pytest.mark.parametrize(
    ("vectors", "length"), [(1, 0x1000), (128, 0x1000), (129, 0x2000), (255, 0x2000), (257, 0x4000), (2048, 0x1_0000)]
)
def test_layout(vectors: int, length: int) -> None:
    """Table and pending bits fit into a power of two, each in a half of it."""
    msix = Msix(vectors, lambda *changed: None, lambda index: None)
    assert (msix.length, msix.pba_offset) == (length, length // 2)
    assert msix.table_length == 16 * vectors <= msix.pba_offset
    assert msix.pba_length * 8 >= vectors
    assert msix.pba_offset + msix.pba_length <= msix.length


@pytest.mark.parametrize("vectors", [0, 2049])
def test_impossible_count(vectors: int) -> None:
    """1 to 2048 vectors."""
    with pytest.raises(ValueError, match="vectors"):
        Msix(vectors, lambda *changed: None, lambda index: None)


def test_reserved_bits(table: Table) -> None:
    """Low address bits and all of vector control but the mask read zero."""
    for offset in range(0, 16, 4):
        table.msix.write(offset, 4, 0xFFFF_FFFF)
    assert [table.msix.read(offset, 4) for offset in range(0, 16, 4)] == [0xFFFF_FFFC, 0xFFFF_FFFF, 0xFFFF_FFFF, 1]


def test_other_accesses_write_nothing(table: Table) -> None:
    """Bytes, words, crooked dwords and the pending bits are not written; bytes can be read."""
    for offset, size in ((0, 1), (0, 2), (2, 4), (4, 8), (12, 1), (64, 4), (table.msix.pba_offset, 8)):
        table.msix.write(offset, size, (1 << 8 * size) - 4)
    assert [table.msix.read(offset, 4) for offset in range(0, 64, 4)] == [0, 0, 0, 1] * 4
    table.msix.write(0, 8, 0x1122_3344_5566_7788)
    assert table.msix.read(1, 1) == 0x77
    assert table.msix.read(3, 2) == 0x4455


def test_a_driver_opens_vectors(table: Table) -> None:
    """What is written while the function mask is on is told once, when the vector opens."""
    table.msix.write_control(ON | MASK_ALL)
    table.fill(1, 0xFEE0_1000, 0x31)
    table.fill(2, 0xFEE0_2000, 0x32, masked=True)
    assert table.take() == []
    table.msix.write_control(ON)
    assert table.take() == [(1, 0xFEE0_1000, 0x31, False)]
    table.msix.write(2 * 16 + 12, 4, 0)
    assert table.take() == [(2, 0xFEE0_2000, 0x32, False)]
    table.msix.write_control(0)
    assert table.take() == [(1, 0xFEE0_1000, 0x31, True), (2, 0xFEE0_2000, 0x32, True)]


def test_an_open_vector_changes_while_running(table: Table) -> None:
    """Another CPU or data is told at each write that changes something, and only then."""
    table.msix.write_control(ON)
    table.fill(0, 0xFEE0_0000, 0x40)
    table.take()
    table.msix.write(0, 4, 0xFEE0_3000)
    table.msix.write(8, 4, 0x40)
    table.msix.write(8, 8, 0x41)
    assert table.take() == [(0, 0xFEE0_3000, 0x40, False), (0, 0xFEE0_3000, 0x41, False)]


def test_pending_waits_for_the_mask(table: Table) -> None:
    """An interrupt for a masked vector sets its bit, and is one message, however many came, after the route is told."""
    table.msix.write_control(ON)
    table.fill(0, 0xFEE0_0000, 0x40)
    table.take()
    table.msix.pending(0)
    assert table.take() == [0]
    table.msix.write(12, 4, 1)
    table.take()
    table.msix.pending(0)
    table.msix.pending(0)
    assert (table.take(), table.pba()) == ([], 1)
    table.msix.write(12, 4, 0)
    assert table.take() == [(0, 0xFEE0_0000, 0x40, False), 0]
    assert table.pba() == 0


def test_function_mask_keeps_pending(table: Table) -> None:
    """As above with the mask over all vectors; those with their own mask go on waiting."""
    table.msix.write_control(ON)
    table.fill(0, 0xFEE0_0000, 0x40)
    table.fill(3, 0xFEE0_0000, 0x43, masked=True)
    table.msix.write_control(ON | MASK_ALL)
    table.msix.pending(0)
    table.msix.pending(3)
    table.take()
    assert table.pba() == 0b1001
    table.msix.write_control(ON)
    assert table.take() == [(0, 0xFEE0_0000, 0x40, False), 0]
    assert table.pba() == 0b1000


def test_withdrawn_and_dropped(table: Table) -> None:
    """A cause that has gone takes its bit along; turning MSI-X off forgets all; off, nothing is kept."""
    table.msix.write_control(ON)
    table.msix.pending(1)
    table.msix.pending(2)
    table.msix.withdraw(1)
    assert table.pba() == 0b100
    table.msix.write_control(0)
    table.msix.pending(0)
    table.msix.write_control(ON)
    assert (table.pba(), table.take()) == (0, [])


def test_polled_interrupts_show_when_looked_at(table: Table) -> None:
    """Masked vectors are asked about when the guest reads their bits, or a record is made; open ones never."""
    table.waiting = {0, 2}
    assert (table.pba(), table.polled) == (0, [])
    table.msix.write_control(ON)
    table.fill(0, 0xFEE0_0000, 0x40)
    table.msix.read(0, 8)
    assert table.polled == []
    assert table.pba() == 0b100
    assert table.polled == [1, 2, 3]
    table.waiting = {3}
    assert table.msix.state().pending[0] == 0b1100


def test_high_pending_bits() -> None:
    """The bits of vector 64 and up are in the next quadword; a dword asks only about its own."""
    table = Table(100)
    table.msix.write_control(ON)
    table.waiting = {99}
    table.msix.pending(64)
    assert table.msix.read(table.msix.pba_offset + 8, 8) == 1 << 35 | 1
    table.polled.clear()
    assert table.msix.read(table.msix.pba_offset + 12, 4) == 1 << 3
    assert table.polled == [96, 97, 98, 99]


def test_reset_closes(table: Table) -> None:
    """Open vectors are told as masked, and that is all."""
    table.msix.write_control(ON)
    table.fill(2, 0xFEE0_0000, 0x42)
    table.take()
    table.msix.reset()
    assert table.take() == [(2, 0, 0, True)]
    table.msix.reset()
    assert table.take() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"enabled": False, "pending": b"\x01" + bytes(7)},
        {"pending": b"\x02" + bytes(7)},
        {"pending": b"\x10" + bytes(7)},
        {"table": bytes(63)},
        {"table": b"\x01" + bytes(63)},
        {"function_masked": 2},
    ],
)
def test_records_that_cannot_be(table: Table, changes: dict[str, object]) -> None:
    """Pending bits of vectors that are open, missing or off, and reserved bits, are refused by the field's name."""
    table.msix.write_control(ON)
    table.fill(1, 0xFEE0_0000, 0x41)
    state = table.msix.state()
    with pytest.raises(ValueError, match=[*changes][-1]):
        table.msix.restore(state._replace(**changes))  # type: ignore[arg-type]
    assert table.msix.state() == state
    table.msix.restore(state._replace(pending=b"\x01" + bytes(7)))
    assert table.pba() == 1


class Plain:
    """What MSI-X is, written down without regard to anything else: all vectors are looked at after each step."""

    def __init__(self, vectors: int) -> None:
        self.entries = [[0, 0, 0, 1] for _ in range(vectors)]
        self.on = self.mask = False
        self.bits: set[int] = set()
        self.told: list[object] = []
        self.seen = self.look()

    def look(self) -> list[tuple[int, int, int, bool]]:
        """Each vector with the sum of its masks."""
        closed = self.mask or not self.on
        return [
            (number, low | high << 32, data, closed or bool(own))
            for number, (low, high, data, own) in enumerate(self.entries)
        ]

    def settle(self) -> None:
        """Tell changes, and send what may go."""
        for before, now in zip(self.seen, self.look(), strict=True):
            if now != before and not (now[3] and before[3]):
                self.told.append(now)
            if not now[3] and now[0] in self.bits:
                self.bits.discard(now[0])
                self.told.append(now[0])
        self.seen = self.look()

    def write(self, offset: int, size: int, value: int) -> None:
        """By dwords, and then one look."""
        for part in range(size // 4):
            number, field = divmod(offset // 4 + part, 4)
            kept = (0xFFFF_FFFC, 0xFFFF_FFFF, 0xFFFF_FFFF, 1)[field]
            self.entries[number][field] = value >> 32 * part & kept
        self.settle()

    def control(self, value: int) -> None:
        """On and mask."""
        self.on, self.mask = bool(value & ON), bool(value & MASK_ALL)
        if not self.on:
            self.bits.clear()
        self.settle()

    def pending(self, number: int) -> None:
        """An interrupt."""
        if self.on:
            self.bits.add(number)
            self.settle()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 15), st.sampled_from((4, 8)), st.integers(0, (1 << 64) - 1)),
        st.tuples(st.just("mask"), st.integers(0, 3), st.just(4), st.integers(0, 1)),
        st.tuples(st.just("control"), st.sampled_from((0, ON, ON, ON | MASK_ALL)), st.just(0), st.just(0)),
        st.tuples(st.just("pending"), st.integers(0, 3), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_against_plain_reference(history: list[tuple[str, int, int, int]]) -> None:
    """Any history tells the same in the same order, and leaves the same table and pending bits."""
    table, plain = Table(), Plain(4)
    for what, where, size, value in history:
        if what == "control":
            table.msix.write_control(where)
            plain.control(where)
        elif what == "pending":
            table.msix.pending(where)
            plain.pending(where)
        else:
            offset = 16 * where + 12 if what == "mask" else 4 * where // size * size
            table.msix.write(offset, size, value & (1 << 8 * size) - 1)
            plain.write(offset, size, value & (1 << 8 * size) - 1)
        assert table.take() == plain.told
        plain.told.clear()
    assert [tuple(vector) for vector in table.msix.vectors()] == plain.look()
    assert table.pba() == sum(1 << number for number in plain.bits)
