"""The source's connection for disks: blocks that are marked, round by round, by one thread."""

from __future__ import annotations

import mmap
import select
from typing import TYPE_CHECKING

from tvmm.kvm.dirty_blocks import GRAIN, all_zero
from tvmm.kvm.serve import Waker
from tvmm.migration.disk_frames import DATA_MAX, HEADER_BYTES, ZEROES_MAX, DiskFrame, FrameKind
from tvmm.migration.link import LinkLost
from tvmm.migration.senders import STALL_MS, TURN_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tvmm.kvm.lanes import LaneGroup
    from tvmm.migration.disk_files import DiskOrigin
    from tvmm.migration.senders import Codec, ThreadStream

__all__ = ["DiskSender"]

TAKE_BYTES = 16 << 20
"""Of marked blocks, before it is looked which of them are holes. Their marks are gone when the first is read."""


class DiskSender:
    """All `origins` over one connection. `group` has the limit of bandwidth, which holds for pages and blocks together.

    The bytes of `sent` are those on the wire, `copied` and `zeroed` those of disks. Any thread may read them.
    """

    def __init__(
        self,
        stream: ThreadStream,
        origins: Sequence[DiskOrigin],
        group: LaneGroup,
        waker: Waker,
        codec: Codec | None = None,
    ) -> None:
        self._stream = stream
        self._origins = origins
        self._group = group
        self._codec = codec
        self._woken = select.poll()
        self._woken.register(waker, select.POLLIN)
        # A header fits in front of the blocks, which O_DIRECT wants at the beginning of a page.
        self._buffer = memoryview(mmap.mmap(-1, mmap.PAGESIZE + DATA_MAX + mmap.PAGESIZE))
        self.sent = self.copied = self.zeroed = 0

    def close(self) -> None:
        """No round is under way."""
        self._stream.close()

    def send_round(self, number: int) -> None:
        """On a thread: each block that is marked, once, and the word that it was all. Returns early once woken.

        Raises `LinkLost`, and `HostError` for an image that cannot be read.
        """
        try:
            for origin in self._origins:
                self._send_disk(origin)
            self._send(memoryview(DiskFrame(FrameKind.END, 0, 0, number).to_bytes()))
        except TimeoutError:
            raise LinkLost(f"the destination has taken no blocks for {STALL_MS // 1000} s") from None
        except InterruptedError:
            return
        except OSError as error:
            raise LinkLost(f"the connection for disks broke: {error.strerror or error}") from error

    def _send_disk(self, origin: DiskOrigin) -> None:
        at = 0
        while (run := origin.changes.take(at, TAKE_BYTES)) is not None:
            for start, length, is_data in origin.extents(*run):
                if is_data:
                    self._send_data(origin, start, length)
                else:
                    self._send_zeroes(origin.index, start, length)
            at = sum(run)

    def _send_data(self, origin: DiskOrigin, offset: int, length: int) -> None:
        blocks = self._buffer[mmap.PAGESIZE :]
        for start in range(offset, offset + length, DATA_MAX):
            part = min(DATA_MAX, offset + length - start)
            origin.read_into(blocks, start, part)
            for at, size, is_zero in _runs(blocks, part):
                if is_zero:
                    self._send_zeroes(origin.index, start + at, size)
                    continue
                # Over the end of what was sent before, or of zeroes.
                begin = mmap.PAGESIZE + at - HEADER_BYTES
                header = DiskFrame(FrameKind.DATA, origin.index, size, start + at).to_bytes()
                self._buffer[begin : begin + HEADER_BYTES] = header
                self._send(self._buffer[begin : begin + HEADER_BYTES + size])
                self.copied += size

    def _send_zeroes(self, index: int, offset: int, length: int) -> None:
        for start in range(offset, offset + length, ZEROES_MAX):
            part = min(ZEROES_MAX, offset + length - start)
            self._send(memoryview(DiskFrame(FrameKind.ZEROES, index, part, start).to_bytes()))
            self.zeroed += part

    def _send(self, data: memoryview) -> None:
        if self._codec is not None:
            data = self._codec.pack(data)
        while (wait := self._group.delay(len(data))) > 0:
            if self._woken.poll(min(wait, TURN_SECONDS) * 1000):
                raise InterruptedError
        self._stream.send_all(data)
        self.sent += len(data)


def _runs(blocks: memoryview, length: int) -> Iterator[tuple[int, int, bool]]:
    """The parts of a piece, as (offset, length, whether it is zeroes), in whole blocks but the last."""
    begin, was_zero = 0, False
    for at in range(0, length, GRAIN):
        with blocks[at : min(at + GRAIN, length)] as block:
            is_zero = all_zero(block)
        if at and is_zero != was_zero:
            yield begin, at - begin, was_zero
            begin = at
        was_zero = is_zero
    yield begin, length - begin, was_zero
