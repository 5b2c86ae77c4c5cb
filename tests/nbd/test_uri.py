"""Addresses of exports: what is read, what is refused in which words, and the way back."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.errors import ConfigError
from tvmm.nbd.uri import NbdAddress, is_nbd, parse_uri

GOOD = {
    "nbd://example.com:10809/export": NbdAddress("export", "example.com"),
    "nbd://example.com": NbdAddress("", "example.com"),
    "nbd://example.com/": NbdAddress("", "example.com"),
    "nbd://example.com//disk": NbdAddress("/disk", "example.com"),
    "nbd://example.com/hello%20world": NbdAddress("hello world", "example.com"),
    "nbd://[::1]:99/a/b": NbdAddress("a/b", "::1", 99),
    "nbds://h:1/x?tls-hostname=www": NbdAddress("x", "h", 1, tls=True, tls_hostname="www"),
    "nbd+unix:///disk?socket=sock": NbdAddress("disk", path="sock"),
    "nbd+unix://?socket=/run/a%20b": NbdAddress("", path="/run/a b"),
    "nbds+unix:///?socket=/s&tls-hostname=h": NbdAddress("", path="/s", tls=True, tls_hostname="h"),
    "NBD://h/%C3%A9": NbdAddress("é", "h"),
}

BAD = {
    "nbd://": "names no host",
    "nbd:///x": "names no host",
    "nbd://h:0/": "out of range",
    "nbd://h:x/": "is not a whole number",
    "nbd://h:99999/": "out of range",
    "nbd://[::1/": "is not a URI",
    "nbd://u@h/": "names a user",
    "nbd://h/a#b": "in the name of an export it is written %23",
    "nbd://h/?socket=/s": "'socket' goes with nbd+unix://",
    "nbd://h/?tls-type=psk": "there are: tls-hostname",
    "nbd://h/?tls-hostname=a": "tls-hostname without TLS",
    "nbd+unix:///x": "names no socket",
    "nbd+unix:///x?socket=": "names no socket",
    "nbd+unix://h/x?socket=/s": "three slashes",
    "nbd+unix:///x?socket=/s&socket=/t": "socket twice",
    "nbd+unix:///x?socket=%00abc": "NUL",
    "nbd+unix:///x?socket=/" + "s" * 107: "too long",
    "nbd://h/%ff": "not UTF-8",
    "nbd://h/%4": "stands for nothing",
    "nbd://h/%zz": "stands for nothing",
    "nbd://h/" + "x" * 4097: "too long",
    "nbd://h/a\nb": "characters that no address has",
    "http://h/": "has the scheme 'http'",
}


@pytest.mark.parametrize("text", GOOD)
def test_good(text: str) -> None:
    """Every part is where it belongs, and the spelling is read as the same."""
    assert parse_uri(text) == GOOD[text]
    assert parse_uri(GOOD[text].spelling) == GOOD[text]
    assert is_nbd(text)


@pytest.mark.parametrize("text", BAD)
def test_bad(text: str) -> None:
    """One line that names what is wrong."""
    with pytest.raises(ConfigError) as caught:
        parse_uri(text)
    assert BAD[text] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a.img", "nbd", "nbd:10", "/nbd://x", "./nbd+unix:///", "file:///x", "snbd://x"])
def test_files_are_no_addresses(text: str) -> None:
    """What is not meant as an address stays the name of a file."""
    assert not is_nbd(text)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(export=NAMES, host=st.sampled_from(["h", "::1", "fe80::1%eth0", "1.2.3.4"]), port=st.integers(1, 65535))
def test_round_trip(export: str, host: str, port: int) -> None:
    """Any name comes back from the spelling of its address."""
    for address in (NbdAddress(export, host, port), NbdAddress(export, path=f"/run/{port} {host}", tls=True)):
        assert parse_uri(address.spelling) == address


@given(st.text(max_size=40))
def test_anything(text: str) -> None:
    """Every text is an address or a `ConfigError`."""
    for scheme in ("nbd://", "nbd+unix:///", ""):
        with suppress(ConfigError):
            parse_uri(scheme + text)
