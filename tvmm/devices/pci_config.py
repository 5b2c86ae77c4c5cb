"""The configuration space of a PCI function (PCI Local Bus 3.0, chapter 6; PCI Express Base 5.0, 7.5).

4096 bytes, of which the first 256 are within reach of the old mechanism: a type 0 header, then capabilities as a
linked list. Each bit is of one kind: read-only, writable, or set by the function and cleared by writing a one.
What lies behind registers with a life of their own (BARs, the control word of MSI-X, the window of virtio's
PCI-cfg capability) is a `Device` that part of the space is delegated to; such bytes are zero in the record here
and in the record of the delegate instead.

The first dword of the extended part reads zero, which says that there are no extended capabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices.common import check_bytes, check_record, check_uint, read_bytewise, write_bytewise

if TYPE_CHECKING:
    from tvmm.bus import Device

__all__ = [
    "BARS",
    "BARS_LENGTH",
    "CAPABILITIES",
    "CAP_EXPRESS",
    "CAP_MSIX",
    "CAP_VENDOR",
    "COMMAND",
    "COMMAND_BUS_MASTER",
    "COMMAND_INTX_DISABLE",
    "COMMAND_IO",
    "COMMAND_MEMORY",
    "CONFIG_SIZE",
    "HEADER_TYPE",
    "INTERRUPT_LINE",
    "INTERRUPT_PIN",
    "STATUS",
    "STATUS_CAPABILITIES",
    "STATUS_INTX",
    "ConfigSpace",
    "ConfigState",
    "PciIdentity",
]

CONFIG_SIZE = 4096
LEGACY_SIZE = 256

VENDOR_ID, DEVICE_ID, COMMAND, STATUS, REVISION, CLASS_CODE = 0x00, 0x02, 0x04, 0x06, 0x08, 0x09
CACHE_LINE_SIZE, HEADER_TYPE, BARS = 0x0C, 0x0E, 0x10
BARS_LENGTH = 24
SUBSYSTEM_VENDOR_ID, SUBSYSTEM_ID, CAPABILITIES = 0x2C, 0x2E, 0x34
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D
FIRST_CAPABILITY = 0x40

COMMAND_IO, COMMAND_MEMORY, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE = 0x0001, 0x0002, 0x0004, 0x0400
# The four above, and answers to parity and system errors, which never come.
COMMAND_BITS = COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | 0x0040 | 0x0100 | COMMAND_INTX_DISABLE

STATUS_INTX, STATUS_CAPABILITIES = 0x0008, 0x0010
STATUS_ERRORS = 0xF900
"""Parity, aborts, system error: noted by the function, cleared by writing ones."""

MULTIFUNCTION = 0x80

CAP_VENDOR, CAP_EXPRESS, CAP_MSIX = 0x09, 0x10, 0x11

# The PCI Express capability, version 2, of an endpoint that is integrated into the root complex: what sits on bus 0
# without a port in front of it. Such a one has no link, slot or root registers; they read zero.
EXPRESS_LENGTH = 0x3C
EXPRESS_FLAGS = 2 | 9 << 4
DEVICE_CAPABILITIES, DEVICE_CONTROL, DEVICE_STATUS, DEVICE_CAPABILITIES_2, DEVICE_CONTROL_2 = 4, 8, 10, 0x24, 0x28
ROLE_BASED_ERRORS = 1 << 15
DEVICE_CONTROL_RESET = 0x2810
"""Relaxed ordering, no snoop, and reads of up to 512 bytes."""
DEVICE_CONTROL_BITS = 0x781F
DEVICE_STATUS_ERRORS = 0x000F
NO_COMPLETION_TIMEOUT = 0x10


class PciIdentity(NamedTuple):
    """Who a function is. `class_code` is base class, sub-class and programming interface in 24 bits."""

    vendor_id: int
    device_id: int
    class_code: int
    revision: int = 0
    subsystem_vendor_id: int = 0
    subsystem_id: int = 0


class ConfigState(NamedTuple):
    """All 4096 bytes, with the read-only ones, which have to be the same in the function that takes it over."""

    registers: bytes = bytes(CONFIG_SIZE)


class ConfigSpace:
    """Registers with masks, and the builder of the capability list.

    `interrupt_pin` is 0 for none, 1 to 4 for INTA to INTD. What is built is there from power-on; build before the
    guest looks. Raises `ValueError` for an identity that does not fit its registers.
    """

    def __init__(self, identity: PciIdentity, interrupt_pin: int = 0) -> None:
        for field, limit in zip(PciIdentity._fields, (0xFFFF, 0xFFFF, 0xFF_FFFF, 0xFF, 0xFFFF, 0xFFFF), strict=True):
            check_uint(field, getattr(identity, field), limit)
        check_uint("interrupt_pin", interrupt_pin, 4)
        self._initial = bytearray(CONFIG_SIZE)
        self._writable = bytearray(CONFIG_SIZE)
        self._cleared_by_one = bytearray(CONFIG_SIZE)
        self._dynamic = bytearray(CONFIG_SIZE)  # set and cleared by the function alone
        self._delegates: list[tuple[int, int, Device]] = []
        self._link = CAPABILITIES
        self._free = FIRST_CAPABILITY

        self._put(self._initial, VENDOR_ID, 2, identity.vendor_id)
        self._put(self._initial, DEVICE_ID, 2, identity.device_id)
        self._put(self._initial, REVISION, 1, identity.revision)
        self._put(self._initial, CLASS_CODE, 3, identity.class_code)
        self._put(self._initial, SUBSYSTEM_VENDOR_ID, 2, identity.subsystem_vendor_id)
        self._put(self._initial, SUBSYSTEM_ID, 2, identity.subsystem_id)
        self._put(self._initial, INTERRUPT_PIN, 1, interrupt_pin)
        self._put(self._writable, COMMAND, 2, COMMAND_BITS)
        self._put(self._cleared_by_one, STATUS, 2, STATUS_ERRORS)
        self._put(self._writable, CACHE_LINE_SIZE, 1, 0xFF)
        self._put(self._writable, INTERRUPT_LINE, 1, 0xFF)
        if interrupt_pin:
            self._put(self._dynamic, STATUS, 2, STATUS_INTX)
        self._bytes = bytearray(self._initial)

    @staticmethod
    def _put(where: bytearray, offset: int, size: int, value: int) -> None:
        where[offset : offset + size] = value.to_bytes(size, "little")

    # -- building ------------------------------------------------------------------------------------------

    def add_capability(self, identifier: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability; its offset.

        `body` is what follows identifier and link, `writable` a mask of its first bytes. Raises `ValueError` if the
        first 256 bytes, which is where capabilities have to be, are full.
        """
        offset = self._free
        end = offset + 2 + len(body)
        if end > LEGACY_SIZE or len(writable) > len(body):
            raise ValueError(f"a capability of {2 + len(body)} bytes does not fit at {offset:#x}")
        check_uint("identifier", identifier, 0xFF)
        self._initial[offset : offset + 1] = bytes([identifier])
        self._initial[offset + 2 : end] = body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        self._initial[self._link] = offset
        self._put(self._initial, STATUS, 2, STATUS_CAPABILITIES)
        self._link = offset + 1
        self._free = (end + 3) & ~3
        self._bytes = bytearray(self._initial)
        return offset

    def add_vendor_capability(self, body: bytes, writable: bytes = b"") -> int:
        """Append a vendor-specific capability, whose length byte goes before `body`; its offset."""
        return self.add_capability(CAP_VENDOR, bytes([3 + len(body)]) + body, b"\0" + writable if writable else b"")

    def add_express_capability(self) -> int:
        """Append the PCI Express capability, by which a guest knows that there are 4096 bytes; its offset."""
        offset = self.add_capability(CAP_EXPRESS, bytes(EXPRESS_LENGTH - 2))
        self._put(self._initial, offset + 2, 2, EXPRESS_FLAGS)
        self._put(self._initial, offset + DEVICE_CAPABILITIES, 4, ROLE_BASED_ERRORS)
        self._put(self._initial, offset + DEVICE_CONTROL, 2, DEVICE_CONTROL_RESET)
        self._put(self._writable, offset + DEVICE_CONTROL, 2, DEVICE_CONTROL_BITS)
        self._put(self._cleared_by_one, offset + DEVICE_STATUS, 2, DEVICE_STATUS_ERRORS)
        self._put(self._initial, offset + DEVICE_CAPABILITIES_2, 4, NO_COMPLETION_TIMEOUT)
        self._put(self._writable, offset + DEVICE_CONTROL_2, 2, NO_COMPLETION_TIMEOUT)
        self._bytes = bytearray(self._initial)
        return offset

    def delegate(self, offset: int, length: int, device: Device) -> None:
        """Have `device` answer for `length` bytes from `offset`: whole accesses to them, or bytes of wider ones."""
        for start, end, _ in self._delegates:
            if start < offset + length and offset < end:
                raise ValueError(f"{offset:#x}+{length} is delegated already")
        self._delegates.append((offset, offset + length, device))

    def set_multifunction(self) -> None:
        """Say in the header that the slot has further functions."""
        self._initial[HEADER_TYPE] |= MULTIFUNCTION
        self._bytes[HEADER_TYPE] |= MULTIFUNCTION

    # -- the guest's side ----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`; all ones behind the end."""
        for start, end, device in self._delegates:
            if start <= offset and offset + size <= end:
                return device.read(offset - start, size) & (1 << 8 * size) - 1
        return read_bytewise(self._read_byte, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """`size` bytes at `offset`; bits that cannot be written stay."""
        for start, end, device in self._delegates:
            if start <= offset and offset + size <= end:
                device.write(offset - start, size, value)
                return
        write_bytewise(self._write_byte, offset, size, value)

    def _read_byte(self, offset: int) -> int:
        for start, end, device in self._delegates:
            if start <= offset < end:
                return device.read(offset - start, 1) & 0xFF
        return self._bytes[offset] if offset < CONFIG_SIZE else 0xFF

    def _write_byte(self, offset: int, value: int) -> None:
        if offset >= CONFIG_SIZE:
            return
        for start, end, device in self._delegates:
            if start <= offset < end:
                device.write(offset - start, 1, value)
                return
        mask = self._writable[offset]
        kept = self._bytes[offset] & ~mask & ~(value & self._cleared_by_one[offset])
        self._bytes[offset] = kept | value & mask

    # -- the function's side -------------------------------------------------------------------------------

    @property
    def command(self) -> int:
        """The command register."""
        return self._bytes[COMMAND] | self._bytes[COMMAND + 1] << 8

    @property
    def interrupt_pin(self) -> int:
        """0 for none, 1 to 4 for INTA to INTD."""
        return self._bytes[INTERRUPT_PIN]

    @property
    def interrupt_status(self) -> bool:
        """The status bit that says that the function has an INTx interrupt pending."""
        return bool(self._bytes[STATUS] & STATUS_INTX)

    def set_interrupt_status(self, pending: bool) -> None:
        """Set that bit, which a guest cannot write. Without a pin it stays zero."""
        bit = self._dynamic[STATUS]
        self._bytes[STATUS] = self._bytes[STATUS] & ~bit | (bit if pending else 0)

    def latch(self, offset: int, bits: int) -> None:
        """Note events in the byte at `offset`: sets those of `bits` that the guest clears by writing ones."""
        self._bytes[offset] |= bits & self._cleared_by_one[offset]

    # -- state ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """To the state after power-on. Delegates are not touched."""
        self._bytes[:] = self._initial

    def state(self) -> ConfigState:
        """The bytes as a record."""
        return ConfigState(bytes(self._bytes))

    def check(self, state: ConfigState) -> None:
        """Raise `ValueError` with the name of a bad field for what `restore` would not take."""
        check_record(state, ConfigState)
        check_bytes("registers", state.registers, CONFIG_SIZE, CONFIG_SIZE)
        changed = int.from_bytes(state.registers, "little") ^ int.from_bytes(self._initial, "little")
        for mask in (self._writable, self._cleared_by_one, self._dynamic):
            changed &= ~int.from_bytes(mask, "little")
        if changed:
            first = (changed & -changed).bit_length() - 1 >> 3
            raise ValueError(f"registers are those of another function, from offset {first:#x} on")

    def restore(self, state: ConfigState) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        self.check(state)
        self._bytes[:] = state.registers
