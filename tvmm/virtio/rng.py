"""The entropy device (virtio 1.3, 5.4): one queue of buffers to fill, no features, no configuration.

Where the bytes come from is the shell's choice; how many a guest may have is here. A rate limit is a bucket that
fills with time, so that one guest cannot drain a slow source that others share.
"""

from __future__ import annotations

from typing import NamedTuple

from tvmm.errors import ConfigError
from tvmm.records import check_record, check_uint
from tvmm.virtio.device import ConfigState, VirtioDevice
from tvmm.virtio.features import DEFAULT_RING, RNG_ID

__all__ = ["MAX_FILL", "Rng", "RngState", "fill_length"]

QUEUE_SIZE = 64

MAX_FILL = 64 << 10
"""Bytes per buffer: a chain may be 4 GiB long, and one request should not keep the source busy for seconds.
The driver learns from the used length how much it got, and asks again."""

class RngState(NamedTuple):
    """`tokens` are the bytes that the rate limit would let pass at once."""

    config: ConfigState
    tokens: int


def fill_length(readable_bytes: int, writable_bytes: int) -> int:
    """How many random bytes a buffer gets; 0 for one that breaks the rules (5.4.6.1: only writable, 5.4.6.2)."""
    return 0 if readable_bytes else min(writable_bytes, MAX_FILL)


class Rng(VirtioDevice):
    """`max_bytes` in each `period_ns` nanoseconds, `max_bytes` 0 for as many as the guest asks for.

    Raises `ConfigError` for a limit that is none.
    """

    device_id = RNG_ID
    type_name = "virtio-rng"

    def __init__(self, max_bytes: int = 0, period_ns: int = 1_000_000_000, ring: int = DEFAULT_RING) -> None:
        if not 0 <= max_bytes < 1 << 40 or not 0 < period_ns < 1 << 40:
            raise ConfigError(f"virtio-rng with {max_bytes} bytes in {period_ns} ns is no rate")
        super().__init__((QUEUE_SIZE,), ring=ring)
        self.max_bytes = max_bytes
        self.period_ns = period_ns
        self._tokens = max_bytes
        self._filled_ns: int | None = None

    def grant(self, wanted: int, now_ns: int) -> int:
        """Bytes, up to `wanted`, that may be given now. 0 means: come back at `next_grant_ns`."""
        if not self.max_bytes:
            return wanted
        self._refill(now_ns)
        granted = min(wanted, self._tokens)
        self._tokens -= granted
        return granted

    def next_grant_ns(self, now_ns: int) -> int:
        """When, on the clock of `now_ns`, there is at least one byte."""
        if not self.max_bytes or self._tokens or self._filled_ns is None:
            return now_ns
        return max(now_ns, self._filled_ns - (-self.period_ns // self.max_bytes))

    def _refill(self, now_ns: int) -> None:
        if self._filled_ns is None:
            self._filled_ns = now_ns
        gained = max(now_ns - self._filled_ns, 0) * self.max_bytes // self.period_ns
        if self._tokens + gained >= self.max_bytes:
            self._tokens, self._filled_ns = self.max_bytes, now_ns
        elif gained:
            # Only as much time as the bytes stand for has been used; the rest counts next time.
            self._tokens += gained
            self._filled_ns += gained * self.period_ns // self.max_bytes

    def state(self) -> RngState:
        """The bucket as a record. A clock has no meaning elsewhere: what is left of a byte is lost."""
        return RngState(self.config_state(), self._tokens)

    def restore(self, state: RngState, accepted: int) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        check_record(state, RngState)
        config = self.check_config(state.config)
        tokens = check_uint("tokens", state.tokens, self.max_bytes)
        self.load_config(config)
        self._tokens, self._filled_ns, self.accepted = tokens, None, accepted
