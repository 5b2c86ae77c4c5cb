"""One connection to an NBD server, as Python has it: given, lost, flushed. What is sent on it is C (nbd.h)."""

from __future__ import annotations

import errno
import os
import threading
from typing import NamedTuple

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib

__all__ = ["LINKS_MAX", "NbdLink", "NbdTransmission"]

LINKS_MAX = int(lib.TVMM_BLK_WAITS_MAX)
"""Of one queue."""
REASON_MAX = int(lib.TVMM_NBD_REASON)


class NbdTransmission(NamedTuple):
    """What was agreed with the server about an export.

    `flags`: the transmission flags. `structured`, `extended`: replies, and headers, of that kind were negotiated.
    `minimum_block` in bytes, a power of two up to 64 KiB. `maximum_payload`: of a read or a write, in bytes, at least
    that many.
    """

    flags: int
    structured: bool
    extended: bool
    minimum_block: int = 1
    maximum_payload: int = 32 << 20


class NbdLink:
    """A connection of one queue, and the next one when that is lost. Made before its `BlkQueue`, closed after it.

    What the queue has outstanding stays when a connection is lost, and is sent again on the next. Methods are for any
    thread at any time, but `flush` and `close`. Several links, of one queue or of several, are for exports that have
    CAN_MULTI_CONN: a flush on one has to cover what was written on the others.
    """

    def __init__(self) -> None:
        """Without a connection: requests wait for the first."""
        error = ffi.new("int *")
        self.raw = lib.tvmm_nbd_link_new(error)
        if not self.raw:
            raise HostError(f"no event descriptor: {os.strerror(-error[0])}", "raise the limit with 'ulimit -n'")
        self.lost_fd = int(lib.tvmm_nbd_link_lost_fd(self.raw))
        """Readable when a connection has been lost, until `take_loss`."""
        self.in_use = threading.Lock()
        """Whoever has it may send and receive; the queue replaces it by its own."""

    def give(self, fd: int, transmission: NbdTransmission) -> None:
        """Use a duplicate of the connected stream socket `fd` from now on, in place of any earlier one.

        Raises `OSError`, and `ValueError` for a block or a payload of an impossible size.
        """
        fields = {name: int(value) for name, value in transmission._asdict().items()}
        # Sizes beyond 32 bits are out of reach, and no larger than what is used of them.
        fields["maximum_payload"] = min(fields["maximum_payload"], (1 << 32) - 1)
        if not 0 < fields["minimum_block"] < 1 << 32 or fields["maximum_payload"] < 0:
            raise ValueError("a block or a payload of an impossible size")
        error = lib.tvmm_nbd_link_give(self.raw, fd, ffi.new("struct tvmm_nbd_transmission *", fields))
        if error == -errno.EINVAL:
            raise ValueError("a block or a payload of an impossible size")
        if error:
            raise OSError(-error, os.strerror(-error))

    def take_loss(self) -> str:
        """Why a connection was lost, in words; empty if none was since the last time."""
        text = ffi.new("char[]", REASON_MAX)
        lib.tvmm_nbd_link_take_loss(self.raw, text, REASON_MAX)
        return bytes(ffi.string(text)).decode(errors="replace")

    def fail(self, error: int) -> None:
        """Give the connection up: requests fail with that errno, outstanding and new ones, until the next `give`."""
        if not 0 < error < 4096:
            raise ValueError(f"{error} is no errno")
        lib.tvmm_nbd_link_fail(self.raw, error)

    def hang_up(self) -> None:
        """Have the connection lost, if there is one that is in use."""
        lib.tvmm_nbd_link_hang_up(self.raw)

    def flush(self) -> None:
        """Have all that was written on stable storage; waits for the server, up to a minute.

        Raises `OSError`: EBUSY if the queue is not held, ENOTCONN without a connection, or what the server says.
        """
        if not self.in_use.acquire(blocking=False):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        try:
            error = lib.tvmm_nbd_link_flush(self.raw)
        finally:
            self.in_use.release()
        if error:
            raise OSError(-error, os.strerror(-error))

    def close(self) -> None:
        """Say goodbye to the server, and give all of it back. The queue has been closed."""
        lib.tvmm_nbd_link_free(self.raw)
        self.raw = ffi.NULL
        self.lost_fd = -1
