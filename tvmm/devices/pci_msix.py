"""MSI-X of a PCI function: table, pending bits, message control (PCI Local Bus 3.0, 6.8.2).

The device is the BAR that holds both structures: the table at offset 0, the pending bit array in the upper half. The
table is made for aligned accesses of 4 and 8 bytes; the specification leaves all others open. Here those read what
is there and write nothing.

A vector is masked by its own bit, by the function mask, or because MSI-X is off. `on_vector_changed` hears of a
vector when that changes, and when a vector that is not masked gets another address or data: what a driver writes
into masked entries costs nothing until it opens them, and a routing table is written once per vector.

An interrupt for a masked vector sets its pending bit and is sent when the vector is unmasked. Where interrupts do not
pass through here but through an eventfd that KVM reads, nobody sets the bit at the time; `poll_masked` asks the shell
about it when the guest looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices.common import check_bytes, check_flag, check_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CONTROL_ENABLE", "CONTROL_MASK", "ENTRY_SIZE", "MAX_VECTORS", "Msix", "MsixState", "MsixVector"]

MAX_VECTORS = 2048
ENTRY_SIZE = 16
DATA, VECTOR_CONTROL = 8, 12
VECTOR_MASK = 0x01

CONTROL_ENABLE, CONTROL_MASK = 0x8000, 0x4000
CONTROL_BITS = CONTROL_ENABLE | CONTROL_MASK

RESET_ENTRY = bytes(VECTOR_CONTROL) + VECTOR_MASK.to_bytes(4, "little")
# Address without its two low bits, data, and the one bit of vector control; all others are reserved and read zero.
WRITABLE_ENTRY = b"\xfc" + b"\xff" * 11 + b"\x01\0\0\0"

MIN_LENGTH = 0x1000


class MsixVector(NamedTuple):
    """What one interrupt is: `data` written to `address`, unless it is masked by whatever mask."""

    number: int
    address: int
    data: int
    masked: bool


class MsixState(NamedTuple):
    """`table` has 16 bytes for each vector, `pending` a bit for each, filled up to 8 bytes, as the guest sees them."""

    enabled: bool = False
    function_masked: bool = False
    table: bytes = b""
    pending: bytes = b""


class Msix:
    """`vector_count` (1 to 2048) vectors.

    `on_vector_changed(index, address, data, masked)` is called when a vector has changed, after which it is to be
    sent as told, or not at all. `on_message(index)` sends it: for `pending` on an unmasked vector, and when a vector
    with its pending bit set is unmasked. `poll_masked(index)` tells whether an interrupt for a masked vector has come
    by another way since it was last asked.
    """

    def __init__(
        self,
        vector_count: int,
        on_vector_changed: Callable[[int, int, int, bool], None],
        on_message: Callable[[int], None],
        poll_masked: Callable[[int], bool] | None = None,
    ) -> None:
        if not 1 <= vector_count <= MAX_VECTORS:
            raise ValueError(f"{vector_count} vectors are not 1 to {MAX_VECTORS}")
        self.vector_count = vector_count
        self.table_length = vector_count * ENTRY_SIZE
        self.pba_length = (vector_count + 63) // 64 * 8
        self.length = max(MIN_LENGTH, 2 << (self.table_length - 1).bit_length())
        """Bytes of the BAR: a power of two, at least a page."""
        self.pba_offset = self.length // 2
        self.enabled = False
        self._function_masked = False
        self._on_vector_changed = on_vector_changed
        self._on_message = on_message
        self._poll_masked = poll_masked
        self._load(self._reset_state())

    # -- the guest's side: the BAR -------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`; zero between and behind the structures."""
        bits = range(8 * (offset - self.pba_offset), 8 * (offset + size - self.pba_offset))
        self._poll(range(max(bits.start, 0), min(bits.stop, self.vector_count)))
        table = self._table[offset : offset + size]
        value = int.from_bytes(table, "little")
        for index in range(max(self.pba_offset - offset, 0), size):
            value |= self._pba_byte(offset + index - self.pba_offset) << 8 * index
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """An aligned access of 4 or 8 bytes to the table, taken as a whole; others change nothing."""
        if size not in (4, 8) or offset % size or offset >= self.table_length:
            return
        index, within = divmod(offset, ENTRY_SIZE)
        before = self.vector(index)
        mask = int.from_bytes(WRITABLE_ENTRY[within : within + size], "little")
        self._table[offset : offset + size] = (value & mask).to_bytes(size, "little")
        self._announce(before)

    def _pba_byte(self, offset: int) -> int:
        return self._pending >> 8 * offset & 0xFF

    def _poll(self, indices: range) -> None:
        if self._poll_masked is None or not self.enabled:
            return
        for index in indices:
            if self._is_masked(index) and self._poll_masked(index):
                self._pending |= 1 << index

    # -- the guest's side: message control in the capability -------------------------------------------------

    @property
    def control(self) -> int:
        """The message control register: enable, function mask, and the size of the table less one."""
        return CONTROL_ENABLE * self.enabled | CONTROL_MASK * self._function_masked | self.vector_count - 1

    def write_control(self, value: int) -> None:
        """Write that register. What was pending when MSI-X is turned off is forgotten."""
        was_open = self.enabled and not self._function_masked
        before = list(self.vectors()) if was_open != (value & CONTROL_BITS == CONTROL_ENABLE) else []
        self.enabled = bool(value & CONTROL_ENABLE)
        self._function_masked = bool(value & CONTROL_MASK)
        if not self.enabled:
            self._pending = 0
        for vector in before:
            self._announce(vector)

    # -- the function's side -------------------------------------------------------------------------------

    def pending(self, index: int) -> None:
        """There is an interrupt for vector `index`: sent, kept while it is masked, dropped while MSI-X is off."""
        if not self.enabled:
            return
        if self._is_masked(index):
            self._pending |= 1 << index
        else:
            self._on_message(index)

    def withdraw(self, index: int) -> None:
        """The guest has dealt with the cause of vector `index` otherwise: it is no longer pending."""
        self._pending &= ~(1 << index)

    def vector(self, index: int) -> MsixVector:
        """How vector `index` is to be sent now."""
        start = index * ENTRY_SIZE
        address = int.from_bytes(self._table[start : start + DATA], "little")
        data = int.from_bytes(self._table[start + DATA : start + VECTOR_CONTROL], "little")
        return MsixVector(index, address, data, self._is_masked(index))

    def vectors(self) -> Iterator[MsixVector]:
        """All vectors: what a shell sets up after `restore`, which calls nobody."""
        return map(self.vector, range(self.vector_count))

    def _is_masked(self, index: int) -> bool:
        own = self._table[index * ENTRY_SIZE + VECTOR_CONTROL] & VECTOR_MASK
        return bool(own) or self._function_masked or not self.enabled

    def _announce(self, before: MsixVector) -> None:
        now = self.vector(before.number)
        if now == before or (now.masked and before.masked):
            return
        self._on_vector_changed(*now)
        if before.masked and self._pending >> now.number & 1:
            self._pending &= ~(1 << now.number)
            self._on_message(now.number)

    # -- state ---------------------------------------------------------------------------------------------

    def _reset_state(self) -> MsixState:
        return MsixState(table=RESET_ENTRY * self.vector_count, pending=bytes(self.pba_length))

    def reset(self) -> None:
        """To the state after power-on: off, all vectors masked, nothing pending."""
        before = list(self.vectors())
        self._load(self._reset_state())
        for vector in before:
            self._announce(vector)

    def state(self) -> MsixState:
        """Table, control and pending bits as a record, with what `poll_masked` knows."""
        self._poll(range(self.vector_count))
        pending = self._pending.to_bytes(self.pba_length, "little")
        return MsixState(self.enabled, self._function_masked, bytes(self._table), pending)

    def check(self, state: MsixState) -> None:
        """Raise `ValueError` with the name of a bad field for what `restore` would not take."""
        check_record(state, MsixState)
        enabled = check_flag("enabled", state.enabled)
        closed = check_flag("function_masked", state.function_masked) or not enabled
        table = check_bytes("table", state.table, self.table_length, self.table_length)
        pending = int.from_bytes(check_bytes("pending", state.pending, self.pba_length, self.pba_length), "little")
        reserved = ~int.from_bytes(WRITABLE_ENTRY * self.vector_count, "little")
        if int.from_bytes(table, "little") & reserved:
            raise ValueError("table has reserved bits set")
        if pending >> self.vector_count or (pending and not enabled):
            raise ValueError("pending has bits of vectors that cannot be pending")
        for index in range(self.vector_count):
            if pending >> index & 1 and not closed and not table[index * ENTRY_SIZE + VECTOR_CONTROL] & VECTOR_MASK:
                raise ValueError("pending has bits of vectors that are not masked")

    def restore(self, state: MsixState) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        self.check(state)
        self._load(state)

    def _load(self, state: MsixState) -> None:
        self.enabled = bool(state.enabled)
        self._function_masked = bool(state.function_masked)
        self._table = bytearray(state.table)
        self._pending = int.from_bytes(state.pending, "little")
