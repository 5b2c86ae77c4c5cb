"""Who gets what from the web console."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.vnc.web import PageFile
from tvmm.vnc.web_rules import MAX_COOKIES, Channel, Reply, Rules, console_url

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKEN = "Zm9vYmFyYmF6cXV4-_09"
FILES = {
    "/": PageFile(b"<p>", "text/html", '"a"'),
    "/index.html": PageFile(b"<p>", "text/html", '"a"'),
    "/x.js": PageFile(b"1", "text/javascript", '"b"'),
}
RULES = Rules(TOKEN, FILES, ["vm.example.org"], secure=False)
HOST = (b"host", b"127.0.0.1:6080")
COOKIE = (b"cookie", f"{RULES.cookie}={TOKEN}".encode())
UPGRADE = [
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
]
ORIGIN = (b"origin", b"http://127.0.0.1:6080")


def ask(target: str, *headers: tuple[bytes, bytes], method: bytes = b"GET", rules: Rules = RULES) -> Reply | Channel:
    """What the rules say."""
    return rules.answer(method, target.encode("latin-1"), [HOST, *headers])


def status(answer: Reply | Channel) -> int:
    """An answer's status code."""
    return 101 if isinstance(answer, Channel) else answer.status


def test_the_printed_address_opens_the_page_and_leaves_a_cookie() -> None:
    """The first request has the token in its URL; the answer is the page itself."""
    answer = ask(console_url("127.0.0.1", 6080, TOKEN, secure=False).removeprefix("http://127.0.0.1:6080"))
    assert isinstance(answer, Reply)
    assert (answer.status, answer.body) == (200, b"<p>")
    cookie = dict(answer.headers)[b"set-cookie"].decode()
    assert cookie == f"{RULES.cookie}={TOKEN}; Path=/; HttpOnly; SameSite=Strict"


def test_console_url_has_brackets_around_ipv6() -> None:
    """As URLs want it."""
    assert console_url("::1", 1, "t", secure=True) == "https://[::1]:1/?token=t"


def test_cookies_are_kept_to_https_where_there_is_tls() -> None:
    """A cookie of https is not sent in the clear."""
    answer = ask(f"/?token={TOKEN}", rules=Rules(TOKEN, FILES, secure=True))
    assert isinstance(answer, Reply)
    assert dict(answer.headers)[b"set-cookie"].endswith(b"; Secure")


def test_two_consoles_on_one_host_have_cookies_of_their_own() -> None:
    """Cookies ignore ports."""
    assert Rules("other", FILES, secure=False).cookie != RULES.cookie


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/", []),
        ("/?token=", []),
        (f"/?token={TOKEN}x", []),
        (f"/?token={TOKEN[:-1]}", []),
        (f"/?token={TOKEN}&token={TOKEN}", []),
        ("/?token=wrong", [COOKIE]),
        ("/x.js", [(b"cookie", f"{RULES.cookie}=wrong".encode())]),
        ("/x.js", [COOKIE, (b"cookie", f"{RULES.cookie}=wrong".encode())]),
        ("/x.js", [(b"cookie", f"{RULES.cookie}".encode())]),
        ("/x.js", [(b"cookie", b"a=b;" * (MAX_COOKIES + 1) + COOKIE[1])]),
        ("/x.js", [(b"cookie", b"\xff\xfe=\x80")]),
        ("/none", []),
        ("/?token=\xff", []),
        ("/vnc", [*UPGRADE, ORIGIN]),
    ],
)
def test_nothing_without_the_token(target: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Not even word whether there is such a page."""
    assert status(ask(target, *headers)) == 403


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        (b"127.0.0.1", True),
        (b"127.0.0.1:1", True),
        (b"10.1.2.3:6080", True),
        (b"[::1]:6080", True),
        (b"[2001:db8::1]", True),
        (b"LOCALHOST:80", True),
        (b"vm.example.org:6080", True),
        (b"evil.example.org:6080", False),
        (b"127.0.0.1.evil.example.org", False),
        (b"[::1%eth0]", False),
        (b"[127.0.0.1]", False),
        (b"::1", False),
        (b"", False),
        (b"localhost:", True),
        (b"localhost:x", False),
        (b"localhost; script-src *", False),
        (b"localhost:80; x", False),
        (b"\xff", False),
    ],
)
def test_hosts(host: bytes, fits: bool) -> None:
    """Addresses and told names only: a page that lets its own name lead here is refused even with the token."""
    answer = RULES.answer(b"GET", b"/", [(b"host", host), COOKIE])
    assert status(answer) == (200 if fits else 403)


def test_two_hosts_are_none() -> None:
    """What a proxy and the console might read differently is refused."""
    assert status(RULES.answer(b"GET", b"/", [HOST, HOST, COOKIE])) == 403


@pytest.mark.parametrize("path", ["/../etc/passwd", "/..%2fetc/passwd", "/%2e%2e/x", "//x.js", "/X.JS", "x.js", "*"])
def test_only_the_table_is_served(path: str) -> None:
    """A path is a key, never a file's name."""
    assert status(ask(path, COOKIE)) == 404


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"OPTIONS", b"TRACE"])
def test_only_reading(method: bytes) -> None:
    """Nothing is changed by a request."""
    assert status(ask("/", COOKIE, method=method)) == 405


