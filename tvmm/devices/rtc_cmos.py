"""What firmware leaves in the CMOS memory of a PC: the sizes of RAM, the equipment, and their checksum.

======== ====================================================================
0x14     equipment: bit 1, there is an FPU
0x15-16  base memory below 640 KiB, in KiB
0x17-18  memory from 1 MiB, in KiB, as far as 16 bits reach; again at 0x30-31
0x2e-2f  sum of the bytes 0x10 to 0x2d, high byte first
0x34-35  memory from 16 MiB to the PC hole, in units of 64 KiB
0x5b-5d  memory from 4 GiB, in units of 64 KiB
======== ====================================================================

All but the checksum have their low byte first.
"""

from __future__ import annotations

from tvmm.memory.layout import ONE_MIB, ram_ranges

__all__ = ["CENTURY", "CMOS_BYTES", "initial_cmos"]

CMOS_BYTES = 128
CENTURY = 0x32

KIB = 1024
UNIT = 64 * KIB
BASE_MEMORY_KIB = 640
EQUIPMENT, EQUIPMENT_FPU = 0x14, 0x02
CHECKED = range(0x10, 0x2E)
CHECKSUM = 0x2E


def initial_cmos(ram_size: int) -> bytes:
    """The memory of a new machine with `ram_size` bytes of RAM. Clock and alarm registers are zero in it."""
    ranges = ram_ranges(ram_size)
    low = ranges[0].size
    high = sum(part.size for part in ranges[1:])
    cmos = bytearray(CMOS_BYTES)

    def put(start: int, length: int, value: int) -> None:
        limit = (1 << 8 * length) - 1
        cmos[start : start + length] = min(max(value, 0), limit).to_bytes(length, "little")

    cmos[EQUIPMENT] = EQUIPMENT_FPU
    put(0x15, 2, min(BASE_MEMORY_KIB, low // KIB))
    for start in (0x17, 0x30):
        put(start, 2, (low - ONE_MIB) // KIB)
    put(0x34, 2, (low - 16 * ONE_MIB) // UNIT)
    put(0x5B, 3, high // UNIT)
    cmos[CHECKSUM : CHECKSUM + 2] = sum(cmos[CHECKED.start : CHECKED.stop]).to_bytes(2, "big")
    return bytes(cmos)
