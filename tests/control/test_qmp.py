"""The QMP wire as a machine of bytes and events."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.control.framing import MAX_DEPTH, MAX_MESSAGE_BYTES, MAX_PENDING_BYTES
from tvmm.control.qmp import (
    NEGOTIATE,
    Answer,
    Argument,
    Hangup,
    QmpSession,
    Request,
    State,
    encode_event,
)

COMMANDS = {
    NEGOTIATE: (Argument("enable", "strings", required=False),),
    "ping": (),
    "set": (
        Argument("key", "string"),
        Argument("value", "integer"),
        Argument("loud", "boolean", required=False),
    ),
    "tune": (Argument("factor", "number", required=False), Argument("extra", "object", required=False)),
}
NEGOTIATION = b'{"execute": "qmp_capabilities"}'

Event = Request | Answer | Hangup


def session(negotiated: bool = True) -> QmpSession:
    """A session that takes COMMANDS."""
    new = QmpSession(COMMANDS)
    if negotiated:
        assert [reply(event) for event in events(new, NEGOTIATION)] == [{"return": {}}]
    return new


def events(of: QmpSession, data: bytes) -> list[Event]:
    """All that the session has to say to `data`, the hang-up once."""
    of.receive(data)
    found: list[Event] = []
    while (event := of.next_event()) is not None:
        found.append(event)
        if isinstance(event, Hangup):
            break
    return found


def reply(event: Event) -> Any:
    """The message in an answer."""
    assert isinstance(event, Answer)
    assert event.data.endswith(b"\r\n")
    return json.loads(event.data)


def error_of(of: QmpSession, data: bytes) -> tuple[str, str]:
    """Class and text of the one error that `data` gives."""
    [event] = events(of, data)
    error = reply(event)["error"]
    return error["class"], error["desc"]


def test_greeting() -> None:
    """The greeting has the members that the specification demands, in ASCII, with CRLF."""
    greeting = session(negotiated=False).greeting()
    assert greeting.endswith(b"\r\n")
    assert json.loads(greeting) == {
        "QMP": {
            "version": {"qemu": {"major": 0, "minor": 1, "micro": 0}, "package": "tvmm"},
            "capabilities": [],
        }
    }


def test_negotiation_comes_first() -> None:
    """Before qmp_capabilities every other command is not found, known or not; events are not wanted."""
    new = session(negotiated=False)
    for command in (b"ping", b"nonsense"):
        assert error_of(new, b'{"execute": "%s"}' % command)[0] == "CommandNotFound"
    assert not new.wants_events
    assert new.state is State.NEGOTIATING
    assert events(new, NEGOTIATION)
    assert new.wants_events


def test_negotiation_happens_once() -> None:
    """A second qmp_capabilities is not found."""
    assert error_of(session(), NEGOTIATION)[0] == "CommandNotFound"


def test_no_capability_can_be_enabled() -> None:
    """Enabling nothing negotiates; enabling something is refused and leaves the session where it was."""
    new = session(negotiated=False)
    enable = b'{"execute": "qmp_capabilities", "arguments": {"enable": [%s]}}'
    assert error_of(new, enable % b'"oob"')[0] == "GenericError"
    assert new.state is State.NEGOTIATING
    assert [reply(event) for event in events(new, enable % b"")] == [{"return": {}}]


def test_negotiation_and_command_in_one_packet() -> None:
    """Commands are interpreted in order: one that follows the negotiation in the same packet is accepted."""
    found = events(session(negotiated=False), NEGOTIATION + b'{"execute": "ping"}')
    assert reply(found[0]) == {"return": {}}
    assert found[1] == Request("ping", {}, ())


@pytest.mark.parametrize(
    "value", [1, "a", None, False, 1.5, [1, [2]], {"a": {}}, "\ud800", 10**90, -0.0, "\u00e9\U0001f600"]
)
def test_the_id_comes_back(value: object) -> None:
    """Whatever JSON value the client chose as id is in both kinds of answer, null included."""
    new = session()
    [request] = events(new, json.dumps({"execute": "ping", "id": value}).encode())
    assert isinstance(request, Request)
    assert json.loads(new.success(request, {})) == {"return": {}, "id": value}
    failure = json.loads(new.failure(request, "DeviceNotActive", "off"))
    assert failure == {"error": {"class": "DeviceNotActive", "desc": "off"}, "id": value}


def test_no_id_comes_back_if_there_was_none() -> None:
    """An answer to a request without id has none."""
    new = session()
    [request] = events(new, b'{"execute": "ping"}')
    assert isinstance(request, Request)
    assert json.loads(new.success(request, [1])) == {"return": [1]}


def test_errors_carry_the_id_once_it_is_known() -> None:
    """A request that is refused by the wire itself is still told apart by its id."""
    [event] = events(session(), b'{"execute": "nope", "id": 7}')
    assert reply(event)["id"] == 7


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        (b"[]", "object"),
        (b"{}", "execute"),
        (b'{"execute": 1}', "string"),
        (b'{"execute": "ping", "foo": 1}', "'foo'"),
        (b'{"exec-oob": "ping"}', "'exec-oob'"),
        (b'{"execute": "ping", "arguments": []}', "object"),
        (b'{"execute": "ping", "execute": "ping"}', "twice"),
        (b'{"execute": "ping", "id": NaN}', "NaN"),
        (b'{"execute": "ping", "id": 1e999}', "range"),
        (b'{"execute": "ping", "id": ' + b"9" * 200 + b"}", "digits"),
        (b'{"execute": "ping"]', "JSON"),
        (b"{'execute': 'ping'}", "JSON"),
        (b'{"execute": "\\q"}', "JSON"),
        (b'{"execute": "\xff"}', "JSON"),
        (b'{"execute": "set", "arguments": {"key": "a"}}', "'value' is missing"),
        (b'{"execute": "set", "arguments": {"key": "a", "value": 1, "odd": 2}}', "'odd'"),
        (b'{"execute": "set", "arguments": {"key": 1, "value": 1}}', "'key' must be a string"),
        (b'{"execute": "set", "arguments": {"key": "a", "value": true}}', "'value' must be an integer"),
        (b'{"execute": "set", "arguments": {"key": "a", "value": 1.0}}', "'value' must be an integer"),
        (b'{"execute": "set", "arguments": {"key": "a", "value": 9223372036854775808}}', "64 bits"),
        (b'{"execute": "set", "arguments": {"key": "a", "value": 1, "loud": 1}}', "'loud' must be true or"),
        (b'{"execute": "tune", "arguments": {"factor": "x"}}', "'factor' must be a number"),
        (b'{"execute": "tune", "arguments": {"extra": []}}', "'extra' must be an object"),
    ],
)
def test_bad_requests(message: bytes, hint: str) -> None:
    """Each way to get a request wrong gives one GenericError that names it, and the session goes on."""
    new = session()
    error_class, description = error_of(new, message)
    assert error_class == "GenericError"
    assert hint in description
    assert events(new, b'{"execute": "ping"}') == [Request("ping", {}, ())]


def test_capability_list_must_hold_strings() -> None:
    """The argument of qmp_capabilities is checked like any other."""
    message = b'{"execute": "qmp_capabilities", "arguments": {"enable": [1]}}'
    assert "array of strings" in error_of(session(negotiated=False), message)[1]


def test_good_arguments_arrive() -> None:
    """A request comes with its arguments as they were sent."""
    message = (
        b'{"execute": "set", "arguments": {"key": "\xc3\xa9", "value": -9223372036854775808, "loud": false}}'
    )
    [request] = events(session(), message)
    assert request == Request("set", {"key": "\u00e9", "value": -(1 << 63), "loud": False}, ())


@pytest.mark.parametrize("junk", [b"\xff", b"\x00", b"hello", b"3\n", b"}", b'"half', b"null,"])
def test_junk_between_messages_costs_one_error(junk: bytes) -> None:
    """Bytes that cannot begin a message give one error; the next message is read."""
    new = session()
    found = events(new, junk + b'{"execute": "ping"}')
    assert reply(found[0])["error"]["class"] == "GenericError"
    assert found[1:] == [Request("ping", {}, ())]


@pytest.mark.parametrize(
    ("half", "way_out"),
    [
        (b'{"execute": "pi', b"\x01"),
        (b'{"execute": "pi', b"\n"),
        (b'{"execute": ', b"\x01"),
        (b'{"execute": ', b"\xff"),
    ],
)
def test_half_a_message_can_be_abandoned(half: bytes, way_out: bytes) -> None:
    """A byte that JSON has no use for in that place ends the message with an error; the next one is read."""
    found = events(session(), half + way_out + b'\n{"execute": "ping"}')
    assert reply(found[0])["error"]["class"] == "GenericError"
    assert found[1:] == [Request("ping", {}, ())]


def test_a_message_may_span_lines_and_need_no_newline() -> None:
    """Messages are framed by their brackets."""
    two = b'{\n"execute":\r\n"ping"\t}{"execute":"ping","id":"}{\\"["}'
    assert events(session(), two) == [Request("ping", {}, ()), Request("ping", {}, ('}{"[',))]


def test_message_too_long() -> None:
    """A message over the limit ends the session with an error; what comes after is not kept."""
    new = session()
    found = events(new, b'{"id": "' + b"a" * MAX_MESSAGE_BYTES)
    assert "error" in reply(found[0])
    assert isinstance(found[1], Hangup)
    assert new.state is State.CLOSED
    assert not new.wants_events
    new.receive(NEGOTIATION * 10_000)
    assert new.pending_bytes == 0
    assert isinstance(new.next_event(), Hangup)


def test_message_of_exactly_the_limit() -> None:
    """The limit itself is allowed, one byte more is not, also when it is complete."""
    frame = b'{"execute": "ping", "id": "%s"}'
    room = MAX_MESSAGE_BYTES - len(frame % b"")
    [request] = events(session(), frame % (b"a" * room))
    assert isinstance(request, Request)
    assert isinstance(events(session(), frame % (b"a" * (room + 1)))[1], Hangup)


def test_nesting() -> None:
    """As many levels as allowed are read; one more ends the session."""
    depth = MAX_DEPTH - 1
    deep = b'{"execute": "ping", "id": ' + b"[" * depth + b"]" * depth + b"}"
    assert isinstance(events(session(), deep)[0], Request)
    assert isinstance(events(session(), b"[" * (MAX_DEPTH + 1))[1], Hangup)


def test_unread_input_is_bounded() -> None:
    """An owner that takes in more than it looks at closes the session, and nothing is kept."""
    new = session()
    for _ in range(100):
        new.receive(b'{"execute": "ping"} ' * 1000)
        assert new.pending_bytes <= MAX_PENDING_BYTES
    assert "error" in reply(events(new, b"")[0])
    assert new.state is State.CLOSED


def test_long_names_are_not_echoed_whole() -> None:
    """The client does not choose how long an error text is."""
    assert len(error_of(session(), b'{"execute": "%s"}' % (b"x" * 60_000))[1]) < 200


def test_event_message() -> None:
    """An event has its name, its data if there are any, and its time in seconds and microseconds."""
    assert json.loads(encode_event("STOP", None, 1_267_041_730_281_295)) == {
        "event": "STOP",
        "timestamp": {"seconds": 1_267_041_730, "microseconds": 281_295},
    }
    assert json.loads(encode_event("RESET", {"guest": True}, 0))["data"] == {"guest": True}


FRAGMENTS = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [
            b'{"execute": "ping"}',
            b'{"execute": "set", "arguments": {"key": "\\"", "value": 1}, "id": [{}]}',
            NEGOTIATION,
            b'{"execute":',
            b'"\\',
            b'"',
            b"\\",
            b"{",
            b"}",
            b"[",
            b"]",
            b"\r\n",
            b"\xff",
            b"[" * 40,
            b" " * 300,
        ]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ).map(lambda value: json.dumps({"execute": "ping", "id": value}).encode()),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(FRAGMENTS, max_size=20))
def test_any_bytes_give_answers_or_the_end(fragments: list[bytes]) -> None:
    """Whatever a client sends, every event is a request that was declared, valid JSON or the end."""
    new = QmpSession(COMMANDS)
    for fragment in fragments:
        for event in events(new, fragment):
            if isinstance(event, Request):
                assert event.command in COMMANDS
                json.loads(new.success(event, {}))
            elif isinstance(event, Answer):
                assert json.loads(event.data).keys() & {"return", "error"}
            else:
                assert new.state is State.CLOSED
        assert new.pending_bytes <= MAX_MESSAGE_BYTES


@settings(deadline=None, max_examples=200)
@given(st.lists(FRAGMENTS, max_size=8), st.lists(st.integers(0, 400), max_size=12))
def test_packets_do_not_matter(fragments: list[bytes], cuts: list[int]) -> None:
    """The same bytes give the same events however they are cut into packets."""
    data = b"".join(fragments)
    whole = events(QmpSession(COMMANDS), data)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = QmpSession(COMMANDS)
    found: list[Event] = []
    for start, end in pairwise(edges):
        if not found or not isinstance(found[-1], Hangup):
            found += events(pieces, data[start:end])
    assert found == whole


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(JSON_VALUES, st.sampled_from([None, 1]), st.booleans())
def test_every_json_value_survives_as_id(value: object, indent: int | None, ascii_only: bool) -> None:
    """However a request is laid out, its id comes back as the same value."""
    new = session()
    text = json.dumps({"execute": "ping", "id": value}, indent=indent, ensure_ascii=ascii_only)
    [request] = events(new, text.encode("utf-8"))
    assert isinstance(request, Request)
    assert json.loads(new.success(request, None))["id"] == value


def test_every_single_transition() -> None:
    """The states are those of the table: nothing leaves CLOSED, nothing goes back to NEGOTIATING."""
    for negotiated in (False, True):
        new = session(negotiated)
        events(new, b"[" * 100)
        assert new.state is State.CLOSED
        assert isinstance(events(new, NEGOTIATION)[0], Hangup)
        assert new.state is State.CLOSED
