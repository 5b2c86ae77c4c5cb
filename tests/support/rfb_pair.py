"""A session and a viewer with nothing between them: bytes are carried, whole or in pieces, until both are silent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.rfb_viewer import RfbViewer
from tvmm.screen import TILE_HEIGHT, TILE_WIDTH, Canvas
from tvmm.vnc import encodings
from tvmm.vnc.events import StartTls, WantsIn
from tvmm.vnc.pixel_format import DEFAULT, PixelFormat, Rect
from tvmm.vnc.security_types import NoSecurity
from tvmm.vnc.server_messages import pseudo_rect
from tvmm.vnc.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tvmm.vnc.events import Event
    from tvmm.vnc.security_types import SecurityType
    from tvmm.vnc.updates import UpdatePlan

__all__ = ["MS", "Pair", "encode_raw", "paint"]

MS = 1_000_000


def encode_raw(canvas: Canvas, rects: Iterable[Rect], pixel_format: PixelFormat) -> list[bytes]:
    """What the encoder does with Raw, pixel by pixel."""
    chunks = []
    for rect in rects:
        pixels = bytearray()
        if pixel_format == DEFAULT:
            for y in range(rect.y, rect.bottom):
                at = (y * canvas.width + rect.x) * 4
                pixels += canvas.pixels[at : at + rect.width * 4]
            chunks.append(pseudo_rect(encodings.RAW, rect) + bytes(pixels))
            continue
        for y in range(rect.y, rect.bottom):
            for x in range(rect.x, rect.right):
                at = (y * canvas.width + x) * 4
                blue, green, red, _ = canvas.pixels[at : at + 4]
                pixels += pixel_format.pixel(red, green, blue)
        chunks.append(pseudo_rect(encodings.RAW, rect) + bytes(pixels))
    return chunks


def paint(canvas: Canvas, rect: Rect, blue: int, green: int, red: int) -> bytearray:
    """Fill a rectangle; the tiles that this touches."""
    for y in range(rect.y, rect.bottom):
        at = (y * canvas.width + rect.x) * 4
        canvas.pixels[at : at + rect.width * 4] = bytes((blue, green, red, 0)) * rect.width
    tiles = canvas.new_damage()
    for row in range(rect.y // TILE_HEIGHT, -(-rect.bottom // TILE_HEIGHT)):
        for column in range(rect.x // TILE_WIDTH, -(-rect.right // TILE_WIDTH)):
            tiles[row * canvas.columns + column] = 1
    return tiles


class Pair:
    """Both ends. `pieces`: bytes are carried so many at a time; 0: all that there are."""

    def __init__(
        self,
        viewer: RfbViewer | None = None,
        *,
        options: SessionOptions | None = None,
        types: Sequence[SecurityType] = (NoSecurity(),),
        size: tuple[int, int] = (200, 70),
        pieces: int = 0,
    ) -> None:
        self.viewer = viewer or RfbViewer()
        self.session = Session(types, options)
        self.canvas = Canvas(*size)
        self.now_ns = 1_000 * MS
        self.events: list[Event] = []
        self.plans: list[UpdatePlan] = []
        self.sent = bytearray()
        self._pieces = pieces

    def settle(self) -> None:
        """Until nothing is said any more. Lets viewers in and starts TLS, which here is nothing at all."""
        while self._to_viewer() | self._to_session():
            pass

    def _cut(self, data: bytes) -> Iterable[bytes]:
        size = self._pieces or max(len(data), 1)
        return (data[at : at + size] for at in range(0, len(data), size))

    def _to_viewer(self) -> bool:
        data = b"".join(self.session.take_output())
        self.sent += data
        for piece in self._cut(data):
            self.viewer.receive(piece)
        return bool(data)

    def _to_session(self) -> bool:
        data = self.viewer.take_output()
        for piece in self._cut(data):
            self.session.receive(piece, self.now_ns)
            self.drain()
        return bool(data)

    def drain(self) -> None:
        """Events that there are."""
        while (event := self.session.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, StartTls):
                self.session.tls_ready()
            elif isinstance(event, WantsIn):
                self.session.admit(self.canvas.width, self.canvas.height, "näme")

    def update(self, after_ms: int = 0, unsent_bytes: int = 0) -> UpdatePlan | None:
        """What the server's task does: plan, encode, finish; then bytes are carried."""
        self.settle()
        self.now_ns += after_ms * MS
        plan = self.session.plan(self.now_ns, unsent_bytes)
        if plan is not None:
            self.plans.append(plan)
            chunks = encode_raw(self.canvas, plan.rects, plan.settings.pixel_format)
            self.session.finish(len(chunks), chunks, self.now_ns)
        self.settle()
        return plan

    def running(self, *numbers: int) -> Pair:
        """Itself, with the handshake done and these encodings said."""
        self.settle()
        if numbers:
            self.viewer.set_encodings(*numbers)
        self.settle()
        self.events.clear()
        return self

    def draw(self, rect: Rect, blue: int = 1, green: int = 2, red: int = 3) -> None:
        """The guest fills a rectangle."""
        self.session.damage(paint(self.canvas, rect, blue, green, red))

    def resize(self, width: int, height: int, reason: int = 0) -> None:
        """The guest has another mode."""
        self.canvas.resize(width, height)
        self.session.resize(width, height, reason)
