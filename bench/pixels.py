"""What a picture costs: from video memory to the canvas, and from there to a viewer's bytes in each encoding.

    python -m bench.pixels [--runs N] [--size 1280x800]

Two pictures move: text that scrolls up by a line a frame with a region like a video in it, and the video alone over the
whole screen. Nanoseconds are a pixel of the screen, of one thread; bytes are those of a frame.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

from bench.common import Figures
from tvmm.kvm.pixels import refresh
from tvmm.kvm.scroll import ScrollFinder
from tvmm.screen import TILE_HEIGHT, TILE_WIDTH, Canvas, Surface
from tvmm.vnc.encoder import HEXTILE, RAW, TIGHT, TIGHT_PNG, ZRLE, Encoder, EncoderSettings
from tvmm.vnc.pixel_format import DEFAULT, PixelFormat, Rect

RUNS = 12
GLYPH_WIDTH, GLYPH_HEIGHT = 8, 16
VIDEO_WIDTH, VIDEO_HEIGHT = 320, 240
VIDEO_FRAMES = 8
COLOURS = ((200, 200, 200), (90, 200, 90), (220, 170, 80), (200, 200, 200))
SMALL = PixelFormat(16, 16, False, True, 31, 63, 31, 11, 5, 0)

SCROLLS = "scrolls"

CASES = (
    ("Raw", EncoderSettings(RAW)),
    ("Raw, 16 bits", EncoderSettings(RAW, SMALL)),
    ("Hextile", EncoderSettings(HEXTILE)),
    ("ZRLE, level 1", EncoderSettings(ZRLE, DEFAULT, 1)),
    ("ZRLE, level 2", EncoderSettings(ZRLE, DEFAULT, 2)),
    ("ZRLE, level 6", EncoderSettings(ZRLE, DEFAULT, 6)),
    ("ZRLE, level 9", EncoderSettings(ZRLE, DEFAULT, 9)),
    ("ZRLE, level 2, 16 bits", EncoderSettings(ZRLE, SMALL, 2)),
    ("ZRLE, level 2, scrolls", EncoderSettings(ZRLE, DEFAULT, 2)),
    ("Tight, level 1", EncoderSettings(TIGHT, DEFAULT, 1)),
    ("Tight, level 2", EncoderSettings(TIGHT, DEFAULT, 2)),
    ("Tight, level 6", EncoderSettings(TIGHT, DEFAULT, 6)),
    ("Tight, level 2, quality 6", EncoderSettings(TIGHT, DEFAULT, 2, 6)),
    ("Tight, level 2, quality 9", EncoderSettings(TIGHT, DEFAULT, 2, 9)),
    ("Tight, level 2, scrolls", EncoderSettings(TIGHT, DEFAULT, 2)),
    ("Tight, level 2, quality 6, scrolls", EncoderSettings(TIGHT, DEFAULT, 2, 6)),
    ("TightPNG, level 2", EncoderSettings(TIGHT_PNG, DEFAULT, 2)),
    ("TightPNG, level 2, quality 6", EncoderSettings(TIGHT_PNG, DEFAULT, 2, 6)),
)


def glyph_rows(letter: int, colour: tuple[int, int, int]) -> list[bytes]:
    """A made-up glyph with strokes, on black."""
    chosen = random.Random(letter)
    bits = [0] * GLYPH_HEIGHT
    for row in range(3, 13) if letter > 32 else ():
        bits[row] = bits[row - 1] if chosen.random() < 0.6 else chosen.choice((0x42, 0x7C, 0x18, 0x40, 0x24, 0x66))
    ink, back = bytes((*colour, 0)), bytes(4)
    return [b"".join(ink if row >> 7 - bit & 1 else back for bit in range(GLYPH_WIDTH)) for row in bits]


class Pictures:
    """Video memory, one frame after the other."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height, self.stride = width, height, 4 * width
        self.vram = bytearray(self.stride * height)
        self._glyphs: dict[tuple[int, int], list[bytes]] = {}
        source = (Path(__file__).parent / "pixels.py").read_text().splitlines()
        self._lines = [self._text_line(line, number) for number, line in enumerate(source)]
        self._video = [self._video_frame(number) for number in range(VIDEO_FRAMES)]

    def _text_line(self, line: str, number: int) -> bytes:
        cells = line.ljust(self.width // GLYPH_WIDTH)[: self.width // GLYPH_WIDTH]
        glyphs = []
        for at, letter in enumerate(cells):
            key = (ord(letter), (number + at // 12) % len(COLOURS))
            if key not in self._glyphs:
                self._glyphs[key] = glyph_rows(key[0], COLOURS[key[1]])
            glyphs.append(self._glyphs[key])
        return b"".join(
            b"".join(glyph[row] for glyph in glyphs).ljust(self.stride, b"\0") for row in range(GLYPH_HEIGHT)
        )

    @staticmethod
    def _video_frame(number: int) -> list[bytes]:
        chosen, phase = random.Random(number), number / VIDEO_FRAMES * math.tau
        across = [math.sin(x / 23 + phase) for x in range(VIDEO_WIDTH)]
        rows = []
        for y in range(VIDEO_HEIGHT):
            down = math.cos(y / 17 - phase)
            row = bytearray()
            for wave in across:
                grain = chosen.randrange(6)
                level = int(110 + 50 * wave + 50 * down)
                row += bytes((level + grain, int(120 + 100 * wave * down) + grain, 255 - level - grain, 0))
            rows.append(bytes(row))
        return rows

    def text(self, number: int) -> None:
        """Text that scrolled `number` lines, and a frame of the video at the right."""
        for row in range(self.height // GLYPH_HEIGHT):
            at = row * GLYPH_HEIGHT * self.stride
            line = self._lines[(row + number) % len(self._lines)]
            self.vram[at : at + len(line)] = line
        self._place(number, self.width - VIDEO_WIDTH - 70, 100)

    def video(self, number: int) -> None:
        """The video again and again over the screen."""
        for place, y in enumerate(range(0, self.height, VIDEO_HEIGHT)):
            for x in range(0, self.width, VIDEO_WIDTH):
                self._place(number + 3 * place + x // VIDEO_WIDTH, x, y)

    def _place(self, number: int, left: int, top: int) -> None:
        across = min(VIDEO_WIDTH, self.width - left) * 4
        for y, row in enumerate(self._video[number % VIDEO_FRAMES][: self.height - top]):
            at = (top + y) * self.stride + 4 * left
            self.vram[at : at + across] = row[:across]


def changed_rects(canvas: Canvas, damage: bytearray) -> Iterator[Rect]:
    """Runs of damaged tiles, those of equal extent below each other as one."""
    open_runs: dict[tuple[int, int], int] = {}
    for row in range(canvas.rows + 1):
        marks = damage[row * canvas.columns : (row + 1) * canvas.columns]
        runs, start = set(), -1
        for column, mark in enumerate((*marks, 0) if row < canvas.rows else ()):
            if mark and start < 0:
                start = column
            if not mark and start >= 0:
                runs.add((start, column))
                start = -1
        for run in [run for run in open_runs if run not in runs]:
            x, y = run[0] * TILE_WIDTH, open_runs.pop(run) * TILE_HEIGHT
            right, bottom = min(canvas.width, run[1] * TILE_WIDTH), min(canvas.height, row * TILE_HEIGHT)
            yield Rect(x, y, right - x, bottom - y)
        for run in runs:
            open_runs.setdefault(run, row)


def measure(pictures: Pictures, kind: str, runs: int) -> None:
    """Every case on one kind of picture."""
    canvas = Canvas(pictures.width, pictures.height)
    surface = Surface(pictures.width, pictures.height, pictures.stride, 32, 0)
    paint = pictures.text if kind == "text" else pictures.video
    pixels = canvas.width * canvas.height
    encoders = {name: Encoder() for name, _ in CASES}
    times: dict[str, list[float]] = {name: [] for name in encoders}
    sizes: dict[str, list[float]] = {name: [] for name in encoders}
    finder = ScrollFinder()
    changing, still, finding = [], [], []
    for number in range(runs + 1):
        paint(number)
        damage = canvas.new_damage()
        started = time.perf_counter_ns()
        refresh(surface, pictures.vram, canvas, None, damage)
        changing.append((time.perf_counter_ns() - started) / pixels)
        started = time.perf_counter_ns()
        refresh(surface, pictures.vram, canvas, None, canvas.new_damage())
        still.append((time.perf_counter_ns() - started) / pixels)
        started = time.perf_counter_ns()
        scrolls = finder.update(canvas, damage)
        finding.append((time.perf_counter_ns() - started) / pixels)
        left = bytearray(damage)
        for scroll in scrolls:
            scroll.settle(left, canvas.columns)
        parts = {True: list(changed_rects(canvas, left)), False: list(changed_rects(canvas, damage))}
        for name, wanted in CASES:
            started = time.perf_counter_ns()
            _, chunks = encoders[name].encode(canvas, parts[name.endswith(SCROLLS)], wanted)
            if number:
                times[name].append((time.perf_counter_ns() - started) / pixels)
                sizes[name].append(sum(map(len, chunks)))
    print(f"{kind}, {canvas.width}x{canvas.height}: ns a pixel, and bytes a frame")
    print(f"  {'refresh, as it changes':36}{Figures(tuple(changing[1:])).median:8.2f}")
    print(f"  {'refresh, nothing changed':36}{Figures(tuple(still)).median:8.2f}")
    print(f"  {'scrolls, to find them':36}{Figures(tuple(finding[1:])).median:8.2f}")
    for name in encoders:
        print(f"  {name:36}{Figures(tuple(times[name])).median:8.2f}{Figures(tuple(sizes[name])).median:12.0f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--size", default="1280x800")
    chosen = parser.parse_args()
    width, _, height = chosen.size.partition("x")
    pictures = Pictures(int(width), int(height))
    for kind in ("text", "video"):
        measure(pictures, kind, chosen.runs)


if __name__ == "__main__":
    main()
