"""How a migration goes and how it is to go: the records between the core, the control socket and the command line.

Words and meanings are those of QEMU's qapi/migration.json where it has them.
"""

from __future__ import annotations

from typing import NamedTuple

from tvmm.errors import ConfigError

__all__ = [
    "COMPRESSIONS",
    "ENDED",
    "GUEST_PLACES",
    "MAX_BANDWIDTH",
    "MAX_CONNECTIONS",
    "MAX_DOWNTIME_MS",
    "MAX_THROTTLE_PERCENT",
    "MAX_TIMEOUT_S",
    "NO_MIGRATION",
    "POSTCOPIES",
    "POSTCOPY",
    "STATES",
    "UNDER_WAY",
    "DiskProgress",
    "DowntimeParts",
    "MigrationParameters",
    "MigrationStatus",
    "PostcopyProgress",
    "RamProgress",
]

STATES = (
    "none",
    "setup",
    "cancelling",
    "cancelled",
    "active",
    "device",
    "pre-switchover",
    "completed",
    "failed",
    "wait-unplug",
    "postcopy-active",
    "postcopy-paused",
    "postcopy-recover-setup",
    "postcopy-recover",
)
"""QEMU's MigrationStatus, without COLO. `wait-unplug` is a word that clients may know; it is not used.

::

    none ──> setup ──> active ──> device ──> completed
               │          │          │
               ├──────────┴──────────┴─────> failed
               └──────────┴──────────┴─────> cancelling ──> cancelled

`device` is the switchover: the guest is paused and its last pages and devices move. A new migration goes from any of
the three ends to `setup`. With post-copy, and from the commit on::

    device ──> postcopy-active ──────────────────────────────────> completed
                 ^         └──> postcopy-paused ──────────────────────^
                 │                   │   ^                            │
                 └─ postcopy-recover ┴───┴── postcopy-recover-setup   │
                        └─────────────────────────────────────────────┘
"""

POSTCOPY = ("postcopy-active", "postcopy-paused", "postcopy-recover-setup", "postcopy-recover")
"""States in which the guest runs at the destination, and pages of it are at the source alone."""
UNDER_WAY = ("setup", "active", "pre-switchover", "device", "cancelling", *POSTCOPY)
"""States that something follows, by itself or, for one that is paused, when the network is mended."""
ENDED = ("completed", "failed", "cancelled")
"""States that say how the last migration ended."""

GUEST_PLACES = ("source", "destination", "unknown")

COMPRESSIONS = ("off", "zstd")
POSTCOPIES = ("off", "allow", "now")
"""Whether the guest may go before its memory: never, when rounds do not get it there, or after the first pass."""

MAX_DOWNTIME_MS = 2_000_000.0
"""QEMU's limit of downtime-limit."""
MAX_BANDWIDTH = (1 << 63) - 1
MAX_CONNECTIONS = 64
"""Each costs a socket and a thread on both sides; beyond the number of processors they add nothing."""
MAX_TIMEOUT_S = 7 * 86_400.0
PATH_LIMIT = 4095
HOST_LIMIT = 253
CODE_LIMIT = 200
"""Characters in texts: a control client must not choose how much is kept of it."""
MAX_THROTTLE_PERCENT = 99
"""QEMU's limit of max-cpu-throttle: a guest without any time would never get to answer anything."""


class RamProgress(NamedTuple):
    """What became of guest RAM so far."""

    total: int = 0
    """Bytes of RAM that the guest has."""
    transferred: int = 0
    """Bytes on the wire, frames and all, over all connections."""
    remaining: int = 0
    """Bytes of RAM that are still to be looked at, dirtied ones included."""
    normal: int = 0
    """Pages sent whole (compressed or not)."""
    zero: int = 0
    """Pages sent as no more than the word that they are zero."""
    unchanged: int = 0
    """Pages that were marked dirty and had the content that was sent before."""
    rounds: int = 0
    """Passes over RAM that were begun, the first included."""
    dirty_pages_rate: float = 0.0
    """Pages that the guest dirties, per second, in the last round."""
    throughput: float = 0.0
    """Bytes per second on the wire, lately."""
    page_size: int = 4096
    per_connection: tuple[int, ...] = ()
    """Bytes on the wire by connection."""
    downtime_bytes: int = 0
    """Bytes on the wire while the guest was paused; part of `transferred`."""
    pages_rate: float = 0.0
    """Pages dealt with (sent, zero or found unchanged) per second, lately."""
    spared: int = 0
    """Pages that were not sent because the guest said that they are free, and did not write to them since."""
    handed_over: int = 0
    """Bytes of RAM that the destination has taken over as they are, on the same host: none of them was sent."""


