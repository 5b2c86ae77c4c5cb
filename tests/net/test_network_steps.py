"""Journals of networks: written and read again; anything else is an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.errors import HostError
from tvmm.net.spec import Forward, Host, NetworkSpec, Port
from tvmm.net.steps import (
    Journal,
    RemoveBridge,
    RemoveFiles,
    RemoveTable,
    RestoreSettings,
    StopDnsmasq,
    read_journal,
    write_journal,
)

TEXT = st.text(max_size=8)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple)
UNDOS = st.one_of(
    st.builds(RemoveFiles, TEXT, st.lists(TEXT, max_size=3).map(tuple)),
    st.builds(RemoveTable, TEXT, TEXT),
    st.builds(RemoveBridge, TEXT, TEXT),
    st.builds(RestoreSettings, TEXT, PAIRS, PAIRS),
    st.builds(StopDnsmasq, TEXT),
)
SPECS = st.builds(
    NetworkSpec,
    TEXT,
    subnet=TEXT,
    nat=st.booleans(),
    isolated=st.booleans(),
    mtu=st.integers(0, 9000),
    dns=st.lists(TEXT, max_size=2).map(tuple),
    hosts=st.lists(st.builds(Host, TEXT, TEXT), max_size=2).map(tuple),
    forwards=st.lists(st.builds(Forward, TEXT, st.integers(1, 9), TEXT, st.integers(1, 9)), max_size=2).map(tuple),
    allows=st.lists(st.builds(Port, TEXT, st.integers(1, 9)), max_size=2).map(tuple),
)
JOURNALS = st.builds(
    Journal,
    SPECS,
    TEXT,
    st.integers(0, 1 << 32),
    st.lists(UNDOS, max_size=5).map(tuple),
    st.booleans(),
    st.dictionaries(TEXT, TEXT, max_size=3).map(lambda facts: tuple(facts.items())),
)


@given(JOURNALS)
def test_what_was_written_is_read(journal: Journal) -> None:
    """All of it."""
    assert read_journal(write_journal(journal), "x") == journal


WHOLE = json.loads(
    write_journal(
        Journal(
            NetworkSpec("lan", hosts=(Host("a"),)), "boot", 1,
            (RemoveTable("a", "b"), RestoreSettings("k", (("p", "1"),), (("p", "0"),)), RemoveFiles("d", ("f",))),
        )
    )
)  # fmt: skip


@st.composite
def mangled(draw: st.DrawFn) -> Any:
    """A journal with one value replaced by another, somewhere."""
    whole = json.loads(json.dumps(WHOLE))
    at: Any = whole
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = draw(st.sampled_from(keys))
        if isinstance(at[key], dict | list) and at[key] and draw(st.booleans()):
            at = at[key]
            continue
        at[key] = draw(st.one_of(st.none(), st.integers(), TEXT, st.just([]), st.just({}), st.just([[1, 2, 3]])))
        return whole


@given(mangled())
def test_a_spoilt_journal_is_an_error_or_well_formed(whole: Any) -> None:
    """Nothing that is read has a field of a wrong type."""
    try:
        journal = read_journal(json.dumps(whole), "x")
    except HostError:
        return
    assert read_journal(write_journal(journal), "x") == journal


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"version": 1}', "[" * 100_000, '{"version": 2}', "\0"])
def test_other_files_are_no_journals(text: str) -> None:
    """With the file's name, and what to do."""
    with pytest.raises(HostError, match=r"lan.json (cannot be read|was written by another version)"):
        read_journal(text, "lan.json")
