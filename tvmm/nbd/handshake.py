"""The client's half of the fixed newstyle handshake, as a machine without IO: bytes in, bytes out.

::

    greeting ─► flags ─► [STARTTLS ─► TLS by the shell] ─► EXTENDED_HEADERS ─ refused ─► STRUCTURED_REPLY
             ─► SET_META_CONTEXT base:allocation ─► GO ─► DONE
                                                    ├─ unknown export ─► LIST, and an error that has the names
                                                    └─ no such option ─► EXPORT_NAME ─► DONE

A server may refuse each option but the last; a very old one knows EXPORT_NAME only. All that it sends is checked
against bounds of `tvmm.nbd.constants` before it is waited for, so a hostile one costs no memory; the shell limits the
time of the whole handshake.
"""

from __future__ import annotations

from enum import Enum, auto
from struct import Struct, pack
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ImageError
from tvmm.nbd import constants as nbd
from tvmm.nbd.constants import Flag, Info, Option, Reply, ServerFlag

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import NoReturn

__all__ = ["DoesNotFit", "Export", "Handshake", "Phase", "readable"]

GREETING = Struct(">QQH")
OPTION = Struct(">QII")
OPTION_REPLY = Struct(">QIII")
EXPORT = Struct(">QH")
BLOCK_SIZES = Struct(">III")
ZEROES = 124
"""Bytes behind the answer to EXPORT_NAME that once had a meaning."""

DEFAULT_PAYLOAD = 32 << 20
MINIMUM_BLOCK_LIMIT = 64 << 10

HINTS = {
    Reply.ERR_POLICY: ("does not allow it", "look at the server's configuration"),
    Reply.ERR_SHUTDOWN: ("is about to end", "start it again"),
    Reply.ERR_PLATFORM: ("cannot do it on its host", "look at the server"),
    Reply.ERR_BLOCK_SIZE_REQD: ("wants block sizes that were asked for", "this is a mistake of the server"),
    Reply.ERR_INVALID: ("does not understand what it was asked", "look at the server"),
    Reply.ERR_TOO_BIG: ("finds the request too long", "choose a shorter name for the export"),
    Reply.ERR_EXT_HEADER_REQD: ("wants extended headers, which it has refused", "this is a mistake of the server"),
}


class DoesNotFit(ImageError):
    """The server is one, and in order, but has not got what was asked for: waiting longer may help or not."""


class Phase(Enum):
    """Where a handshake is."""

    TALKING = auto()
    WANTS_TLS = auto()
    """The shell is to make TLS, from the next byte on, and to call `tls_made`."""
    DONE = auto()


class Export(NamedTuple):
    """What the server has agreed to. Sizes in bytes; `flags` are `constants.Flag`."""

    size: int
    flags: int
    minimum_block: int = 1
    preferred_block: int = 4096
    maximum_payload: int = DEFAULT_PAYLOAD
    structured: bool = False
    extended: bool = False
    allocation: int | None = None
    """The number of the context "base:allocation", if there is block status."""
    name: str = ""
    description: str = ""

    def has(self, flag: Flag) -> bool:
        """Whether the server has said so."""
        return bool(self.flags & flag)


class _OptionReply(NamedTuple):
    kind: int
    data: bytes


