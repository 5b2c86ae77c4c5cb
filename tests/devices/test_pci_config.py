"""Configuration space: header, masks, capabilities."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.pci_parts import NETWORK, Store
from tvmm.devices import pci_config as config
from tvmm.devices.pci_config import ConfigSpace, PciIdentity


@pytest.fixture
def space() -> ConfigSpace:
    """A function with INTA."""
    return ConfigSpace(NETWORK, 1)


def test_header(space: ConfigSpace) -> None:
    """Identity, class, subsystem and pin are where a type 0 header has them."""
    assert space.read(0x00, 4) == 0x1041_1AF4
    assert space.read(0x08, 4) == 0x020000_01
    assert space.read(0x2C, 4) == 0x1100_1AF4
    assert (space.read(0x3D, 1), space.interrupt_pin) == (1, 1)
    assert space.read(config.HEADER_TYPE, 1) == 0
    assert space.read(config.STATUS, 2) == 0


def test_identity_is_read_only(space: ConfigSpace) -> None:
    """Ones written everywhere stay only where a header has writable bits."""
    before = [space.read(offset, 4) for offset in range(0, 0x40, 4)]
    for offset in range(0, 0x40, 4):
        space.write(offset, 4, 0xFFFF_FFFF)
    changed = {4 * index: space.read(4 * index, 4) ^ old for index, old in enumerate(before)}
    assert {offset: bits for offset, bits in changed.items() if bits} == {0x04: 0x0547, 0x0C: 0xFF, 0x3C: 0xFF}


def test_command_register(space: ConfigSpace) -> None:
    """Decoding, bus master and the interrupt disable bit are kept, byte by byte too."""
    space.write(config.COMMAND, 1, 0x07)
    space.write(config.COMMAND + 1, 1, 0x04)
    assert space.command == space.read(config.COMMAND, 2) == 0x0407


def test_status_errors_are_cleared_by_ones(space: ConfigSpace) -> None:
    """An error bit that the function has set goes when a one is written to it, and no other does."""
    space.latch(config.STATUS + 1, 0xFF)
    assert space.read(config.STATUS, 2) == config.STATUS_ERRORS
    space.write(config.STATUS, 2, 0)
    space.write(config.STATUS, 2, 0x2000)
    assert space.read(config.STATUS, 2) == config.STATUS_ERRORS & ~0x2000
    space.latch(config.COMMAND, 0xFF)
    assert space.command == 0


def test_interrupt_status(space: ConfigSpace) -> None:
    """The pending bit follows the function, is not the guest's to write, and needs a pin."""
    space.set_interrupt_status(True)
    space.write(config.STATUS, 2, 0xFFFF)
    assert space.read(config.STATUS, 2) == config.STATUS_INTX
    space.set_interrupt_status(False)
    assert space.read(config.STATUS, 2) == 0
    pinless = ConfigSpace(NETWORK)
    pinless.set_interrupt_status(True)
    assert pinless.read(config.STATUS, 2) == 0


def test_capability_list(space: ConfigSpace) -> None:
    """Capabilities are linked in the order in which they were added, at dwords, and the status register says so."""
    first = space.add_vendor_capability(b"\x01\x02")
    second = space.add_capability(0x05, b"\xaa" * 8, b"\x0f")
    third = space.add_express_capability()
    assert space.read(config.STATUS, 2) == config.STATUS_CAPABILITIES
    assert space.read(config.CAPABILITIES, 1) == first == 0x40
    assert space.read(first, 4) == 5 << 16 | second << 8 | 0x09 | 0x01 << 24
    assert space.read(second, 2) == third << 8 | 0x05
    assert space.read(third, 4) == 0x0092_0010
    space.write(second, 4, 0)
    assert space.read(second + 2, 2) == 0xAAA0


def test_vendor_capability_with_writable_bytes(space: ConfigSpace) -> None:
    """The mask is that of the body: the length byte stays."""
    offset = space.add_vendor_capability(b"\x00\x00", b"\xff")
    space.write(offset, 4, 0xFFFF_FFFF)
    space.write(offset + 4, 1, 0xFF)
    assert space.read(offset, 4) >> 16 == 0xFF05
    assert space.read(offset + 4, 1) == 0


