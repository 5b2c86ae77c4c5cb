"""Other memory in place of what is mapped at a block of guest RAM, in place and also under a VM.

A lazily restored guest has the pages of its snapshot file mapped, and a guest that was handed over those of the process
that it came from. Nobody may write to the block while it changes: what was written to the old memory is gone.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib

if TYPE_CHECKING:
    from tvmm.memory.ram import RamBlock

__all__ = ["adopt_file", "borrow_file", "map_anonymous", "map_file"]


def map_file(block: RamBlock, fd: int, offset: int = 0) -> None:
    """Have `block` read as the bytes of a file from `offset` on, a multiple of 4096; what is written to it stays here.

    The descriptor may be closed afterwards. The file must not be changed or cut short while it is mapped: whoever
    touches a page that is not there any more dies of SIGBUS. Raises `HostError`, and `ValueError` for a block that
    others share.
    """
    if block.fd >= 0:
        raise ValueError(f"{block.name} is shared: no private mapping can take its place")
    _map(block, fd, offset, shared=False)
    block.unmap_file = partial(map_anonymous, block)


def borrow_file(block: RamBlock, fd: int) -> None:
    """Have `block` read as the memory of `fd`, a memfd of its size that others write to; what is written here stays
    here. The block has no memfd then; its own one may be `fd`.

    `adopt_file` makes it shared again; so that no byte of it is lost there, nothing may run in between that writes
    what has to stay. Raises `HostError`, and `ValueError` for a block that is not shared.
    """
    if block.fd < 0:
        raise ValueError(f"{block.name} is private: nothing can be lent to it")
    _map(block, fd, 0, shared=False)
    os.close(block.fd)
    block.fd = -1
    block.unmap_file = partial(map_anonymous, block)


def adopt_file(block: RamBlock, fd: int) -> None:
    """Have `block` be the memory of `fd`, a memfd of its size, in place of its own memfd, or of what it has borrowed.
    `fd` is the block's then.

    Raises `HostError` with `fd` still the caller's, and `ValueError` for a block that is not shared.
    """
    if block.fd < 0 and block.unmap_file is None:
        raise ValueError(f"{block.name} is private: it cannot be another one's memory")
    _map(block, fd, 0, shared=True)
    if block.fd >= 0:
        os.close(block.fd)
    block.fd, block.unmap_file = fd, None


def map_anonymous(block: RamBlock) -> None:
    """Have a private `block` be zeros again, without the file that was mapped there. Raises `HostError`."""
    with ffi.from_buffer("uint8_t[]", block.view) as base:
        error = int(lib.tvmm_map_anonymous(base, len(base)))
    if error:
        raise HostError(f"the host maps no memory for {block.name}: {os.strerror(-error)}")
    block.unmap_file = None


def _map(block: RamBlock, fd: int, offset: int, *, shared: bool) -> None:
    with ffi.from_buffer("uint8_t[]", block.view) as base:
        error = int(lib.tvmm_map_file(base, len(base), fd, offset, shared))
    if error:
        raise HostError(f"the host does not map a file as {block.name}: {os.strerror(-error)}")
