"""Where a guest is waited for, and from whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.config.file import options_from_toml
from tvmm.config.incoming import IncomingConfig, MigrationAddress, check_listeners_in
from tvmm.config.machine import MachineConfig
from tvmm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "uri", "local"),
    [
        ("tcp:127.0.0.1:4444", "tcp:127.0.0.1:4444", True),
        ("127.0.0.1:4444", "tcp:127.0.0.1:4444", True),
        ("localhost:1", "tcp:localhost:1", True),
        ("tcp:LocalHost:1", "tcp:LocalHost:1", True),
        ("[::1]:65535", "tcp:[::1]:65535", True),
        ("tcp:[fe80::1%eth0]:4444", "tcp:[fe80::1%eth0]:4444", False),
        ("b.example:4444", "tcp:b.example:4444", False),
        ("tcp:10.0.0.2:4444", "tcp:10.0.0.2:4444", False),
        ("unix:/tmp/a:b", "unix:/tmp/a:b", True),
        ("unix:here", "unix:here", True),
    ],
)
def test_addresses(text: str, uri: str, local: bool) -> None:
    """Each spelling of an address has one plain form, which is read back as the same."""
    address = MigrationAddress.parse(text)
    assert address.uri == uri
    assert address.is_local == local
    assert MigrationAddress.parse(uri) == address


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "address is empty; write tcp:HOST:PORT or unix:PATH"),
        ("somewhere", "address 'somewhere' has no port"),
        ("tcp:4444", "address '4444' has no port"),
        ("tcp::4444", "address ':4444' has no host; write tcp:127.0.0.1:PORT"),
        (":4444", "address ':4444' has no host"),
        ("tcp:::1:4444", "is ambiguous; put an IPv6 address into brackets: tcp:[::1]:4444"),
        ("tcp:[::1]", "address '[::1]' has no port"),
        ("tcp:[host]:1", "has brackets around no IPv6 address"),
        ("tcp:a b:1", "'a b' is no host"),
        ("tcp:" + "a" * 300 + ":1", "'... is no host"),
        ("tcp:host:0", "address port 0 is out of range; it goes from 1 to 65535"),
        ("tcp:host:65536", "address port 65536 is out of range"),
        ("tcp:host:http", "address port 'http' is not a whole number"),
        ("unix:", "address unix has no path"),
        ("unix:" + "a" * 108, "is too long for a socket; 107 bytes are the limit"),
        ("unix:a\0b", "address holds a NUL character"),
        ("tpc:host:1", "is of no known kind; did you mean 'tcp'?"),
        ("exec:cat", "is neither an address of a kind that there is nor HOST:PORT"),
        ("fd:7x", "is neither an address"),
    ],
)
def test_no_addresses(text: str, complaint: str) -> None:
    """What is wrong is said in a sentence, with how to write it."""
    with pytest.raises(ConfigError) as caught:
        MigrationAddress.parse(text)
    assert complaint in str(caught.value)


def test_any_free_port_is_for_listeners() -> None:
    """Port 0 means something only where one listens, and so does every host."""
    assert MigrationAddress.parse("tcp:127.0.0.1:0", listen=True).port == 0
    with pytest.raises(ConfigError, match=r"tcp:0\.0\.0\.0:PORT for everyone"):
        MigrationAddress.parse("tcp::0", listen=True)


@given(st.text(st.sampled_from("tcpunix:[]./019a \0%"), max_size=20))
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    """Nothing else is raised, and what is accepted is spelled so that it means the same."""
    try:
        address = MigrationAddress.parse(text)
    except ConfigError:
        return
    assert MigrationAddress.parse(address.uri) == address
    assert address.host if address.kind == "tcp" else address.path


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (IncomingConfig("tcp:0.0.0.0:1"), "without TLS others can read and change the guest"),
        (IncomingConfig("tcp:[::]:1"), "without TLS"),
        (IncomingConfig("tcp:127.0.0.1:1", pair=True, tls=True), "takes the place of certificates"),
        (IncomingConfig("tcp:127.0.0.1:1", insecure=True, tls=True), "--insecure means without TLS"),
        (IncomingConfig("tcp:127.0.0.1:1", insecure=True, pair=True), "--insecure means without TLS"),
        (IncomingConfig("tcp:127.0.0.1:1", keys="/etc/keys"), "--keys has no meaning without --tls"),
        (IncomingConfig("tcp:127.0.0.1:1", tls=True, keys="\0"), "NUL"),
        (IncomingConfig("later"), "incoming 'later' has no port"),
    ],
)
def test_nobody_could_arrive(config: IncomingConfig, complaint: str) -> None:
    """Switches that contradict each other, and a network that nobody has allowed."""
    with pytest.raises(ConfigError) as caught:
        config.check()
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        IncomingConfig("defer"),
        IncomingConfig("defer", insecure=True),
        IncomingConfig("unix:/tmp/a"),
        IncomingConfig("tcp:127.0.0.1:0"),
        IncomingConfig("tcp:0.0.0.0:1", insecure=True),
        IncomingConfig("tcp:0.0.0.0:1", pair=True),
        IncomingConfig("tcp:0.0.0.0:1", tls=True, keys="/etc/keys"),
    ],
)
def test_ways_to_arrive(config: IncomingConfig) -> None:
    """Each of them is a record that stays as it is."""
    assert config.check() == config


def test_other_hosts_need_protection_or_leave() -> None:
    """The source is held to the same rule."""
    away = MigrationAddress.parse("tcp:192.0.2.1:4444")
    check_listeners_in(away, protected=True, insecure=False)
    check_listeners_in(away, protected=False, insecure=True)
    with pytest.raises(ConfigError, match="say --insecure"):
        check_listeners_in(away, protected=False, insecure=False)


def test_a_machine_that_waits() -> None:
    """The options make one group, in its plain spelling; without them there is none."""
    config = MachineConfig.parse(incoming="0.0.0.0:4444", pair="on", paused=True)
    assert config.incoming == IncomingConfig("tcp:0.0.0.0:4444", pair=True)
    assert config.paused
    assert MachineConfig.parse().incoming is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tls": True}, "tls has no meaning without incoming"),
        ({"pair": True}, "pair has no meaning without incoming"),
        ({"insecure": "yes"}, "insecure has no meaning without incoming"),
        ({"keys": "/etc/keys"}, "keys has no meaning without incoming"),
        ({"tls": "perhaps"}, "tls 'perhaps' is neither on nor off"),
        ({"incoming": "unix:/tmp/a", "control": "/tmp/a"}, "incoming and control both want the socket '/tmp/a'"),
        ({"incoming": "unix:/tmp/a", "serial": "unix=/tmp/a"}, "incoming and serial both want the socket '/tmp/a'"),
    ],
)
def test_no_machine(options: dict[str, str], complaint: str) -> None:
    """Options that need --incoming, and sockets that two want."""
    with pytest.raises(ConfigError) as caught:
        MachineConfig.from_options(options)
    assert complaint in str(caught.value)


def test_in_a_file() -> None:
    """A table or options; the file is to blame for an address that is none."""
    flat = options_from_toml('incoming = "tcp:10.0.0.1:1"\ntls = true\nkeys = "k"\n', "f")
    table = options_from_toml('[incoming]\nuri = "tcp:10.0.0.1:1"\ntls = true\nkeys = "k"\n', "f")
    assert flat == table
    assert MachineConfig.from_options(table).incoming == IncomingConfig("tcp:10.0.0.1:1", tls=True, keys="k")
    assert options_from_toml('incoming = "defer"', "f") == {"incoming": "defer"}
    with pytest.raises(ConfigError, match=r"^f: incoming port 'x' is not a whole number"):
        options_from_toml('incoming = "tcp:h:x"', "f")
    with pytest.raises(ConfigError, match=r"^f: unknown key in \[incoming\] 'url'; did you mean 'uri'"):
        options_from_toml('[incoming]\nurl = "x"', "f")
    with pytest.raises(ConfigError, match=r"^f: tls 'perhaps' is neither on nor off"):
        options_from_toml('tls = "perhaps"', "f")
