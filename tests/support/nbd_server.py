"""An NBD server in plain Python: a machine without IO (`ServerHalf`), and a Trio shell around it (`serving_nbd`).

It does what the protocol asks, in every variant that `Facts` can say, and on demand what it forbids: `spoil` changes or
adds bytes of single messages by their name, `stall` and `hang_up` end a conversation at one.
"""

from __future__ import annotations

import errno
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from struct import pack, unpack
from typing import TYPE_CHECKING

import trio

from tvmm.nbd import constants as nbd
from tvmm.nbd.constants import Chunk, Command, CommandFlag, Flag, Info, Option, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator
    from pathlib import Path

__all__ = ["ALL_FLAGS", "Facts", "FakeNbdServer", "HangUp", "ServerHalf", "serving_nbd"]

ALL_FLAGS = (
    Flag.HAS_FLAGS
    | Flag.SEND_FLUSH
    | Flag.SEND_FUA
    | Flag.SEND_TRIM
    | Flag.SEND_WRITE_ZEROES
    | Flag.SEND_DF
    | Flag.CAN_MULTI_CONN
)


class HangUp(Exception):
    """The server closes the connection now."""


@dataclass
class Facts:
    """What the server has and does. Change it at any time; handshakes look at it when they come to it."""

    exports: dict[str, bytearray] = field(default_factory=lambda: {"": bytearray(1 << 20)})
    flags: int = int(ALL_FLAGS)
    fixed: bool = True
    no_zeroes: bool = True
    go: bool = True
    structured: bool = True
    extended: bool = False
    contexts: bool = True
    listing: bool = True
    tls: str = "no"
    """no, offered, required."""
    block_sizes: tuple[int, int, int] | None = (1, 4096, 32 << 20)
    told_size: int | None = None
    chunk: int = 1 << 16
    """Bytes of one chunk of a structured answer."""
    spoil: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    """By name of a message: greeting, ACK-GO, INFO-GO, read, write ...: its bytes, made wrong."""
    stall: set[str] = field(default_factory=set)
    """Names of messages that are never sent."""
    hang_up: set[str] = field(default_factory=set)
    """Names of messages in whose place the connection is closed."""
    errors: dict[Command, int] = field(default_factory=dict)
    """Errno of requests of a kind."""


