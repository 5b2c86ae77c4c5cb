"""What a machine boots: kernel and initrd as they are on this host."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Protocol

from tvmm.errors import HostError, ImageError

if TYPE_CHECKING:
    from tvmm.config.kernel import KernelConfig

__all__ = ["Images", "KernelFiles", "builtin_guest_path"]

MAX_IMAGE_BYTES = 4 << 30
"""Of a kernel or an initrd: more does not fit below the PC hole anyway."""


class Images(Protocol):
    """Kernel and initrd, from wherever. Both raise `ImageError`."""

    def kernel(self) -> bytes:
        """The kernel's bytes."""

    def initrd(self) -> bytes | None:
        """The initrd's; None if there is none."""


class KernelFiles:
    """`Images` of the files that the user named, read at once. Raises `ImageError`, `HostError`."""

    def __init__(self, files: KernelConfig) -> None:
        self._kernel = _read(files.kernel or builtin_guest_path(), "kernel")
        self._initrd = _read(files.initrd, "initrd") if files.initrd else None

    def kernel(self) -> bytes:
        """See `Images`."""
        return self._kernel

    def initrd(self) -> bytes | None:
        """See `Images`."""
        return self._initrd


def builtin_guest_path() -> str:
    """The ELF image of the built-in guest, compiled when tvmm was installed."""
    return os.path.join(os.path.dirname(__file__), "guest", "guest.elf")


def _read(path: str, what: str) -> bytes:
    """A whole regular file. Raises `ImageError` with the reason and what to do."""
    try:
        # Not blocking: opening a pipe that nobody writes to would wait for ever, on a thread that cannot be cancelled.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if stat.S_ISDIR(found.st_mode):
                raise ImageError(f"{what} {path} is a directory", "give the name of a file in it")
            if not stat.S_ISREG(found.st_mode):
                raise ImageError(f"{what} {path} is no regular file", "copy its bytes into a file first")
            if found.st_size > MAX_IMAGE_BYTES:
                limit = MAX_IMAGE_BYTES >> 20
                raise ImageError(f"{what} {path} has {found.st_size >> 20} MiB, tvmm reads {limit} at most")
            return file.read(MAX_IMAGE_BYTES)
    except FileNotFoundError:
        if path == builtin_guest_path():
            raise HostError("the built-in guest was not compiled", "install tvmm again with 'pip install .'") from None
        raise ImageError(f"no such {what}: {path}") from None
    except OSError as error:
        raise ImageError(f"{what} {path} cannot be read: {error.strerror}") from error
