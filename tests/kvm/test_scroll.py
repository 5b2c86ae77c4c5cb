"""Scrolls: every one that is found is a copy of what was there, and the plain ones are found."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pictures import noise, text
from tests.support.rfb_decoders import Viewer
from tvmm.kvm.pixels import refresh
from tvmm.kvm.scroll import Scroll, ScrollFinder
from tvmm.screen import Canvas, Surface
from tvmm.vnc.encoder import encode_scrolls
from tvmm.vnc.pixel_format import DEFAULT, Rect


class Screen:
    """A guest's screen, and a viewer that gets scrolls first and then the damage that is left."""

    def __init__(self, width: int, height: int) -> None:
        self.surface = Surface(width, height, 4 * width, 32, 0)
        self.vram = bytearray(4 * width * height)
        self.canvas, self.finder = Canvas(width, height), ScrollFinder()
        self.pending = self.canvas.new_damage()
        self.viewer = Viewer(width, height, DEFAULT)
        self.copied = 0

    def move(self, rect: Rect, distance: int) -> None:
        """What is `distance` lines further down comes to `rect`."""
        stride, old = self.surface.stride, bytes(self.vram)
        for y in range(rect.y, rect.y + rect.height):
            at, source = y * stride + 4 * rect.x, (y + distance) * stride + 4 * rect.x
            self.vram[at : at + 4 * rect.width] = old[source : source + 4 * rect.width]

    def paint(self, rect: Rect, chosen: random.Random) -> None:
        """Noise."""
        for y in range(rect.y, rect.y + rect.height):
            at = y * self.surface.stride + 4 * rect.x
            self.vram[at : at + 4 * rect.width] = chosen.randbytes(4 * rect.width)

    def update(self, *, ready: bool = True) -> list[Scroll]:
        """A refresh; if the viewer is ready, it gets all that it has not got. What was found."""
        damage = self.canvas.new_damage()
        refresh(self.surface, self.vram, self.canvas, None, damage)
        scrolls = self.finder.update(self.canvas, damage)
        before = bytes(self.pending)
        self.pending[:] = bytes(a | b for a, b in zip(self.pending, damage, strict=True))
        if not ready:
            return scrolls
        usable = [one for one in scrolls if not one.unseen(before, self.canvas.columns)]
        count, chunks = encode_scrolls(usable)
        self.viewer.update(count, b"".join(chunks))
        self.copied += count
        for one in usable:
            one.settle(self.pending, self.canvas.columns)
        lines = self._lines()
        for at in range(len(self.pending)):
            if self.pending[at]:
                self._send_tile(at, lines)
        self.pending[:] = bytes(len(self.pending))
        assert self.viewer.lines == lines
        return scrolls

    def _lines(self) -> list[list[int]]:
        values = memoryview(self.canvas.pixels).cast("I").tolist()
        width = self.canvas.width
        return [values[y * width : (y + 1) * width] for y in range(self.canvas.height)]

    def _send_tile(self, at: int, lines: list[list[int]]) -> None:
        row, column = divmod(at, self.canvas.columns)
        for y in range(row * 16, min(row * 16 + 16, self.canvas.height)):
            x = slice(column * 64, column * 64 + 64)
            self.viewer.lines[y][x] = lines[y][x]


def text_screen(width: int, height: int, seed: int = 1) -> Screen:
    """A screen of text that the viewer has."""
    screen, canvas = Screen(width, height), Canvas(width, height)
    (noise if seed % 2 else text)(canvas, random.Random(seed))
    screen.vram[:] = canvas.pixels
    assert screen.update() == []
    return screen


@pytest.mark.parametrize("distance", [1, 16, 37, -16, -5])
def test_whole_screen_scrolls(distance: int) -> None:
    """Up and down, by lines of text or by less."""
    screen = text_screen(320, 320)
    height = 320 - abs(distance)
    target = Rect(0, 0 if distance > 0 else -distance, 320, height)
    screen.move(target, distance)
    (scroll,) = screen.update()
    assert scroll.source_y - scroll.y == distance
    assert (scroll.x, scroll.width) == (0, 320)
    assert scroll.height > height - 32
    assert screen.copied == 1


def test_around_a_video() -> None:
    """What changes by itself in the middle costs one more rectangle or two."""
    chosen = random.Random(3)
    screen = text_screen(640, 480)
    screen.move(Rect(0, 0, 640, 464), 16)
    screen.paint(Rect(200, 100, 150, 100), chosen)
    scrolls = screen.update()
    assert 2 <= len(scrolls) <= 4
    assert sum(one.width * one.height for one in scrolls) > 640 * 464 * 0.75


def test_viewer_that_is_behind() -> None:
    """It has not got what it would have to copy, and gets it in another way."""
    chosen = random.Random(3)
    screen = text_screen(320, 320)
    screen.paint(Rect(100, 100, 9, 9), chosen)
    screen.update(ready=False)
    screen.move(Rect(0, 0, 320, 304), 16)
    assert screen.update()
    assert screen.copied == 0


def test_change_of_size() -> None:
    """Nothing of a picture of another size is used."""
    screen = text_screen(320, 320)
    screen.canvas.resize(320, 320)
    assert screen.finder.update(screen.canvas, screen.canvas.new_damage()) == []
    screen.canvas.resize(64, 320)
    assert screen.finder.update(screen.canvas, screen.canvas.new_damage()) == []


def test_lines_that_are_all_alike() -> None:
    """A picture of two colours in turns has no line that is there once: nothing is found, and nothing takes long."""
    screen = Screen(128, 1600)
    screen.vram[:] = (bytes(512) + b"\xff" * 512) * 800
    screen.update()
    screen.vram[:] = (b"\xff" * 512 + bytes(512)) * 800
    assert screen.update() == []


def test_damage_of_another_size() -> None:
    """Refused."""
    with pytest.raises(ValueError, match="tiles"):
        ScrollFinder().update(Canvas(64, 64), bytes(5))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 2**32), min_size=1, max_size=4))
def test_viewer_is_right_whatever_moves(seed: int, steps: list[int]) -> None:
    """Moves and changes at random, with a viewer that is not always ready."""
    screen = text_screen(200, 333, seed)
    for step in steps:
        chosen = random.Random(step)
        for _ in range(chosen.randint(1, 3)):
            x, y = chosen.randrange(150), chosen.randrange(100)
            rect = Rect(x, y, chosen.randint(1, 200 - x), chosen.randint(1, 333 - y))
            if chosen.random() < 0.8:
                screen.move(rect, chosen.randint(-rect.y, 333 - rect.y - rect.height))
            else:
                screen.paint(rect, chosen)
        screen.update(ready=chosen.random() < 0.8)
    screen.update()
