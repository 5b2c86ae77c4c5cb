"""Who may watch together."""

from __future__ import annotations

import pytest

from tvmm.vnc.share import SharePolicy, Sharing


def test_allow_exclusive() -> None:
    """Who wants the screen alone gets it, the others go; who wants to share does not get one that is taken."""
    sharing = Sharing()
    assert sharing.enter("a", shared=True) == ("", ())
    assert sharing.enter("b", shared=True) == ("", ())
    assert sharing.enter("c", shared=False) == ("", ("a", "b"))
    assert "exclusively" in sharing.enter("d", shared=True).refusal
    assert sharing.enter("e", shared=False) == ("", ("c",))
    sharing.leave("e")
    sharing.leave("nobody")
    assert sharing.enter("d", shared=True) == ("", ())


def test_force_shared() -> None:
    """Nobody has it alone."""
    sharing = Sharing("force-shared")
    assert sharing.enter("a", shared=False).refusal
    assert sharing.enter("b", shared=True) == ("", ())


@pytest.mark.parametrize("shared", [False, True])
def test_ignore(shared: bool) -> None:
    """Whatever is asked for, all are in."""
    policy: SharePolicy = "ignore"
    sharing = Sharing(policy)
    for viewer in range(3):
        assert sharing.enter(viewer, shared=shared) == ("", ())
