"""The QMP wire: bytes in, events out; no socket, no clock, no machine.

A session reads what its client sends and says what is to be done about it::

                        qmp_capabilities accepted
        NEGOTIATING ────────────────────────────────> COMMAND
             │                                           │
             └───────────────> CLOSED <──────────────────┘
                        a limit was exceeded

Whoever owns the socket calls `receive` with what came in and then `next_event` until it returns None: an
`Answer` is to be sent as it is, a `Request` to be carried out and answered by `success` or `failure`, a
`Hangup` ends the connection. A request is complete, known and has arguments that fit its signature before it
is seen at all.

The format is that of QEMU's docs/interop/qmp-spec.rst. Clients do not end their messages with a newline (the
`qemu.qmp` package does not), so a message is framed by its brackets. A syntax error costs the client one
error answer and what it sent up to the next newline or opening bracket; exceeding a limit costs it the
connection, since nobody does so by accident.

Rejected: parsing whole lines (see above); a parser of our own that builds values as bytes come in, because
finding the last bracket takes ten lines and the rest is left to `json`.
"""

from __future__ import annotations

import json
import math
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tvmm import __version__
from tvmm.control.framing import BadSyntax, Framer, LimitExceeded
from tvmm.errors import TvmmError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from tvmm.control.target import Json

    ErrorClass: TypeAlias = Literal[
        "GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound", "KVMMissingCap"
    ]
    Kind: TypeAlias = Literal["string", "integer", "number", "boolean", "strings", "object", "objects"]

__all__ = [
    "NEGOTIATE",
    "VERSION",
    "Answer",
    "Argument",
    "CommandFailed",
    "Hangup",
    "QmpSession",
    "Request",
    "State",
    "encode_error",
    "encode_event",
    "fits",
    "version_info",
]

VERSION = tuple(map(int, __version__.split(".")))  # noqa: RUF048 - a test says that it has numbers only
"""tvmm's version, as clients are told: major, minor, micro."""

MAX_DIGITS = 100
"""Digits of an integer. Python takes quadratic time for them."""
MAX_ECHO = 80
"""Characters of what a client sent that an error text repeats: it must not choose how long our answers
are."""

NEGOTIATE = "qmp_capabilities"


class Argument(NamedTuple):
    """One argument of a command's signature."""

    name: str
    kind: Kind
    required: bool = True


class Request(NamedTuple):
    """A command to be carried out, checked against its signature."""

    command: str
    arguments: Mapping[str, Any]
    identity: tuple[Json, ...]
    """The client's `id` for it, as a tuple of none or one, because null is an id too."""


class Answer(NamedTuple):
    """Bytes to send, for something that needs nothing done."""

    data: bytes


class Hangup(NamedTuple):
    """The session is over; close the connection once what is queued has been sent."""

    reason: str


class State(Enum):
    """Where a session is."""

    NEGOTIATING = "negotiating"
    COMMAND = "command"
    CLOSED = "closed"


_TRANSITIONS = {
    (State.NEGOTIATING, "negotiated"): State.COMMAND,
    (State.NEGOTIATING, "exceeded"): State.CLOSED,
    (State.COMMAND, "exceeded"): State.CLOSED,
}


class CommandFailed(TvmmError):
    """What a verb raises to refuse, with a class of error that clients tell apart."""

    def __init__(self, error_class: ErrorClass, description: str) -> None:
        super().__init__(description)
        self.error_class = error_class


class _Refused(Exception):
    """What the client asks for cannot be done. Never leaves this module."""

    def __init__(self, description: str, error_class: ErrorClass = "GenericError") -> None:
        super().__init__(description)
        self.error_class = error_class


