"""What a board with devices tells its guest: the tables and the command line, as they lie in guest memory."""

from __future__ import annotations

from pathlib import Path
from struct import unpack_from

import pytest

from tests.support.acpica import disassemble
from tests.support.watch import Watch
from tvmm import MachineConfig
from tvmm.board import Board
from tvmm.control.machine_target import memory_map
from tvmm.memory.layout import COMMAND_LINE, RSDP
from tvmm.memory.ram import MAIN_BLOCK

pytestmark = pytest.mark.kvm


def tables(board: Board) -> dict[str, bytes]:
    """Every ACPI table by its signature, found as a kernel finds them."""
    ram = board.ram
    (xsdt,) = unpack_from("<Q", ram.read(RSDP, 36), 24)
    (size,) = unpack_from("<I", ram.read(xsdt, 8), 4)
    found = {}
    for (address,) in (unpack_from("<Q", ram.read(at, 8)) for at in range(xsdt + 36, xsdt + size, 8)):
        signature, length = unpack_from("<4sI", ram.read(address, 8))
        found[signature.decode()] = ram.read(address, length)
    (dsdt,) = unpack_from("<Q", found["FACP"], 140)
    (length,) = unpack_from("<I", ram.read(dsdt, 8), 4)
    return {**found, "DSDT": ram.read(dsdt, length)}


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """A disk and an entropy device on PCI, two more in memory."""
    image = tmp_path / "a.img"
    image.write_bytes(bytes(1 << 20))
    devices = ["virtio-rng", "virtio-rng-device", "virtio-rng-device"]
    return Board(MachineConfig.parse(memory="64M", disk=[str(image)], device=devices, append="first words"))


def test_acpi_describes_what_is_there(board: Board, tmp_path: Path) -> None:
    """ACPICA takes the tables apart without complaint: root bridge, windows, ECAM, routing, and devices in memory."""
    try:
        found = tables(board)
        text = disassemble(found["DSDT"], tmp_path)
        assert {"FACP", "APIC", "MCFG"} <= set(found)
        assert unpack_from("<Q", found["MCFG"], 44) == (0xE000_0000,)
        for word in ("PNP0A08", "_PRT", "_OSC", "LNRO0005", "_S5"):
            assert word in text
        assert text.count("LNRO0005") == 2
    finally:
        board.close()


def test_command_line_tells_of_devices_in_memory(board: Board) -> None:
    """Behind the user's own words, one for each, with size, address and interrupt."""
    try:
        line = board.ram.read(COMMAND_LINE, 256).split(b"\0")[0].decode()
        assert line == "first words virtio_mmio.device=4K@0xfeb00000:5 virtio_mmio.device=4K@0xfeb01000:6"
    finally:
        board.close()


def test_map_of_addresses(board: Board) -> None:
    """`tvmm info --memory` shows devices in memory and the ECAM; BARs appear once the guest lets them decode."""
    try:
        blocks = {one.block for one in memory_map(board)}
        assert {"rng1", "rng2", "pci ecam"} <= blocks
        assert "disk0" not in blocks
    finally:
        board.close()


def test_a_reset_board_is_marked(board: Board) -> None:
    """While the board's log is on, fresh memory and the kernel that is loaded anew are marked; devices use that log."""
    try:
        assert board.devices is not None
        assert board.devices.host.memory.raw.log == board.device_log.raw
        assert not board.device_log.on
        board.ram.write(0x300_0000, b"the guest's")
        watch = Watch(board.ram, board.device_log, driver=False)
        board.load_kernel()
        watch.check()
        board.ram.zero()
        assert watch.check()[0] >= {(MAIN_BLOCK, 0x3000)}
        board.load_kernel()
        assert len(watch.check()[0]) > 10
    finally:
        board.close()
