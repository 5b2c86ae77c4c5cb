"""Numbers of encodings and pseudo-encodings, which of them are spoken, and what a viewer's list of them asks for.

Names and numbers are those of the registry and of the RFB community's specification (sections 7.7 and 7.8).
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ENCODINGS", "PSEUDO_ENCODINGS", "SUBSAMPLINGS", "Encoding", "Wishes", "encodings_table"]

RAW = 0
COPY_RECT = 1
HEXTILE = 5
TIGHT = 7
ZRLE = 16
TIGHT_PNG = -260

JPEG_QUALITY_0, JPEG_QUALITY_9 = -32, -23
DESKTOP_SIZE = -223
LAST_RECT = -224
CURSOR = -239
COMPRESSION_0, COMPRESSION_9 = -256, -247
POINTER_MOTION = -257
EXTENDED_KEY = -258
LED_STATE = -261
DESKTOP_NAME = -307
EXTENDED_DESKTOP_SIZE = -308
FENCE = -312
CONTINUOUS_UPDATES = -313
CURSOR_WITH_ALPHA = -314
EXTENDED_MOUSE_BUTTONS = -316
FINE_QUALITY_0, FINE_QUALITY_100 = -512, -412
SUBSAMPLING_0, SUBSAMPLING_5 = -768, -763
VMWARE_LED_STATE = 0x574D5668
EXTENDED_CLIPBOARD = 0xC0A1E5CE - (1 << 32)
"""Numbers are signed on the wire."""

SUBSAMPLINGS = ("1x", "4x", "2x", "gray", "8x", "16x")
"""What -768 to -763 mean: pixels that share one colour."""


class Encoding(NamedTuple):
    """One line of the table in docs/vnc-protocol.md: numbers `first` to `last`."""

    first: int
    last: int
    name: str
    use: str


ENCODINGS = (
    Encoding(RAW, RAW, "Raw", "what every viewer takes"),
    Encoding(COPY_RECT, COPY_RECT, "CopyRect", "a part of the screen that moved"),
    Encoding(HEXTILE, HEXTILE, "Hextile", "old viewers"),
    Encoding(TIGHT, TIGHT, "Tight", "JPEG where the viewer names a quality, else without loss"),
    Encoding(ZRLE, ZRLE, "ZRLE", "without loss"),
    Encoding(TIGHT_PNG, TIGHT_PNG, "TightPNG", "browsers"),
)
"""Kinds of pixels. The first one in the viewer's list is used."""

PSEUDO_ENCODINGS = (
    Encoding(JPEG_QUALITY_0, JPEG_QUALITY_9, "JPEG Quality Level", "0 to 9; none: nothing is lost"),
    Encoding(DESKTOP_SIZE, DESKTOP_SIZE, "DesktopSize", "the screen has another size"),
    Encoding(LAST_RECT, LAST_RECT, "LastRect", "an update is sent while it is being made"),
    Encoding(CURSOR, CURSOR, "Cursor", "the viewer draws the cursor"),
    Encoding(COMPRESSION_0, COMPRESSION_9, "Compression Level", "0 to 9"),
    Encoding(POINTER_MOTION, POINTER_MOTION, "QEMU Pointer Motion Change", "the guest's mouse is a relative one"),
    Encoding(EXTENDED_KEY, EXTENDED_KEY, "QEMU Extended Key Event", "keys come with their scancodes"),
    Encoding(LED_STATE, LED_STATE, "QEMU LED State", "scroll, num and caps lock"),
    Encoding(DESKTOP_NAME, DESKTOP_NAME, "DesktopName", "the machine has another name"),
    Encoding(
        EXTENDED_DESKTOP_SIZE, EXTENDED_DESKTOP_SIZE, "ExtendedDesktopSize", "the viewer may ask for another size"
    ),
    Encoding(FENCE, FENCE, "Fence", "how much is on its way is measured"),
    Encoding(CONTINUOUS_UPDATES, CONTINUOUS_UPDATES, "ContinuousUpdates", "updates need no requests"),
    Encoding(CURSOR_WITH_ALPHA, CURSOR_WITH_ALPHA, "Cursor With Alpha", "the same as Cursor, with soft edges"),
    Encoding(EXTENDED_MOUSE_BUTTONS, EXTENDED_MOUSE_BUTTONS, "Extended Mouse Buttons", "a ninth button"),
    Encoding(FINE_QUALITY_0, FINE_QUALITY_100, "JPEG Fine-Grained Quality Level", "0 to 100"),
    Encoding(SUBSAMPLING_0, SUBSAMPLING_5, "JPEG Subsampling Level", ", ".join(SUBSAMPLINGS)),
    Encoding(VMWARE_LED_STATE, VMWARE_LED_STATE, "VMware LED State", "the same as QEMU's"),
    Encoding(EXTENDED_CLIPBOARD, EXTENDED_CLIPBOARD, "Extended Clipboard", "text in UTF-8, if the guest has an agent"),
)
"""Extensions that are spoken with a viewer that lists them. Others are ignored."""

_PIXELS = frozenset(encoding.first for encoding in ENCODINGS) - {COPY_RECT}
_FLAGS = frozenset(encoding.first for encoding in PSEUDO_ENCODINGS if encoding.first == encoding.last)


class Wishes(NamedTuple):
    """What a viewer's SetEncodings comes to. Without one: Raw and no extensions."""

    encoding: int = RAW
    copy_rect: bool = False
    compress_level: int | None = None
    """0 to 9; None: not said."""
    quality: int | None = None
    """0 to 9; None: nothing may be lost."""
    fine_quality: int | None = None
    """0 to 100, of JPEG; goes before `quality`."""
    subsampling: int | None = None
    """Index of `SUBSAMPLINGS`."""
    extensions: frozenset[int] = frozenset()
    """Numbers of pseudo-encodings that are spoken and have no parameter."""

    @staticmethod
    def of(numbers: tuple[int, ...], supported: frozenset[int] = _PIXELS | {COPY_RECT}) -> Wishes:
        """From the viewer's list, its favourites first; `supported` are the kinds of pixels that can be made."""
        usable = _PIXELS & supported
        wishes = Wishes(
            encoding=next((number for number in numbers if number in usable), RAW),
            copy_rect=COPY_RECT in numbers and COPY_RECT in supported,
            extensions=_FLAGS.intersection(numbers),
            compress_level=_parameter(numbers, COMPRESSION_0, COMPRESSION_9),
            quality=_parameter(numbers, JPEG_QUALITY_0, JPEG_QUALITY_9),
            fine_quality=_parameter(numbers, FINE_QUALITY_0, FINE_QUALITY_100),
            subsampling=_parameter(numbers, SUBSAMPLING_0, SUBSAMPLING_5),
        )
        if wishes.quality is None and wishes.fine_quality is not None:
            return wishes._replace(quality=min(9, wishes.fine_quality // 10))
        return wishes


def _parameter(numbers: tuple[int, ...], first: int, last: int) -> int | None:
    return next((number - first for number in numbers if first <= number <= last), None)


def encodings_table() -> str:
    """Both tables in Markdown, for docs/vnc-protocol.md."""
    lines = ["| number | encoding | |", "| --- | --- | --- |"]
    for encoding in (*ENCODINGS, *PSEUDO_ENCODINGS):
        numbers = _number(encoding.first)
        if encoding.first != encoding.last:
            numbers += f" to {_number(encoding.last)}"
        lines.append(f"| {numbers} | {encoding.name} | {encoding.use} |")
    return "\n".join(lines)


def _number(number: int) -> str:
    return f"0x{number & 0xFFFFFFFF:08x}" if abs(number) > 0xFFFF else str(number)
