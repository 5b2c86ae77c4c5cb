"""The disks of a guest that arrives: images are filled while it still writes to them at its source."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from tvmm.errors import ProtocolError
from tvmm.kvm.lanes import set_lane_buffers
from tvmm.kvm.serve import Waker
from tvmm.migration.disk_departure import FEATURE
from tvmm.migration.disk_frames import SECTOR
from tvmm.migration.disk_receiver import DiskReceiver
from tvmm.migration.link import LinkLost
from tvmm.migration.messages import Copies, Stored
from tvmm.migration.status import DiskProgress
from tvmm.migration.threads import run_together, yielding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.migration.disk_files import DiskTarget
    from tvmm.migration.guest import ArrivingGuest
    from tvmm.migration.link import Link
    from tvmm.migration.messages import Image, ImageHashes, Images, Wants
    from tvmm.migration.secure import Securer

__all__ = ["ArrivingDisks"]

STREAM_SECONDS = 30.0
"""For the connection for blocks to come."""
MAX_IMAGES = 256
"""Disks that a source may offer: a peer does not make this side compare for ever."""
MAX_NAME, MAX_MARK, MAX_SIZE = 256, 64, 1 << 62
"""Of an image: characters of its name, bytes of what tells it from others, and of itself."""


class ArrivingDisks:
    """Of one destination. Where no disks are to be copied nothing here does anything."""

    def __init__(self, guest: ArrivingGuest) -> None:
        self._guest = guest
        self._images: tuple[Image, ...] = ()
        self._targets: list[DiskTarget | None] = []
        self._stream: trio.SocketStream | None = None
        self._came = trio.Event()
        self._waker: Waker | None = None
        self._receiver: DiskReceiver | None = None
        self._at_last = DiskProgress()
        self._complete = trio.Event()
        self._hashes: tuple[bytes, ...] | None = None
        self._hashes_came = trio.Event()

    @property
    def bytes_moved(self) -> int:
        """So far."""
        return self._receiver.bytes_moved if self._receiver is not None else 0

    def progress(self) -> DiskProgress:
        """As it is now."""
        receiver = self._receiver
        if receiver is None:
            return self._at_last
        total = sum(target.size for target in self._targets if target is not None)
        return DiskProgress(total=total, transferred=receiver.bytes_moved, rounds=receiver.rounds)

    def close(self) -> None:
        """No round is under way."""
        self._at_last = self.progress()
        for thing in (self._receiver, self._waker, *self._targets):
            if thing is not None:
                thing.close()
        if self._stream is not None:
            self._stream.socket.close()
        self._stream = self._receiver = self._waker = None
        self._targets = []

    # --- setup ---

    async def problems(self, wants: Wants, images: Images | None) -> Sequence[str]:
        """Why these cannot be copied here, or must be, in sentences. Raises `ProtocolError`."""
        if (images is not None) is not (FEATURE in wants.features):
            raise ProtocolError("the source wants disks copied and does not say which, or the other way round")
        if images is not None:
            _check_images(images.images)
        offered = images.images if images is not None else None
        return await trio.to_thread.run_sync(self._guest.copy_problems, offered)

    async def begin(self, link: Link, images: Images | None) -> None:
        """After Welcome: make the images, and say which. Raises `UserError`."""
        if images is None:
            return
        self._images = images.images
        self._targets = await trio.to_thread.run_sync(self._guest.open_targets, images.images)
        places = tuple(place for place, target in enumerate(self._targets) if target is not None)
        await link.send(Copies(places))

    def take_stream(self, stream: trio.SocketStream) -> None:
        """The connection for blocks, which is this object's from now on. Raises `ProtocolError`."""
        if self._came.is_set() or not self._targets:
            raise ProtocolError("a connection for disks has no place here")
        self._stream = stream
        self._came.set()

    async def gather(self, security: Securer, identity: bytes, compress: str) -> None:
        """Wait for that connection, and secure it. Raises `LinkLost` and others."""
        if not self._targets:
            return
        with trio.move_on_after(STREAM_SECONDS) as patience:
            await self._came.wait()
        if patience.cancelled_caught:
            raise LinkLost("its connection for disks did not come")
        stream, self._stream = self._stream, None
        assert stream is not None
        self._waker = Waker()
        set_lane_buffers(stream.socket)  # type: ignore[arg-type]  # Trio's has the methods of a plain one
        wrapped = await security.wrap_lane(stream, self._waker, identity)
        decoder = None
        if compress == "zstd":
            from tvmm.migration.zstd import Decompressor

            decoder = Decompressor()
        self._receiver = DiskReceiver(wrapped, self._targets, decoder)

    # --- rounds ---

    async def receive(self, link: Link) -> None:
        """Until the last round is stable. Raises `LinkLost`, `ProtocolError` and `HostError`."""
        receiver, waker = self._receiver, self._waker
        if receiver is None or waker is None:
            self._complete.set()
            return
        while not receiver.was_last:
            if receiver.rounds:
                await run_together([receiver.receive_round], waker)
            else:
                await run_together([lambda: yielding(receiver.receive_round)], waker)
            begun = time.perf_counter_ns()
            # Before anybody relies on it: what the guest has flushed at the source has to be as stable here.
            await trio.to_thread.run_sync(receiver.sync)
            if not receiver.was_last:
                await link.send(Stored(receiver.rounds - 1, time.perf_counter_ns() - begun))
        self._complete.set()

    def take_hashes(self, message: ImageHashes) -> None:
        """Raises `ProtocolError` if there were some already."""
        if self._hashes_came.is_set() or not self._targets:
            raise ProtocolError("the source sent ImageHashes out of order")
        self._hashes = message.hashes
        self._hashes_came.set()

    async def complete(self, *, verify: bool) -> None:
        """Return when all disks are what they were at the source. Raises `ProtocolError` if one is not."""
        await self._complete.wait()
        targets = [(place, target) for place, target in enumerate(self._targets) if target is not None]
        if not verify or not targets:
            return
        ours = [await trio.to_thread.run_sync(target.hash) for _, target in targets]
        await self._hashes_came.wait()
        theirs = self._hashes or ()
        if len(theirs) != len(ours):
            raise ProtocolError("the source has hashes of other disks")
        names = [self._images[place].name for place, _ in targets]
        if wrong := [name for name, mine, other in zip(names, ours, theirs, strict=True) if mine != other]:
            raise ProtocolError(f"disk {', '.join(wrong)} differs from the source's")


def _check_images(images: tuple[Image, ...]) -> None:
    """Raise `ProtocolError` for what no source says."""
    if not 0 < len(images) <= MAX_IMAGES or len({image.name for image in images}) < len(images):
        raise ProtocolError(f"the source's list of disks is not one of 1 to {MAX_IMAGES} different ones")
    for image in images:
        named = 0 < len(image.name) <= MAX_NAME and image.name.isprintable()
        sized = 0 <= image.size <= MAX_SIZE and not image.size % SECTOR and 0 <= image.allocated <= MAX_SIZE
        if not named or not sized or len(image.file) > MAX_MARK or len(image.stamp) > MAX_MARK:
            raise ProtocolError("the source's list of disks has a field out of range")