class PostcopyProgress(NamedTuple):
    """What became of a guest that has gone before its memory."""

    requests: int = 0
    """Pages that it has asked for and the source has sent ahead of the others."""
    faults: int = 0
    """How often something at the destination has waited for a page, as far as this side knows."""
    median_fault_ms: float = 0.0
    """Half of them have waited for less; 0 while unknown."""
    bytes: int = 0
    """Bytes on the wire since the guest has gone."""
    cuts: int = 0
    """How often the connection broke."""
    waiting: bool = False
    """There is no connection, and nobody tries to make one until the user asks for it."""


class DiskProgress(NamedTuple):
    """What became of the disks that are copied, all of them together; all zeroes if none are. In bytes."""

    total: int = 0
    """What the guest has of them."""
    transferred: int = 0
    """On the wire, frames and all."""
    remaining: int = 0
    """Still to be looked at, what was written meanwhile included."""
    copied: int = 0
    """Sent whole (compressed or not)."""
    zeroed: int = 0
    """Sent as no more than the word that they are zeroes."""
    rounds: int = 0
    """Passes that were begun, the first included."""
    throughput: float = 0.0
    """Bytes per second on the wire, lately."""
    dirty_rate: float = 0.0
    """Bytes that the guest writes to, in whole blocks, per second, in the last round."""
    slowed_to: int = 0
    """Bytes per second that each disk may be written with meanwhile; 0: as many as the guest likes."""


class DowntimeParts(NamedTuple):
    """What the pause was made of, in milliseconds, as both sides have measured it."""

    stop_ms: float = 0.0
    """Until no vCPU ran and no device touched memory."""
    last_pages_ms: float = 0.0
    """Sending what was dirty then."""
    state_ms: float = 0.0
    """Saving vCPUs and devices."""
    transfer_ms: float = 0.0
    """Until the destination had all of it."""
    restore_ms: float = 0.0
    """Loading vCPUs and devices there."""
    resume_ms: float = 0.0
    """From there until the first vCPU ran: the two steps of the commit, and the start."""


class MigrationStatus(NamedTuple):
    """One migration, out of a machine or into it; the last one if none is under way."""

    state: str = "none"
    """One of `STATES`."""
    incoming: bool = False
    """The machine is the destination."""
    peer: str = ""
    """The other side, as ``tcp:HOST:PORT`` or ``unix:PATH``."""
    phase: str = ""
    """For people: ``connecting``, ``first pass``, ``round 3``, ``switchover``, ``done``."""
    error: str = ""
    """Why it failed, in one sentence without a full stop; '' if it did not."""
    error_hint: str = ""
    """What to do about it, or ''."""
    guest: str = "source"
    """Who has the guest: one of `GUEST_PLACES`. ``unknown``: the destination may run it and does not answer; it is
    paused here until the user decides."""
    total_ms: float | None = None
    """Since it began, or all it took. None where nothing began."""
    setup_ms: float | None = None
    """Until the first page was sent: connecting, greeting, checks."""
    downtime_ms: float | None = None
    """How long the guest was paused; None unless completed."""
    expected_downtime_ms: float | None = None
    """How long it would be paused if switchover began now; None while unknown."""
    seconds_left: float | None = None
    """Until it is done, if all goes on as now; None while unknown or without end in sight."""
    ram: RamProgress = RamProgress()
    downtime_parts: DowntimeParts | None = None
    """None unless completed."""
    throttle_percent: int = 0
    """Share of their time that is taken from the vCPUs which dirty memory."""
    connections: int = 0
    """How many are in use."""
    listening: str = ""
    """Where a destination waits, as ``tcp:HOST:PORT`` with the real port, or ``unix:PATH``; '' if it does not."""
    postcopy: PostcopyProgress | None = None
    """None unless the guest has gone before its memory."""
    disks: DiskProgress = DiskProgress()
    """Of those that are copied."""
    advice: str = ""
    """How it could have gone better, in one sentence without a full stop; '' if nothing is to be said."""

    @property
    def under_way(self) -> bool:
        """Whether more follows by itself."""
        return self.state in UNDER_WAY

    @property
    def ended(self) -> bool:
        """Whether there was a migration and it is over."""
        return self.state in ENDED

    @property
    def reason(self) -> str:
        """`error` and `error_hint` as one line."""
        return f"{self.error}; {self.error_hint}" if self.error and self.error_hint else self.error


