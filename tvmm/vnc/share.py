"""Who may watch together: QEMU's `share=`, over all viewers of one server.

A viewer says at its beginning whether it shares the screen or wants it for itself (RFC 6143, section 7.3.1).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["SHARE_POLICIES", "Admission", "SharePolicy", "Sharing"]

SharePolicy = Literal["allow-exclusive", "force-shared", "ignore"]
SHARE_POLICIES: tuple[SharePolicy, ...] = ("allow-exclusive", "force-shared", "ignore")


class Admission(NamedTuple):
    """Whether a viewer is let in: if `refusal` is empty. `leaving` are those who have to go first."""

    refusal: str = ""
    leaving: tuple[object, ...] = ()


class Sharing:
    """The viewers that are in."""

    def __init__(self, policy: SharePolicy = "allow-exclusive") -> None:
        self.policy = policy
        self._exclusive: dict[object, bool] = {}

    def enter(self, viewer: object, *, shared: bool) -> Admission:
        """A viewer asks to be let in. Those in `leaving` are out as far as this is concerned."""
        if self.policy == "force-shared" and not shared:
            return Admission("this screen is shared: it cannot be had exclusively")
        leaving: tuple[object, ...] = ()
        if self.policy == "allow-exclusive":
            if shared and any(self._exclusive.values()):
                return Admission("another viewer has this screen exclusively")
            if not shared:
                leaving = tuple(self._exclusive)
                self._exclusive.clear()
        self._exclusive[viewer] = not shared and self.policy == "allow-exclusive"
        return Admission("", leaving)

    def leave(self, viewer: object) -> None:
        """It is gone; whether or not it was in."""
        self._exclusive.pop(viewer, None)