class ServerHalf:
    """One connection. `receive` returns what to send; raises `HangUp`, which has sent what `out` holds."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.seen: list[str] = []
        """Options and commands, in the order in which they came."""
        self.secure = False
        self.starts_tls = False
        self.stalled = False
        self.out = bytearray()
        self._in = bytearray()
        self._structured = self._extended = False
        self._context: int | None = None
        self._run = self._talk()
        self._needs = next(self._run)

    def receive(self, data: bytes) -> bytes:
        """Go on with what the client has sent."""
        self._in += data
        while len(self._in) >= self._needs and not self.stalled and not self.starts_tls:
            part = bytes(self._in[: self._needs])
            del self._in[: self._needs]
            self._needs = self._run.send(part)
        return self.taken()

    def taken(self) -> bytes:
        """What is to be sent."""
        out = bytes(self.out)
        self.out.clear()
        return out

    def _say(self, name: str, data: bytes) -> None:
        facts = self.facts
        if name in facts.hang_up:
            raise HangUp
        if self.stalled or name in facts.stall:
            self.stalled = True
            return
        if name in facts.spoil:
            data = facts.spoil[name](data)
        self.out += data

    # -- handshake -----------------------------------------------------------------------------------------

    def _talk(self) -> Generator[int, bytes, None]:
        facts = self.facts
        flags = facts.fixed | facts.no_zeroes << 1
        self._say("greeting", pack(">QQH", nbd.NBDMAGIC, nbd.IHAVEOPT, flags))
        answer = int.from_bytes((yield 4), "big")
        if answer & ~flags:
            raise HangUp
        while True:
            magic, option, length = unpack(">QII", (yield 16))
            if magic != nbd.IHAVEOPT or length > 1 << 16:
                raise HangUp
            data = (yield length) if length else b""
            self.seen.append(Option(option).name)
            done = self._option(Option(option), data, bool(answer & 2))
            if done is not None:
                break
        yield from self._serve(done)

    def _reply(self, option: Option, kind: Reply, data: bytes = b"") -> None:
        self._say(f"{kind.name}-{option.name}", pack(">QIII", nbd.OPTION_REPLY_MAGIC, option, kind, len(data)) + data)

    def _option(self, option: Option, data: bytes, no_zeroes: bool) -> bytearray | None:
        """The export, if it begins now."""
        facts = self.facts
        if option == Option.ABORT:
            self._reply(option, Reply.ACK)
            raise HangUp
        if option == Option.EXPORT_NAME:
            return self._export_name(data, no_zeroes)
        if not facts.fixed:
            raise HangUp
        if option == Option.STARTTLS:
            self._reply(option, Reply.ACK if facts.tls != "no" else Reply.ERR_UNSUP)
            self.starts_tls = facts.tls != "no"
        elif facts.tls == "required" and not self.secure:
            self._reply(option, Reply.ERR_TLS_REQD)
        elif option == Option.EXTENDED_HEADERS and facts.extended and not data:
            self._extended = self._structured = True
            self._reply(option, Reply.ACK)
        elif option == Option.STRUCTURED_REPLY and facts.structured and not data:
            self._structured = True
            self._reply(option, Reply.ACK)
        elif option == Option.LIST and facts.listing:
            for name in facts.exports:
                self._reply(option, Reply.SERVER, pack(">I", len(name.encode())) + name.encode())
            self._reply(option, Reply.ACK)
        elif option == Option.SET_META_CONTEXT and facts.contexts and self._structured:
            self._contexts(data)
        elif option in (Option.GO, Option.INFO) and facts.go:
            return self._go(option, data)
        else:
            self._reply(option, Reply.ERR_UNSUP, b"not here")
        return None

    def _contexts(self, data: bytes) -> None:
        length = int.from_bytes(data[:4], "big")
        name, rest = data[4 : 4 + length].decode(), data[4 + length :]
        if name not in self.facts.exports:
            self._reply(Option.SET_META_CONTEXT, Reply.ERR_UNKNOWN)
            return
        assert rest == pack(">II", 1, 15) + b"base:allocation"
        self._context = 7
        self._reply(Option.SET_META_CONTEXT, Reply.META_CONTEXT, pack(">I", 7) + b"base:allocation")
        self._reply(Option.SET_META_CONTEXT, Reply.ACK)

    def _facts_of(self, export: bytearray) -> bytes:
        facts = self.facts
        return pack(">QH", len(export) if facts.told_size is None else facts.told_size, facts.flags)

    def _go(self, option: Option, data: bytes) -> bytearray | None:
        facts = self.facts
        length = int.from_bytes(data[:4], "big")
        name = data[4 : 4 + length].decode()
        export = facts.exports.get(name)
        if export is None:
            self._reply(option, Reply.ERR_UNKNOWN, b"no such export")
            return None
        self._reply(option, Reply.INFO, pack(">H", Info.EXPORT) + self._facts_of(export))
        if facts.block_sizes:
            self._reply(option, Reply.INFO, pack(">HIII", Info.BLOCK_SIZE, *facts.block_sizes))
        self._reply(option, Reply.INFO, pack(">H", Info.NAME) + name.encode())
        self._reply(option, Reply.ACK)
        return export if option == Option.GO else None

    def _export_name(self, data: bytes, no_zeroes: bool) -> bytearray:
        export = self.facts.exports.get(data.decode())
        if export is None or (self.facts.tls == "required" and not self.secure):
            raise HangUp
        self._say("EXPORT_NAME", self._facts_of(export) + (b"" if no_zeroes else bytes(124)))
        return export

    # -- requests ------------------------------------------------------------------------------------------

    def _serve(self, export: bytearray) -> Generator[int, bytes, None]:
        while True:
            if self._extended:
                magic, flags, kind, cookie, offset, length = unpack(">IHHQQQ", (yield 32))
                wanted = nbd.EXTENDED_REQUEST_MAGIC
            else:
                magic, flags, kind, cookie, offset, length = unpack(">IHHQQI", (yield 28))
                wanted = nbd.REQUEST_MAGIC
            if magic != wanted:
                raise HangUp
            command = Command(kind)
            self.seen.append(command.name)
            data = (yield length) if command == Command.WRITE and length else b""
            if command == Command.DISCONNECT:
                raise HangUp
            error = self.facts.errors.get(command, 0) or self._carry_out(export, command, offset, length, data)
            self._answer(command, flags, cookie, offset, length, export, error)

    def _carry_out(self, export: bytearray, command: Command, offset: int, length: int, data: bytes) -> int:
        writes = command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)
        if writes and self.facts.flags & Flag.READ_ONLY:
            return errno.EPERM
        if command != Command.FLUSH and offset + length > len(export):
            return errno.ENOSPC if writes else errno.EINVAL
        if command == Command.WRITE:
            export[offset : offset + length] = data
        elif command in (Command.TRIM, Command.WRITE_ZEROES):
            export[offset : offset + length] = bytes(length)
        return 0

    def _answer(
        self, command: Command, flags: int, cookie: int, offset: int, length: int, export: bytearray, error: int
    ) -> None:
        name = command.name.lower()
        if not self._structured or (command not in (Command.READ, Command.BLOCK_STATUS) and not self._extended):
            data = bytes(export[offset : offset + length]) if command == Command.READ and not error else b""
            self._say(name, pack(">IIQ", nbd.SIMPLE_REPLY_MAGIC, error, cookie) + data)
        elif error:
            text = b"it did not work"
            self._say(name, self._chunk(cookie, Chunk.ERROR, 1, pack(">IH", error, len(text)) + text))
        elif command == Command.READ:
            self._read(name, cookie, offset, length, export, whole=bool(flags & CommandFlag.DF))
        elif command == Command.BLOCK_STATUS:
            self._status(name, cookie, offset, length, export)
        else:
            self._say(name, self._chunk(cookie, Chunk.NONE, 1, b""))

    def _chunk(self, cookie: int, kind: Chunk, flags: int, data: bytes) -> bytes:
        if self._extended:
            return pack(">IHHQQQ", nbd.EXTENDED_REPLY_MAGIC, flags, kind, cookie, 0, len(data)) + data
        return pack(">IHHQI", nbd.STRUCTURED_REPLY_MAGIC, flags, kind, cookie, len(data)) + data

    def _read(self, name: str, cookie: int, offset: int, length: int, export: bytearray, *, whole: bool) -> None:
        size = length if whole else self.facts.chunk
        message = b""
        for at in range(offset, offset + length, size):
            data = bytes(export[at : min(at + size, offset + length)])
            if any(data) or whole:
                message += self._chunk(cookie, Chunk.OFFSET_DATA, 0, pack(">Q", at) + data)
            else:
                message += self._chunk(cookie, Chunk.OFFSET_HOLE, 0, pack(">QI", at, len(data)))
        self._say(name, message + self._chunk(cookie, Chunk.NONE, 1, b""))

    def _status(self, name: str, cookie: int, offset: int, length: int, export: bytearray) -> None:
        assert self._context is not None
        extents: list[tuple[int, int]] = []
        for at in range(offset, offset + length, 4096):
            part = export[at : min(at + 4096, offset + length)]
            flags = 0 if any(part) else 3
            if extents and extents[-1][1] == flags:
                extents[-1] = extents[-1][0] + len(part), flags
            else:
                extents.append((len(part), flags))
        if self._extended:
            data = pack(">II", self._context, len(extents)) + b"".join(pack(">QQ", *each) for each in extents)
            self._say(name, self._chunk(cookie, Chunk.BLOCK_STATUS_EXT, 1, data))
        else:
            data = pack(">I", self._context) + b"".join(pack(">II", *each) for each in extents)
            self._say(name, self._chunk(cookie, Chunk.BLOCK_STATUS, 1, data))


class FakeNbdServer:
    """The shell: connections of one listener. `halves` are all that there were."""

    def __init__(self, facts: Facts, context: ssl.SSLContext | None = None) -> None:
        self.facts = facts
        self.halves: list[ServerHalf] = []
        self.context = context
        self.news = trio.Event()
        self.nursery: trio.Nursery
        self.path: Path | None = None
        self._listening = trio.CancelScope()
        self._scopes: set[trio.CancelScope] = set()

    async def come(self) -> None:
        """Listen at the path."""
        sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await sock.bind(str(self.path))
        sock.listen(64)
        self.nursery.start_soon(self._serve, trio.SocketListener(sock))

    async def _serve(self, listener: trio.SocketListener) -> None:
        with trio.CancelScope() as self._listening:
            await trio.serve_listeners(self.handle, [listener], handler_nursery=self.nursery)

    def go(self) -> None:
        """Close everything, as a server does that is killed."""
        assert self.path is not None
        self.path.unlink()
        self._listening.cancel()
        self.drop()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._scopes)

    def drop(self) -> None:
        """Close all connections, as a server does that is killed."""
        for scope in self._scopes:
            scope.cancel()

    async def handle(self, stream: trio.abc.Stream) -> None:
        """One connection."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                await self._converse(stream)
            except (trio.BrokenResourceError, HangUp, ssl.SSLError):
                pass
            finally:
                self._scopes.discard(scope)
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.abc.Stream) -> None:
        half = ServerHalf(self.facts)
        self.halves.append(half)
        self.news.set()
        self.news = trio.Event()
        await stream.send_all(half.taken())
        while True:
            data = await stream.receive_some(1 << 18)
            if not data:
                return
            try:
                out = half.receive(bytes(data))
            except HangUp:
                await stream.send_all(half.taken())
                raise
            if out:
                await stream.send_all(out)
            if half.starts_tls:
                if self.context is None:
                    raise HangUp
                stream = trio.SSLStream(stream, self.context, server_side=True)
                await stream.do_handshake()
                half.starts_tls, half.secure = False, True


@asynccontextmanager
async def serving_nbd(
    where: Path | trio.SocketListener, facts: Facts, context: ssl.SSLContext | None = None
) -> AsyncIterator[FakeNbdServer]:
    """Serve at a path, or on a listener, within the block."""
    server = FakeNbdServer(facts, context)
    async with trio.open_nursery() as nursery:
        server.nursery = nursery
        if isinstance(where, trio.SocketListener):
            nursery.start_soon(trio.serve_listeners, server.handle, [where])
        else:
            server.path = where
            await server.come()
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()
            if server.path is not None:
                server.path.unlink(missing_ok=True)
