"""What the control socket asks of a machine's keyboards and pointers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["InputAction", "InputTarget", "MouseInfo"]


class InputAction(NamedTuple):
    """One event. `kind` is ``key`` or ``button`` (evdev code, down), ``wheel`` (notches up, right), ``rel`` (axis,
    pixels) or ``abs`` (axis, position from 0 to 0x7fff); axis 0 is x, 1 is y."""

    kind: str
    first: int
    second: int


class MouseInfo(NamedTuple):
    """One pointer that the guest may have."""

    name: str
    number: int
    current: bool
    """Whether it gets what comes now."""
    absolute: bool


class InputTarget(Protocol):
    """The input of a machine, as control clients see it. Codes are evdev's."""

    async def send_keys(self, codes: Sequence[int], hold_ms: int) -> None:
        """Press these in turn, hold them for so long, let them go, and return. One combination at a time."""

    def send_input(self, actions: Sequence[InputAction]) -> None:
        """Do all of this at once; what goes down stays down."""

    def mice(self) -> Sequence[MouseInfo]:
        """The pointers, the wanted ones first."""