class QmpSession:
    """One client's session. `commands` maps each command to its signature, that of `qmp_capabilities`
    included."""

    def __init__(self, commands: Mapping[str, tuple[Argument, ...]]) -> None:
        self.state = State.NEGOTIATING
        self._commands = commands
        self._framer = Framer()
        self._hangup: Hangup | None = None

    @property
    def wants_events(self) -> bool:
        """Whether the client is to be sent what happens to the machine: once it has negotiated."""
        return self.state is State.COMMAND

    @property
    def pending_bytes(self) -> int:
        """What is kept of the client's bytes; never more than `MAX_PENDING_BYTES`."""
        return self._framer.pending_bytes

    def greeting(self) -> bytes:
        """The first thing to send."""
        return _encode({"QMP": {"version": version_info(), "capabilities": []}})

    def receive(self, data: bytes) -> None:
        """Take in what the client sent. Of a closed session nothing is kept."""
        if self.state is not State.CLOSED:
            self._framer.feed(data)

    def next_event(self) -> Request | Answer | Hangup | None:
        """What to do next, or None to wait for more data. A closed session gives `Hangup` for ever."""
        if self._hangup is not None:
            return self._hangup
        try:
            message = self._framer.next_message()
        except BadSyntax as error:
            return Answer(encode_error("GenericError", str(error)))
        except LimitExceeded as error:
            self._move("exceeded")
            self._hangup = Hangup(str(error))
            return Answer(encode_error("GenericError", str(error)))
        return None if message is None else self._interpret(message)

    def success(self, request: Request, value: Json) -> bytes:
        """The answer to a request that was carried out. `value` must be JSON: TypeError or ValueError if
        not."""
        return _encode({"return": value, **_identity(request.identity)})

    def failure(self, request: Request, error_class: ErrorClass, description: str) -> bytes:
        """The answer to a request that was refused."""
        return encode_error(error_class, description, request.identity)

    def _move(self, event: str) -> None:
        self.state = _TRANSITIONS[self.state, event]

    def _interpret(self, message: bytes) -> Request | Answer:
        """What one whole message asks for."""
        identity: tuple[Json, ...] = ()
        try:
            members = _decode(message)
            if not isinstance(members, dict):
                raise _Refused("a message must be a JSON object")
            if "id" in members:
                identity = (members["id"],)
            request = self._request(members, identity)
            if request.command != NEGOTIATE:
                return request
            if request.arguments.get("enable"):
                raise _Refused("there is no capability to enable")
            self._move("negotiated")
            return Answer(self.success(request, {}))
        except _Refused as error:
            return Answer(encode_error(error.error_class, str(error), identity))

    def _request(self, members: dict[str, Any], identity: tuple[Json, ...]) -> Request:
        for member in members:
            if member not in ("execute", "arguments", "id"):
                raise _Refused(f"unknown member {_shown(member)} in the message")
        if "execute" not in members:
            raise _Refused("the message has no member 'execute'")
        command = members["execute"]
        if not isinstance(command, str):
            raise _Refused("'execute' must be a string")
        arguments = members.get("arguments", {})
        if not isinstance(arguments, dict):
            raise _Refused("'arguments' must be an object")
        if self.state is State.NEGOTIATING and command != NEGOTIATE:
            raise _Refused(f"negotiate with {NEGOTIATE!r} before any other command", "CommandNotFound")
        if self.state is State.COMMAND and command == NEGOTIATE:
            raise _Refused("negotiation is over, the command was ignored", "CommandNotFound")
        if command not in self._commands:
            raise _Refused(f"there is no command {_shown(command)}", "CommandNotFound")
        _check_arguments(self._commands[command], arguments)
        return Request(command, arguments, identity)


def _check_arguments(signature: tuple[Argument, ...], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the signature does not have, that lack one or that have the wrong type."""
    known = {argument.name: argument for argument in signature}
    for name, value in arguments.items():
        if name not in known:
            raise _Refused(f"unknown argument {_shown(name)}")
        if not fits(known[name], value):
            raise _Refused(f"argument {name!r} must be {_KINDS[known[name].kind][1]}")
    for argument in signature:
        if argument.required and argument.name not in arguments:
            raise _Refused(f"argument {argument.name!r} is missing")


# type() and not isinstance(): True is an int. Integers are those of QAPI, of 64 bits.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "string": (lambda value: type(value) is str, "a string"),
    "integer": (lambda value: type(value) is int and -(1 << 63) <= value < 1 << 63, "an integer of 64 bits"),
    "number": (lambda value: type(value) in (int, float), "a number"),
    "boolean": (lambda value: type(value) is bool, "true or false"),
    "strings": (
        lambda value: type(value) is list and all(type(item) is str for item in value),
        "an array of strings",
    ),
    "object": (lambda value: type(value) is dict, "an object"),
    "objects": (
        lambda value: type(value) is list and all(type(item) is dict for item in value),
        "an array of objects",
    ),
}


def fits(argument: Argument, value: object) -> bool:
    """Whether `value` has the type that `argument` wants."""
    return _KINDS[argument.kind][0](value)


def version_info() -> dict[str, Json]:
    """QAPI's VersionInfo. The member is called `qemu` because clients look for it there."""
    major, minor, micro = VERSION
    return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": "tvmm"}


def encode_event(name: str, data: Mapping[str, Json] | None, time_us: int) -> bytes:
    """The message for an event that happened `time_us` microseconds after 1970."""
    seconds, microseconds = divmod(time_us, 1_000_000)
    event: dict[str, Json] = {"timestamp": {"seconds": seconds, "microseconds": microseconds}, "event": name}
    if data is not None:
        event["data"] = data
    return _encode(event)


def encode_error(error_class: ErrorClass, description: str, identity: tuple[Json, ...] = ()) -> bytes:
    """The message for an error."""
    return _encode({"error": {"class": error_class, "desc": description}, **_identity(identity)})


def _identity(identity: tuple[Json, ...]) -> dict[str, Json]:
    return {"id": identity[0]} if identity else {}


def _encode(message: Mapping[str, Json]) -> bytes:
    # ASCII, as the specification wants it; also the one way to echo half a surrogate pair.
    return json.dumps(message, allow_nan=False).encode("ascii") + b"\r\n"


def _shown(text: str) -> str:
    """What a client sent, short enough for an error text."""
    return repr(text if len(text) <= MAX_ECHO else text[:MAX_ECHO] + "...")


def _decode(message: bytes) -> object:
    """The value of one message. What Python's decoder takes beyond JSON, and could not be echoed, is
    refused."""
    try:
        return _DECODER.decode(message.decode("utf-8"))
    except ValueError as error:
        # JSONDecodeError, UnicodeDecodeError, and those of the functions below.
        reason = getattr(error, "msg", None) or getattr(error, "reason", None) or str(error)
        raise _Refused(f"this is not JSON: {reason}") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


def _short(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return int(text)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has a member twice")
    return members


_DECODER = json.JSONDecoder(
    parse_float=_finite, parse_int=_short, parse_constant=_no_constant, object_pairs_hook=_no_repeats
)
