"""What a guest does with its keyboards and pointers, without a vCPU: drivers that use a board's buses and RAM."""

from __future__ import annotations

from struct import pack, unpack
from typing import TYPE_CHECKING

from tests.support.driver_ring import Buffer, lay_out, make_driver
from tvmm.virtio.features import Ring

if TYPE_CHECKING:
    from tvmm.board import Board

__all__ = ["InputDriver", "write_ports"]

EVENTS, STATUS = range(2)
QUEUE_SIZE = 16
QUEUE_ROOM = 0x1_0000
FEATURES_SELECT, FEATURES, QUEUE, QUEUE_NUM, READY, NOTIFY, DEVICE_STATUS = 0x24, 0x20, 0x30, 0x38, 0x44, 0x50, 0x70
AREAS = (0x80, 0x90, 0xA0)
CONFIG = 0x100


def write_ports(board: Board, *writes: tuple[int, int]) -> None:
    """Bytes to ports, as the guest's instructions."""
    for port, value in writes:
        with board.bus_lock:
            board.ports.write(port, 1, value)


class InputDriver:
    """A driver for the virtio-input device with its registers at `base`, and its memory from `room` on."""

    def __init__(self, board: Board, base: int, room: int, features: int = Ring.VERSION_1) -> None:
        self._board = board
        self._base = base
        self._room = room + 2 * QUEUE_ROOM
        self.buffers: dict[int, Buffer] = {}
        self.drivers = []
        for status in (0, 1, 3):
            self.write(DEVICE_STATUS, status)
        for half in range(2):
            self.write(FEATURES_SELECT, half)
            self.write(FEATURES, features >> 32 * half & 0xFFFF_FFFF)
        self.write(DEVICE_STATUS, 11)
        for index in range(2):
            config, tables = lay_out(QUEUE_SIZE, features, room + index * QUEUE_ROOM)
            self.drivers.append(make_driver(board.ram, config, tables))
            self.write(QUEUE, index)
            self.write(QUEUE_NUM, QUEUE_SIZE)
            for offset, area in zip(
                AREAS, (config.descriptor_area, config.driver_area, config.device_area), strict=True
            ):
                self.write(offset, area & 0xFFFF_FFFF)
                self.write(offset + 4, area >> 32)
            self.write(READY, 1)
        self.write(DEVICE_STATUS, 15)

    def move(self, board: Board) -> None:
        """The guest goes on in another board, whose RAM has what this one's had."""
        self._board = board
        for ring in self.drivers:
            ring.memory = board.ram

    def write(self, offset: int, value: int) -> None:
        """A register."""
        with self._board.bus_lock:
            self._board.mmio.write(self._base + offset, 4, value)

    def ask(self, select: int, subsel: int = 0) -> bytes:
        """Part of the configuration space."""
        with self._board.bus_lock:
            self._board.mmio.write(self._base + CONFIG, 1, select)
            self._board.mmio.write(self._base + CONFIG + 1, 1, subsel)
            size = self._board.mmio.read(self._base + CONFIG + 2, 1)
            return bytes(self._board.mmio.read(self._base + CONFIG + 8 + at, 1) for at in range(size))

    def _add(self, index: int, buffer: Buffer) -> int:
        number = self.drivers[index].add([buffer])
        assert number is not None
        if self.drivers[index].publish():
            self.write(NOTIFY, index)
        return number

    def _place(self, length: int) -> int:
        gpa, self._room = self._room, self._room + length
        return gpa

    def offer(self, count: int) -> None:
        """Buffers for events."""
        for _ in range(count):
            buffer = Buffer(self._place(8), 8, True)
            self.buffers[self._add(EVENTS, buffer)] = buffer

    def light(self, code: int, on: bool) -> None:
        """Tell the keyboard's light."""
        gpa = self._place(8)
        self._board.ram.write(gpa, pack("<HHI", 0x11, code, on))
        self._add(STATUS, Buffer(gpa, 8))

    def events(self) -> list[tuple[int, int, int]]:
        """What has come: type, code, value."""
        return [
            unpack("<HHi", self._board.ram.read(self.buffers.pop(number).gpa, length))
            for number, length in self.drivers[EVENTS].collect()
        ]
