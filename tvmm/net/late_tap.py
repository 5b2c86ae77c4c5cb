"""A tap that another process has, and that comes along with a guest from there.

A machine that waits for a guest may name the tap that the guest has now. Until it has come nothing is read from the tap
here, nor anything changed on it: the source may go on with its guest at any time before Commit. The descriptors that
come with the guest are looked at, and kept; with Commit they take the place of those that the device has had so far,
from which nothing comes. What the host has sent to the guest meanwhile has waited in the tap's queues.

A guest that does not bring the tap along finds it opened as ever, if it is free by then.
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING

from tvmm.errors import HostError, ProtocolError
from tvmm.net import tun
from tvmm.net.journal import is_alive, myself, read_alias, write_alias
from tvmm.net.links import Links
from tvmm.net.opened_tap import Tap, nowhere, setting_up
from tvmm.net.tap import FLAGS, TapBusy, open_tap, what_differs
from tvmm.virtio.net import HEADER_LENGTH, NetBackend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.net.tap import TapOptions

__all__ = ["LateTap", "open_or_wait"]

_FLAG_NAMES = ((tun.IFF_TAP, "IFF_TAP"), (tun.IFF_NO_PI, "IFF_NO_PI"), (tun.IFF_VNET_HDR, "IFF_VNET_HDR"))


def open_or_wait(options: TapOptions, machine_name: str) -> Tap:
    """As `open_tap`; a tap with a name that somebody else has is a `LateTap`. Raises `UserError`."""
    try:
        with Links() as links:
            link = links.find(options.ifname)
        # One with many queues has room for us too, and would have frames of the other one's guest come here.
        if link is not None and link.users:
            found = read_alias(link.alias)
            whose = "another program"
            if found and is_alive(found[0]):
                whose = f"the machine in process {found[0].pid}"
            raise TapBusy(f"tap {options.ifname} is in use by {whose}")
        return open_tap(options, machine_name)
    except TapBusy as busy:
        with Links() as links:
            uso = links.segments_udp(options.ifname)
        return LateTap(options, machine_name, busy.message, uso=uso)


class LateTap(Tap):
    """Like any other tap once `is_here`; what the driver wants of it before is kept in mind. All of it blocks."""

    def __init__(self, options: TapOptions, machine_name: str, why: str, *, uso: bool) -> None:
        """`why` it is not here yet. `uso`: the host's taps have that; all else they have had for long."""
        ours = options.offloads
        backend = NetBackend("csum" in ours, "tso4" in ours, "tso6" in ours, "ecn" in ours, uso and "uso" in ours)
        super().__init__(options.ifname, (), backend)
        self.fds = tuple(nowhere() for _ in range(options.queues))
        self.why = why
        self.is_here = False
        self._attached = [not pair for pair in range(options.queues)]
        self._options = options
        self._machine_name = machine_name
        self._taken: list[int] = []
        """What came along, until `begin`."""
        self._handed_over = False
        self._offload: int | None = None
        self._carrier: bool | None = None

    # --- before it is here ---

    def set_offload(self, features: int) -> None:
        """See `Tap`, as of all of these."""
        self._offload = features
        if self.is_here:
            super().set_offload(features)

    def attach(self, pair: int, on: bool) -> None:
        """For later, if it is not here."""
        if self.is_here:
            super().attach(pair, on)
        else:
            self._attached[pair] = on

    def set_carrier(self, up: bool) -> None:
        """For later, if it is not here."""
        self._carrier = up
        if self.is_here:
            super().set_carrier(up)

    # --- the guest comes ---

    def take(self, fds: list[int]) -> bool:
        """Whether these queues of an interface of that name are those that are waited for: then they are this tap's to
        close, and taken out of `fds`. Nothing of them is changed, nor read.

        Raises `ProtocolError` for what is no such queue, and `HostError` if the tap is not as the options want it.
        """
        addresses = {_check_queue(fd, self.name, many=len(fds) > 1) for fd in fds}
        with Links() as links:
            link = links.find(self.name)
            if link is None or addresses != {link.mac}:
                # None at all, or in another network namespace.
                return False
            words, by_hand = what_differs(links, link, self._options)
        if len(fds) != len(self.fds):
            raise HostError(
                f"tap {self.name} comes with {len(fds)} queues, and the machine here has queues={len(self.fds)}",
                f"start it with queues={len(fds)}",
            )
        if words:
            raise HostError(f"tap {self.name} is not as it is asked for here{words}", f"'{by_hand}'")
        self._taken, fds[:] = list(fds), []
        return True

    def open_without(self) -> None:
        """No queue of it came along: open it. Raises `UserError`, `TapBusy` if somebody still has it."""
        try:
            tap = open_or_wait(self._options, self._machine_name)
        except HostError as error:
            raise HostError(f"{error.message}, and did not come along with the guest", error.hint) from error
        if isinstance(tap, LateTap):
            tap.close()
            raise TapBusy(
                f"{tap.why}, and did not come along with the guest",
                "end who has it, or start with another ifname=",
            )
        self._changes, tap._changes = tap._changes, None
        self._swap(tap.fds)
        tap.close()

    def begin(self) -> None:
        """The guest runs here next: what came along is this machine's. Nobody reads from `fds` meanwhile.

        Raises `HostError` if the tap is gone; the other one's guest can go on all the same.
        """
        if self._taken:
            self._swap(self._taken)
            self._handed_over = True
            self._close_taken()

    def _swap(self, fds: Sequence[int]) -> None:
        """Put these in place of those of nothing, and set them up as the driver wants it. They stay open."""
        wanted = self._attached
        with self._explained("be taken over"):
            self._attached = [not tun.describe(fd).flags & tun.IFF_DETACH_QUEUE for fd in fds]
        for fd, place in zip(fds, self.fds, strict=True):
            os.dup2(fd, place, inheritable=False)
        self.is_here = True
        for pair, on in enumerate(wanted):
            self.attach(pair, on)
        if self._offload is not None:
            self.set_offload(self._offload)
        if self._carrier is not None:
            self.set_carrier(self._carrier)

    def own(self) -> None:
        """Write into the alias of a tap that came along whose it is now, if that is said there, and undo at the end
        what is to be undone. Raises `HostError`.
        """
        if not self._handed_over:
            return
        with Links() as links, setting_up():
            link = links.find(self.name)
            found = read_alias(link.alias) if link is not None else None
            if link is None or found is None:
                return
            changes = found[1]
            alias = write_alias(myself(), changes)
            if self._options.persist:
                tun.set_persistent(self.fds[0], True)
                alias = changes.alias
            links.change(link, f"say on tap {self.name} whose it is", ifalias=alias)
        self._changes = None if changes.made or self._options.persist else changes

    def let_go(self) -> None:
        """See `Tap`."""
        self._handed_over = False
        super().let_go()

    def close(self) -> None:
        """See `Tap`."""
        self._close_taken()
        super().close()

    def _close_taken(self) -> None:
        taken, self._taken = self._taken, []
        for fd in taken:
            os.close(fd)


