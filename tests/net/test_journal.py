"""What is written into aliases, and read from them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.errors import ConfigError
from tvmm.net.journal import ALIAS_LIMIT, Changes, Owner, is_alive, myself, read_alias, write_alias

OWNERS = st.builds(Owner, st.integers(0, 1 << 22), st.integers(0, 1 << 63), st.integers(0, 1 << 32))
NAMES = st.from_regex(r"[a-z0-9=_.-]{0,15}", fullmatch=True)
CHANGES = st.one_of(
    st.just(Changes(made=True)),
    st.builds(
        Changes,
        made=st.just(False),
        down=st.booleans(),
        mtu=st.none() | st.integers(68, 65535),
        master=st.none() | NAMES,
        shared=st.booleans(),
        ip=st.lists(st.sampled_from(["10.0.2.2/24", "fd00::1/64"]), max_size=3).map(tuple),
        alias=st.text(st.characters(codec="ascii", min_codepoint=32), max_size=60),
    ),
)


@given(OWNERS, CHANGES)
def test_what_was_written_is_read(owner: Owner, changes: Changes) -> None:
    """Everything comes back, even an alias that looks like ours."""
    assert read_alias(write_alias(owner, changes)) == (owner, changes)


@given(st.text(max_size=40))
def test_other_aliases_are_not_ours(text: str) -> None:
    """Whatever somebody writes there, nothing is undone for it."""
    assert read_alias(text) is None
    assert read_alias(f"tvmm:{text}") is None or ":" in text


@pytest.mark.parametrize(
    "words", ["made up", "mtu", "mtu=", "mtu=x", "mtu=-1", "mtu=12345678901", "master", "ip=", "down=1", "reboot"]
)
def test_an_unknown_word_spoils_it(words: str) -> None:
    """Of a later version, perhaps: not understood as a whole, not touched."""
    assert read_alias(f"tvmm:1:2:3:{words}") is None
    assert read_alias("tvmm:1:2:3:down") is not None


def test_too_much_to_undo() -> None:
    """Nothing is changed that could not be written down."""
    fits = Changes(alias="x" * (ALIAS_LIMIT - len("tvmm:1:2:3:alias=")))
    assert len(write_alias(Owner(1, 2, 3), fits)) == ALIAS_LIMIT
    with pytest.raises(ConfigError, match="its alias has no room to say so; give it its addresses beforehand"):
        write_alias(Owner(1, 2, 3), fits._replace(down=True))


def test_owners_live_and_die() -> None:
    """A number alone is no owner; of other namespaces nothing is known."""
    me = myself()
    assert me.pid == os.getpid()
    assert is_alive(me)
    assert not is_alive(me._replace(start=me.start + 1))
    assert is_alive(me._replace(start=me.start + 1, namespace=me.namespace + 1))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with open(f"/proc/{process.pid}/stat", "rb") as file:
            start = int(file.read().rpartition(b")")[2].split()[19])
        other = Owner(process.pid, start, me.namespace)
        assert is_alive(other)
        process.kill()
        # Dead, but not yet waited for.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(other)
    assert not is_alive(other)
