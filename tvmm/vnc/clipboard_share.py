"""The guest's clipboard as one viewer is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.vnc import clipboard, server_messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvmm.vnc.clipboard import ClipboardMessage

__all__ = ["SharedClipboard"]


class SharedClipboard:
    """What a viewer asks for is owed once, however often it was asked: a question has twelve bytes, and a text may
    have a million.
    """

    def __init__(self) -> None:
        self._text: str | None = None
        self._capabilities_due = self._text_due = self._announcement_due = False

    def set_text(self, text: str | None) -> None:
        """The guest has this, or nothing. One longer than `clipboard.TEXT_BYTES` counts as nothing."""
        # Each newline becomes two bytes.
        long = text is not None and len(text.encode("utf-8", "replace")) + text.count("\n") >= clipboard.TEXT_BYTES
        self._text = None if long else text
        self._announcement_due = True

    def introduce(self) -> None:
        """The viewer speaks the extended clipboard."""
        self._capabilities_due = True

    def hear(self, payload: bytes) -> ClipboardMessage:
        """What the viewer said in it; what it asked for is owed now. Raises `RfbError`."""
        said = clipboard.parse_clipboard(payload)
        if said.action == clipboard.REQUEST:
            self._text_due = bool(said.formats & clipboard.TEXT)
        elif said.action == clipboard.PEEK:
            self._announcement_due = True
        return said

    @property
    def owes(self) -> bool:
        """Whether there is something to send."""
        return self._capabilities_due or self._announcement_due or self._text_due

    def take_due(self, *, extended: bool) -> Iterator[bytes]:
        """The messages that are owed, to a viewer that speaks the `extended` clipboard or not."""
        if self._capabilities_due:
            self._capabilities_due = False
            yield clipboard.capabilities()
        if self._announcement_due:
            self._announcement_due = False
            if extended:
                yield clipboard.announce(text=self._text is not None)
            elif self._text is not None:
                yield server_messages.server_cut_text(self._text.encode("latin-1", "replace"))
        if self._text_due:
            self._text_due = False
            if self._text is not None:
                yield clipboard.provide(self._text)
