"""Pictures that encoders meet, made from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable

from tvmm.screen import Canvas

Colour = tuple[int, int, int]
"""Blue, green, red."""


def _fill(canvas: Canvas, colour_at: Callable[[int, int], Colour]) -> None:
    canvas.pixels[:] = b"".join(bytes((*colour_at(x, y), 0)) for y in range(canvas.height) for x in range(canvas.width))


def noise(canvas: Canvas, chosen: random.Random) -> None:
    """Nothing like its neighbour."""
    canvas.pixels[:] = chosen.randbytes(len(canvas.pixels))
    canvas.pixels[3::4] = bytes(len(canvas.pixels) // 4)


def solid(canvas: Canvas, chosen: random.Random) -> None:
    """One colour."""
    canvas.pixels[:] = (chosen.randbytes(3) + b"\0") * (canvas.width * canvas.height)


def few_colours(canvas: Canvas, chosen: random.Random) -> None:
    """2 to 300 colours in short runs."""
    colours = [
        (chosen.randrange(256), chosen.randrange(256), chosen.randrange(256))
        for _ in range(chosen.choice([2, 3, 4, 5, 16, 17, 127, 128, 200, 256, 257, 300]))
    ]
    longest = chosen.choice([1, 4, 300])
    pixels: list[Colour] = []
    while len(pixels) < canvas.width * canvas.height:
        pixels += [chosen.choice(colours)] * chosen.randint(1, longest)
    _fill(canvas, lambda x, y: pixels[y * canvas.width + x])


def gradient(canvas: Canvas, chosen: random.Random) -> None:
    """Smooth, in two directions."""
    across, down = chosen.randint(1, 4), chosen.randint(1, 4)
    _fill(canvas, lambda x, y: (x * across & 255, y * down & 255, (x + y) & 255))


def text(canvas: Canvas, chosen: random.Random) -> None:
    """Glyphs of 8x16 in one or a few colours on a background, with empty lines and ends of lines."""
    back: Colour = chosen.choice([(0, 0, 0), (255, 255, 255), (40, 30, 20)])
    inks: list[Colour] = [(255, 255, 255), (0, 200, 0), (200, 60, 0)][: chosen.randint(1, 3)]
    glyphs = [[chosen.getrandbits(8) & chosen.getrandbits(8) for _ in range(16)] for _ in range(30)]
    lines = [
        [(chosen.choice(glyphs), chosen.choice(inks)) for _ in range(chosen.choice([0, 5, canvas.width // 8]))]
        for _ in range(canvas.height // 16 + 1)
    ]

    def colour_at(x: int, y: int) -> Colour:
        line = lines[y // 16]
        if x // 8 >= len(line):
            return back
        glyph, ink = line[x // 8]
        return ink if glyph[y % 16] >> 7 - x % 8 & 1 else back

    _fill(canvas, colour_at)


def photo(canvas: Canvas, chosen: random.Random) -> None:
    """Smooth, with a little noise on it."""
    across, down = chosen.uniform(0.2, 2), chosen.uniform(0.2, 2)
    _fill(
        canvas,
        lambda x, y: (
            int(x * across) % 200 + chosen.randrange(8),
            int(y * down) % 200 + chosen.randrange(8),
            int((x + y) * across) % 200 + chosen.randrange(8),
        ),
    )


def mixed(canvas: Canvas, chosen: random.Random) -> None:
    """Text, with a photograph and a plain area in it."""
    text(canvas, chosen)
    for paint in (photo, solid):
        part = Canvas(max(1, canvas.width // 2), max(1, canvas.height // 2))
        paint(part, chosen)
        left, top = chosen.randint(0, canvas.width - part.width), chosen.randint(0, canvas.height - part.height)
        for y in range(part.height):
            at = 4 * ((top + y) * canvas.width + left)
            canvas.pixels[at : at + 4 * part.width] = part.pixels[4 * y * part.width : 4 * (y + 1) * part.width]


PICTURES = (noise, solid, few_colours, gradient, text, photo, mixed)
