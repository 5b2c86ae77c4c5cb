"""A relay in front of a destination that changes what it passes on, piece by piece, as a seed has it.

A piece is what the two sides would call one: an opening, a message, a frame of pages, a block of a disk, a request for
pages, a compressed piece, a record of TLS; descriptors that are passed are a piece of their own. Pieces are damaged,
cut short, dropped, sent twice or in another order; others are put between them, connections are cut or stall. Each
connection and direction draws from a generator of its own, so that a seed does the same again as far as the two sides
do.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import trio

from tests.support.plain_lanes import HEADER
from tvmm.control.listener import unix_listener
from tvmm.migration.descriptors import receive_descriptors, send_descriptors
from tvmm.migration.disk_frames import HEADER_BYTES, DiskFrame, FrameKind
from tvmm.migration.hand_over import close_all
from tvmm.migration.link import LinkLost
from tvmm.migration.messages import (
    Answer,
    Cancel,
    Commit,
    Failure,
    Goodbye,
    Grants,
    Query,
    Ready,
    Refuse,
    RoundDone,
    Running,
    State,
    Wants,
    Watched,
    Welcome,
)
from tvmm.migration.wire import OPENING_BYTES, REPLY_BYTES, Kind, Opening, pack
from tvmm.state import Section

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FORGED", "JUNK", "MangledWire", "Mangler", "piece_lengths"]

PIECE_MAX = 1 << 24
"""A longer piece is passed on in parts: some bytes were not a length at all."""
REQUEST_BYTES, REQUEST_MAGIC = 16, 0x5150_5654
TLS_HEADER = struct.Struct(">BHH")
TLS_KINDS, TLS_VERSIONS = range(20, 24), (0x0301, 0x0303)

FORGED = {
    "to destination": (
        State((Section("serial0", 1, 1, b"x"),), True, 0),
        State((), False, 1 << 40),
        Commit(),
        Cancel("a\x1b[2Jforged"),
        Watched(-1),
        Goodbye(),
        Wants(("nonsense",) * 100),
        Query(b"s" * 16),
        Ready(),
    ),
    "to source": (
        Welcome(1, bytes(16)),
        Welcome(9, b""),
        Refuse(("no\x1b[2J",) * 3),
        RoundDone(0, -5),
        RoundDone(1 << 63, 1 << 63),
        Ready((1 << 64) - 1, -(1 << 63)),
        Running((1 << 64) - 1),
        Failure("x" * 100_000, "\x1b"),
        Answer("running"),
        Answer("abandoned"),
        Answer("nonsense"),
        Commit(),
        Grants(("nonsense",)),
    ),
}
"""Messages that a liar may put in, some of which the other side never sends."""
JUNK = (
    b"",
    b"\0" * 64,
    b"\xff" * 64,
    struct.pack("<I", 1 << 20) + b"\x06\xff",
    struct.pack("<I", (1 << 32) - 1) + b"x" * 100,
    struct.pack("<I", 3) + b"\x06\x81\x06",
    HEADER.pack(b"TVPL", 1, 0, 0, 1024, 1024 * 4100, 0),
    HEADER.pack(b"TVPL", 1, 0, 0, 1 << 31, (1 << 32) - 1, 0),
    HEADER.pack(b"TVPL", 3, 0, 0, 0, 0, (1 << 64) - 1),
    HEADER.pack(b"TVPL", 3, 0, 0, 0, 0, 0),
    DiskFrame(FrameKind.DATA, 0, 1 << 30, 0).to_bytes(),
    DiskFrame(FrameKind.DATA, 0, 512, (1 << 64) - 512).to_bytes(),
    DiskFrame(FrameKind.ZEROES, 7, 1 << 30, 0).to_bytes(),
    DiskFrame(FrameKind.ZEROES, 0, 511, 1).to_bytes(),
    DiskFrame(FrameKind.END, 0, 0, 1 << 63).to_bytes(),
    struct.pack("<IIQ", REQUEST_MAGIC, 1 << 16, (1 << 64) - 1),
)


class Piece(NamedTuple):
    """How long the header of a piece is, and what is behind one."""

    header: int
    rest: Callable[[bytes], int]


def _behind_secure(header: bytes) -> int:
    """A record of TLS (RFC 8446, 5.1), or an encrypted piece of a lane, whose header is a byte shorter."""
    kind, version, length = TLS_HEADER.unpack(header)
    if kind in TLS_KINDS and version in TLS_VERSIONS:
        return int(length)
    return max(int.from_bytes(header[:4], "little") - 1, 0)


def _behind_block(header: bytes) -> int:
    """Of a disk: data comes with it, zeroes and ends of rounds have none."""
    return int.from_bytes(header[4:8], "little") if header[0] == FrameKind.DATA else 0


piece_lengths = {
    "message": Piece(4, lambda header: int(struct.unpack("<I", header)[0])),
    "block": Piece(HEADER_BYTES, _behind_block),
    "request": Piece(REQUEST_BYTES, lambda header: 0),
    "frame": Piece(HEADER.size, lambda header: int(HEADER.unpack(header)[5])),
    "record": Piece(TLS_HEADER.size, _behind_secure),
}


class Cut(Exception):
    """The connection ends here."""


class Mangler:
    """What happens to the pieces of one direction of one connection; `rate` of them are touched."""

    def __init__(self, random: Random, rate: float, direction: str, *, lies: bool) -> None:
        self._random = random
        self.rate = rate
        self._forged = tuple(pack(message) for message in FORGED[direction]) if lies else ()
        self._kept: bytes | None = None
        self.touched = 0

    def pieces(self, piece: bytes) -> list[bytes]:
        """What to send in place of `piece`. Raises `Cut`; an empty list is followed by others."""
        random = self._random
        kept, self._kept = self._kept, None
        behind = [] if kept is None else [kept]
        if random.random() >= self.rate:
            return [piece, *behind]
        self.touched += 1
        choice = random.randrange(12 if self._forged else 10)
        if choice in (0, 1, 2):
            return [self._damaged(piece), *behind]
        if choice == 3:
            return [piece[: random.randrange(len(piece) + 1)], *behind]
        if choice == 4:
            return behind
        if choice == 5:
            return [piece, piece, *behind]
        if choice == 6:
            self._kept = piece
            return behind
        if choice == 7:
            return [random.choice(JUNK), piece, *behind]
        if choice == 8:
            raise Cut
        if choice == 9:
            return [piece, random.choice(JUNK), *behind]
        return [random.choice(self._forged), *([piece] if choice == 10 else []), *behind]

    def _damaged(self, piece: bytes) -> bytes:
        random, data = self._random, bytearray(piece)
        # Most of what matters is in front.
        limit = len(data) if random.randrange(3) else min(len(data), 40)
        for _ in range(random.choice((1, 1, 1, 4, 30))):
            data[random.randrange(limit)] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        return bytes(data)


class MangledWire:
    """Listens at unix socket `path` and passes on to `target`. `on_piece` is called for each piece."""

    def __init__(
        self,
        path: str,
        target: str,
        seed: object,
        rate: float,
        *,
        lies: bool = False,
        lane_pieces: str = "frame",
        tls: bool = False,
        on_piece: Callable[[], None] = lambda: None,
    ) -> None:
        self._path, self._target = path, target
        self._seed, self._lies = seed, lies
        self.rate = rate
        """Of pieces that are touched on connections from now on."""
        compressed = lane_pieces == "message"
        self._kinds = {Kind.LANE: lane_pieces, Kind.STORAGE: "message" if compressed else "block"}
        self._tls = tls
        self._on_piece = on_piece
        self._count = 0
        self._manglers: list[tuple[Kind | None, Mangler]] = []

    def touched(self, *kinds: Kind) -> int:
        """How many pieces were not passed on as they came, of connections of such kinds."""
        return sum(each.touched for kind, each in self._manglers if kind in kinds)

    def heal(self) -> None:
        """Nothing is touched any more."""
        self.rate = 0.0
        for _, mangler in self._manglers:
            mangler.rate = 0.0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Relay until cancelled."""
        async with unix_listener(Path(self._path)) as listener:
            task_status.started()
            await trio.serve_listeners(self._relay, [listener])

    def _mangler(self, kind: Kind | None, number: int, direction: str) -> Mangler:
        lies = self._lies and kind in (Kind.CONTROL, Kind.QUERY)
        made = Mangler(Random(f"{self._seed}/{kind}/{number}/{direction}"), self.rate, direction, lies=lies)
        self._manglers.append((kind, made))
        return made

    async def _relay(self, client: trio.SocketStream) -> None:
        self._count += 1
        number = self._count
        try:
            server = await trio.open_unix_socket(self._target)
        except OSError:
            await trio.aclose_forcefully(client)
            return
        try:
            opening = await self._exactly(client, OPENING_BYTES)
            kind = Opening.from_bytes(opening).kind
            first = self._mangler(None, number, "to destination")
            for piece in first.pieces(opening):
                await server.send_all(piece)
            reply = self._mangler(None, number, "to source")
            for piece in reply.pieces(await self._exactly(server, REPLY_BYTES)):
                await client.send_all(piece)
            if kind is Kind.RAM:
                await self._pass_descriptors(client, server, Random(f"{self._seed}/{number}/descriptors"))
                return
            way = "record" if self._tls else self._kinds.get(kind, "message")
            async with trio.open_nursery() as nursery:
                for origin, end, direction in ((client, server, "to destination"), (server, client, "to source")):
                    mangler = self._mangler(kind, number, direction)
                    if kind is Kind.REQUESTS and not self._tls:
                        way = "request" if direction == "to source" else "frame"
                    nursery.start_soon(self._pump, origin, end, mangler, piece_lengths[way])
        except* (Cut, LinkLost, trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            # At once: a task that is cancelled would close one of them.
            client.socket.close()
            server.socket.close()

    async def _pass_descriptors(self, client: trio.SocketStream, server: trio.SocketStream, random: Random) -> None:
        """Or others, or fewer, with other names, or none. There is one piece: it is touched more often than others."""
        files = await receive_descriptors(client)
        try:
            self._on_piece()
            names, fds = list(files), list(files.values())
            choice = random.randrange(7) if self.rate and random.random() < 0.5 else -1
            if choice == 0:
                raise Cut
            if choice == 1:
                await trio.sleep_forever()
            if choice == 2:
                names = [random.choice(("", "pc.rom", "\x1b[2J", "x" * 5000)) for _ in names]
            if choice == 3:
                names, fds = names * 2, fds * 2
            if choice == 4:
                names, fds = names[1:], fds[1:]
            if choice == 5:
                fds = [files.setdefault("other", os.memfd_create("other"))] * len(fds)
            if choice == 6:
                with suppress(OSError):
                    await server.socket.sendmsg(
                        [random.choice(JUNK) or b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                    )
                return
            await send_descriptors(server, names, fds)
        finally:
            close_all(files)

    async def _exactly(self, stream: trio.abc.Stream, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = await stream.receive_some(count - len(data))
            if not part:
                raise Cut
            data += part
        return data

    async def _pump(self, origin: trio.abc.Stream, end: trio.SocketStream, mangler: Mangler, piece: Piece) -> None:
        data = bytearray()
        while part := await origin.receive_some(1 << 16):
            data += part
            while (length := self._length(data, piece)) and length <= len(data):
                self._on_piece()
                for changed in mangler.pieces(bytes(data[:length])):
                    await end.send_all(changed)
                del data[:length]
        await end.send_all(data)
        with suppress(OSError):
            await end.send_eof()

    def _length(self, data: bytearray, piece: Piece) -> int:
        """Of the first piece in `data`; 0 as long as that is not known."""
        if len(data) < piece.header:
            return 0
        length = piece.header + piece.rest(bytes(data[: piece.header]))
        return length if length <= PIECE_MAX else len(data)
