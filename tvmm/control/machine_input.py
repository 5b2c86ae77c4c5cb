"""`InputTarget` of a machine: its control clients as one source of its `InputHub`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tvmm.control.input_target import MouseInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.control.input_target import InputAction
    from tvmm.devices.input_hub import InputHub

__all__ = ["MachineInput"]


class MachineInput:
    """Types and points for all control clients together, as QEMU does. `hub` is asked for when it is needed."""

    def __init__(self, hub: Callable[[], InputHub]) -> None:
        self._hub = hub
        self._turn = trio.Lock()

    async def send_keys(self, codes: Sequence[int], hold_ms: int) -> None:
        """See `InputTarget`. A client that hangs up meanwhile leaves nothing pressed."""
        hub, source = self._hub(), object()
        async with self._turn:
            try:
                for code in codes:
                    hub.key(code, True, source)
                    hub.sync()
                await trio.sleep(hold_ms / 1000)
                for code in reversed(codes):
                    hub.key(code, False, source)
                    hub.sync()
            finally:
                hub.release_all(source)

    def send_input(self, actions: Sequence[InputAction]) -> None:
        """See `InputTarget`."""
        hub = self._hub()
        for kind, first, second in actions:
            if kind == "key":
                hub.key(first, bool(second), self)
            elif kind == "button":
                hub.button(first, bool(second), self)
            elif kind == "wheel":
                hub.wheel(first, second)
            elif kind == "rel":
                hub.move_by(*((0, second) if first else (second, 0)))
            else:
                x, y = hub.position
                hub.move_to(*((x, second) if first else (second, y)))
        hub.sync()

    def mice(self) -> Sequence[MouseInfo]:
        """See `InputTarget`."""
        hub = self._hub()
        current = hub.current_pointer()
        return [
            MouseInfo(sink.name, number, sink is current, sink.absolute)
            for number, sink in enumerate(hub.devices[1])
        ]
