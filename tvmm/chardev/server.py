"""What the socket backends share: viewers that come, go and come back.

Any number may be connected (QEMU takes one). The one that has been connected longest holds the guest: if it
is slow, the guest waits, and nothing is lost. The others see everything as well, as long as they keep up.
When the holder leaves, the next takes over. With nobody connected the guest goes on and the history keeps
what comes.

A viewer that finds itself alone goes on where the last one stopped, so a script may reconnect without reading
anything twice. One that joins others has seen nothing yet and gets the whole history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tvmm.chardev.port import MAX_VIEWERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.chardev.feed import Follower
    from tvmm.chardev.port import Line

__all__ = ["FAREWELL_SECONDS", "ViewerServer"]

FAREWELL_SECONDS = 2.0
"""How long viewers may take for the guest's last bytes before their connections are cut."""


class ViewerServer:
    """Serves one line to whoever connects."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._viewers: list[Follower] = []
        self._seen = 0

    async def run(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Accept viewers until the line is finished and all have read its end; closes the listeners."""
        async with trio.open_nursery() as viewers:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    lambda: trio.serve_listeners(self._serve, list(listeners), handler_nursery=viewers)
                )
                await self._line.finished.wait()
                accepting.cancel_scope.cancel()
            viewers.cancel_scope.deadline = trio.current_time() + FAREWELL_SECONDS

    async def _serve(self, stream: trio.SocketStream) -> None:
        if len(self._viewers) >= MAX_VIEWERS:
            await trio.aclose_forcefully(stream)
            return
        alone = not self._viewers
        with self._line.follow(holding=alone, start=self._seen if alone else None) as follower:
            self._viewers.append(follower)
            try:
                await self._line.serve(stream, follower)
            finally:
                self._viewers.remove(follower)
                self._seen = max(self._seen, follower.position)
                if self._viewers:
                    self._viewers[0].holding = True
