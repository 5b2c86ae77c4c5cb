"""``--metrics``: forms of addresses, who may read, what goes together."""

from __future__ import annotations

import pytest

from tvmm.config.file import options_from_toml
from tvmm.config.machine import MachineConfig
from tvmm.config.metrics import MetricsConfig
from tvmm.config.vnc import VncAddress
from tvmm.errors import ConfigError

LOCAL = ("127.0.0.1:9100", "localhost:9100", "[::1]:9100", "unix:/run/metrics", ":9100", "127.0.0.1:0")


@pytest.mark.parametrize("text", LOCAL)
def test_on_this_host_nothing_more_is_needed(text: str) -> None:
    """Loopback and unix sockets are for everybody who reaches them, without a word."""
    config = MetricsConfig.parse(text)
    assert config.address.is_local
    assert config.warnings == ()


def test_address_without_a_host_is_of_this_host() -> None:
    """Not of every address, as others have it."""
    assert MetricsConfig.parse(":9100").address == VncAddress("tcp", "127.0.0.1", 9100)


@pytest.mark.parametrize(
    "text",
    [*LOCAL, "0.0.0.0:9100,insecure=on", "[::]:9100,token-file=/etc/token", "unix:/a=b,token-file=/c,,d", "none"],
)
def test_spelling_is_read_back(text: str) -> None:
    """`parse` and `spelling` agree."""
    config = MetricsConfig.parse(text)
    assert MetricsConfig.parse(config.spelling()) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "metrics is empty"),
        ("9100", "has no port"),
        ("host", "has no port"),
        ("::1:9100", "ambiguous"),
        ("[1.2.3.4]:9100", "brackets"),
        ("127.0.0.1:65536", "65536"),
        ("127.0.0.1:x", "port"),
        ("unix:", "no path"),
        ("unix:" + "x" * 200, "too long"),
        ("a b:9100", "no host"),
        ("0.0.0.0:9100", "whoever reaches 0.0.0.0:9100 could read"),
        ("[::]:9100", "could read"),
        ("example.org:9100", "could read"),
        ("0.0.0.0:9100,insecure=on,token-file=/t", "leave one of them out"),
        ("none,insecure=on", "takes no options"),
        ("127.0.0.1:9100,tls=on", "tls"),
        ("127.0.0.1:9100,insecure=perhaps", "neither on nor off"),
        ("127.0.0.1:9100,token-file=a\0b", "NUL"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    """One line each, that says what is wrong."""
    with pytest.raises(ConfigError) as caught:
        MetricsConfig.parse(text)
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_other_hosts_are_warned_of() -> None:
    """Both ways of letting other hosts in say what that means."""
    assert "can read" in MetricsConfig.parse("0.0.0.0:9100,insecure=on").warnings[0]
    assert "in the clear" in MetricsConfig.parse("0.0.0.0:9100,token-file=/t").warnings[0]


@pytest.mark.parametrize(
    "others", [{"control": "/s"}, {"serial": "unix=/s"}, {"incoming": "unix:/s"}, {"vnc": "unix:/s"}]
)
def test_one_socket_for_two_is_refused(others: dict[str, str]) -> None:
    """Each part has a path of its own."""
    with pytest.raises(ConfigError, match="both want the socket"):
        MachineConfig.parse(metrics="unix:/s", **others)


def test_machine_has_none_by_default() -> None:
    """And says so in two ways."""
    assert MachineConfig.parse().metrics is None
    assert MachineConfig.parse(metrics="none").metrics is None


def test_file_may_have_an_option_or_a_table() -> None:
    """Both mean the same."""
    line = options_from_toml('metrics = "127.0.0.1:9100,token-file=/t"', "x.toml")
    table = options_from_toml('[metrics]\naddress = "127.0.0.1:9100"\ntoken-file = "/t"\n', "x.toml")
    assert MachineConfig.from_options(line) == MachineConfig.from_options(table)
    assert MachineConfig.from_options(line).metrics == MetricsConfig.parse("127.0.0.1:9100,token-file=/t")


@pytest.mark.parametrize(
    "text", ["[metrics]\ninsecure = true\n", 'metrics = "9100"', '[metrics]\naddress = "0.0.0.0:1"\n']
)
def test_wrong_table_names_the_file(text: str) -> None:
    """While it is known to be to blame."""
    with pytest.raises(ConfigError, match=r"^x\.toml: "):
        options_from_toml(text, "x.toml")
