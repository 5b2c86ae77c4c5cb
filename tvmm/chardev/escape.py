"""What the user types, told apart: input for the guest, and orders to tvmm. Bytes in, events out.

One control character is the escape, Ctrl-A unless configured otherwise, as on QEMU's multiplexed console and
in screen. The whole machine, with ^A for the escape::

    state           byte            event               next state
    GUEST           ^A              -                   GUEST_ESCAPED
    GUEST           other           SEND byte           GUEST
    GUEST_ESCAPED   ^A              SEND ^A             GUEST
    GUEST_ESCAPED   c               PROMPT              PROMPT
    GUEST_ESCAPED   a key of KEYS   its event           GUEST
    GUEST_ESCAPED   other           -                   GUEST
    PROMPT          ^A              -                   PROMPT_ESCAPED
    PROMPT          other           what the line editor makes of it; `c` as the whole line gives RESUME
    PROMPT_ESCAPED  c               RESUME              GUEST
    PROMPT_ESCAPED  a key of KEYS   its event           PROMPT
    PROMPT_ESCAPED  other           -                   PROMPT

How the bytes are cut into pieces makes no difference, except that SEND and ECHO events are cut as well.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from tvmm.chardev.editor import EditKind, LineEditor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PROMPT", "Escape", "Event", "Kind", "key_name"]

CTRL_A = 0x01

PROMPT = b"(tvmm) "


class Kind(Enum):
    """What an event asks the shell to do; `data` is empty where nothing is said of it."""

    SEND = auto()
    """Give `data` to the guest."""
    BREAK = auto()
    """Send a break to the guest."""
    QUIT = auto()
    """End the machine, or leave the console."""
    HELP = auto()
    """Show the help."""
    PROMPT = auto()
    """The prompt is entered: hold guest output back. The prompt's own text comes as ECHO."""
    RESUME = auto()
    """The prompt is left: show guest output again."""
    ECHO = auto()
    """Write `data` to the terminal."""
    COMMAND = auto()
    """Carry out the line in `data`, show the answer, then the prompt again."""


class Event(NamedTuple):
    """One thing to do, in the order of typing."""

    kind: Kind
    data: bytes = b""


class State(Enum):
    """See the table on top."""

    GUEST = auto()
    GUEST_ESCAPED = auto()
    PROMPT = auto()
    PROMPT_ESCAPED = auto()


KEYS = {
    ord("x"): Event(Kind.QUIT),
    ord("h"): Event(Kind.HELP),
    ord("?"): Event(Kind.HELP),
    ord("b"): Event(Kind.BREAK),
}
"""Keys behind the escape that mean the same in every state."""

CONSOLE_KEYS = {key: event for key, event in KEYS.items() if event.kind is not Kind.BREAK}
"""Those that make sense on a connection which carries bytes and nothing else."""


def key_name(key: int) -> str:
    """How to write the control character `key` (1 to 31) for people."""
    return f"Ctrl-{chr(key | 0x40)}"


class Escape:
    """The machine. With `prompt` false there is neither control prompt nor break, as `tvmm console` needs it.

    `key` is the control character that escapes. At the prompt it takes precedence over the line editor.
    """

    def __init__(self, *, key: int = CTRL_A, prompt: bool = True) -> None:
        self.state = State.GUEST
        self.key = key
        self._has_prompt = prompt
        self._keys = KEYS if prompt else CONSOLE_KEYS
        self._editor = LineEditor()

    def help(self) -> bytes:
        """What the keys do, ready for a raw terminal."""
        name = key_name(self.key)
        leave = "end the machine" if self._has_prompt else "leave the console; the machine goes on"
        lines = [(f"{name} h", "this help"), (f"{name} x", leave)]
        if self._has_prompt:
            lines += [(f"{name} c", "to the control prompt and back"), (f"{name} b", "send a break")]
        lines.append((f"{name} {name}", f"send {name}"))
        width = max(len(keys) for keys, _ in lines)
        return b"\r\n" + "".join(f"{keys:<{width}}  {text}\r\n" for keys, text in lines).encode()

    @property
    def at_prompt(self) -> bool:
        """Whether bytes go to the control prompt."""
        return self.state in (State.PROMPT, State.PROMPT_ESCAPED)

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that `data` causes. The iterator must be exhausted before the next call."""
        position = 0
        while position < len(data):
            if self.state is State.GUEST:
                found = data.find(self.key, position)
                stop = len(data) if found < 0 else found
                if stop > position:
                    yield Event(Kind.SEND, data[position:stop])
                if found >= 0:
                    self.state = State.GUEST_ESCAPED
                position = stop + 1
            else:
                yield from self._one(data[position])
                position += 1

    def _one(self, byte: int) -> Iterator[Event]:
        """A byte that is not the guest's as it is."""
        if self.state is State.GUEST_ESCAPED:
            if byte == ord("c") and self._has_prompt:
                self.state = State.PROMPT
                self._editor.clear()
                yield Event(Kind.PROMPT)
                yield Event(Kind.ECHO, b"\r\n" + PROMPT)
                return
            self.state = State.GUEST
            if byte == self.key:
                yield Event(Kind.SEND, bytes([self.key]))
            elif byte in self._keys:
                yield self._keys[byte]
        elif self.state is State.PROMPT_ESCAPED:
            self.state = State.PROMPT
            if byte == ord("c"):
                yield from self._resume()
            elif byte in self._keys:
                yield self._keys[byte]
                if self._keys[byte].kind is Kind.HELP:
                    yield Event(Kind.ECHO, PROMPT + bytes(self._editor.line))
        elif byte == self.key:
            self.state = State.PROMPT_ESCAPED
        else:
            yield from self._edit(byte)

    def _edit(self, byte: int) -> Iterator[Event]:
        edit = self._editor.feed(byte)
        if edit.kind is EditKind.ECHO:
            if edit.data:
                yield Event(Kind.ECHO, edit.data)
        elif edit.kind is EditKind.LEAVE or edit.data.strip() == b"c":
            yield from self._resume()
        else:
            yield Event(Kind.ECHO, b"\r\n")
            if edit.data.strip():
                yield Event(Kind.COMMAND, edit.data.strip())
            yield Event(Kind.ECHO, PROMPT)

    def _resume(self) -> Iterator[Event]:
        self.state = State.GUEST
        yield Event(Kind.ECHO, b"\r\n")
        yield Event(Kind.RESUME)
