"""Who gets the page, and what others get."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.metrics.http_rules import Page, Reply, Rules

HERE = [(b"host", b"127.0.0.1:9100")]
TOKEN = "0123456789abcdef"


def status(answer: Reply | Page) -> int:
    """Of an answer."""
    return 200 if isinstance(answer, Page) else answer.status


def test_page() -> None:
    """With whatever Accept header there is."""
    assert Rules().answer(b"GET", b"/metrics", [*HERE, (b"accept", b"text/plain")]) == Page("text/plain", False)
    assert Rules().answer(b"HEAD", b"/metrics?x=y", HERE) == Page("", True)


@pytest.mark.parametrize("target", [b"/", b"/metrics/", b"//metrics", b"*", b"http://127.0.0.1/metrics", b"/Metrics"])
def test_nothing_else_is_there(target: bytes) -> None:
    """One page."""
    assert status(Rules().answer(b"GET", target, HERE)) == 404


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE", b"get"])
def test_only_reading(method: bytes) -> None:
    """And the answer says what is possible."""
    answer = Rules().answer(method, b"/metrics", HERE)
    assert isinstance(answer, Reply)
    assert answer.status == 405
    assert (b"allow", b"GET, HEAD") in answer.headers


@pytest.mark.parametrize("host", [b"localhost", b"localhost:9100", b"LOCALHOST", b"127.0.0.1", b"[::1]:9100", b"[::1]"])
def test_names_of_this_host(host: bytes) -> None:
    """Addresses, and localhost."""
    assert status(Rules().answer(b"GET", b"/metrics", [(b"host", host)])) == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"host", b"evil.example")],
        [(b"host", b"evil.example:9100")],
        [(b"host", b"localhost:x")],
        [(b"host", b"localhost"), (b"host", b"localhost")],
        [(b"host", b"[::1")],
        [(b"host", b"\xff")],
    ],
)
def test_other_names_are_refused(headers: list[tuple[bytes, bytes]]) -> None:
    """A page that has made its own name lead here is refused; where other hosts may come, any name will do."""
    assert status(Rules().answer(b"GET", b"/metrics", headers)) == 403
    assert status(Rules(any_host=True).answer(b"GET", b"/metrics", headers)) == 200


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (b"Bearer " + TOKEN.encode(), 200),
        (b"bearer  " + TOKEN.encode(), 200),
        (b"Bearer " + TOKEN.encode() + b"x", 401),
        (b"Bearer", 401),
        (b"Basic " + TOKEN.encode(), 401),
        (TOKEN.encode(), 401),
        (b"Bearer \xff\xfe", 401),
    ],
)
def test_token(shown: bytes, expected: int) -> None:
    """The whole token, and nothing else; without it not even the path is told."""
    rules = Rules(TOKEN)
    headers = [*HERE, (b"authorization", shown)]
    assert status(rules.answer(b"GET", b"/metrics", headers)) == expected
    assert status(rules.answer(b"GET", b"/metrics", HERE)) == 401
    assert status(rules.answer(b"POST", b"/nowhere", HERE)) == 401
    twice = [*headers, (b"authorization", shown)]
    assert status(rules.answer(b"GET", b"/metrics", twice)) == 401


FIELDS = st.tuples(st.binary(max_size=9), st.binary(max_size=20))


@given(st.binary(max_size=20), st.binary(max_size=40), st.lists(FIELDS))
def test_nothing_raises(method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Whatever a request holds."""
    for rules in (Rules(), Rules(TOKEN), Rules(any_host=True)):
        assert status(rules.answer(method, target, [*HERE, *headers])) in (200, 401, 403, 404, 405)
