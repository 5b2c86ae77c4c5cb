"""A network namespace of one's own, for tests that make links; Python 3.11 has no unshare."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio._core._thread_cache import THREAD_CACHE

__all__ = ["ip", "network_namespace", "why_not"]

CLONE_NEWNET = 0x4000_0000
THREAD_SECONDS = 10.0


def why_not() -> str:
    """What keeps a test from making taps; '' if nothing does."""
    if os.geteuid() != 0:
        return "taps need root"
    if not os.path.exists("/dev/net/tun"):
        return "the host has no /dev/net/tun"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    return ""


@contextmanager
def network_namespace() -> Iterator[None]:
    """This thread, and those that it starts, in a new namespace; the links in it go with it."""
    if reason := why_not():
        pytest.skip(reason)
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET):
            pytest.skip(f"no new network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            _bring_threads(libc)
            yield
        finally:
            assert libc.setns(before, CLONE_NEWNET) == 0
            _bring_threads(libc)
    finally:
        os.close(before)


def _bring_threads(libc: ctypes.CDLL) -> None:
    """Trio keeps threads for the next who needs one, and those are in the namespace in which they were started: have
    them in that of this thread.
    """
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _move_threads(libc, here)
    finally:
        os.close(here)


def _move_threads(libc: ctypes.CDLL, there: int) -> None:
    count = len(THREAD_CACHE._idle_workers)
    all_of_them = threading.Barrier(count + 1)

    def move() -> None:
        libc.setns(there, CLONE_NEWNET)
        all_of_them.wait(THREAD_SECONDS)

    for _ in range(count):
        trio.lowlevel.start_thread_soon(move, lambda result: None)
    all_of_them.wait(THREAD_SECONDS)


def ip(*words: str) -> str:
    """What iproute2 says."""
    done = subprocess.run(("ip", *words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout
