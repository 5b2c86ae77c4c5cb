"""The two buffers of a viewer's connection: what has come and was not looked at, and what is to be sent.

A security type with records of its own (`Wrap`) sits between them and the wire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.errors import ProtocolError
from tvmm.vnc.errors import RfbError

if TYPE_CHECKING:
    from tvmm.vnc.security_types import Codec

__all__ = ["Link"]


class Link:
    """Bounded by its user: `inbox` by what is read while it is looked at, the output by not reading (`Session`)."""

    def __init__(self) -> None:
        self.inbox = bytearray()
        """What has come, outside of records."""
        self.output_bytes = 0
        self._output: list[bytes] = []
        self._codec: Codec | None = None
        self._sealed = bytearray()

    def receive(self, data: bytes) -> None:
        """Bytes from the wire. Raises `RfbError` for forged records."""
        if self._codec is None:
            self.inbox += data
            return
        self._sealed += data
        try:
            self.inbox += self._codec.decrypt(self._sealed)
        except ProtocolError as error:
            raise RfbError(str(error)) from error

    def wrap(self, codec: Codec) -> None:
        """From here on there are records, also in what has come already. Raises `RfbError`."""
        if self._codec is not None:
            raise RfbError("records inside of records")
        self._codec = codec
        waiting = bytes(self.inbox)
        self.inbox.clear()
        self.receive(waiting)

    def take(self, count: int) -> bytes | None:
        """The next `count` bytes, if they are all there."""
        if len(self.inbox) < count:
            return None
        data = bytes(self.inbox[:count])
        del self.inbox[:count]
        return data

    def skip(self, limit: int) -> int:
        """Forget up to `limit` bytes that have come; how many."""
        skipped = min(limit, len(self.inbox))
        del self.inbox[:skipped]
        return skipped

    def send(self, data: bytes) -> None:
        """To the viewer."""
        if data:
            sealed = data if self._codec is None else self._codec.encrypt(data)
            self._output.append(sealed)
            self.output_bytes += len(sealed)

    def take_output(self) -> list[bytes]:
        """What is to be sent, and counts as sent."""
        output, self._output, self.output_bytes = self._output, [], 0
        return output

    def close(self) -> None:
        """Forget what has come."""
        self.inbox.clear()
        self._sealed.clear()
