"""What disks, networks and others count, as samples: their makers put these functions into `Devices.measures`.

A device of another kind does the same: a row in `tvmm.metrics.catalog`, a function like these, and one line in its
maker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.metrics.catalog import metric
from tvmm.metrics.model import Sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvmm.control.balloon_target import BalloonInfo
    from tvmm.kvm.blk import BlkCounters
    from tvmm.kvm.net import NetCounters
    from tvmm.virtio.runner.blk import BlkRunner
    from tvmm.virtio.runner.net import NetRunner
    from tvmm.virtio.runner.vsock import VsockRunner

__all__ = ["balloon_samples", "disk_samples", "net_samples", "vsock_samples"]

_REQUESTS = {
    "read": ("reads", "read_errors"),
    "write": ("writes", "write_errors"),
    "flush": ("flushes", "flush_errors"),
    "discard": ("discards", "discard_errors"),
    "write-zeroes": ("write_zeroes", "write_zeroes_errors"),
    "get-id": ("get_ids", "get_id_errors"),
}
"""Fields of `BlkCounters` by operation: requests that succeeded, and those that failed."""

_USUAL = ("read", "write", "flush")

_BYTES = {"read": "read_bytes", "write": "written_bytes", "discard": "unmapped_bytes"}

_ODDITIES = {
    "tvmm_blk_refused_total": "refused",
    "tvmm_blk_ignored_errors_total": "ignored",
    "tvmm_blk_stops_total": "stops",
    "tvmm_blk_retried_total": "retried",
    "tvmm_blk_cached_reads_total": "cached",
    "tvmm_blk_buffered_calls_total": "plain",
    "tvmm_blk_stable_writes_total": "stable",
    "tvmm_blk_system_calls_total": "steps",
}

_DROPPED = {
    "receive": {
        "filtered": "rx_filtered",
        "no-room": "rx_no_room",
        "link-down": "rx_link_down",
        "error": "rx_errors",
        "stale": "rx_stale",
    },
    "transmit": {
        "too-short": "tx_too_short",
        "too-long": "tx_too_long",
        "refused": "tx_refused",
        "link-down": "tx_link_down",
    },
}
"""Fields of `NetCounters` by direction and reason."""


def disk_samples(device: str, runner: BlkRunner) -> Iterator[Sample]:
    """Of the disk `device`, by queue and operation. From any thread."""
    found = runner.info()
    yield Sample(metric("tvmm_blk_size_bytes"), (device,), found.size)
    yield Sample(metric("tvmm_blk_stopped"), (device,), int(bool(found.stopped)))
    yield Sample(metric("tvmm_limit_waits_total"), (device,), runner.limit_waits)
    for index, (counted, times) in enumerate(zip(found.queues, runner.latencies(), strict=True)):
        where = (device, str(index))
        yield from _queue_samples(where, counted)
        for operation, histogram in times.items():
            # Each is 28 lines for Prometheus: of operations that few guests use there is one when there is one.
            if operation in _USUAL or histogram.count:
                yield Sample(metric("tvmm_blk_request_seconds"), (*where, operation), histogram)


def _queue_samples(where: tuple[str, str], counted: BlkCounters) -> Iterator[Sample]:
    for operation, (done, failed) in _REQUESTS.items():
        yield Sample(metric("tvmm_blk_requests_total"), (*where, operation), getattr(counted, done))
        yield Sample(metric("tvmm_blk_errors_total"), (*where, operation), getattr(counted, failed))
    for operation, field in _BYTES.items():
        yield Sample(metric("tvmm_blk_bytes_total"), (*where, operation), getattr(counted, field))
    for name, field in _ODDITIES.items():
        yield Sample(metric(name), where, getattr(counted, field))


def net_samples(device: str, runner: NetRunner) -> Iterator[Sample]:
    """Of the network device `device`, by pair of queues and direction. From any thread."""
    found = runner.info()
    yield Sample(metric("tvmm_net_link_up"), (device,), int(found.link_up))
    yield Sample(metric("tvmm_limit_waits_total"), (device,), runner.limit_waits)
    for index, (counted, spin, turns) in enumerate(zip(found.counters, found.spins, runner.turns(), strict=True)):
        where = (device, str(index))
        yield from _pair_samples(where, counted)
        for direction, histogram in zip(("receive", "transmit"), turns, strict=True):
            yield Sample(metric("tvmm_net_turn_seconds"), (*where, direction), histogram)
        yield Sample(metric("tvmm_net_waits_total"), (*where, "look"), spin.hits)
        yield Sample(metric("tvmm_net_waits_total"), (*where, "sleep"), spin.sleeps)


def _pair_samples(where: tuple[str, str], counted: NetCounters) -> Iterator[Sample]:
    moved = {
        "receive": (counted.rx_frames, counted.rx_bytes),
        "transmit": (counted.tx_frames, counted.tx_bytes),
    }
    for direction, (frames, size) in moved.items():
        yield Sample(metric("tvmm_net_frames_total"), (*where, direction), frames)
        yield Sample(metric("tvmm_net_bytes_total"), (*where, direction), size)
        for reason, field in _DROPPED[direction].items():
            yield Sample(metric("tvmm_net_dropped_frames_total"), (*where, direction, reason), getattr(counted, field))
    yield Sample(metric("tvmm_net_held_frames_total"), where, counted.rx_held)
    yield Sample(metric("tvmm_net_full_total"), where, counted.tx_waits)


def balloon_samples(info: BalloonInfo) -> Iterator[Sample]:
    """Of a balloon that has told this."""
    yield Sample(metric("tvmm_balloon_target_bytes"), (info.id,), info.target)
    yield Sample(metric("tvmm_balloon_actual_bytes"), (info.id,), info.actual)
    for event, count in info.counters.items():
        yield Sample(metric("tvmm_balloon_pages_total"), (info.id, event), count)


_STREAMS = {"receive": ("rx_packets", "rx_bytes"), "transmit": ("tx_packets", "tx_bytes")}
"""Fields of `VsockCounters` by direction, as the guest sees it."""


def vsock_samples(device: str, runner: VsockRunner) -> Iterator[Sample]:
    """Of the socket device `device`. From any thread."""
    found = runner.info()
    counted = found.counters._asdict()
    yield Sample(metric("tvmm_vsock_connections"), (device,), found.connections)
    for direction, (packets, size) in _STREAMS.items():
        yield Sample(metric("tvmm_vsock_packets_total"), (device, direction), counted.pop(packets))
        yield Sample(metric("tvmm_vsock_bytes_total"), (device, direction), counted.pop(size))
    for event, count in counted.items():
        yield Sample(metric("tvmm_vsock_events_total"), (device, event.replace("_", "-")), count)
