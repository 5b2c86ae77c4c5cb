"""The destination's connection for disks: blocks go into images, round by round, by one thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.migration.disk_frames import DATA_MAX, HEADER_BYTES, LAST_ROUND, DiskFrame, FrameKind, check_frame
from tvmm.migration.link import LinkLost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.migration.disk_files import DiskTarget
    from tvmm.migration.receivers import Decoder
    from tvmm.migration.senders import ThreadStream

__all__ = ["DiskReceiver"]


class DiskReceiver:
    """Into `targets`, by their places in the source's list; None for an image that is not copied."""

    def __init__(
        self, stream: ThreadStream, targets: Sequence[DiskTarget | None], decoder: Decoder | None = None
    ) -> None:
        self._stream = stream
        self._decoder = decoder
        self._targets = targets
        self._sizes = [target.size if target is not None else 0 for target in targets]
        self._buffer = memoryview(bytearray(DATA_MAX))
        self._header = memoryview(bytearray(HEADER_BYTES))
        self._rest = memoryview(b"")
        self.rounds = 0
        self.bytes_moved = 0
        """Of frames, as they were before they were made smaller. Any thread may read it."""
        self.was_last = False

    def close(self) -> None:
        """No round is under way."""
        self._stream.close()

    def receive_round(self) -> None:
        """On a thread: up to the end of a round; returns early once woken, which is seen by `rounds`.

        What has come is written then, and not stable. Raises `LinkLost`, `ProtocolError`, and `HostError` for an image
        that cannot be written.
        """
        try:
            while not self._receive_frame():
                pass
        except InterruptedError:
            return
        except OSError as error:
            raise LinkLost(f"the connection for disks broke: {error.strerror or error}") from error

    def sync(self) -> None:
        """On a thread: return when all that has come is stable. Raises `HostError`."""
        for target in self._targets:
            if target is not None:
                target.sync()

    def _receive_frame(self) -> bool:
        """Whether it was the end of a round."""
        self._fill(self._header)
        frame = check_frame(DiskFrame.from_bytes(self._header), self._sizes, self.rounds)
        if frame.kind is FrameKind.END:
            self.rounds += 1
            self.was_last = bool(frame.offset & LAST_ROUND)
            return True
        target = self._targets[frame.disk]
        assert target is not None
        if frame.kind is FrameKind.ZEROES:
            target.zero(frame.offset, frame.length)
        else:
            self._fill(self._buffer[: frame.length])
            target.write(self._buffer[: frame.length], frame.offset)
        return False

    def _fill(self, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            got = self._some(buffer[done:])
            if not got:
                raise LinkLost("the source has closed the connection for disks")
            done += got
        self.bytes_moved += done

    def _some(self, buffer: memoryview) -> int:
        if self._decoder is None:
            return self._stream.recv_into(buffer)
        if not self._rest:
            self._rest = self._decoder.read(self._stream)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