class Handshake:
    """One connection's. `place` is what messages call the server; `tls`: insist on it."""

    def __init__(self, place: str, export: str, *, tls: bool = False, extended: bool = True) -> None:
        self.phase = Phase.TALKING
        self.export: Export | None = None
        """What came of it, once `phase` is DONE."""
        self._place = place
        self._name = export
        self._tls = tls
        self._try_extended = extended
        self._out = bytearray()
        self._in = bytearray()
        self._asking = "greeting"
        self._fixed = False
        self._talk = self._run()
        self._needs = next(self._talk)

    # -- the shell's side ----------------------------------------------------------------------------------

    def receive(self, data: bytes) -> bytes:
        """Go on with what the server has sent; returns what to send. Raises `ImageError`, and is of no use then."""
        self._in += data
        while self.phase is Phase.TALKING and len(self._in) >= self._needs:
            self._advance()
        if self._in and self.phase is not Phase.TALKING:
            # Before TLS it could be somebody in between who speaks for the server; after the end nobody has asked.
            self._fail("sent more than was asked for")
        return self._taken()

    def tls_made(self) -> bytes:
        """The connection is secure from here on; returns what to send."""
        assert self.phase is Phase.WANTS_TLS
        self.phase = Phase.TALKING
        self._advance()
        return self._taken()

    def closed(self) -> NoReturn:
        """The server has closed the connection before the end. Raises `ImageError`."""
        if self._asking == "greeting" and not self._in:
            self._fail("closed the connection at once", "it may have as many clients as it takes")
        if self._asking == "EXPORT_NAME":
            raise DoesNotFit(
                f"NBD server {self._place} closed the connection when it was asked for export {self._name!r}",
                "it may have none of that name",
            )
        self._fail(f"closed the connection in the middle of the handshake ({self._asking})", "see what is said there")

    def abort(self) -> bytes:
        """What to send before the connection is given up, if anything can be said."""
        if not self._fixed or self.phase is not Phase.TALKING:
            return b""
        return OPTION.pack(nbd.IHAVEOPT, Option.ABORT, 0)

    def _advance(self) -> None:
        count = self._needs if self.phase is Phase.TALKING else 0
        data = bytes(self._in[:count])
        del self._in[:count]
        try:
            self._needs = self._talk.send(data)
        except StopIteration as end:
            self.export = end.value
            self.phase = Phase.DONE

    def _taken(self) -> bytes:
        out = bytes(self._out)
        self._out.clear()
        return out

    # -- the conversation: each yield waits for that many bytes ----------------------------------------------

    def _run(self) -> Generator[int, bytes, Export]:
        no_zeroes = yield from self._greet()
        if not self._fixed:
            if self._tls:
                self._fail("is too old for TLS", "use another server, or say tls=off")
            return (yield from self._export_name(no_zeroes))
        if self._tls:
            yield from self._start_tls()
        extended = self._try_extended and (yield from self._agree(Option.EXTENDED_HEADERS))
        structured = extended or (yield from self._agree(Option.STRUCTURED_REPLY))
        allocation = (yield from self._contexts()) if structured else None
        export = yield from self._go()
        if export is None:
            export = yield from self._export_name(no_zeroes)
        return export._replace(structured=structured and not extended, extended=extended, allocation=allocation)

    def _greet(self) -> Generator[int, bytes, bool]:
        magic = yield 8
        if magic != pack(">Q", nbd.NBDMAGIC):
            self._fail(f"is no NBD server: it begins with {_shown(magic)}", "look at the address")
        rest = yield 8
        if rest == pack(">Q", nbd.OLDSTYLE):
            self._fail("speaks the old style of NBD, without names of exports", "use a newer server")
        if rest != pack(">Q", nbd.IHAVEOPT):
            self._fail(f"is no NBD server: its greeting goes on with {_shown(rest)}", "look at the address")
        flags = int.from_bytes((yield 2), "big")
        self._fixed = bool(flags & ServerFlag.FIXED_NEWSTYLE)
        no_zeroes = bool(flags & ServerFlag.NO_ZEROES)
        # Bits that are not the server's must not be sent.
        answer = nbd.CLIENT_FIXED_NEWSTYLE * self._fixed | nbd.CLIENT_NO_ZEROES * no_zeroes
        self._out += pack(">I", answer)
        return no_zeroes

    def _start_tls(self) -> Generator[int, bytes, None]:
        self._ask(Option.STARTTLS)
        reply = yield from self._reply(Option.STARTTLS)
        if reply.kind != Reply.ACK:
            self._check_refusal(reply, Option.STARTTLS)
            self._fail("has no TLS", "have it configured there, or say tls=off and nbd:// to do without")
        self.phase = Phase.WANTS_TLS
        yield 0

    def _agree(self, option: Option) -> Generator[int, bytes, bool]:
        """Whether the server is for it."""
        self._ask(option)
        reply = yield from self._reply(option)
        if reply.kind == Reply.ACK:
            return True
        self._check_refusal(reply, option)
        self._check_tls(reply)
        return False

    def _contexts(self) -> Generator[int, bytes, int | None]:
        name, query = self._name.encode(), nbd.BASE_ALLOCATION.encode()
        data = pack(">I", len(name)) + name + pack(">II", 1, len(query)) + query
        self._ask(Option.SET_META_CONTEXT, data)
        found = None
        for _ in range(nbd.MAX_OPTION_REPLIES):
            reply = yield from self._reply(Option.SET_META_CONTEXT)
            if reply.kind == Reply.ACK:
                return found
            if reply.kind != Reply.META_CONTEXT:
                self._check_refusal(reply, Option.SET_META_CONTEXT)
                self._check_tls(reply)
                return None
            if len(reply.data) < 4:
                self._fail("sent a context that is too short")
            if reply.data[4:] == query:
                found = int.from_bytes(reply.data[:4], "big")
        self._fail("does not come to an end with SET_META_CONTEXT")

    def _go(self) -> Generator[int, bytes, Export | None]:
        """None: the server is too old for it."""
        name = self._name.encode()
        self._ask(Option.GO, pack(">I", len(name)) + name + pack(">HHH", 2, Info.BLOCK_SIZE, Info.NAME))
        export: Export | None = None
        told = Export(0, 0)
        for _ in range(nbd.MAX_OPTION_REPLIES):
            reply = yield from self._reply(Option.GO)
            if reply.kind == Reply.ACK:
                if export is None:
                    self._fail("agreed to GO without a word about the export")
                return told._replace(size=export.size, flags=export.flags)
            if reply.kind != Reply.INFO:
                self._check_refusal(reply, Option.GO)
                if reply.kind == Reply.ERR_UNSUP:
                    return None
                yield from self._refused(reply)
            if len(reply.data) < 2:
                self._fail("sent information that is too short")
            kind, data = int.from_bytes(reply.data[:2], "big"), reply.data[2:]
            if kind == Info.EXPORT:
                export = self._facts(data)
            else:
                told = self._told(told, kind, data)
        self._fail("does not come to an end with GO")

    def _refused(self, reply: _OptionReply) -> Generator[int, bytes, None]:
        """GO was refused: raise with the reason."""
        self._check_tls(reply)
        words = f": {readable(reply.data)}" if reply.data else ""
        if reply.kind == Reply.ERR_UNKNOWN:
            names = yield from self._list()
            hint = f"there {'is' if len(names) == 1 else 'are'}: {', '.join(map(repr, names))}" if names else ""
            hint = hint or (f"the server says{words}" if words else "the server does not say which it has")
            raise DoesNotFit(f"NBD server {self._place} has no export {self._name!r}", hint)
        text, hint = HINTS.get(Reply(reply.kind), ("refuses", "")) if reply.kind in list(Reply) else ("refuses", "")
        raise DoesNotFit(f"NBD server {self._place} {text} (export {self._name!r}){words}", hint)

    def _list(self) -> Generator[int, bytes, list[str]]:
        """Names of exports, as far as the server tells."""
        self._ask(Option.LIST)
        names: list[str] = []
        for _ in range(nbd.MAX_OPTION_REPLIES):
            reply = yield from self._reply(Option.LIST)
            if reply.kind != Reply.SERVER or len(names) == nbd.MAX_EXPORTS:
                break
            length = int.from_bytes(reply.data[:4], "big")
            if len(reply.data) < 4 + length or length > nbd.MAX_STRING:
                self._fail("sent a list of exports with a name that is too long")
            names.append(readable(reply.data[4 : 4 + length]))
        return names

    def _export_name(self, no_zeroes: bool) -> Generator[int, bytes, Export]:
        self._ask(Option.EXPORT_NAME, self._name.encode())
        data = yield EXPORT.size + (0 if no_zeroes else ZEROES)
        return self._facts(data[: EXPORT.size])

    # -- pieces --------------------------------------------------------------------------------------------

    def _ask(self, option: Option, data: bytes = b"") -> None:
        self._asking = option.name
        self._out += OPTION.pack(nbd.IHAVEOPT, option, len(data)) + data

    def _reply(self, option: Option) -> Generator[int, bytes, _OptionReply]:
        magic, about, kind, length = OPTION_REPLY.unpack((yield OPTION_REPLY.size))
        if magic != nbd.OPTION_REPLY_MAGIC:
            self._fail(f"sent an answer to {option.name} with the magic {magic:#x}")
        if about != option:
            self._fail(f"answered option {about} when it was asked for {option.name}")
        if length > nbd.MAX_OPTION_REPLY:
            self._fail(f"sent an answer to {option.name} of {length} bytes; {nbd.MAX_OPTION_REPLY} are the limit")
        data = (yield length) if length else b""
        return _OptionReply(kind, data)

    def _facts(self, data: bytes) -> Export:
        if len(data) != EXPORT.size:
            self._fail(f"sent {len(data)} bytes about the export, not {EXPORT.size}")
        size, flags = EXPORT.unpack(data)
        if size > nbd.MAX_SIZE:
            self._fail(f"says that the export has {size} bytes, more than any file")
        return Export(size, flags)

    def _told(self, export: Export, kind: int, data: bytes) -> Export:
        if kind == Info.BLOCK_SIZE:
            if len(data) != BLOCK_SIZES.size:
                self._fail("sent block sizes that are none")
            minimum, preferred, maximum = BLOCK_SIZES.unpack(data)
            sound = (
                _is_power(minimum)
                and _is_power(preferred)
                and minimum <= MINIMUM_BLOCK_LIMIT
                and minimum <= preferred <= nbd.MAX_BLOCK
                and maximum >= preferred
            )
            if not sound:
                self._fail(f"says that blocks have {minimum}, {preferred} and {maximum} bytes, which cannot be")
            return export._replace(
                minimum_block=minimum, preferred_block=preferred, maximum_payload=min(maximum, DEFAULT_PAYLOAD)
            )
        if kind == Info.NAME:
            return export._replace(name=readable(data))
        if kind == Info.DESCRIPTION:
            return export._replace(description=readable(data))
        return export

    def _check_refusal(self, reply: _OptionReply, option: Option) -> None:
        if not reply.kind & nbd.ERROR_BIT:
            self._fail(f"answered {option.name} with {reply.kind}, which is no answer to it")

    def _check_tls(self, reply: _OptionReply) -> None:
        if reply.kind == Reply.ERR_TLS_REQD:
            raise DoesNotFit(
                f"NBD server {self._place} wants TLS", "say tls=on or nbds://, and tls_ca=FILE for its certificate"
            )

    def _fail(self, what: str, hint: str = "see what is said there, and whether it is the right server") -> NoReturn:
        raise ImageError(f"NBD server {self._place} {what}", hint)


def readable(data: bytes) -> str:
    """A server's text, as far as it can be shown."""
    text = data[: nbd.MAX_STRING].decode("utf-8", "replace")[: nbd.MAX_ERROR_TEXT]
    return "".join(char if char.isprintable() else "?" for char in text)


def _shown(data: bytes) -> str:
    return repr(data.decode("ascii")) if data.isascii() and data.decode().isprintable() else data.hex(" ")


def _is_power(number: int) -> bool:
    return number > 0 and not number & (number - 1)
