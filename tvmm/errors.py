"""The error tree, by what the caller can do about it.

::

    TvmmError
    ├── UserError             the user's: one line, exit status 2
    │   ├── ConfigError       an option, a value or a combination of them
    │   ├── HostError         the host lacks something: rights, a device, memory
    │   ├── ImageError        a kernel, initrd or other file that is not what it should be
    │   └── IncomingFailed    a guest was on its way into a machine and is not there: this machine is of no use
    ├── GuestError            the guest's: it crashed or did what no machine can do; exit status 3
    │   └── MemoryAccessError an address outside of guest RAM
    └── ProtocolError         a peer, viewer or control client broke the protocol

Everything else that escapes is tvmm's own bug and keeps its traceback. Errors of libraries and of the
system are translated into these where they enter (`OSError` at the file, `zlib.error` at the decoder).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ConfigError",
    "GuestError",
    "HostError",
    "ImageError",
    "IncomingFailed",
    "MemoryAccessError",
    "ProtocolError",
    "TvmmError",
    "UserError",
    "collapse",
]


class TvmmError(Exception):
    """Root of every error that tvmm raises on purpose."""


class UserError(TvmmError):
    """Something that the user can mend.

    ``message`` says in one line what happened and why, ``hint`` what to do next (may be empty).
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class ConfigError(UserError):
    """An option, its value, or options that do not go together."""


class HostError(UserError):
    """The host lacks a device, a right or a resource that the machine needs."""


class ImageError(UserError):
    """A kernel, initrd or disk file that is not what it should be."""


class IncomingFailed(UserError):
    """A guest was on its way in and did not arrive; the machine has parts of it and is of no use any more."""


class GuestError(TvmmError):
    """The guest crashed, or asked for what no machine can do."""


class MemoryAccessError(GuestError):
    """An access that is not wholly inside guest RAM."""


class ProtocolError(TvmmError):
    """A migration peer, viewer or control client broke the protocol."""


@contextmanager
def collapse() -> Iterator[None]:
    """Raise the one exception inside a group as itself: who looks at an error should not care which task had it.

    A group of several stays a group.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__
