"""The canvas from the guest's video memory, in C and without the interpreter lock (pixels.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.kvm.calls import ffi, lib
from tvmm.screen import PALETTE_BYTES

if TYPE_CHECKING:
    from tvmm.screen import Canvas, Surface

__all__ = ["PAGE_BYTES", "refresh"]

PAGE_BYTES = int(lib.TVMM_VRAM_PAGE)
"""What a byte of `touched` stands for."""


def refresh(
    surface: Surface,
    vram: memoryview | bytes | bytearray,
    canvas: Canvas,
    touched: bytes | bytearray | None,
    damage: bytearray,
) -> int:
    """Bring `canvas` up to date and say how many tiles changed.

    `touched` has a byte for each page of `vram`, 1 if it may have changed since the last call and 0 if not; None: all
    may have, as after a change of the surface or of its palette. `damage` has a byte for each tile of the canvas, row
    by row, and gets a 1 for each that changed; the others stay as they are.

    Raises `ValueError` if the surface cannot be, is not all in `vram`, or is of another size than the canvas.
    """
    surface.check(len(vram))
    if (surface.width, surface.height) != (canvas.width, canvas.height):
        raise ValueError(
            f"a surface of {surface.width}x{surface.height} for a canvas of {canvas.width}x{canvas.height}"
        )
    raw = ffi.new("struct tvmm_surface *")
    raw.width, raw.height, raw.bits = surface.width, surface.height, surface.bits_per_pixel
    raw.stride, raw.offset = surface.stride, surface.offset
    if surface.bits_per_pixel == 8:
        ffi.memmove(raw.palette, surface.palette, PALETTE_BYTES)
    with (
        ffi.from_buffer("uint8_t[]", vram) as source,
        ffi.from_buffer("uint8_t[]", b"" if touched is None else touched) as pages,
        ffi.from_buffer("uint8_t[]", canvas.pixels, require_writable=True) as target,
        ffi.from_buffer("uint8_t[]", damage, require_writable=True) as marks,
    ):
        changed = int(
            lib.tvmm_screen_refresh(
                raw,
                source,
                len(source),
                ffi.NULL if touched is None else pages,
                len(pages),
                target,
                len(target),
                marks,
                len(marks),
            )
        )
    if changed < 0:
        raise ValueError("the pages or tiles that were given are not those of the surface")
    return changed
