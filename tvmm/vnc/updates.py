"""When a viewer gets an update, and of what.

An update needs three things: something the viewer has not seen, its leave (a request, or continuous updates), and a
line that is free. Who has all three gets everything that is damaged by then, as it looks by then; so a slow viewer
skips what it could not have seen, and costs a byte a tile. A change of size goes first and alone, for viewers may throw
away what they have when they hear of it.

`plan` says what is to be encoded, `finish` takes the encoder's answer; between the two there may be time.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from tvmm.vnc import encodings
from tvmm.vnc.congestion import Congestion
from tvmm.vnc.damage import Damage
from tvmm.vnc.errors import RfbError, RfbMisuse
from tvmm.vnc.facts import Facts
from tvmm.vnc.pixel_format import DEFAULT, PixelFormat, Rect
from tvmm.vnc.quality import REFINE_NS, REFINE_TILES, Quality, QualityPolicy
from tvmm.vnc.server_messages import (
    BLOCK_BEFORE,
    FENCE_REQUEST,
    LAST_RECT,
    MANY_RECTS,
    desktop_size_rect,
    extended_desktop_size_rect,
    pack_fence,
    set_colour_map,
    update_header,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["COMPRESS_LEVEL", "UNSENT_BYTES", "Settings", "SizeReason", "SizeStatus", "UpdatePlan", "Updates"]

COMPRESS_LEVEL = 2
"""For a viewer that names none."""
UNSENT_BYTES = 256 << 10
"""Of earlier updates, not yet taken by the socket: with more of them nothing new is begun."""
SIZE_ANSWERS_MAX = 16
"""Answers to SetDesktopSize that wait to be sent. A viewer could ask for another size in each of its packets."""
ANSWERED_NS = 2_000_000_000
"""A viewer's next request says how long the last update took, unless it was just not asking."""
NOTHING = Rect(0, 0, 0, 0)
LOSSY = frozenset({encodings.TIGHT, encodings.TIGHT_PNG})


class SizeReason:
    """Why the screen has another size (ExtendedDesktopSize)."""

    SERVER, THIS_VIEWER, ANOTHER_VIEWER = range(3)


class SizeStatus:
    """What came of SetDesktopSize."""

    DONE, PROHIBITED, NO_RESOURCES, INVALID, FORWARDED = range(5)


class Settings(NamedTuple):
    """How the rectangles of a plan are to be encoded."""

    encoding: int
    pixel_format: PixelFormat
    """Always one with true colour."""
    compress_level: int = COMPRESS_LEVEL
    """0 to 9."""
    quality: int | None = None
    """0 to 9; None: without loss."""
    fine_quality: int | None = None
    """0 to 100, of JPEG, if the viewer said one and gets it."""
    subsampling: int | None = None
    """Index of `encodings.SUBSAMPLINGS`."""
    copy_rect: bool = False


class UpdatePlan(NamedTuple):
    """Rectangles to encode. `refines`: nothing has changed there, the viewer has it in a poorer quality."""

    rects: tuple[Rect, ...]
    settings: Settings
    refines: bool = False