def _check_queue(fd: int, name: str, *, many: bool) -> str:
    """The hardware address of the interface `name` behind `fd`, which is a queue that a machine can use as it is.

    Raises `ProtocolError`.
    """
    what = f"what the source has sent for tap {name}"
    try:
        status, device = os.fstat(fd), os.stat(tun.TUN_PATH)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != device.st_rdev:
            raise ProtocolError(f"{what} is no tap")
        interface, length = tun.describe(fd), tun.header_length(fd)
        address = tun.hardware_address(fd)
    except OSError:
        raise ProtocolError(f"{what} is no tap, or one that has been removed") from None
    if interface.name != name:
        raise ProtocolError(f"{what} is another interface")
    if flags & os.O_ACCMODE != os.O_RDWR or not flags & os.O_NONBLOCK:
        raise ProtocolError(f"{what} is open for reading alone, or blocks")
    for flag, word in (*_FLAG_NAMES, (tun.IFF_MULTI_QUEUE, "IFF_MULTI_QUEUE")):
        if not interface.flags & flag and (many or flag & FLAGS):
            raise ProtocolError(f"{what} was opened without {word}")
    if length != HEADER_LENGTH:
        raise ProtocolError(f"{what} has headers of {length} bytes in place of {HEADER_LENGTH}")
    return address
