"""A snapshot that is being written: pages by several threads, then table, description and header, then its name.

Who writes a machine that runs on meanwhile uses `pages.put` in place of `write_pages`; the rest is the same.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import HostError
from tvmm.kvm.snapshot import PageSource, SnapshotPages
from tvmm.snapshot.description import Description, ImageFile, pack_description
from tvmm.snapshot.files import NewFile, open_direct
from tvmm.snapshot.format import (
    CHUNK_BYTES,
    CHUNK_PAGES,
    PAGE_BYTES,
    SEED_BYTES,
    Header,
    KeySource,
    pack_header,
    page_key,
    pages_end,
    place_blocks,
    table_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from tvmm.kvm.serve import Waker
    from tvmm.memory.ram import GuestRam
    from tvmm.snapshot.sealing import Sealer, Secret

__all__ = ["Image", "SnapshotWriter"]


class Image(NamedTuple):
    """A kernel or initrd for the block of that name."""

    block: str
    path: str
    data: bytes


class SnapshotWriter:
    """One file. A context manager: left without `finish` there is nothing. Methods block."""

    def __init__(
        self,
        path: str,
        ram: GuestRam,
        images: Sequence[Image] = (),
        *,
        force: bool = False,
        secret: Secret | None = None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`force` as `NewFile`. With a `secret` the file is encrypted. Raises `UserError` if it cannot be made."""
        self.images = tuple(ImageFile(image.block, image.path, len(image.data)) for image in images)
        self.seed = random(SEED_BYTES)
        self.key = KeySource()
        self._sealer: Sealer | None = None
        if secret is not None:
            from tvmm.snapshot.sealing import Sealer, new_key_source

            self.key = new_key_source(secret, random)
            self._sealer = Sealer(secret, self.key, self.seed)
        self._buffers = [_padded(image.data) for image in images]
        views = [(name, block.view, block.fd, block.fd < 0 and block.unmap_file is None)
                 for name, block in ram.blocks.items()]  # fmt: skip
        views += [
            (image.block, memoryview(buffer), -1, False)
            for image, buffer in zip(images, self._buffers, strict=True)
        ]
        self.places = place_blocks([(name, len(view) // PAGE_BYTES) for name, view, *_ in views])
        self.file = NewFile(path, force=force)
        try:
            os.ftruncate(self.file.fd, pages_end(self.places))
        except OSError as error:
            self.file.close()
            raise HostError(f"{path} cannot be written: {error.strerror}") from error
        self._direct = open_direct(self.file.fd, os.O_WRONLY)
        sources = [
            PageSource(place.name, place.pages, place.offset, view, fd, sparse)
            for place, (_, view, fd, sparse) in zip(self.places, views, strict=True)
        ]
        self.pages = SnapshotPages(sources, page_key(self.seed), self.file.fd, self._direct)
        self._sealed = _SealedPages(sources, self._sealer, self.file.fd) if self._sealer is not None else None
        self.file_bytes = 0

    @property
    def total(self) -> int:
        """Bytes of all pages."""
        return sum(place.pages for place in self.places) * PAGE_BYTES

    @property
    def done(self) -> int:
        """Those that have been looked at."""
        return (self._sealed or self.pages).pages_done * PAGE_BYTES

    @property
    def data(self) -> int:
        """Those of them that are not zero."""
        return (self._sealed or self.pages).pages_data * PAGE_BYTES

    def write_pages(self, waker: Waker) -> None:
        """Chunks until there are no more, beside other threads that do the same. Returns early when `waker` is woken.

        Raises `HostError`.
        """
        try:
            (self._sealed or self.pages).write(waker)
        except InterruptedError:
            return
        except HostError as error:
            raise self.cannot(error.message) from error

    def finish(self, description: Description) -> None:
        """All pages have been written. `description` gets `blocks` and `images` here. Raises `HostError`: then there is
        no file, or the one that was there.
        """
        table = self._sealed.tags() if self._sealed is not None else self.pages.sums()
        assert len(table) == table_bytes(self.places, encrypted=self.key.kind != 0)
        text = pack_description(description._replace(blocks=self.places, images=self.images))
        table_at = pages_end(self.places)
        if self._sealer is not None:
            from tvmm.snapshot.sealing import DESCRIPTION, TABLE

            table = self._sealer.seal(TABLE, table_at, table)
            text = self._sealer.seal(DESCRIPTION, table_at + len(table), text)
        header = Header(
            table_at + len(table) + len(text), table_at, len(table), table_at + len(table), len(text),
            self.seed, hashlib.sha256(table).digest(), hashlib.sha256(text).digest(), self.key,
        )  # fmt: skip
        try:
            _write(self.file.fd, table + text, table_at)
            _write(self.file.fd, pack_header(header), 0)
        except OSError as error:
            raise self.cannot(error.strerror) from error
        self.file.keep()
        self.file_bytes = header.file_bytes

    def cannot(self, reason: str | None) -> HostError:
        """The error for a write that failed."""
        hint = "give it more room, or another place" if reason == os.strerror(28) else ""
        return HostError(f"{self.file.path} cannot be written: {reason}", hint)

    def close(self) -> None:
        """Idempotent. No thread may be at work."""
        self.pages.close()
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _SealedPages:
    """Chunks that are encrypted: whole ones, for a page does not have a tag of its own."""

    def __init__(self, sources: Sequence[PageSource], sealer: Sealer, fd: int) -> None:
        self.pages_done = self.pages_data = 0
        self._sealer = sealer
        self._fd = fd
        self._lock = threading.Lock()
        self._sources = sources
        self._tags = [bytearray(16 * (-(-source.pages // CHUNK_PAGES))) for source in sources]
        self._next = iter(
            [
                (index, chunk)
                for index, source in enumerate(sources)
                for chunk in range(-(-source.pages // CHUNK_PAGES))
            ]
        )
        self._zeros = bytes(CHUNK_BYTES)

    def write(self, waker: Waker) -> None:
        """As `SnapshotPages.write`."""
        while True:
            with self._lock:
                taken = next(self._next, None)
            if taken is None:
                return
            if waker.raw.wanted:
                raise InterruptedError("the pages are no longer wanted")
            index, chunk = taken
            source = self._sources[index]
            assert source.view is not None
            # Let go of at once: the traceback of an error would keep it, and the memory could not be closed.
            with source.view[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES] as data:
                zero = self._write_chunk(index, chunk, data)
                count = len(data) // PAGE_BYTES
            with self._lock:
                self.pages_done += count
                self.pages_data += 0 if zero else count

    def _write_chunk(self, index: int, chunk: int, data: memoryview) -> bool:
        """Whether it is zero, and a hole of the file."""
        from tvmm.snapshot.sealing import CHUNK, TAG_BYTES

        # Bytes and not memoryviews: these are compared one by one, in Python.
        if data.tobytes() == (self._zeros if len(data) == CHUNK_BYTES else bytes(len(data))):
            return True
        place = self._sources[index].offset + chunk * CHUNK_BYTES
        sealed = self._sealer.seal(CHUNK, place, data)
        self._tags[index][chunk * TAG_BYTES : (chunk + 1) * TAG_BYTES] = sealed[-TAG_BYTES:]
        try:
            _write(self._fd, memoryview(sealed)[:-TAG_BYTES], place)
        except OSError as error:
            raise HostError(os.strerror(error.errno or 0)) from error
        return False

    def tags(self) -> bytes:
        """The table: a tag for each chunk, zeros for those that are zero."""
        return b"".join(self._tags)


def _padded(data: bytes) -> mmap.mmap:
    """`data` in memory of whole pages, at a multiple of one."""
    buffer = mmap.mmap(-1, -(-len(data) // PAGE_BYTES) * PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer[: len(data)] = data
    return buffer


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
