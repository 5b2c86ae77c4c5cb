"""A line typed on a raw terminal: as much editing as a control prompt needs. One byte in, one edit out.

Editing keys are those of a cooked terminal (backspace, ^U, ^W, ^C, ^D). Cursor keys and other sequences that
begin with ESC are swallowed whole, so that they do not leave letters in the line.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

__all__ = ["MAX_LINE", "Edit", "EditKind", "LineEditor"]

MAX_LINE = 1024
"""Bytes of a line. What is typed, or pasted by mistake, beyond it rings the bell and is dropped."""

BACKSPACES = frozenset((0x08, 0x7F))
ENTERS = frozenset((0x0A, 0x0D))
CTRL_C, CTRL_D, CTRL_U, CTRL_W, ESC, BELL = 0x03, 0x04, 0x15, 0x17, 0x1B, b"\a"


class EditKind(Enum):
    """What came of a byte."""

    ECHO = auto()
    """Write `data` (which may be empty) to the terminal."""
    LINE = auto()
    """`data` is a whole line, without its end."""
    LEAVE = auto()
    """The user wants to leave: ^D on an empty line."""


class Edit(NamedTuple):
    """The outcome of one byte."""

    kind: EditKind
    data: bytes = b""


class _Sequence(Enum):
    """How far into an escape sequence of the keyboard we are."""

    NONE = auto()
    ESC = auto()
    CSI = auto()
    SINGLE_SHIFT = auto()


class LineEditor:
    """Holds the line so far in `line`. Text is UTF-8; a character takes one column."""

    def __init__(self) -> None:
        self.line = bytearray()
        self._sequence = _Sequence.NONE

    def clear(self) -> None:
        """Forget what was typed."""
        self.line.clear()
        self._sequence = _Sequence.NONE

    def feed(self, byte: int) -> Edit:
        """Take one byte from the terminal."""
        if self._sequence is not _Sequence.NONE:
            self._sequence = self._follow(byte)
            return Edit(EditKind.ECHO)
        if byte in ENTERS:
            line = bytes(self.line)
            self.line.clear()
            return Edit(EditKind.LINE, line)
        if byte == CTRL_D and not self.line:
            return Edit(EditKind.LEAVE)
        if byte == ESC:
            self._sequence = _Sequence.ESC
            return Edit(EditKind.ECHO)
        if byte in BACKSPACES:
            return Edit(EditKind.ECHO, self._erase(len(self.line) - 1))
        if byte in (CTRL_C, CTRL_U):
            return Edit(EditKind.ECHO, self._erase(0))
        if byte == CTRL_W:
            return Edit(EditKind.ECHO, self._erase(self.line.rstrip().rfind(b" ") + 1))
        if byte < 0x20:
            return Edit(EditKind.ECHO)
        if len(self.line) >= MAX_LINE:
            return Edit(EditKind.ECHO, BELL)
        self.line.append(byte)
        return Edit(EditKind.ECHO, bytes([byte]))

    def _follow(self, byte: int) -> _Sequence:
        """State after `byte` of a key's escape sequence (ECMA-48, 5.4: a CSI ends with 0x40 to 0x7e)."""
        if self._sequence is _Sequence.ESC:
            return {ord("["): _Sequence.CSI, ord("O"): _Sequence.SINGLE_SHIFT}.get(byte, _Sequence.NONE)
        if self._sequence is _Sequence.CSI and not 0x40 <= byte <= 0x7E:
            return _Sequence.CSI
        return _Sequence.NONE

    def _erase(self, length: int) -> bytes:
        """Remove characters from the end until `length` bytes are left; what clears them from the screen."""
        erased = 0
        while len(self.line) > max(length, 0):
            while len(self.line) > 1 and self.line[-1] & 0xC0 == 0x80:
                del self.line[-1]
            del self.line[-1]
            erased += 1
        return b"\b \b" * erased
