"""Damage as tiles, and the rectangles that are made of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.screen import TILE_HEIGHT, TILE_WIDTH
from tvmm.vnc.damage import RECTS_MAX, Damage
from tvmm.vnc.pixel_format import Rect

SIZES = st.tuples(st.integers(1, 700), st.integers(1, 200))


def tiles_of(damage: Damage, rect: Rect) -> set[int]:
    """Tile by tile, what a rectangle touches."""
    return {
        row * damage.columns + column
        for row in range(damage.rows)
        for column in range(damage.columns)
        if rect.intersect(Rect(column * TILE_WIDTH, row * TILE_HEIGHT, TILE_WIDTH, TILE_HEIGHT)).area
    }


def damaged(damage: Damage) -> set[int]:
    """Tiles that are."""
    return {number for number, tile in enumerate(damage.tiles) if tile}


@given(SIZES, st.data())
def test_taking_gives_every_tile_once(size: tuple[int, int], data: st.DataObject) -> None:
    """Rectangles cover what was damaged in the region, nothing else, nothing twice, inside of the screen."""
    damage = Damage(*size)
    tiles = data.draw(st.binary(min_size=len(damage.tiles), max_size=len(damage.tiles)))
    damage.add(bytes(byte & 1 for byte in tiles))
    region = Rect(*data.draw(st.tuples(*[st.integers(0, 800)] * 4)))
    before, wanted = damaged(damage), tiles_of(damage, region.clip(*size))
    rects = damage.take(region)
    covered = [tile for rect in rects for tile in tiles_of(damage, rect)]
    assert len(covered) == len(set(covered))
    assert set(covered) == before & wanted
    assert damaged(damage) == before - wanted
    assert all(rect.clip(*size) == rect for rect in rects)
    assert rects == sorted(rects, key=lambda rect: (rect.y, rect.x))


@given(SIZES, st.lists(st.tuples(*[st.integers(0, 800)] * 4), max_size=5))
def test_rectangles_and_unions(size: tuple[int, int], places: list[tuple[int, int, int, int]]) -> None:
    """Adding and removing of rectangles and of tiles, against sets."""
    damage, other = Damage(*size), Damage(*size)
    expected: set[int] = set()
    for place in places:
        rect = Rect(*place)
        other.clear()
        other.add_rect(rect)
        assert damaged(other) == tiles_of(other, rect.clip(*size))
        damage.add(other.tiles)
        expected |= damaged(other)
    assert damaged(damage) == expected
    assert bool(damage) is bool(expected)
    assert damage.count() == len(expected)
    for place in places[:2]:
        damage.remove_rect(Rect(*place))
        expected -= tiles_of(damage, Rect(*place).clip(*size))
    assert damaged(damage) == expected
    damage.remove(bytes(damage.tiles))
    assert not damage


def test_everything_is_one_rectangle() -> None:
    """And so is a window."""
    damage = Damage(2560, 1600)
    damage.add_rect(Rect(0, 0, 2560, 1600))
    assert damage.take(Rect(0, 0, 2560, 1600)) == [Rect(0, 0, 2560, 1600)]
    damage.add_rect(Rect(130, 40, 300, 500))
    assert damage.take(Rect(0, 0, 2560, 1600)) == [Rect(128, 32, 320, 512)]


def test_a_chessboard_is_not_thousands_of_rectangles() -> None:
    """Then tiles between are sent too, but each only once."""
    damage = Damage(2560, 1600)
    damage.add(bytes((number + number // damage.columns) % 2 for number in range(len(damage.tiles))))
    rects = damage.take(Rect(0, 0, 2560, 1600))
    assert 1 <= len(rects) <= RECTS_MAX
    assert not damage
    for rect in rects:
        damage.add_rect(rect)
    assert damage.count() * TILE_WIDTH * TILE_HEIGHT == sum(rect.area for rect in rects)


def test_a_limit_is_of_tiles() -> None:
    """Whole rows until there are enough; the others stay."""
    damage = Damage(640, 160)
    damage.add_rect(Rect(0, 0, 640, 160))
    assert damage.take(Rect(0, 0, 640, 160), limit=25) == [Rect(0, 0, 640, 48)]
    assert damage.count() == 70


def test_another_screens_tiles() -> None:
    """Are a mistake of the caller."""
    with pytest.raises(ValueError, match="tiles"):
        Damage(640, 160).add(bytes(3))
