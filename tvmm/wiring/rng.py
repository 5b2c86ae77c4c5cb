"""A source of entropy, from its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.virtio.rng import Rng
from tvmm.virtio.runner.rng import RngRunner
from tvmm.wiring.ring import ring_features

if TYPE_CHECKING:
    from tvmm.config.rng import RngConfig
    from tvmm.wiring.devices import Devices

__all__ = ["make_rng"]


def make_rng(devices: Devices, options: RngConfig) -> None:
    """Put it into a slot of `devices`. Raises `UserError`."""
    model = Rng(options.max_bytes, options.period_ms * 1_000_000, ring_features(options))
    slot = devices.place(model, options)
    runner = RngRunner(model, slot.ends(), devices.warn, options.filename, options.id)
    devices.host.stack.callback(runner.close)
    slot.connect(runner)
