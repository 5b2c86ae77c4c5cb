"""A snapshot file that is read. Whoever made it may mean ill: see `tvmm.snapshot.format`."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tvmm.errors import ImageError
from tvmm.kvm.snapshot import PageSource, SnapshotPages, map_chunks
from tvmm.snapshot.description import options_of_record, parse_description
from tvmm.snapshot.files import open_direct
from tvmm.snapshot.format import (
    CHUNK_BYTES,
    CHUNK_PAGES,
    HEADER_BYTES,
    PAGE_BYTES,
    BlockPlace,
    entry_bytes,
    page_key,
    parse_header,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from tvmm.kvm.serve import Waker
    from tvmm.memory.ram import GuestRam, RamBlock
    from tvmm.snapshot.format import Header, KeySource
    from tvmm.snapshot.sealing import Sealer, Secret

__all__ = ["Reading", "SnapshotFile"]


class SnapshotFile:
    """An open one, checked but for its pages. A context manager. Methods block."""

    def __init__(self, path: str, ask: Callable[[KeySource], Secret] | None = None) -> None:
        """`ask` gives what an encrypted file needs. Raises `ImageError`."""
        self.path = path
        with self._naming():
            self.fd = _open(path)
            try:
                self.size = os.fstat(self.fd).st_size
                self.header: Header = parse_header(_read(self.fd, 0, min(HEADER_BYTES, self.size)), self.size)
                self._sealer = self._unlock(ask)
                table = self._part("table of checksums", self.header.table_offset, self.header.table_bytes)
                text = self._part("description", self.header.description_offset, self.header.description_bytes)
                self.description = parse_description(text, self.header)
                self._table = table
            except BaseException:
                os.close(self.fd)
                raise

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Errors in the block say which file it is."""
        try:
            yield
        except ImageError as error:
            raise ImageError(f"snapshot {self.path}: {error.message}", error.hint) from error
        except OSError as error:
            raise ImageError(f"snapshot {self.path}: it cannot be read: {error.strerror}") from error

    def _unlock(self, ask: Callable[[KeySource], Secret] | None) -> Sealer | None:
        header = self.header
        if not header.encrypted:
            return None
        if ask is None:
            raise ImageError("it is encrypted", "give its passphrase or key file")
        from tvmm.snapshot.sealing import Sealer

        return Sealer(ask(header.key), header.key, header.seed)

    def _part(self, what: str, offset: int, length: int) -> bytes:
        """Table or description, decrypted."""
        data = _read(self.fd, offset, length)
        digest = self.header.table_digest if what.startswith("table") else self.header.description_digest
        if hashlib.sha256(data).digest() != digest:
            raise ImageError(f"it is damaged: its {what} differs from what was written")
        if self._sealer is None:
            return data
        from tvmm.snapshot.sealing import DESCRIPTION, TABLE

        try:
            return self._sealer.open(TABLE if what.startswith("table") else DESCRIPTION, offset, data)
        except ValueError:
            # The bytes are those that were written.
            raise ImageError(
                "the key is another one" if self.header.key.kind == 2 else "the passphrase is wrong"
            ) from None

    @property
    def encrypted(self) -> bool:
        """Its pages cannot be mapped."""
        return self.header.encrypted

    def sums(self, place: BlockPlace) -> bytes:
        """The part of the table that is about a block."""
        entry, at = entry_bytes(encrypted=self.encrypted), 0
        for other in self.description.blocks:
            if other.name == place.name:
                break
            at += other.chunks * entry
        return self._table[at : at + place.chunks * entry]

    def map_block(self, block: RamBlock) -> None:
        """Have a private block of guest RAM, made anew, read as it is in the file. Raises `HostError`."""
        place = self.place(block.name)
        map_chunks(block, self.fd, place.offset, self.sums(place))

    def options(self, lists: Sequence[str]) -> Mapping[str, str | list[str]]:
        """The machine's, as `options_of_record` has them. Raises `ImageError`."""
        with self._naming():
            return options_of_record(self.description, lists)

    def place(self, name: str) -> BlockPlace:
        """Of the block of that name. Raises `ImageError` if there is none."""
        for place in self.description.blocks:
            if place.name == name:
                return place
        raise ImageError(f"snapshot {self.path}: it has no block {name}")

    def image(self, block: str) -> bytes | None:
        """The bytes of a kernel or initrd, checked; None if there is none. Raises `ImageError`."""
        image = self.description.image(block)
        if image is None:
            return None
        place = self.place(block)
        # Aligned to a page, as C has it.
        data = mmap.mmap(-1, place.pages * PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        from tvmm.kvm.serve import Waker

        waker = Waker()
        try:
            with Reading(self, {block: memoryview(data)}, only=(block,)) as reading:
                reading.run(waker)
        finally:
            waker.close()
        return data[: image.bytes]

    def close(self) -> None:
        """Idempotent. What is mapped stays so."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Reading:
    """One pass over the pages of a file by several threads, all checksums compared. A context manager."""

    def __init__(
        self,
        file: SnapshotFile,
        views: Mapping[str, memoryview] | None = None,
        *,
        only: tuple[str, ...] = (),
        cached: bool = True,
    ) -> None:
        """`views`: where blocks are to be put, which are zero there; None: nowhere, they are only looked at. `only`
        these blocks, () for all of them, or those in `views`. Unless `cached`, past the page cache.
        """
        self._file = file
        self._direct = -1 if cached else open_direct(file.fd, os.O_RDONLY)
        self._keep = views is not None
        self._sources = [
            PageSource(
                place.name, place.pages, place.offset,
                views.get(place.name) if views is not None else None,
                skip=place.name not in (only or views or (place.name,)),
            )
            for place in file.description.blocks
        ]  # fmt: skip
        self._lock = threading.Lock()
        self._sealed_done = 0
        table = b"".join(map(file.sums, file.description.blocks))
        sums = None if file.encrypted else table
        self._pages = SnapshotPages(self._sources, page_key(file.header.seed), file.fd, self._direct, sums)
        self._next = iter(self._chunks())

    def _chunks(self) -> Iterator[tuple[PageSource, int, bytes]]:
        for place, source in zip(self._file.description.blocks, self._sources, strict=True):
            tags = self._file.sums(place)
            for chunk in range(place.chunks if not source.skip else 0):
                yield source, chunk, tags[16 * chunk : 16 * chunk + 16]

    @property
    def total(self) -> int:
        """Pages to be looked at."""
        return sum(source.pages for source in self._sources if not source.skip)

    @property
    def done(self) -> int:
        """Pages that were looked at."""
        return self._sealed_done if self._file.encrypted else self._pages.pages_done

    def run(self, waker: Waker) -> None:
        """Chunks until there are no more, beside other threads. Returns early when woken. Raises `ImageError`."""
        with suppress(InterruptedError), self._file._naming():
            if self._file.encrypted:
                self._run_sealed(waker)
            else:
                self._pages.read(waker, keep=self._keep)

    def _run_sealed(self, waker: Waker) -> None:
        from tvmm.snapshot.sealing import CHUNK

        sealer = self._file._sealer
        assert sealer is not None
        while not waker.raw.wanted:
            with self._lock:
                taken = next(self._next, None)
            if taken is None:
                return
            source, chunk, tag = taken
            count = min(source.pages - chunk * CHUNK_PAGES, CHUNK_PAGES)
            if any(tag):
                place = source.offset + chunk * CHUNK_BYTES
                try:
                    data = sealer.open(CHUNK, place, _read(self._file.fd, place, count * PAGE_BYTES) + tag)
                except ValueError:
                    raise ImageError(f"it is damaged: chunk {chunk} of {source.name} differs") from None
                if source.view is not None:
                    source.view[chunk * CHUNK_BYTES : chunk * CHUNK_BYTES + len(data)] = data
            with self._lock:
                self._sealed_done += count

    def close(self) -> None:
        """Idempotent. No thread may be at work."""
        self._pages.close()
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ram_views(ram: GuestRam) -> dict[str, memoryview]:
    """Where blocks of guest RAM are put when they are read in advance."""
    return {name: block.view for name, block in ram.blocks.items()}


def _open(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ImageError("there is no such file") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError("it is no regular file")
    return fd


def _read(fd: int, offset: int, length: int) -> bytes:
    """All of it. Raises `ImageError` if the file ends before."""
    parts, left = [], length
    while left:
        part = os.pread(fd, left, offset + length - left)
        if not part:
            raise ImageError("it is cut short")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
