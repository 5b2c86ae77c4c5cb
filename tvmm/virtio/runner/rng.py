"""The entropy device's runner: random bytes from the kernel, or from a file that has some.

Bytes are got before the buffers that they are for are taken: a source may be slow, and the driver may take its
buffers back meanwhile. What is left then goes to the next request; no byte is given twice.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import trio

from tvmm.errors import ConfigError, HostError
from tvmm.records import check_record
from tvmm.virtio.rng import MAX_FILL, fill_length
from tvmm.virtio.runner.base import QueueRun
from tvmm.virtio.runner.task import TaskRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.kvm.vring import Chain
    from tvmm.virtio.device import Activation
    from tvmm.virtio.rng import Rng
    from tvmm.virtio.runner.base import Ends

__all__ = ["KERNEL_SOURCE", "RngRun", "RngRunner"]

KERNEL_SOURCE = "/dev/urandom"
"""Stands for getrandom(2), which needs no descriptor."""

REQUESTS = 0

GRANT_SECONDS = 0.01
"""Least time until a guest at its rate limit gets more: with less it would get single bytes, at a wake-up each."""

RETRY_SECONDS = 1.0
"""When to try a source again that has failed or ended."""

POLL_SECONDS = 0.05
"""When to ask a source again that has nothing, and of which epoll(7) does not know, such as /dev/hwrng."""


class RngRun(NamedTuple):
    """What is saved. Bytes that were got and not given stay here: they are this host's, and random elsewhere too."""

    queues: tuple[QueueRun, ...]


class RngRunner(TaskRunner):
    """Serves the requests of `model` from `filename`, a character device, FIFO or regular file.

    A source that fails or ends is told to the user through `warn`, once until it works again; the guest's requests
    wait. Raises `ConfigError` or `HostError` if there is no such source.
    """

    def __init__(
        self, model: Rng, ends: Ends, warn: Callable[[str], None], filename: str = KERNEL_SOURCE, name: str = "rng"
    ) -> None:
        super().__init__(name, ends, 1)
        try:
            self._fd = -1 if filename == KERNEL_SOURCE else _open(filename)
        except BaseException:
            super().close()
            raise
        self.model = model
        self.given_bytes = 0
        self._filename = filename
        self._warn = warn
        self._warned = False
        self._pool = b""

    def close(self) -> None:
        """Give the descriptors back. Nothing runs any more."""
        super().close()
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def spare_bytes(self) -> int:
        """Got from the source, and not given yet."""
        return len(self._pool)

    async def attend(self, index: int) -> bool:
        """Serve one turn of requests, waiting for bytes and for the rate limit."""
        with self.ends.bus_lock:
            wanted = self._wanted()
        if not wanted:
            return False
        if not self._pool:
            # Trio's clock, so that the limit and the sleep agree.
            now_ns = round(trio.current_time() * 1e9)
            granted = self.model.grant(wanted, now_ns)
            if not granted:
                left_ns = self.model.next_grant_ns(now_ns) - now_ns
                await trio.sleep(max(left_ns / 1e9, GRANT_SECONDS))
                return True
            self._pool = await self._read(granted)
        with self.ends.bus_lock:
            self._fill()
        return True

    # -- rings, under the bus lock -----------------------------------------------------------------------

    def _requests(self) -> list[tuple[Chain, int]]:
        """Requests on offer with their lengths, all of them in the batch."""
        chains = self.offers(REQUESTS)
        lengths = [fill_length(chain.readable_bytes, chain.writable_bytes) for chain in chains]
        if not all(lengths):
            self.refuse(REQUESTS, "a buffer for random bytes that is not only writable")
            return []
        return list(zip(chains, lengths, strict=True))

    def _wanted(self) -> int:
        """Bytes that the driver waits for, as many as one turn gives."""
        requests = self._requests()
        self.put_back(REQUESTS, len(requests))
        return min(sum(length for _, length in requests), MAX_FILL)

    def _fill(self) -> None:
        """Fill buffers while there are bytes."""
        requests, used, at = self._requests(), [], 0
        for chain, length in requests:
            data = self._pool[at : at + length]
            if not data:
                break
            self.scatter(chain, data)
            used.append((chain.id, len(data)))
            at += len(data)
        self._pool = self._pool[at:]
        self.given_bytes += at
        self.put_back(REQUESTS, len(requests) - len(used))
        self.push(REQUESTS, used)

    # -- saving, held ------------------------------------------------------------------------------------

    def save(self) -> RngRun:
        """See `Runner`."""
        return RngRun(self.save_queues())

    async def restore(self, activation: Activation, state: RngRun) -> None:
        """See `Runner`."""
        check_record(state, RngRun)
        with self.ends.bus_lock:
            self.restore_queues(activation, state.queues)
        await trio.lowlevel.checkpoint()

    # -- source ------------------------------------------------------------------------------------------

    async def _read(self, count: int) -> bytes:
        """1 to `count` bytes, however long the source takes."""
        if self._fd < 0:
            return os.getrandom(count)
        while True:
            try:
                # In a thread, although it does not block: a disk can be slow, and so can a generator.
                data = await trio.to_thread.run_sync(os.read, self._fd, count)
            except BlockingIOError:
                await self._wait_for_source()
                continue
            except OSError as error:
                trouble = error.strerror or str(error)
            else:
                if data:
                    self._warned = False
                    return data
                trouble = "it has ended"
            if not self._warned:
                self._warned = True
                self._warn(f"no random bytes from {self._filename}: {trouble}; the guest waits for more")
            await trio.sleep(RETRY_SECONDS)

    async def _wait_for_source(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._fd)
        except PermissionError:
            await trio.sleep(POLL_SECONDS)


def _open(filename: str) -> int:
    try:
        fd = os.open(filename, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise HostError(f"cannot read random bytes from {filename}: {reason}") from None
    try:
        os.read(fd, 0)
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"random bytes cannot come from {filename}: {error.strerror}", "use /dev/urandom") from None
    return fd
