"""The records of a migration: what their checks let through."""

from __future__ import annotations

import pytest

from tvmm.errors import ConfigError
from tvmm.migration.status import ENDED, NO_MIGRATION, STATES, UNDER_WAY, MigrationParameters, MigrationStatus


def test_defaults_are_parameters() -> None:
    """Nobody needs to set anything."""
    assert MigrationParameters().check() == MigrationParameters()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"max_downtime_ms": -1.0}, "max downtime -1ms is out of range"),
        ({"max_downtime_ms": float("nan")}, "max downtime nanms is out of range"),
        ({"max_downtime_ms": 0.0}, "leaves no time to move"),
        ({"max_downtime_ms": 2_000_001.0}, "is out of range"),
        ({"bandwidth": -1}, "bandwidth -1 bytes/s is out of range"),
        ({"bandwidth": 1 << 63}, "is out of range"),
        ({"connections": 65}, "connections 65 is out of range"),
        ({"timeout_s": float("inf")}, "timeout infs is out of range"),
        ({"max_throttle_percent": 100}, "max throttle 100% is out of range"),
        ({"postcopy": "later"}, "unknown post-copy 'later'; there are: off, allow, now"),
        ({"postcopy": "allow", "verify": True}, "leave one of them out"),
        ({"compress": "lzma"}, "unknown compression 'lzma'; there are: off, zstd"),
        ({"keys": "a\0b", "tls": True}, "keys holds a NUL character"),
        ({"keys": "a" * 4096, "tls": True}, "keys has 4096 characters; at most 4095 are allowed"),
        ({"tls_hostname": "a" * 254, "tls": True}, "TLS hostname has 254 characters"),
        ({"pair": "a" * 201}, "pairing code has 201 characters"),
        ({"pair": "1-a", "keys": "/etc/keys"}, "takes the place of certificates"),
        ({"insecure": True, "tls": True}, "--insecure means without TLS"),
        ({"insecure": True, "pair": "1-a"}, "--insecure means without TLS"),
        ({"tls_hostname": "b"}, "--tls-hostname has no meaning without --tls"),
        ({"keys": "/etc/keys"}, "--keys has no meaning without --tls"),
    ],
)
def test_parameters_out_of_range(changes: dict[str, object], complaint: str) -> None:
    """Each limit is told with the value that broke it."""
    with pytest.raises(ConfigError) as caught:
        MigrationParameters()._replace(**changes).check()  # type: ignore[arg-type]
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_downtime_ms": 0.5, "bandwidth": 1, "connections": 64, "timeout_s": 0.0, "max_throttle_percent": 0},
        {"compress": "zstd", "verify": True, "tls": True, "keys": "/etc/keys", "tls_hostname": "b"},
        {"pair": "7-word-word", "tls": True},
        {"insecure": True},
    ],
)
def test_parameters_that_go_together(changes: dict[str, object]) -> None:
    """The ends of the ranges are inside."""
    parameters = MigrationParameters()._replace(**changes)  # type: ignore[arg-type]
    assert parameters.check() == parameters


@pytest.mark.parametrize("state", STATES)
def test_states_are_of_one_kind(state: str) -> None:
    """A state goes on by itself, is an end, or there was no migration."""
    status = MigrationStatus(state)
    assert status.under_way + status.ended + (state in ("none", "wait-unplug")) == 1
    assert set(UNDER_WAY + ENDED) < set(STATES)


def test_reason() -> None:
    """Error and hint make one line; without an error there is none."""
    assert NO_MIGRATION.reason == ""
    assert MigrationStatus("failed", error="the peer hung up").reason == "the peer hung up"
    assert MigrationStatus("failed", error="a", error_hint="b").reason == "a; b"
