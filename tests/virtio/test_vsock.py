"""The socket device: its registers, and the codec of packets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.errors import ConfigError
from tvmm.virtio.features import Vsock, names
from tvmm.virtio.vsock import HEADER_LENGTH, MAX_CID, Op, Packet, SocketDevice, VsockSettings

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))


def test_the_driver_reads_its_address() -> None:
    """As a number of 64 bits, whatever the size of its reads."""
    device = SocketDevice(VsockSettings(0x89ABCDEF))
    assert device.config_length == 8
    assert device.read_config(0, 8) == 0x89ABCDEF
    assert (device.read_config(0, 4), device.read_config(4, 4)) == (0x89ABCDEF, 0)
    assert not device.write_config(0, 8, 5)


def test_queues_and_features() -> None:
    """Three queues, streams, and nothing that the runner does not do."""
    device = SocketDevice(VsockSettings(queue_size=128))
    assert device.queue_sizes == (128, 128, 16)
    assert device.features & 0xFF_FFFF == Vsock.STREAM
    assert "STREAM" in names(device.device_id, device.features)


@pytest.mark.parametrize("cid", [0, 1, 2, MAX_CID + 1, 1 << 32, -1])
def test_addresses_that_are_no_guests(cid: int) -> None:
    """The host's, those that are reserved, and those with more than 32 bits."""
    with pytest.raises(ConfigError, match="guest-cid"):
        SocketDevice(VsockSettings(cid))


def test_a_record_of_another_guest_is_refused() -> None:
    """The address is part of what a state is of."""
    state = SocketDevice(VsockSettings(4)).state()
    device = SocketDevice(VsockSettings(5))
    with pytest.raises(ValueError, match="another configuration"):
        device.restore(state, 0)
    SocketDevice(VsockSettings(4)).restore(state, 0)


@given(st.builds(Packet, U64, U64, U32, U32, U32, U16, U16, U32, U32, U32))
def test_packets_come_back(head: Packet) -> None:
    """Any header, with anything behind it."""
    data = head.pack()
    assert len(data) == HEADER_LENGTH
    assert Packet.parse(data + b"behind") == head


def test_a_known_packet() -> None:
    """Byte by byte, as 5.10.6 has it."""
    head = Packet(3, 2, 0x1234, 80, 5, 1, Op.RW, 0, 0x40000, 7)
    assert head.pack().hex() == (
        "0300000000000000" "0200000000000000" "34120000" "50000000" "05000000" "0100" "0500" "00000000" "00000400"
        "07000000"
    )  # fmt: skip


@pytest.mark.parametrize("length", [0, 1, HEADER_LENGTH - 1])
def test_too_short_for_a_header(length: int) -> None:
    """Is said."""
    with pytest.raises(ValueError, match="no whole header"):
        Packet.parse(bytes(length))
