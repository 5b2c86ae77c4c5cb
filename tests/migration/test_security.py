"""Which addresses a migration may use without protection."""

from __future__ import annotations

import pytest

from tvmm.errors import ConfigError
from tvmm.migration.security import host_of, require_secure


def check(address: str, *found: str, tls: bool = False, pair: bool = False, insecure: bool = False) -> None:
    """The rule, where any name has the addresses `found`."""
    require_secure(address, tls=tls, pair=pair, insecure=insecure, resolve=lambda host: found)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:4444", "tcp:127.9.9.9:1", "[::1]:4444", "tcp:[::1]:4444", "::1:4444", "[::ffff:127.0.0.1]:1",
     "unix:/run/x.sock", "unix:x:1"],
)
def test_what_does_not_leave_the_host(address: str) -> None:
    """Loopback addresses of both families, and unix sockets, need nothing."""
    check(address)


OUTSIDE = ["10.0.0.2:4444", "0.0.0.0:4444", "[::]:4444", ":4444", "*:4444", "tcp::4444", "[::ffff:10.0.0.2]:1",
           "[fe80::1%eth0]:1", "tcp:192.0.2.1:1"]


@pytest.mark.parametrize("address", OUTSIDE)
def test_everything_else(address: str) -> None:
    """The sentence has all three ways out."""
    with pytest.raises(ConfigError) as caught:
        check(address)
    assert all(way in str(caught.value) for way in ("--tls", "--pair", "--insecure"))


@pytest.mark.parametrize("address", OUTSIDE)
@pytest.mark.parametrize("way", ["tls", "pair", "insecure"])
def test_each_way_out(address: str, way: str) -> None:
    """Any of them is enough."""
    check(address, **{way: True})


def test_every_address_of_a_name_counts() -> None:
    """A connection may take any of them."""
    check("localhost:1", "127.0.0.1", "::1")
    with pytest.raises(ConfigError, match=r"both \(10\.0\.0\.2\) is not this host"):
        check("both:1", "127.0.0.1", "10.0.0.2")
    with pytest.raises(ConfigError, match="nowhere is not this host"):
        check("nowhere:1")


def test_the_systems_resolver() -> None:
    """localhost is this host by any resolver, and what cannot be found is told."""
    require_secure("localhost:1", tls=False, pair=False, insecure=False)
    for name in ("nowhere.invalid", "x" * 300, "a..b"):
        with pytest.raises(ConfigError, match="cannot be found"):
            require_secure(f"{name}:1", tls=False, pair=False, insecure=False)


@pytest.mark.parametrize("address", ["", "host", "host:", "host:http", "unix", "UNIX:/x"])
def test_what_is_no_address(address: str) -> None:
    """The forms are told."""
    with pytest.raises(ConfigError, match="write HOST:PORT, tcp:HOST:PORT or unix:PATH"):
        check(address)


def test_host_of() -> None:
    """Brackets and the kind go."""
    assert host_of("tcp:[fd00::1]:4444") == "fd00::1"
    assert host_of("beta:4444") == "beta"
