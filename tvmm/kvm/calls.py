"""The one place where an ioctl is made, and where its error becomes an `OSError` that names the call."""

from __future__ import annotations

import os
from typing import Any

from tvmm.kvm._kvm import ffi, lib

__all__ = ["ffi", "ioctl", "ioctl_number", "lib"]


def ioctl(fd: int, name: str, argument: Any) -> int:
    """Make the KVM call `name` with a pointer. Raises `OSError` naming it."""
    result = int(lib.tvmm_ioctl(fd, getattr(lib, name), argument))
    if result < 0:
        raise OSError(-result, f"{name}: {os.strerror(-result)}")
    return result


def ioctl_number(fd: int, name: str, argument: int = 0) -> int:
    """Make the KVM call `name` with a number. Raises `OSError` naming it."""
    result = int(lib.tvmm_ioctl_number(fd, getattr(lib, name), argument))
    if result < 0:
        raise OSError(-result, f"{name}: {os.strerror(-result)}")
    return result