def test_express_capability(space: ConfigSpace) -> None:
    """An integrated endpoint, version 2: device control can be written, there is no link, errors clear by ones."""
    offset = space.add_express_capability()
    assert space.read(offset + 2, 2) & 0xFF == 0x92
    assert space.read(offset + 8, 2) == 0x2810
    space.write(offset + 8, 4, 0)
    assert space.read(offset + 8, 2) == 0
    space.latch(offset + 10, 0x0F)
    space.write(offset + 10, 2, 0x05)
    assert space.read(offset + 10, 2) == 0x0A
    assert [space.read(offset + at, 4) for at in (0x0C, 0x10, 0x14, 0x1C, 0x2C, 0x30, 0x34)] == [0] * 7
    assert space.read(0x100, 4) == 0


def test_capabilities_end_at_256_bytes(space: ConfigSpace) -> None:
    """What does not fit is refused and leaves the list as it is."""
    space.add_vendor_capability(bytes(0xBC - 3))
    space.add_vendor_capability(b"\0")
    before = space.state()
    with pytest.raises(ValueError, match="does not fit"):
        space.add_vendor_capability(b"")
    assert space.state() == before


@pytest.mark.parametrize(
    ("identity", "pin"),
    [(NETWORK._replace(vendor_id=0x1_0000), 0), (NETWORK._replace(class_code=-1), 0), (NETWORK, 5)],
)
def test_impossible_identity(identity: PciIdentity, pin: int) -> None:
    """Numbers that do not fit their registers are refused."""
    with pytest.raises(ValueError, match="whole number"):
        ConfigSpace(identity, pin)


def test_delegate_sees_whole_accesses_and_bytes_of_wider_ones(space: ConfigSpace) -> None:
    """An access inside of the delegated range comes as it is, one across its border byte by byte."""
    store = Store(4)
    space.delegate(0x62, 4, store)
    space.write(0x62, 4, 0x4433_2211)
    assert store.data == b"\x11\x22\x33\x44"
    assert space.read(0x60, 4) == 0x2211_0000
    space.write(0x64, 4, 0xBBBB_0605)
    assert store.data == b"\x11\x22\x05\x06"
    assert space.state().registers == ConfigSpace(NETWORK, 1).state().registers
    with pytest.raises(ValueError, match="already"):
        space.delegate(0x65, 1, store)


def test_reset_keeps_what_was_built(space: ConfigSpace) -> None:
    """Capabilities and the multifunction bit survive, what the guest wrote does not."""
    space.add_express_capability()
    space.set_multifunction()
    built = space.state()
    space.write(config.COMMAND, 2, 0xFFFF)
    space.set_interrupt_status(True)
    space.reset()
    assert space.state() == built
    assert space.read(config.HEADER_TYPE, 1) == 0x80


def test_state_of_another_function_is_refused(space: ConfigSpace) -> None:
    """A record whose read-only bytes differ names where."""
    other = ConfigSpace(NETWORK._replace(device_id=0x1042), 1)
    with pytest.raises(ValueError, match="another function, from offset 0x2 on"):
        space.restore(other.state())


accesses = st.tuples(st.integers(0, 4100), st.sampled_from((1, 2, 4, 8)), st.integers(0, (1 << 64) - 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(accesses, max_size=40))
def test_fuzz(writes: list[tuple[int, int, int]]) -> None:
    """No write raises or changes a read-only bit; wide reads are made of their bytes."""
    space = ConfigSpace(NETWORK, 1)
    space.add_vendor_capability(bytes(13), b"\xff")
    space.add_express_capability()
    before = space.state()
    for offset, size, value in writes:
        space.write(offset, size, value & (1 << 8 * size) - 1)
        parts = [space.read(offset + index, 1) for index in range(size)]
        assert space.read(offset, size) == int.from_bytes(bytes(parts), "little")
    space.check(space.state())
    space.restore(before)
    assert space.state() == before
