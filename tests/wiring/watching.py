"""The built-in guest with its test picture on the screen, and viewers of it at a unix socket."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from tests.support.guest_picture import picture, shown
from tests.wiring.guests import GuestShell, guest
from tvmm.wiring.viewers import Viewers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.rfb_viewer import RfbViewer
    from tvmm.machine import Machine

__all__ = ["SIZE", "VIRTIO", "canvas_bytes", "lines_of", "listen", "shows", "viewers_of", "watched_guest"]

SIZE = 320, 200
VIRTIO = ("virtio-keyboard", "virtio-tablet")


@cache
def canvas_bytes(width: int = SIZE[0], height: int = SIZE[1], seed: int = 1, bits: int = 32) -> bytes:
    """The guest's picture as a canvas has it: blue, green, red, 0."""
    rows = picture(width, height, seed)
    return b"".join(shown(colour, bits).to_bytes(4, "little") for row in rows for colour in row)


def shows(width: int = SIZE[0], height: int = SIZE[1], seed: int = 1) -> Callable[[RfbViewer], bool]:
    """Whether a viewer has all of that picture, and nothing else."""
    wanted = canvas_bytes(width, height, seed)
    return lambda viewer: (viewer.width, viewer.height) == (width, height) and viewer.pixels == wanted


@asynccontextmanager
async def watched_guest(
    path: Path, options: str = "", size: tuple[int, int] = SIZE, seed: int = 1, **config: Any
) -> AsyncIterator[GuestShell]:
    """At its prompt, with the picture drawn. `path` is the socket's, `options` are those of ``--vnc``."""
    orders = f"run=screen,mode,{size[0]}x{size[1]};screen,picture,{seed}"
    vnc = ",".join(part for part in (f"unix:{path}", options) if part)
    async with guest(orders, vnc=vnc, **config) as shell:
        yield shell


def viewers_of(vm: Machine) -> Viewers:
    """The machine's server."""
    assert isinstance(vm.viewers, Viewers)
    return vm.viewers


async def listen(shell: GuestShell, command: str) -> None:
    """Begin a command that waits for input."""
    await shell.order(command)
    await shell.vm.wait_serial("to end\r\n")


async def lines_of(shell: GuestShell, count: int) -> list[str]:
    """The next lines that the guest prints."""
    return [(await shell.vm.wait_serial(b"\r\n")).decode().strip() for _ in range(count)]