class Updates:
    """One viewer's. Nothing is asked for at first, and everything is damaged. Times are nanoseconds of one clock."""

    def __init__(self, width: int, height: int, name: str, policy: QualityPolicy | None = None) -> None:
        self.facts = Facts(name)
        self.quality = Quality(policy or QualityPolicy())
        self.congestion = Congestion()
        self.pixel_format = DEFAULT
        self.wishes = encodings.Wishes()
        self.seen = (width, height)
        """The size that the viewer has been told."""
        self._asked = False
        self._requested = NOTHING
        self._continuous: Rect | None = None
        self._size_reason = SizeReason.SERVER
        self._size_answers: deque[tuple[int, int, int]] = deque()
        self._layout_due = False
        self._map_due = False
        self._plan: UpdatePlan | None = None
        self._parts: list[bytes] = []
        self._part_count = 0
        self._streaming = 0
        self._sent_ns: int | None = None
        self._period_ns = 0
        self.resize(width, height, SizeReason.SERVER)

    # What changes.

    def resize(self, width: int, height: int, reason: int) -> None:
        """The screen has this size now, and nothing of it has been seen."""
        self.width, self.height = width, height
        self._size_reason = reason
        self.damage = Damage(width, height)
        self.damage.add_rect(Rect(0, 0, width, height))
        self._lossy = Damage(width, height)
        """Sent worse than it will be in the end."""
        self._recent = Damage(width, height)
        """Changed in this period of `REFINE_NS`."""
        self._still = Damage(width, height)
        """Lossy, and did not change for a whole period."""

    def add_damage(self, tiles: bytes | bytearray) -> None:
        """Tiles that have changed, one byte each, 1 for those."""
        self.damage.add(tiles)
        if self.quality.wanted is not None:
            self._recent.add(tiles)
            self._still.remove(tiles)

    def lacking(self) -> bytes:
        """One byte a tile: 1 where the viewer has not, or will not have, exactly what is there."""
        union = 0
        for part in (self.damage, self._lossy, self._still):
            union |= int.from_bytes(part.tiles, "little")
        return union.to_bytes(len(self.damage.tiles), "little")

    def check_size_answers(self) -> None:
        """Raise `RfbError` if the viewer has asked for another size too often."""
        if len(self._size_answers) >= SIZE_ANSWERS_MAX:
            raise RfbError(f"more than {SIZE_ANSWERS_MAX} wishes for another size at once")

    def answer_size(self, status: int) -> None:
        """What has come of the viewer's wish for another size."""
        self.check_size_answers()
        self._size_answers.append((status, self.width, self.height))

    # What the viewer says.

    def set_pixel_format(self, pixel_format: PixelFormat) -> None:
        """For the next update, and not for one that is being made."""
        self.pixel_format = pixel_format
        self.facts.pixel_format = pixel_format
        self._map_due = not pixel_format.true_colour

    def set_wishes(self, wishes: encodings.Wishes) -> None:
        """From SetEncodings."""
        self.wishes = wishes
        self.quality.want(wishes.quality)

    def request(self, rect: Rect, *, incremental: bool, now_ns: int) -> None:
        """FramebufferUpdateRequest."""
        if self._sent_ns is not None and incremental and not self._fences:
            if now_ns - self._sent_ns < ANSWERED_NS:
                self.quality.observe(max(now_ns - self._sent_ns, 1))
            self._sent_ns = None
        if not incremental:
            self.damage.add_rect(rect)
            self._layout_due = True
        elif self._continuous is not None:
            return
        self._asked = True
        self._requested = self._requested.bounding(rect.clip(self.width, self.height))

    def set_continuous(self, rect: Rect | None) -> None:
        """EnableContinuousUpdates; None: no longer."""
        self._continuous = rect

    def answered(self, now_ns: int) -> None:
        """A fence came back."""
        taken_ns = self.congestion.answered(now_ns)
        if taken_ns is not None:
            self.quality.observe(taken_ns)

    # Updates.

    @property
    def busy(self) -> bool:
        """Between `plan` and `finish`."""
        return self._plan is not None

    @property
    def _fences(self) -> bool:
        return encodings.FENCE in self.wishes.extensions

    @property
    def _region(self) -> Rect:
        region = self._requested if self._continuous is None else self._requested.bounding(self._continuous)
        return region.clip(*self._view)

    @property
    def _view(self) -> tuple[int, int]:
        """What both the screen and the viewer's picture have: a viewer that cannot resize keeps its own size."""
        return min(self.seen[0], self.width), min(self.seen[1], self.height)

    def plan(self, now_ns: int, unsent_bytes: int = 0) -> tuple[bytes, UpdatePlan | None]:
        """Bytes to send at once, and what to encode and then give to `finish`.

        `unsent_bytes` are those that the shell has taken and the viewer's socket has not.
        """
        if self.busy:
            raise RfbMisuse("the last update is not finished")
        output = self._size_update()
        self._roll(now_ns)
        if not (self._asked or self._continuous is not None) or self._blocked(now_ns, unsent_bytes):
            return self._counted(output, now_ns), None
        refines = False
        rects = self.damage.take(self._region)
        if not rects and not self.congestion.waiting:
            rects = self._still.take(self._region, REFINE_TILES)
            refines = bool(rects)
        rects = [clipped for clipped in (rect.clip(*self._view) for rect in rects) if clipped.area]
        if not rects:
            if self.facts.any_due(self.wishes.extensions):
                output += self._framed(0)
                self._done()
            return self._counted(output, now_ns), None
        if self._map_due:
            self._map_due = False
            output += set_colour_map()
        self._plan = UpdatePlan(tuple(rects), self._settings(refines=refines), refines)
        return self._counted(output, now_ns), self._plan

    def part(self, count: int, chunks: Sequence[bytes], now_ns: int) -> list[bytes]:
        """`count` rectangles of the plan are encoded; more follow. Bytes to send, if the viewer takes pieces."""
        if self._plan is None:
            raise RfbMisuse("no update is being made")
        if encodings.LAST_RECT not in self.wishes.extensions and not self._streaming:
            self._parts += chunks
            self._part_count += count
            return []
        output = [] if self._streaming else [self._framed(None)]
        self._streaming += 1
        output += chunks
        self.congestion.sent(sum(map(len, output)), now_ns)
        return output

    def finish(
        self, count: int, chunks: Sequence[bytes], now_ns: int, lossy: Iterable[Rect] | None = None
    ) -> list[bytes]:
        """The plan's last `count` rectangles, or all of them, are encoded as `chunks`; bytes to send.

        `lossy` are those of them that are not exact; None: all, if the settings had a quality.
        """
        plan = self._plan
        if plan is None:
            raise RfbMisuse("no update is being made")
        self._plan = None
        if self._streaming:
            output = [*chunks, LAST_RECT]
        else:
            output = [self._framed(self._part_count + count), *self._parts, *chunks]
        self._parts, self._part_count, self._streaming = [], 0, 0
        self._note_loss(plan, lossy)
        self.congestion.sent(sum(map(len, output)), now_ns)
        if self._fences and self.congestion.mark(now_ns):
            output.append(pack_fence(FENCE_REQUEST | BLOCK_BEFORE, b""))
        if not plan.refines:
            self._sent_ns = now_ns
        self._done()
        return output

    def wake_ns(self, now_ns: int) -> int | None:
        """When to call `plan` again though nothing has happened; None: never."""
        if not (self._asked or self._continuous is not None):
            return None
        if self._fences and self.congestion.full(now_ns):
            return self.congestion.gives_up_ns
        if self._lossy or self._still:
            return max(self._period_ns + REFINE_NS, now_ns)
        return None

    def _blocked(self, now_ns: int, unsent_bytes: int) -> bool:
        return unsent_bytes > UNSENT_BYTES or (self._fences and self.congestion.full(now_ns))

    def _settings(self, *, refines: bool) -> Settings:
        wishes = self.wishes
        quality = self.quality.refined if refines else self.quality.level
        if wishes.encoding not in LOSSY:
            quality = None
        return Settings(
            encoding=wishes.encoding,
            pixel_format=self.pixel_format.as_true_colour(),
            compress_level=COMPRESS_LEVEL if wishes.compress_level is None else wishes.compress_level,
            quality=quality,
            fine_quality=wishes.fine_quality if quality is not None and quality == wishes.quality else None,
            subsampling=wishes.subsampling,
            copy_rect=wishes.copy_rect,
        )

    def _framed(self, count: int | None) -> bytes:
        """An update's header with the facts that are due; `count` rectangles are to follow, None: nobody knows yet."""
        told = self.facts.due(self.wishes.extensions, *self.seen)
        if count is None:
            return update_header(MANY_RECTS) + b"".join(told)
        if count + len(told) >= MANY_RECTS:
            raise RfbMisuse(f"{count} rectangles in an update")
        return update_header(count + len(told)) + b"".join(told)

    def _size_update(self) -> bytes:
        """An update about nothing but the size, if one is due."""
        extended = encodings.EXTENDED_DESKTOP_SIZE in self.wishes.extensions
        size = self.width, self.height
        rects = []
        if extended:
            for status, width, height in self._size_answers:
                rects.append(extended_desktop_size_rect(width, height, SizeReason.THIS_VIEWER, status))
        self._size_answers.clear()
        if not (self._asked or self._continuous is not None):
            pass  # Without the viewer's leave only answers go out.
        elif extended and (self.seen != size or self._layout_due):
            reason = self._size_reason if self.seen != size else SizeReason.SERVER
            rects.append(extended_desktop_size_rect(*size, reason, SizeStatus.DONE))
            self._told_size(size)
        elif encodings.DESKTOP_SIZE in self.wishes.extensions and self.seen != size:
            rects.append(desktop_size_rect(*size))
            self._told_size(size)
        return update_header(len(rects)) + b"".join(rects) if rects else b""

    def _told_size(self, size: tuple[int, int]) -> None:
        self._layout_due = False
        if self.seen != size:
            # It will ask again, for what it makes of the new size.
            self.seen = size
            self._asked, self._requested = False, NOTHING
            self.damage.add_rect(Rect(0, 0, *size))

    def _counted(self, output: bytes, now_ns: int) -> bytes:
        if output:
            self.congestion.sent(len(output), now_ns)
        return output

    def _done(self) -> None:
        self._asked, self._requested = False, NOTHING

    def _note_loss(self, plan: UpdatePlan, lossy: Iterable[Rect] | None) -> None:
        for rect in plan.rects:
            self._lossy.remove_rect(rect)
        if plan.settings.quality is not None and plan.settings.quality != self.quality.refined:
            for rect in plan.rects if lossy is None else lossy:
                self._lossy.add_rect(rect)

    def _roll(self, now_ns: int) -> None:
        """Begin a period: what is lossy and has not changed in the last one may be refined."""
        if now_ns - self._period_ns < REFINE_NS:
            return
        self._period_ns = now_ns
        if self._lossy:
            self._still.add(self._lossy.tiles)
            self._still.remove(self._recent.tiles)
            self._still.remove(self.damage.tiles)
        self._recent.clear()
