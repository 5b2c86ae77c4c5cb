"""What a session tells its shell."""

from __future__ import annotations

from typing import NamedTuple

from tvmm.vnc.security_types import StartTls

__all__ = [
    "Authenticated",
    "CutText",
    "Event",
    "Key",
    "Motion",
    "Pointer",
    "Rejected",
    "StartTls",
    "WantsIn",
    "WantsSize",
]


class Authenticated(NamedTuple):
    """The viewer is who it says it is, by this security type."""

    security: str
    user: str
    view_only: bool


class Rejected(NamedTuple):
    """It is not, or could not be let in; it has been told why. Send what there is to send, and close."""

    reason: str


class WantsIn(NamedTuple):
    """The viewer asks for the screen. To be answered by `Session.admit` or `Session.refuse`."""

    shared: bool


class Key(NamedTuple):
    """A key went down or up, or down again. `xt_code` is 0 if the viewer does not know it, else as QEMU has it."""

    keysym: int
    xt_code: int
    down: bool


class Pointer(NamedTuple):
    """The pointer is at this pixel, with these buttons down (`tvmm.vnc.client_messages.PointerEvent`)."""

    x: int
    y: int
    buttons: int


class Motion(NamedTuple):
    """It has moved so far, in pixels, -32768 to 32768."""

    dx: int
    dy: int
    buttons: int


class CutText(NamedTuple):
    """The viewer's clipboard has this text; lines end with a newline."""

    text: str


class WantsSize(NamedTuple):
    """The viewer would like a screen of this size. To be answered by `Session.answer_size`."""

    width: int
    height: int


Event = Authenticated | Rejected | StartTls | WantsIn | Key | Pointer | Motion | CutText | WantsSize
