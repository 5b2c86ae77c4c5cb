"""A transport as a record, and the check of one that anybody may have written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.records import check_bits, check_flag, check_record, check_uint
from tvmm.virtio.features import Ring, refusal
from tvmm.virtio.queues import NO_VECTOR
from tvmm.virtio.shell import CONFIG_EVENT, QUEUE_EVENT
from tvmm.virtio.status import DRIVER_OK, FEATURES_OK, REACHABLE

if TYPE_CHECKING:
    from tvmm.virtio.device import VirtioDevice
    from tvmm.virtio.queues import QueueRegisters, QueueState

__all__ = ["TransportState", "check_state"]

SELECT_LIMIT = 0xFFFF_FFFF
FEATURES_LIMIT = (1 << 64) - 1


class TransportState(NamedTuple):
    """The registers. `queues` are `QueueState`, `device` is the device's record."""

    status: int
    isr: int
    device_select: int
    driver_select: int
    queue_select: int
    driver_features: int
    resetting: bool
    config_vector: int
    queues: tuple[Any, ...]
    device: Any


def check_state(
    state: object, device: VirtioDevice, queues: list[QueueRegisters], vectors: int
) -> TransportState:
    """`state` if `device` behind these queues and vectors can be in it; its own record is left to the device.

    Raises `ValueError` with the name of a bad field.
    """
    check_record(state, TransportState)
    assert isinstance(state, TransportState)
    status = check_uint("status", state.status, 0xFF)
    if status not in REACHABLE:
        raise ValueError("status is none that a driver can bring about")
    check_bits("isr", state.isr, QUEUE_EVENT | CONFIG_EVENT)
    for field in ("device_select", "driver_select", "queue_select"):
        check_uint(field, getattr(state, field), SELECT_LIMIT)
    accepted = check_uint("driver_features", state.driver_features, FEATURES_LIMIT)
    if status & FEATURES_OK and refusal(device.device_id, device.features, accepted):
        raise ValueError("driver_features cannot have been accepted")
    resetting = check_flag("resetting", state.resetting)
    if resetting and not status & DRIVER_OK:
        raise ValueError("resetting what was not live")
    vector = check_uint("config_vector", state.config_vector, NO_VECTOR)
    if vector != NO_VECTOR and vector >= vectors:
        raise ValueError("config_vector is not in the table")
    packed = bool(status & FEATURES_OK and accepted & Ring.RING_PACKED)
    if type(state.queues) is not tuple or len(state.queues) != len(queues):
        raise ValueError(f"queues is not a tuple of {len(queues)} records")
    checked = tuple(
        _check_queue(queue.check(entry, packed, vectors), status)
        for queue, entry in zip(queues, state.queues, strict=True)
    )
    return state._replace(resetting=resetting, queues=checked)


def _check_queue(state: QueueState, status: int) -> QueueState:
    """`state` if a queue can be in it while the device has `status`."""
    if state.ready and not status & FEATURES_OK:
        raise ValueError("queues: ready before FEATURES_OK")
    if state.resetting and not status & DRIVER_OK:
        raise ValueError("queues: resetting one that was not live")
    return state
