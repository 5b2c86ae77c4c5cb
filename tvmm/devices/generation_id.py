"""The virtual machine's generation ID (Microsoft, "Virtual Machine Generation ID", 2018).

A number of 128 bits in memory that the guest's memory map reserves. It changes whenever the guest may run twice from
one moment, or runs again from a moment that has been: a guest that sees another number knows that whatever it took
for unique (random numbers to come, identities, caches of what peers have seen) may not be. Linux feeds it to its
random number generator at once (5.18 and later).

A device in the DSDT says where the number is, and is notified when it has changed (`tvmm.boot.dsdt`). The number has
to be there before the first instruction that could look: so it is put into memory first, and `notify` comes after.

Live migration and resets leave it as it is: there is one guest before and after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices.common import check_bytes, check_record
from tvmm.memory.layout import GENERATION_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.memory.layout import GuestMemory

__all__ = ["GUID_BYTES", "GenerationId", "GenerationIdState", "format_guid", "made_guid", "parse_guid"]

GUID_BYTES = 16
_GROUPS = (8, 4, 4, 4, 12)
_VERSION, _VARIANT = 6, 8
"""Bytes of a UUID in which RFC 9562, 4.1 and 4.2, has what kind it is."""


class GenerationIdState(NamedTuple):
    """`guid` in the order in which it is written: 16 bytes, the most significant first."""

    guid: bytes = b""


def made_guid(random: bytes) -> bytes:
    """A UUID of version 4 (RFC 9562, 5.4) out of 16 random bytes."""
    made = bytearray(random)
    made[_VERSION] = made[_VERSION] & 0x0F | 0x40
    made[_VARIANT] = made[_VARIANT] & 0x3F | 0x80
    return bytes(made)


def format_guid(guid: bytes) -> str:
    """As people write it: ``324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87``."""
    digits, parts = guid.hex(), []
    for length in _GROUPS:
        parts.append(digits[:length])
        digits = digits[length:]
    return "-".join(parts)


def parse_guid(text: str) -> bytes:
    """The 16 bytes of what `format_guid` writes. Raises `ValueError`."""
    groups = text.split("-")
    if tuple(map(len, groups)) != _GROUPS:
        raise ValueError(f"{text[:40]!r} is not written like 324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87")
    # fromhex() takes spaces, which would make it shorter.
    digits = "".join(groups)
    if not digits.isalnum():
        raise ValueError(f"{text[:40]!r} is not written in hexadecimal digits")
    return bytes.fromhex(digits)


def _in_memory(guid: bytes) -> bytes:
    """As the guest reads it, a GUID of Windows: the first three groups have their low byte first."""
    return guid[3::-1] + guid[5:3:-1] + guid[7:5:-1] + guid[8:]


class GenerationId:
    """The number, and where it is in `memory`. `notify` is called when it has changed there."""

    def __init__(self, memory: GuestMemory, notify: Callable[[], None], guid: bytes) -> None:
        self.guid = guid
        self._memory = memory
        self._notify = notify

    def place(self) -> None:
        """Put the number into memory, which a power-on has zeroed. Nobody is notified: nobody has looked."""
        self._memory.write(GENERATION_ID, _in_memory(self.guid))

    def renew(self, guid: bytes) -> None:
        """The guest may be one of several, or has gone back in time. It does not run now."""
        self.guid = guid
        self.place()
        self._notify()

    def state(self) -> GenerationIdState:
        """The number as a record."""
        return GenerationIdState(self.guid)

    def restore(self, state: GenerationIdState) -> None:
        """Take over `state`; memory comes by itself. Raises `ValueError` and then changes nothing."""
        check_record(state, GenerationIdState)
        self.guid = check_bytes("guid", state.guid, GUID_BYTES, GUID_BYTES)
