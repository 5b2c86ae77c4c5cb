"""QAPI's MigrationInfo for a `MigrationStatus`, and back.

QAPI's times are whole milliseconds, and a pause may be a fraction of one, so tvmm's own members repeat them exactly.
The command line shows what it reads back from these members; `status_of(info_of(status))` is `status`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.config.incoming import MigrationAddress
from tvmm.migration.status import DiskProgress, DowntimeParts, MigrationStatus, PostcopyProgress, RamProgress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.control.target import Json

__all__ = ["EVENT", "PASS_EVENT", "event_data", "info_of", "status_of"]

EVENT = "MIGRATION"
PASS_EVENT = "MIGRATION_PASS"

BLOCK = 1 << 16
"""Bytes of a block, in which disks are counted."""
_TIMES = ("total_ms", "setup_ms", "downtime_ms", "expected_downtime_ms")


def event_data(status: MigrationStatus) -> dict[str, Json]:
    """The data of event `EVENT`: the state, and for the last event of a migration all there is to say.

    A source ends soon after its guest has moved. Who has got this event needs no answer from it any more.
    """
    data: dict[str, Json] = {"status": status.state}
    if status.ended:
        data["x-info"] = info_of(status)
    return data


def info_of(status: MigrationStatus) -> dict[str, Json]:
    """QAPI: MigrationInfo, with the members that apply. Nothing for a machine that nobody has tried to move."""
    if status.state == "none" and not status.listening:
        return {}
    info: dict[str, Json] = {"status": status.state}
    if status.total_ms is not None:
        info["total-time"] = round(status.total_ms)
    if status.setup_ms is not None:
        info["setup-time"] = round(status.setup_ms)
    if status.downtime_ms is not None:
        info["downtime"] = round(status.downtime_ms)
    if status.expected_downtime_ms is not None and status.under_way:
        info["expected-downtime"] = round(status.expected_downtime_ms)
    if status.throttle_percent:
        info["cpu-throttle-percentage"] = status.throttle_percent
    if status.error:
        info["error-desc"] = status.reason
    if status.ram != RamProgress():
        info["ram"] = _ram(status.ram, status.postcopy or PostcopyProgress())
    if status.disks.total:
        info["disk"] = _disk(status.disks)
    if status.listening:
        info["socket-address"] = [_socket_address(status.listening)]
    return {**info, **_own(status)}


def _ram(ram: RamProgress, postcopy: PostcopyProgress) -> Json:
    """QAPI: MigrationStats. `skipped`, always 0, went away in QEMU 9; clients of QEMU 7 want it."""
    return {
        "transferred": ram.transferred,
        "remaining": ram.remaining,
        "total": ram.total,
        "duplicate": ram.zero,
        "skipped": 0,
        "normal": ram.normal,
        "normal-bytes": ram.normal * ram.page_size,
        "dirty-pages-rate": round(ram.dirty_pages_rate),
        "mbps": ram.throughput * 8 / 1_000_000,
        "dirty-sync-count": ram.rounds,
        "postcopy-requests": postcopy.requests,
        "page-size": ram.page_size,
        "multifd-bytes": sum(ram.per_connection) if len(ram.per_connection) > 1 else 0,
        "pages-per-second": round(ram.pages_rate),
        "precopy-bytes": ram.transferred - ram.downtime_bytes - postcopy.bytes,
        "downtime-bytes": ram.downtime_bytes,
        "postcopy-bytes": postcopy.bytes,
        "dirty-sync-missed-zero-copy": 0,
        "x-unchanged": ram.unchanged,
        "x-spared": ram.spared,
        "x-handed-over": ram.handed_over,
        "x-dirty-pages-rate": ram.dirty_pages_rate,
        "x-pages-rate": ram.pages_rate,
        "x-throughput": ram.throughput,
        "x-per-connection": list(ram.per_connection),
    }


def _disk(disks: DiskProgress) -> Json:
    """QAPI: MigrationStats again, as QEMU has it for the disks of its `blk`. Its pages are blocks here."""
    return {
        "transferred": disks.transferred,
        "remaining": disks.remaining,
        "total": disks.total,
        "duplicate": disks.zeroed // BLOCK,
        "skipped": 0,
        "normal": disks.copied // BLOCK,
        "normal-bytes": disks.copied,
        "dirty-pages-rate": round(disks.dirty_rate / BLOCK),
        "mbps": disks.throughput * 8 / 1_000_000,
        "dirty-sync-count": disks.rounds,
        "postcopy-requests": 0,
        "page-size": BLOCK,
        "multifd-bytes": 0,
        "pages-per-second": round(disks.throughput / BLOCK),
        "precopy-bytes": disks.transferred,
        "downtime-bytes": 0,
        "postcopy-bytes": 0,
        "dirty-sync-missed-zero-copy": 0,
        "x-zeroed": disks.zeroed,
        "x-dirty-rate": disks.dirty_rate,
        "x-throughput": disks.throughput,
        "x-slowed-to": disks.slowed_to,
    }


def _socket_address(uri: str) -> Json:
    """QAPI: SocketAddress."""
    address = MigrationAddress.parse(uri, listen=True)
    if address.kind == "unix":
        return {"type": "unix", "path": address.path}
    return {"type": "inet", "host": address.host, "port": str(address.port)}


def _own(status: MigrationStatus) -> dict[str, Json]:
    """The members that QAPI does not have."""
    parts = status.downtime_parts
    return {
        "x-incoming": status.incoming,
        "x-peer": status.peer,
        "x-listening": status.listening,
        "x-phase": status.phase,
        "x-error": status.error,
        "x-hint": status.error_hint,
        "x-guest": status.guest,
        "x-seconds-left": status.seconds_left,
        "x-connections": status.connections,
        **({} if status.postcopy is None else {"x-postcopy": _dashed_dict(status.postcopy)}),
        "x-advice": status.advice,
        "x-times-ms": {_dashed(name): getattr(status, name) for name in _TIMES},
        **({} if parts is None else {"x-downtime-parts-ms": {_dashed(key): ms for key, ms in parts._asdict().items()}}),
    }


def _dashed_dict(progress: PostcopyProgress) -> dict[str, Json]:
    return {key.replace("_", "-"): value for key, value in progress._asdict().items()}


def _dashed(field: str) -> str:
    return field.removesuffix("_ms").replace("_", "-")


def status_of(info: Mapping[str, Any]) -> MigrationStatus:
    """The status that `info_of` was given. Members that are not there have their resting value.

    Raises `ValueError` if this is nothing that `info_of` has made.
    """
    try:
        times = info.get("x-times-ms", {})
        parts = info.get("x-downtime-parts-ms")
        return MigrationStatus(
            state=info.get("status", "none"),
            incoming=info.get("x-incoming", False),
            peer=info.get("x-peer", ""),
            phase=info.get("x-phase", ""),
            error=info.get("x-error", info.get("error-desc", "")),
            error_hint=info.get("x-hint", ""),
            guest=info.get("x-guest", "source"),
            seconds_left=info.get("x-seconds-left"),
            ram=_ram_of(info["ram"]) if "ram" in info else RamProgress(),
            disks=_disks_of(info["disk"]) if "disk" in info else DiskProgress(),
            downtime_parts=parts
            and DowntimeParts(**{name: parts.get(_dashed(name), 0.0) for name in DowntimeParts._fields}),
            postcopy=_postcopy_of(info["x-postcopy"]) if "x-postcopy" in info else None,
            throttle_percent=info.get("cpu-throttle-percentage", 0),
            connections=info.get("x-connections", 0),
            listening=info.get("x-listening", ""),
            advice=info.get("x-advice", ""),
            **{name: times.get(_dashed(name)) for name in _TIMES},
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"this is no MigrationInfo of tvmm: {error!r}") from error


def _postcopy_of(members: Mapping[str, Any]) -> PostcopyProgress:
    known = {key.replace("-", "_"): value for key, value in members.items()}
    return PostcopyProgress(**{name: known[name] for name in PostcopyProgress._fields if name in known})


def _disks_of(stats: Mapping[str, Any]) -> DiskProgress:
    return DiskProgress(
        total=stats["total"],
        transferred=stats["transferred"],
        remaining=stats["remaining"],
        copied=stats["normal-bytes"],
        zeroed=stats.get("x-zeroed", 0),
        rounds=stats["dirty-sync-count"],
        throughput=stats.get("x-throughput", stats["mbps"] * 1_000_000 / 8),
        dirty_rate=stats.get("x-dirty-rate", 0.0),
        slowed_to=stats.get("x-slowed-to", 0),
    )


def _ram_of(stats: Mapping[str, Any]) -> RamProgress:
    return RamProgress(
        total=stats["total"],
        transferred=stats["transferred"],
        remaining=stats["remaining"],
        normal=stats["normal"],
        zero=stats["duplicate"],
        unchanged=stats.get("x-unchanged", 0),
        spared=stats.get("x-spared", 0),
        rounds=stats["dirty-sync-count"],
        dirty_pages_rate=stats.get("x-dirty-pages-rate", stats["dirty-pages-rate"]),
        throughput=stats.get("x-throughput", stats["mbps"] * 1_000_000 / 8),
        page_size=stats["page-size"],
        per_connection=tuple(stats.get("x-per-connection", ())),
        downtime_bytes=stats["downtime-bytes"],
        handed_over=stats.get("x-handed-over", 0),
        pages_rate=stats.get("x-pages-rate", stats["pages-per-second"]),
    )
