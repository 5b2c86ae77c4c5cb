"""Pictures of the guest's screen as files."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import trio

from tvmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tvmm.kvm.scroll import Scroll
    from tvmm.vnc.server import ScreenLike

__all__ = ["save_picture"]


class _Nobody:
    """A watcher that only has the canvas brought up to date."""

    copies = False

    def damaged(self, tiles: bytes, scrolls: Sequence[Scroll]) -> None:
        """See `Watcher`."""

    def resized(self) -> None:
        """See `Watcher`."""


async def save_picture(screen: ScreenLike, path: Path, image_format: str) -> None:
    """What the guest shows now, as a file of `image_format`, a word of Pillow's.

    The file is there whole, or as it was before. Raises `HostError`.
    """
    async with screen.watched(_Nobody()):
        canvas = screen.canvas
        pixels = bytes(canvas.pixels)
    await trio.to_thread.run_sync(_write, path, image_format, (canvas.width, canvas.height), pixels)


def _write(path: Path, image_format: str, size: tuple[int, int], pixels: bytes) -> None:
    from PIL import Image

    image = Image.frombuffer("RGB", size, pixels, "raw", "BGRX", 0, 1)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            with scratch.open("xb") as file:
                image.save(file, image_format)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error
