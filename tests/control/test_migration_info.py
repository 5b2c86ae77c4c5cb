"""QAPI's MigrationInfo, which the command line reads back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.control.fake_migration import ACTIVE, CANCELLED, COMPLETED, FAILED, LAST_PASS, SETUP, SWITCHOVER
from tvmm.control.migration_info import event_data, info_of, status_of
from tvmm.migration.status import (
    GUEST_PLACES,
    NO_MIGRATION,
    STATES,
    UNDER_WAY,
    DiskProgress,
    DowntimeParts,
    MigrationStatus,
    PostcopyProgress,
    RamProgress,
)

SAMPLES = [SETUP, ACTIVE, LAST_PASS, SWITCHOVER, COMPLETED, FAILED, CANCELLED]
QAPI_INFO = {
    "status": str,
    "ram": dict,
    "disk": dict,
    "total-time": int,
    "expected-downtime": int,
    "downtime": int,
    "setup-time": int,
    "cpu-throttle-percentage": int,
    "error-desc": str,
    "socket-address": list,
}
QAPI_STATS = {
    **dict.fromkeys(
        (
            "transferred remaining total duplicate skipped normal normal-bytes dirty-pages-rate dirty-sync-count "
            "postcopy-requests page-size multifd-bytes pages-per-second precopy-bytes downtime-bytes postcopy-bytes "
            "dirty-sync-missed-zero-copy"
        ).split(),
        int,
    ),
    "mbps": float,
}
"""Members and types of QEMU 7.2's MigrationStats; all of them are there."""


@pytest.mark.parametrize("status", SAMPLES, ids=lambda status: str(status.state))
def test_members_are_those_of_qapi(status: MigrationStatus) -> None:
    """Each member is QAPI's with its type, or begins with x-; of the figures of RAM QAPI leaves none out."""
    info: dict[str, Any] = json.loads(json.dumps(info_of(status)))
    for name, value in info.items():
        assert name.startswith("x-") or type(value) is QAPI_INFO[name], name
    if "ram" in info:
        assert {name: type(value) for name, value in info["ram"].items() if not name.startswith("x-")} == QAPI_STATS


def test_disks_are_told_as_qemu_tells_them() -> None:
    """Where some are copied: the same members as for RAM, in blocks of 64 KiB."""
    disks = DiskProgress(1 << 30, transferred=7 << 20, remaining=1 << 20, copied=6 << 20, zeroed=1 << 20, rounds=2)
    stats: dict[str, Any] = json.loads(json.dumps(info_of(ACTIVE._replace(disks=disks))))["disk"]
    assert {name: type(value) for name, value in stats.items() if not name.startswith("x-")} == QAPI_STATS
    assert (stats["normal"], stats["duplicate"], stats["dirty-sync-count"]) == (96, 16, 2)
    assert "disk" not in info_of(ACTIVE)


@pytest.mark.parametrize(
    ("status", "members"),
    [
        (SETUP, {"total-time"}),
        (ACTIVE, {"total-time", "setup-time", "ram"}),
        (LAST_PASS, {"total-time", "setup-time", "ram", "expected-downtime", "cpu-throttle-percentage"}),
        (COMPLETED, {"total-time", "setup-time", "ram", "downtime", "cpu-throttle-percentage"}),
        (FAILED, {"total-time", "setup-time", "ram", "error-desc", "cpu-throttle-percentage"}),
    ],
)
def test_only_members_that_apply(status: MigrationStatus, members: set[str]) -> None:
    """A prediction is for what is under way, a downtime for what is done, a reason for what failed."""
    assert {name for name in info_of(status) if not name.startswith("x-")} == {"status", *members}


def test_figures() -> None:
    """Rates and sizes in QAPI's units."""
    info: Any = info_of(COMPLETED)
    assert info["downtime"] == 6
    assert info["x-times-ms"]["downtime"] == 6.125
    assert sum(info["x-downtime-parts-ms"].values()) == 6.125
    assert info["ram"]["mbps"] == pytest.approx(3355.4432)
    assert info["ram"]["normal-bytes"] == 240_000 * 4096
    assert info["ram"]["precopy-bytes"] + info["ram"]["downtime-bytes"] == info["ram"]["transferred"]
    assert info_of(FAILED)["error-desc"] == "the destination hung up in round 3; its own output says why"


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("tcp:127.0.0.1:4444", {"type": "inet", "host": "127.0.0.1", "port": "4444"}),
        ("tcp:[::1]:4444", {"type": "inet", "host": "::1", "port": "4444"}),
        ("unix:/tmp/a:b", {"type": "unix", "path": "/tmp/a:b"}),
    ],
)
def test_where_a_destination_listens(uri: str, address: object) -> None:
    """Clients that asked for any free port learn which."""
    info = info_of(NO_MIGRATION._replace(incoming=True, listening=uri))
    assert info["socket-address"] == [address]
    assert info["status"] == "none"


def test_nothing_to_tell() -> None:
    """QEMU answers with an empty object before the first migration."""
    assert info_of(NO_MIGRATION) == {}
    assert status_of({}) == NO_MIGRATION


@pytest.mark.parametrize("state", STATES)
def test_only_the_last_event_tells_all(state: str) -> None:
    """The event of an end carries the figures, since nobody may be left to ask for them."""
    data = event_data(COMPLETED._replace(state=state))
    assert data["status"] == state
    assert ("x-info" in data) == (state in ("completed", "failed", "cancelled"))
    assert data.get("x-info", info_of(COMPLETED._replace(state=state))) == info_of(COMPLETED._replace(state=state))


count = st.integers(0, 1 << 62)
number = st.floats(0, 1e15)
maybe = st.none() | number
text = st.text(max_size=20)
rams = st.builds(
    RamProgress,
    *[count] * 7,
    number,
    number,
    st.sampled_from((4096, 2 << 20)),
    st.lists(count, max_size=4).map(tuple),
    count,
    number,
    count,
    count,
)
parts = st.none() | st.builds(DowntimeParts, *[number] * 6)
statuses = st.builds(
    MigrationStatus,
    st.sampled_from([state for state in STATES if state != "none"]),
    st.booleans(),
    text,
    text,
    text,
    text,
    st.sampled_from(GUEST_PLACES),
    maybe,
    maybe,
    maybe,
    maybe,
    maybe,
    rams,
    parts,
    st.integers(0, 99),
    count,
    st.sampled_from(("", "unix:/a", "tcp:[::1]:1")),
    st.none() | st.builds(PostcopyProgress, count, count, number, count, count, st.booleans()),
    st.just(DiskProgress()) | st.builds(DiskProgress, st.integers(1, 1 << 62), *[count] * 5, number, number, count),
    text,
)


@given(statuses)
def test_what_is_told_can_be_read_back(status: MigrationStatus) -> None:
    """Every field survives the way over the socket."""
    assert status_of(json.loads(json.dumps(info_of(status)))) == status


def test_of_another_program() -> None:
    """QEMU's own answer can be read; what is no answer is a ValueError that says so."""
    stats = {name: kind(7) for name, kind in QAPI_STATS.items()}
    read = status_of({"status": "active", "total-time": 5, "ram": stats})
    assert read.state in UNDER_WAY
    assert read.ram.zero == 7
    wrongs: tuple[dict[str, Any], ...] = ({"ram": {}}, {"ram": 1}, {"x-times-ms": 1}, {"x-downtime-parts-ms": 1})
    for wrong in wrongs:
        with pytest.raises(ValueError, match="no MigrationInfo"):
            status_of(wrong)
