"""Every metric there is, in the order in which they are shown; `docs/metrics.md` has the same list.

A device of a new kind shows up under ``tvmm_virtio_`` without a line here. What it counts beyond that gets a row, and
its maker a function that gives samples (`Devices.measures`).
"""

from __future__ import annotations

from tvmm.metrics.model import Metric

__all__ = ["METRICS", "metric"]

_QUEUE = ("device", "queue")
_PAIR = ("device", "pair", "direction")


def _counter(name: str, text: str, *labels: str, unit: str = "") -> Metric:
    return Metric(name, "counter", text, labels, unit)


def _gauge(name: str, text: str, *labels: str, unit: str = "") -> Metric:
    return Metric(name, "gauge", text, labels, unit)


def _histogram(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, "histogram", text, labels, "seconds")


_ALL = (
    # The machine.
    _gauge("tvmm_machine_info", "1, with what the machine is.", "version", "cpu_model", "kernel"),
    _gauge("tvmm_machine_state", "1 for the run state that the machine is in, in QEMU's words.", "state"),
    _gauge("tvmm_machine_running", "1 while the guest runs, else 0."),
    _gauge("tvmm_machine_start_time_seconds", "When the machine was made, in Unix time.", unit="seconds"),
    _gauge("tvmm_machine_uptime_seconds", "How long the machine has been there.", unit="seconds"),
    _gauge("tvmm_memory_bytes", "RAM that the guest was given.", unit="bytes"),
    _gauge("tvmm_memory_resident_bytes", "Guest RAM that the host holds pages for.", unit="bytes"),
    _gauge("tvmm_process_resident_bytes", "Memory of the whole process, guest RAM included.", unit="bytes"),
    _counter("tvmm_process_cpu_seconds_total", "CPU time of the whole process.", "mode", unit="seconds"),
    _gauge("tvmm_tasks", "Tasks of the machine."),
    _gauge("tvmm_control_clients", "Clients of the control sockets."),
    # Processors.
    _counter("tvmm_vcpu_exits_total", "Returns of a vCPU from the guest to tvmm, by KVM's reason.", "cpu", "reason"),
    _counter("tvmm_vcpu_exits_in_c_total", "Exits that needed no Python.", "cpu"),
    _counter("tvmm_vcpu_pauses_total", "Times a vCPU was stopped: to pause, save or move the machine.", "cpu"),
    _counter(
        "tvmm_vcpu_cpu_seconds_total",
        "CPU time of a vCPU's thread: in the guest, in the host's kernel, in tvmm.",
        *("cpu", "mode"),
        unit="seconds",
    ),
    _counter("tvmm_vcpu_assists_total", "Instructions that tvmm carried out in KVM's stead.", "instruction"),
    _counter("tvmm_bus_unclaimed_total", "Accesses that no device answers.", "bus", "access"),
    _counter("tvmm_serial_received_bytes_total", "Bytes that came over the serial line from outside.", unit="bytes"),
    # What all virtio devices have.
    _gauge("tvmm_virtio_info", "1, with what the device is.", "device", "kind", "transport", "place"),
    _gauge("tvmm_virtio_driver_ok", "1 while a driver runs the device, else 0.", "device"),
    _counter("tvmm_virtio_mistakes_total", "What the driver did against the specification.", "device", "mistake"),
    _counter("tvmm_virtio_queue_chains_total", "Requests or buffers taken off a queue.", *_QUEUE),
    _counter("tvmm_virtio_queue_kicks_total", "Notifications by the driver.", *_QUEUE),
    _counter("tvmm_virtio_queue_kick_exits_total", "Those that came as an exit, not through an eventfd.", *_QUEUE),
    _counter("tvmm_virtio_queue_interrupts_total", "Notifications by the device.", *_QUEUE),
    _counter("tvmm_virtio_queue_suppressed_total", "Times the driver wanted no notification.", *_QUEUE),
    _counter("tvmm_virtio_queue_errors_total", "Rules of rings and chains that the driver broke.", *_QUEUE),
    _histogram("tvmm_virtio_turn_seconds", "Turns of devices that are served by tasks.", *_QUEUE),
    # Disks.
    _gauge("tvmm_blk_size_bytes", "Size of a disk.", "device", unit="bytes"),
    _gauge("tvmm_blk_stopped", "1 while a disk waits over an error, else 0.", "device"),
    _counter("tvmm_blk_requests_total", "Requests that succeeded.", *_QUEUE, "operation"),
    _counter("tvmm_blk_errors_total", "Requests that the host failed, repeated ones each time.", *_QUEUE, "operation"),
    _counter("tvmm_blk_bytes_total", "Data read, written, discarded.", *_QUEUE, "operation", unit="bytes"),
    _histogram("tvmm_blk_request_seconds", "From taken off the ring to shown as used.", *_QUEUE, "operation"),
    _counter("tvmm_blk_refused_total", "Requests that no driver should make.", *_QUEUE),
    _counter("tvmm_blk_ignored_errors_total", "Errors of the host that the driver was not told of.", *_QUEUE),
    _counter("tvmm_blk_stops_total", "Times a queue stopped over an error.", *_QUEUE),
    _counter("tvmm_blk_retried_total", "Requests repeated after that.", *_QUEUE),
    _counter("tvmm_blk_cached_reads_total", "Reads that needed no other thread.", *_QUEUE),
    _counter("tvmm_blk_buffered_calls_total", "System calls that O_DIRECT was not possible for.", *_QUEUE),
    _counter("tvmm_blk_stable_writes_total", "Writes that had to be stable when they completed.", *_QUEUE),
    _counter("tvmm_blk_system_calls_total", "System calls, by whatever engine.", *_QUEUE),
    # Limits (--disk and --net with bps, iops and their like), and balloons.
    _counter("tvmm_limit_waits_total", "Times a queue had to wait for the limits of its device.", "device"),
    _gauge("tvmm_balloon_target_bytes", "Memory that the guest is to have.", "device", unit="bytes"),
    _gauge("tvmm_balloon_actual_bytes", "Memory that the guest has, as its driver says.", "device", unit="bytes"),
    _counter("tvmm_balloon_pages_total", "Pages of 4 KiB, by what became of them.", "device", "event"),
    # Networks.
    _gauge("tvmm_net_link_up", "1 with the cable in, else 0.", "device"),
    _counter("tvmm_net_frames_total", "Frames that went through.", *_PAIR),
    _counter("tvmm_net_bytes_total", "Bytes of these, without headers of virtio.", *_PAIR, unit="bytes"),
    _counter("tvmm_net_dropped_frames_total", "Frames that did not.", *_PAIR, "reason"),
    _counter("tvmm_net_held_frames_total", "Received frames that waited for room.", "device", "pair"),
    _counter("tvmm_net_full_total", "Times the wire took no more for the moment.", "device", "pair"),
    _histogram("tvmm_net_turn_seconds", "Turns that moved frames, up to 64 of them.", *_PAIR),
    _counter("tvmm_net_waits_total", "Waits for work that looking again ended, and sleeps.", "device", "pair", "end"),
    # Sockets between guest and host.
    _gauge("tvmm_vsock_connections", "Connections that there are.", "device"),
    _counter("tvmm_vsock_packets_total", "Packets, received by the guest and sent by it.", "device", "direction"),
    _counter("tvmm_vsock_bytes_total", "Bytes of streams.", "device", "direction", unit="bytes"),
    _counter("tvmm_vsock_events_total", "What became of connections and packets.", "device", "event"),
    # Viewers and migration.
    _gauge("tvmm_vnc_viewers", "Viewers of the screen."),
    _gauge("tvmm_migration_state", "1 for the state of the migration, in QEMU's words.", "state", "direction"),
    _gauge("tvmm_migration_ram_bytes", "RAM to move, moved (on the wire) and left.", "part", unit="bytes"),
    _gauge("tvmm_migration_rounds", "Passes over RAM that were begun."),
    _gauge("tvmm_migration_throughput_bytes_per_second", "Lately, on the wire."),
    _gauge("tvmm_migration_dirty_pages_per_second", "Pages that the guest dirtied in the last pass."),
)

METRICS = {entry.name: entry for entry in _ALL}
"""By name."""


def metric(name: str) -> Metric:
    """The row of this name."""
    return METRICS[name]