NO_MIGRATION = MigrationStatus()
"""The status of a machine that nobody has tried to move."""


class MigrationParameters(NamedTuple):
    """How a migration out of a machine is to go. The defaults are meant to do for everybody."""

    max_downtime_ms: float = 300.0
    """The longest pause allowed; a limit and no target."""
    bandwidth: int = 0
    """Bytes per second on the wire; 0: as fast as it goes."""
    connections: int = 0
    """Connections that share the RAM; 0: as many as the path and the processors reward."""
    timeout_s: float = 600.0
    """Give up if the rounds after the first pass take longer; 0: never."""
    compress: str = "off"
    """One of `COMPRESSIONS`."""
    verify: bool = False
    """Compare hashes of RAM, device state and copied disks on both sides before the destination runs."""
    max_throttle_percent: int = MAX_THROTTLE_PERCENT
    """Most that may be taken from vCPUs that dirty memory faster than it moves; 0: never slow the guest."""
    tls: bool = False
    """TLS 1.3 with certificates on both sides."""
    keys: str = ""
    """Directory with the certificates; '' for the user's own."""
    tls_hostname: str = ""
    """Name that the destination's certificate must have; '' for the host of the address."""
    pair: str = ""
    """One-time code that the destination has printed, in place of certificates; '' for none."""
    insecure: bool = False
    """Allow plain TCP to where others can listen in."""
    postcopy: str = "off"
    """One of `POSTCOPIES`."""
    copy_storage: bool = False
    """Copy the disks that the destination wants to have copied."""

    def check(self) -> MigrationParameters:
        """The same record, if a migration can go like this; raises `ConfigError` otherwise."""
        _in_range("max downtime", self.max_downtime_ms, 0, MAX_DOWNTIME_MS, "ms")
        _in_range("bandwidth", self.bandwidth, 0, MAX_BANDWIDTH, " bytes/s")
        _in_range("connections", self.connections, 0, MAX_CONNECTIONS)
        _in_range("timeout", self.timeout_s, 0, MAX_TIMEOUT_S, "s")
        _in_range("max throttle", self.max_throttle_percent, 0, MAX_THROTTLE_PERCENT, "%")
        if self.max_downtime_ms == 0:
            raise ConfigError("max downtime 0ms leaves no time to move", "300ms is the default; 1ms is hard to reach")
        if self.compress not in COMPRESSIONS:
            raise ConfigError(f"unknown compression {self.compress!r}", f"there are: {', '.join(COMPRESSIONS)}")
        if self.postcopy not in POSTCOPIES:
            raise ConfigError(f"unknown post-copy {self.postcopy!r}", f"there are: {', '.join(POSTCOPIES)}")
        if self.postcopy != "off" and self.verify:
            raise ConfigError("--verify compares all memory in the pause, and --postcopy moves some of it later",
                              "leave one of them out")  # fmt: skip
        for what, text, limit in (
            ("keys", self.keys, PATH_LIMIT),
            ("TLS hostname", self.tls_hostname, HOST_LIMIT),
            ("pairing code", self.pair, CODE_LIMIT),
        ):
            if "\0" in text:
                raise ConfigError(f"{what} holds a NUL character")
            if len(text) > limit:
                raise ConfigError(f"{what} has {len(text)} characters", f"at most {limit} are allowed")
        return self.check_security()

    def check_security(self) -> MigrationParameters:
        """The part of `check` about who may listen and who is believed."""
        if self.pair and (self.keys or self.tls_hostname):
            raise ConfigError(
                "a pairing code takes the place of certificates", "give --pair alone, or --tls with its keys"
            )
        if self.insecure and (self.tls or self.pair):
            raise ConfigError("--insecure means without TLS", "leave it out, or --tls and --pair")
        if self.tls_hostname and not self.tls:
            raise ConfigError("--tls-hostname has no meaning without --tls")
        if self.keys and not self.tls:
            raise ConfigError("--keys has no meaning without --tls")
        return self


def _in_range(what: str, value: float, low: float, high: float, unit: str = "") -> None:
    """Raise `ConfigError` unless `value` is within `low` and `high`; NaN is not."""
    if not low <= value <= high:
        raise ConfigError(
            f"{what} {_spelled(value)}{unit} is out of range", f"it goes from {_spelled(low)} to {_spelled(high)}{unit}"
        )


def _spelled(number: float) -> str:
    """A number without exponent or needless point."""
    return f"{number:.15g}" if isinstance(number, float) else str(number)
