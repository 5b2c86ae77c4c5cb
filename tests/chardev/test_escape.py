"""The escape machine and the line editor, bytes in and events out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.chardev.editor import MAX_LINE, EditKind, LineEditor
from tvmm.chardev.escape import PROMPT, Escape, Event, Kind, State, key_name

A = b"\x01"
TYPED = st.lists(
    st.sampled_from(
        [A, b"c", b"x", b"b", b"h", b"?", b"\r", b"\n", b"\x7f", b"\x15", b"\x04", b"\x1b[A", b"ok"]
    )
    | st.binary(max_size=4),
    max_size=30,
).map(b"".join)


def events(machine: Escape, *pieces: bytes) -> list[Event]:
    """What the pieces cause, neighbouring SENDs and ECHOs joined."""
    joined: list[Event] = []
    for piece in pieces:
        for event in machine.feed(piece):
            if joined and event.kind is joined[-1].kind and event.kind in (Kind.SEND, Kind.ECHO):
                joined[-1] = Event(event.kind, joined[-1].data + event.data)
            else:
                joined.append(event)
    return joined


def sent(found: list[Event]) -> bytes:
    """What goes to the guest."""
    return b"".join(event.data for event in found if event.kind is Kind.SEND)


@settings(deadline=None, max_examples=300)
@given(TYPED, st.lists(st.integers(0, 60), max_size=6), st.booleans())
def test_cuts_make_no_difference(typed: bytes, cuts: list[int], prompt: bool) -> None:
    """The same bytes give the same events, however they are cut into pieces."""
    places = sorted({min(cut, len(typed)) for cut in cuts} | {0, len(typed)})
    pieces = [typed[start:stop] for start, stop in pairwise(places)]
    whole, cut = Escape(prompt=prompt), Escape(prompt=prompt)
    assert events(whole, typed) == events(cut, *pieces)
    assert whole.state == cut.state


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=100), st.integers(1, 31))
def test_guest_can_be_sent_anything(data: bytes, key: int) -> None:
    """Any bytes reach the guest unchanged when the escape key is typed twice, whichever key it is."""
    typed = data.replace(bytes([key]), bytes([key, key]))
    machine = Escape(key=key)
    assert sent(events(machine, typed)) == data
    assert machine.state is State.GUEST


@settings(deadline=None, max_examples=200)
@given(TYPED)
def test_prompt_and_resume_alternate(typed: bytes) -> None:
    """Each PROMPT is followed by a RESUME before the next, and nothing is sent to the guest between them."""
    at_prompt = False
    machine = Escape()
    for event in machine.feed(typed):
        if event.kind in (Kind.PROMPT, Kind.RESUME):
            assert at_prompt is (event.kind is Kind.RESUME)
            at_prompt = not at_prompt
        elif event.kind is Kind.SEND:
            assert not at_prompt
        elif event.kind is Kind.COMMAND:
            assert at_prompt
            assert event.data == event.data.strip() != b""
    assert machine.at_prompt is at_prompt


@settings(deadline=None, max_examples=200)
@given(TYPED)
def test_console_knows_neither_prompt_nor_break(typed: bytes) -> None:
    """Without a prompt only input, help and quit come out."""
    machine = Escape(prompt=False)
    assert {event.kind for event in machine.feed(typed)} <= {Kind.SEND, Kind.HELP, Kind.QUIT}


@pytest.mark.parametrize(
    ("key", "kind"), [(b"x", Kind.QUIT), (b"h", Kind.HELP), (b"?", Kind.HELP), (b"b", Kind.BREAK)]
)
def test_keys_keep_their_place_among_input(key: bytes, kind: Kind) -> None:
    """An order comes between what was typed before and after it."""
    assert events(Escape(), b"one" + A + key + b"two") == [
        Event(Kind.SEND, b"one"),
        Event(kind),
        Event(Kind.SEND, b"two"),
    ]


def test_unknown_key_is_swallowed() -> None:
    """A key that means nothing behind the escape does not reach the guest."""
    assert events(Escape(), A + b"z" + b"a") == [Event(Kind.SEND, b"a")]


@pytest.mark.parametrize("way_back", [b"c\r", A + b"c", b"\x04", b"  c \n"])
def test_ways_back_from_the_prompt(way_back: bytes) -> None:
    """A line that is `c`, the escape and `c`, and ^D on an empty line return to the guest."""
    machine = Escape()
    assert events(machine, A + b"c")[0] == Event(Kind.PROMPT)
    assert events(machine, way_back)[-1] == Event(Kind.RESUME)
    assert events(machine, b"hello") == [Event(Kind.SEND, b"hello")]


def test_command_is_edited_and_echoed() -> None:
    """A command comes out as edited, after its echo and before a new prompt."""
    assert events(Escape(), A + b"cstop\x7f\x7fatus\r") == [
        Event(Kind.PROMPT),
        Event(Kind.ECHO, b"\r\n" + PROMPT + b"stop" + b"\b \b" * 2 + b"atus\r\n"),
        Event(Kind.COMMAND, b"status"),
        Event(Kind.ECHO, PROMPT),
    ]


def test_half_typed_command_is_forgotten() -> None:
    """A line left unfinished is not there at the next prompt."""
    machine = Escape()
    events(machine, A + b"chalf" + A + b"c")
    assert Event(Kind.COMMAND, b"info") in events(machine, A + b"cinfo\r")


def test_help_names_the_key() -> None:
    """The help tells the key that is configured, and only what works."""
    assert key_name(0x1D) == "Ctrl-]"
    assert b"Ctrl-] x" in Escape(key=0x1D).help()
    assert b"prompt" not in Escape(prompt=False).help()


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (b"info\r", b"info"),
        (b"in\x1b[A\x1b[1;5Cfo\x1bOP\n", b"info"),
        ("größe\x7f\x7f\x7fn\r".encode(), b"grn"),
        (b"one two  \x17three\r", b"one three"),
        (b"one two\x15three\r", b"three"),
        (b"one\x03\r", b""),
        (b"\x7f\x7fa\r", b"a"),
        (b"a\x04\x02b\r", b"ab"),
    ],
)
def test_line_editing(typed: bytes, line: bytes) -> None:
    """Erasing removes whole characters, words, lines; cursor keys and control characters leave no trace."""
    editor = LineEditor()
    *echoes, last = [editor.feed(byte) for byte in typed]
    assert {edit.kind for edit in echoes} <= {EditKind.ECHO}
    assert (last.kind, last.data) == (EditKind.LINE, line)


def test_line_is_bounded() -> None:
    """What exceeds the longest line rings the bell and is dropped."""
    editor = LineEditor()
    edits = [editor.feed(ord("a")) for _ in range(MAX_LINE + 5)]
    assert edits[-1].data == b"\a"
    assert len(editor.line) == MAX_LINE


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(codec="utf-8", min_codepoint=0x20, exclude_characters="\x7f"), max_size=20))
def test_erasing_all_clears_what_was_echoed(text: str) -> None:
    """^U emits one erasure for each character that is in the line."""
    editor = LineEditor()
    for byte in text.encode():
        editor.feed(byte)
    assert editor.feed(0x15).data == b"\b \b" * len(text)
    assert not editor.line
