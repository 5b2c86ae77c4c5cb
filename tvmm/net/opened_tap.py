"""A tap that is open, and what all who open taps need: the device file, and one at a time.

What a machine reads from can be changed behind its back while it rests, by putting another file under the same
descriptor (dup2): so a tap can go from one process to another, and descriptors of nothing take its place.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tvmm.errors import HostError
from tvmm.net import tun
from tvmm.net.journal import Changes, myself, read_alias
from tvmm.net.links import Links
from tvmm.virtio.features import Net as Feature

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from tvmm.virtio.net import NetBackend

__all__ = ["Tap", "nowhere", "open_tun", "setting_up"]

SET_UP_PATIENCE_S = 10
SET_UP_LOOK_S = 0.01


class Tap:
    """An open tap: a descriptor for each pair of queues, each frame with a header of 12 bytes. Close it at the end.

    Only pair 0's queue has frames at first. Methods raise `HostError` if the tap is gone.
    """

    is_stream = False
    is_here = True
    """Whether `fds` are those of the tap: it is not still, nor already, another process's."""

    def __init__(self, name: str, fds: Sequence[int], backend: NetBackend, changes: Changes | None = None) -> None:
        """`changes` are to be undone."""
        self.name = name
        self.fds = tuple(fds)
        self.backend = backend
        self._changes = changes
        self._attached = [True] * len(self.fds)
        self._has_left = False
        for pair in range(1, len(self.fds)):
            self.attach(pair, False)

    def let_go(self) -> None:
        """It is another process's from now on: nothing comes from it here, nor is anything undone when it is closed.

        Nobody reads from it meanwhile.
        """
        self._has_left, self.is_here, self._changes = True, False, None
        nothing = nowhere()
        for fd in self.fds:
            os.dup2(nothing, fd, inheritable=False)
        os.close(nothing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def set_offload(self, features: int) -> None:
        """What the reader of frames takes, as `GUEST_` bits of a network device's features."""
        bits = 0
        if features & Feature.GUEST_CSUM:
            bits = tun.TUN_F_CSUM
            for feature, bit in (
                (Feature.GUEST_TSO4, tun.TUN_F_TSO4),
                (Feature.GUEST_TSO6, tun.TUN_F_TSO6),
                (Feature.GUEST_ECN, tun.TUN_F_TSO_ECN),
            ):
                bits |= bit if features & feature else 0
            uso = Feature.GUEST_USO4 | Feature.GUEST_USO6
            bits |= tun.TUN_F_USO if features & uso == uso else 0
        if self._has_left:
            return
        with self._explained("set its offloads"):
            tun.set_offload(self.fds[0], bits)

    def attach(self, pair: int, on: bool) -> None:
        """Whether frames come to this pair's descriptor."""
        if self._attached[pair] != on and not self._has_left:
            with self._explained("change its queues"):
                tun.set_queue(self.fds[pair], on)
            self._attached[pair] = on

    def set_carrier(self, up: bool) -> None:
        """Show the host whether the cable is in; kernels before 5.0 cannot."""
        if self._has_left:
            return
        with self._explained("change its carrier"):
            try:
                tun.set_carrier(self.fds[0], up)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTTY):
                    raise

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # EINVAL: of queues that are off; what is asked for is never wrong.
            gone = error.errno in (errno.EBADFD, errno.ENODEV, errno.EINVAL)
            why = "it has been removed" if gone else os.strerror(error.errno or 0)
            raise HostError(f"tap {self.name}: cannot {what}: {why}") from error

    def close(self) -> None:
        """Undo what was changed, and let go. Once more does nothing."""
        fds, self.fds = self.fds, ()
        changes, self._changes = self._changes, None
        try:
            if fds and changes is not None:
                with Links() as links, setting_up():
                    link = links.find(self.name)
                    if link is not None and read_alias(link.alias) == (myself(), changes):
                        links.undo(link, changes)
        finally:
            for fd in fds:
                os.close(fd)


def nowhere() -> int:
    """A descriptor from which no frame comes, and which takes none: a socket that nobody can find."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC).detach()


@contextmanager
def setting_up() -> Iterator[None]:
    """One machine after the other: nobody restores a link that somebody is about to use.

    Make `Links` before: the import that they take is not for others to wait for.
    """
    with ExitStack() as stack:
        fd = open_tun()
        stack.callback(os.close, fd)
        deadline = time.monotonic() + SET_UP_PATIENCE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HostError(
                        f"another machine sets its network up, and has {tun.TUN_PATH} locked for {SET_UP_PATIENCE_S} s",
                        f"'lslocks' or 'fuser {tun.TUN_PATH}' tell which",
                    ) from None
                time.sleep(SET_UP_LOOK_S)
        yield


def open_tun() -> int:
    """A descriptor without an interface. Raises `HostError`."""
    try:
        return tun.open_tun()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise HostError(
                f"no right to open {tun.TUN_PATH}", f"run tvmm as root, or 'sudo chmod 666 {tun.TUN_PATH}'"
            ) from error
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise HostError(f"the host has no {tun.TUN_PATH}, which taps need", "'sudo modprobe tun'") from error
        raise HostError(f"cannot open {tun.TUN_PATH}: {error.strerror}") from error
