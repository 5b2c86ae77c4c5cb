"""What a system's drivers do with the keyboard controller: one for its keyboard and one for its mouse."""

from __future__ import annotations

from tvmm.devices.i8042 import COMMAND, DATA, I8042
from tvmm.devices.keys import set2_codes

__all__ = ["KeyboardDriver", "MouseDriver"]

OUTPUT_FULL, AUX = 0x01, 0x20
AUX_INTERRUPT_ONLY = 0x47
KEY_LIMIT = 0x100


class Driver:
    """The controller, new or given, set up with both interrupts on."""

    def __init__(self, chip: I8042 | None = None, aux: int = 0) -> None:
        self.edges: list[int] = []
        self.chip = chip or I8042(lambda: self.edges.append(1), lambda: self.edges.append(12), lambda: None)
        self.aux = aux
        self.chip.write(COMMAND, 1, 0x60)
        self.chip.write(DATA, 1, AUX_INTERRUPT_ONLY)

    def pending(self) -> bool:
        """Is there a byte of this device."""
        status = self.chip.read(COMMAND, 1)
        return bool(status & OUTPUT_FULL) and status & AUX == self.aux

    def read(self) -> int:
        """The next byte; there must be one."""
        assert self.pending()
        return self.chip.read(DATA, 1)

    def drain(self) -> bytes:
        """All that there is."""
        got = bytearray()
        while self.pending():
            got.append(self.chip.read(DATA, 1))
            assert len(got) < 10_000
        return bytes(got)


class MouseDriver(Driver):
    """Talks to the mouse, and takes packets apart by what the mouse says it is."""

    def __init__(self, chip: I8042 | None = None) -> None:
        super().__init__(chip, AUX)

    def talk(self, data: bytes, *, drain: bool = True) -> bytes:
        """Send bytes; what comes back after each."""
        got = b""
        for byte in data:
            self.chip.write(COMMAND, 1, 0xD4)
            self.chip.write(DATA, 1, byte)
            if drain:
                got += self.drain()
        return got

    def packets(self) -> list[tuple[int, int, int, int]]:
        """(right, up, wheel towards the user, buttons) of all packets."""
        raw = self.drain()
        identity = self.talk(b"\xf2")[1]
        length = 4 if identity else 3
        assert len(raw) % length == 0
        found = []
        for at in range(0, len(raw), length):
            first, right, up, *more = raw[at : at + length]
            assert first & 0x08
            wheel, buttons = 0, first & 0x07
            if identity == 3:
                wheel = more[0] - (more[0] >> 7 << 8)
            elif identity == 4:
                wheel = (more[0] & 0x0F) - (more[0] >> 3 & 1) * 16
                buttons |= more[0] >> 1 & 0x18
            found.append((right - (first >> 4 & 1) * 256, up - (first >> 5 & 1) * 256, wheel, buttons))
        return found


class KeyboardDriver(Driver):
    """Turns what the keyboard sends into keys, as a guest does: `down` are evdev codes, `log` (code, down) in order."""

    def __init__(self, chip: I8042 | None = None) -> None:
        super().__init__(chip)
        self.chip.write(COMMAND, 1, 0x60)
        self.chip.write(DATA, 1, AUX_INTERRUPT_ONLY & ~0x40)
        self.down: set[int] = set()
        self.log: list[tuple[int, bool]] = []
        self._rest = b""
        self._known = {
            codes: (code, down)
            for code in range(KEY_LIMIT)
            for down in (True, False)
            for codes in {
                set2_codes(code, down),
                set2_codes(code, down, alt=True),
                set2_codes(code, down, control=True),
            }
            if codes
        }

    def poll(self, limit: int = 1 << 30) -> None:
        """Read at most `limit` bytes and keep account."""
        while limit and self.pending():
            self._rest += bytes([self.chip.read(DATA, 1)])
            limit -= 1
            if self._rest in self._known:
                code, down = self._known[self._rest]
                self._rest = b""
                self.log.append((code, down))
                (self.down.add if down else self.down.discard)(code)
            assert len(self._rest) <= 8, self._rest.hex()