def test_every_answer_has_the_headers_that_keep_others_out() -> None:
    """The page runs only its own scripts, is framed by nobody, and tells nobody its address."""
    for answer in (ask("/", COOKIE), ask("/none", COOKIE), ask("/")):
        assert isinstance(answer, Reply)
        headers = dict(answer.headers)
        assert headers[b"x-content-type-options"] == b"nosniff"
        assert headers[b"referrer-policy"] == b"no-referrer"
        assert headers[b"x-frame-options"] == b"DENY"
    page = ask("/", COOKIE)
    assert isinstance(page, Reply)
    policy = dict(page.headers)[b"content-security-policy"]
    assert policy.startswith(b"default-src 'self'; ")
    assert b"unsafe" not in policy
    assert b"frame-ancestors 'none'" in policy


def test_a_browser_that_has_the_file_gets_no_second_copy() -> None:
    """Fifty modules come with every reload."""
    answer = ask("/x.js", COOKIE, (b"if-none-match", b'"b"'))
    assert isinstance(answer, Reply)
    assert (answer.status, answer.body) == (304, b"")
    assert status(ask("/x.js", COOKIE, (b"if-none-match", b'"a"'))) == 200


def test_the_websocket_handshake_is_rfc_6455s() -> None:
    """The example of section 1.3."""
    answer = ask("/vnc", *UPGRADE, ORIGIN, COOKIE, (b"sec-websocket-protocol", b"base64, binary"))
    assert isinstance(answer, Channel)
    headers = dict(answer.headers)
    assert headers[b"sec-websocket-accept"] == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert headers[b"sec-websocket-protocol"] == b"binary"


def test_no_subprotocol_that_was_not_offered() -> None:
    """A browser would fail such a connection."""
    for path in ("/vnc", "/panel"):
        answer = ask(path, *UPGRADE, ORIGIN, COOKIE)
        assert isinstance(answer, Channel)
        assert b"sec-websocket-protocol" not in dict(answer.headers)


@pytest.mark.parametrize(
    ("origins", "target", "expected"),
    [
        ([b"http://127.0.0.1:6080"], "/vnc", 101),
        ([b"https://127.0.0.1:6080"], "/vnc", 101),
        ([b"http://evil.example.org"], "/vnc", 403),
        ([b"http://127.0.0.1:6081"], "/vnc", 403),
        ([b"http://127.0.0.1"], "/vnc", 403),
        ([b"null"], "/vnc", 403),
        ([b""], "/vnc", 403),
        ([b"\xff"], "/vnc", 403),
        ([b"http://127.0.0.1:6080", b"http://127.0.0.1:6080"], "/vnc", 403),
        ([], "/vnc", 403),
        ([], f"/vnc?token={TOKEN}", 101),
        ([b"http://evil.example.org"], f"/vnc?token={TOKEN}", 403),
    ],
)
def test_websockets_are_for_the_consoles_own_page(origins: list[bytes], target: str, expected: int) -> None:
    """A page of another site has the browser's cookie at most; a program has the token."""
    headers = [*UPGRADE, COOKIE, *((b"origin", each) for each in origins)]
    assert status(ask(target, *headers)) == expected


@pytest.mark.parametrize("missing", range(len(UPGRADE)))
def test_half_an_upgrade_is_none(missing: int) -> None:
    """Each header of the handshake counts; `connection` is h11's affair."""
    headers = [each for index, each in enumerate(UPGRADE) if index != missing]
    expected = 101 if UPGRADE[missing][0] == b"connection" else 426
    assert status(ask("/vnc", *headers, ORIGIN, COOKIE)) == expected


NAMES = st.sampled_from([b"host", b"cookie", b"origin", b"upgrade", b"sec-websocket-key", b"if-none-match", b"x"])


@given(
    st.sampled_from([b"GET", b"HEAD", b"POST"]),
    st.one_of(st.binary(max_size=60), st.sampled_from([b"/", b"/vnc", b"/panel?a&b&c&d&e&f&g&h&i&j"])),
    st.lists(st.tuples(NAMES, st.one_of(st.binary(max_size=60), st.sampled_from([HOST[1], ORIGIN[1]]))), max_size=8),
)
def test_no_request_without_the_token_gets_anything(
    method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """Whatever comes is answered, and never with more than a refusal."""
    assert status(RULES.answer(method, target, headers)) in (400, 403)
